"""What a load process asks of the operating system: open files and scheduling priority."""

import contextlib
import os
import resource
from typing import Final

REALTIME_PRIORITY: Final = 1
NICENESS: Final = -10


def raise_file_limit() -> None:
    """Every connection is a descriptor: take as many as the host allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def take_priority() -> None:
    """Ask for a higher scheduling priority, where the system allows it: a late read is a late time.

    Beside a busy server on few cores a client that needs 2 % of one otherwise waits tens of
    milliseconds for it. Real-time first: niceness counts only among the processes of one session
    where the kernel groups them so. What came of it is in the audit (``priority``).
    """
    with contextlib.suppress(OSError):  # no right to: go on as we are
        os.setpriority(os.PRIO_PROCESS, 0, min(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(REALTIME_PRIORITY))
