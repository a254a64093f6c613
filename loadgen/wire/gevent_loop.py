"""gevent's hub as the streaming client wants it: one persistent libev watcher a descriptor.

Two things keep the reads punctual and cheap. What follows a reply (the next send of its user, then its
parsing) runs after the reads that are ready, for a slice of time at once, so that 256 replies that end
together do not hold up the others' tokens. And the hub may nap between two looks, where whoever made it
says so: the kernel stamps what comes meanwhile, and one waking serves many reads (256 streams: 14 ms of
CPU for 1,000 chunks instead of 22).
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.monkey import get_original

from loadgen.wire.connection import Watch

READ, WRITE = 1, 2
SLICE_NS: Final = 300_000  # of what may wait, before the next look at the sockets
AFTER_READS: Final = -1  # libev's priority: watchers of priority 0 come first

_sleep = get_original("time", "sleep")  # gevent's own would only switch greenlets


class GeventLoop:
    """Watches descriptors on this thread's hub. Callbacks run in the hub: they must not block.

    ``nap_until_ns`` is asked before every look while nothing waits to be done: given the moment of the
    look before, it says when to look again (monotonic ns; one that has passed: now). ``at_rest`` is
    called whenever all that waited has been done.
    """

    def __init__(
        self,
        nap_until_ns: Callable[[int], int] = lambda looked_ns: looked_ns,
        at_rest: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop: Any = gevent.get_hub().loop
        self._nap_until_ns = nap_until_ns
        self._at_rest = at_rest
        self._later: deque[Callable[[], object]] = deque()
        self._at_leisure: deque[Callable[[], object]] = deque()
        self._timer = self._loop.timer(0, priority=AFTER_READS)
        self._closed = False
        self._looked_ns = 0
        self._before_look = self._loop.prepare(ref=False)
        self._before_look.start(self._nap)

    def watch_read(self, fd: int, callback: Callable[[], object]) -> Watch:
        return _GeventWatch(self._loop.io(fd, READ), callback)

    def watch_write(self, fd: int, callback: Callable[[], object]) -> Watch:
        return _GeventWatch(self._loop.io(fd, WRITE), callback)

    def later(self, callback: Callable[[], object]) -> None:
        """Call in the hub, after the reads that are ready. In order; at once when closed."""
        self._put(self._later, callback)

    def at_leisure(self, callback: Callable[[], object]) -> None:
        """Call in the hub when there is nothing to do ``later``. In order; at once when closed."""
        self._put(self._at_leisure, callback)

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        gevent.spawn_later(seconds, callback)

    def _put(self, queue: deque[Callable[[], object]], callback: Callable[[], object]) -> None:
        if self._closed:
            callback()
            return
        queue.append(callback)
        if not self._timer.active:
            self._timer.start(self._run_waiting)

    @property
    def _waiting(self) -> deque[Callable[[], object]]:
        return self._later or self._at_leisure

    def _run_waiting(self) -> None:
        until = time.monotonic_ns() + SLICE_NS
        try:
            while queue := self._later or self._at_leisure:
                queue.popleft()()
                if time.monotonic_ns() > until:
                    break
        finally:
            if self._waiting and not self._closed:
                self._timer.start(self._run_waiting)
        if not self._waiting:
            self._at_rest()

    def _nap(self) -> None:
        if not self._waiting:
            left_ns = self._nap_until_ns(self._looked_ns) - time.monotonic_ns()
            if left_ns > 0:
                _sleep(left_ns / 1e9)
        self._looked_ns = time.monotonic_ns()

    def close(self) -> None:
        """Look no more, and do what waits, now."""
        for watcher in (self._before_look, self._timer):
            watcher.stop()
            watcher.close()
        self._closed = True
        while self._waiting:
            self._waiting.popleft()()


class _GeventWatch:
    def __init__(self, watcher: Any, callback: Callable[[], object]) -> None:
        self._watcher = watcher
        watcher.start(callback)

    def stop(self) -> None:
        self._watcher.stop()
        self._watcher.close()
