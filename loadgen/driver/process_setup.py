"""What a load process asks of the operating system: open files, scheduling priority, a signal."""

import contextlib
import os
import resource
import signal
import time
from types import FrameType
from typing import Final

from loadgen.driver.phases import PhaseClock

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


def end_measuring_on_signal(phases: PhaseClock) -> None:
    """SIGUSR1 ends the measured phase now; what is open gets its drain.

    A handler of Python's own, which outlives the event loop: a signal that comes while replies are graded
    would end the process otherwise. Loops wake for their ticks, so it runs within one.
    """

    def end(number: int, frame: FrameType | None) -> None:
        phases.stop(time.monotonic_ns())

    signal.signal(signal.SIGUSR1, end)
