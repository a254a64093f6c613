"""asyncio's loop as the streaming client wants it, and a pacer finer than the loop's own timers.

asyncio rounds its timers up to a millisecond (epoll's unit); a timerfd is a descriptor that becomes
readable at the nanosecond asked for, and any loop can watch it.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from typing import Final

from loadgen.wire.connection import Loop, Watch

CLOCK_MONOTONIC: Final = 1
TFD_NONBLOCK: Final = os.O_NONBLOCK
TFD_CLOEXEC: Final = os.O_CLOEXEC
TFD_TIMER_ABSTIME: Final = 1


class AsyncioLoop:
    """Watches descriptors on the running asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def watch_read(self, fd: int, callback: Callable[[], object]) -> Watch:
        self._loop.add_reader(fd, callback)
        return _AsyncioWatch(lambda: self._loop.remove_reader(fd))

    def watch_write(self, fd: int, callback: Callable[[], object]) -> Watch:
        self._loop.add_writer(fd, callback)
        return _AsyncioWatch(lambda: self._loop.remove_writer(fd))


class Checking:
    """A loop that calls ``check`` after each read, so that what is due need not wait for all reads.

    With hundreds of streams a look at the sockets finds dozens readable; their callbacks together take
    longer than a send may be late.
    """

    def __init__(self, loop: Loop, check: Callable[[], object]) -> None:
        self._loop = loop
        self._check = check

    def watch_read(self, fd: int, callback: Callable[[], object]) -> Watch:
        check = self._check

        def read_and_check() -> None:
            callback()
            check()

        return self._loop.watch_read(fd, read_and_check)

    def watch_write(self, fd: int, callback: Callable[[], object]) -> Watch:
        return self._loop.watch_write(fd, callback)


class _AsyncioWatch:
    def __init__(self, remove: Callable[[], object]) -> None:
        self._remove = remove

    def stop(self) -> None:
        self._remove()


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """Calls ``callback`` in the loop at a moment of CLOCK_MONOTONIC. One moment at a time."""

    def __init__(self, loop: Loop, callback: Callable[[], object]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._callback = callback
        self._watch = loop.watch_read(self._fd, self._ring)

    def set(self, mono_ns: int) -> None:
        """Ring at ``mono_ns``; at once when that has passed."""
        moment = max(mono_ns, time.monotonic_ns() + 1)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(moment // 10**9, moment % 10**9))
        if self._libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._callback()

    def close(self) -> None:
        self._watch.stop()
        os.close(self._fd)
