"""One function of several things, each in a process of its own: as many at once as there are cores."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from greenbench.contract.cpu import usable_cores

Thing = TypeVar("Thing")
Found = TypeVar("Found")
LINEAR_ALGEBRA = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


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
                with _of_one_thread():
                    found = [pool.submit(of, one) for one in things]
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            return [each.result() for each in found]
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextlib.contextmanager
def _of_one_thread() -> Iterator[None]:
    """Processes that start here do linear algebra in one thread each: there are as many as cores, and threads
    beside them spin while they wait.
    """
    before = {name: os.environ.get(name) for name in LINEAR_ALGEBRA}
    os.environ.update(dict.fromkeys(LINEAR_ALGEBRA, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Also when it is killed: a process that waits for work would wait for ever."""

    def ends() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=ends, daemon=True).start()
