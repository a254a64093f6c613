"""One function of several things, each in a process of its own: as many at once as there are cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from greenbench.contract.cpu import usable_cores

Thing = TypeVar("Thing")
Found = TypeVar("Found")


def side_by_side(of: Callable[[Thing], Found], things: Sequence[Thing]) -> list[Found]:
    """In their order; what is raised for one ends them all. No process is started for one thing or core."""
    processes = min(len(things), usable_cores())
    if processes < 2:
        return [of(one) for one in things]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        try:
            # blocked in the processes too, which inherit it: Ctrl-C is answered here
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                found = [pool.submit(of, one) for one in things]
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            return [each.result() for each in found]
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _end_with_parent() -> None:
    """Also when it is killed: a process that waits for work would wait for ever."""

    def ends() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=ends, daemon=True).start()
