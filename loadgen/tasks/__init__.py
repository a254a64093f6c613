"""The task table. Adding a task is a file beside this one and a line here."""

from loadgen.tasks import multi_key, perplexity, retrieve, summarize
from loadgen.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (summarize.TASK, retrieve.TASK, multi_key.TASK, perplexity.TASK)
}
