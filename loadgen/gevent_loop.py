"""gevent's hub as the streaming client wants it: one persistent libev watcher a descriptor."""

from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import Waiter

from loadgen.exchange import Outgoing, Reply
from loadgen.fast import Connection, Watch

READ, WRITE = 1, 2


class GeventLoop:
    """Watches descriptors on this thread's hub. Callbacks run in the hub: they must not block."""

    def __init__(self) -> None:
        self._loop: Any = gevent.get_hub().loop

    def watch_read(self, fd: int, callback: Callable[[], object]) -> Watch:
        return _GeventWatch(self._loop.io(fd, READ), callback)

    def watch_write(self, fd: int, callback: Callable[[], object]) -> Watch:
        return _GeventWatch(self._loop.io(fd, WRITE), callback)


class _GeventWatch:
    def __init__(self, watcher: Any, callback: Callable[[], object]) -> None:
        self._watcher = watcher
        watcher.start(callback)

    def stop(self) -> None:
        self._watcher.stop()
        self._watcher.close()


class Sent:
    """A request under way; ``wait`` puts the calling greenlet to sleep until its reply is over."""

    def __init__(self, connection: Connection, outgoing: Outgoing, timeout_s: float) -> None:
        self._waiter: Waiter[Reply] = Waiter()
        connection.start(outgoing, timeout_s, self._over)

    def _over(self, reply: Reply) -> None:
        hub = gevent.get_hub()
        if gevent.getcurrent() is hub:
            self._waiter.switch(reply)
        else:  # ended by a greenlet (time limit, drain), and only the hub may switch to the waiter
            hub.loop.run_callback(self._waiter.switch, reply)

    def wait(self) -> Reply:
        return self._waiter.get()
