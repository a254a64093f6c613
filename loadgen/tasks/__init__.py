"""The task table. Adding a task is a file beside this one and a line here."""

from loadgen.tasks.task import Task

TASKS: dict[str, Task] = {}
