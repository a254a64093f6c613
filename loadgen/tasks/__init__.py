"""The task table. Adding a task is a file beside this one and a line here."""

from loadgen.tasks import (
    documents,
    frequent_word,
    multi_key,
    multi_value,
    own,
    perplexity,
    retrieve,
    summarize,
    variables,
)
from loadgen.tasks.task import Task

MODULES = (
    summarize,
    retrieve,
    multi_key,
    multi_value,
    variables,
    frequent_word,
    documents,
    perplexity,
    own,
)
TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in MODULES}
