"""Sends requests at their scheduled moments, whatever the server does."""

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Final

from loadgen.driver.arrivals import Arrival
from loadgen.driver.dispatch import Dispatcher, open_ahead
from loadgen.driver.session import TICK_S, Session
from loadgen.wire.asyncio_loop import Alarm, AsyncioLoop, Checking
from loadgen.wire.connection import outcome
from loadgen.wire.httpx_client import AsyncHttpxClient
from loadgen.wire.pool import Pool
from loadgen.wire.response import RawReply, Request, Response

SETTLE_NS: Final = 2_000_000  # parse for so long at a time …
GUARD_NS: Final = 300_000  # … and not in the last moments before a send


class FastSender:
    """Sends on pooled connections; replies are parsed after the sends that are due."""

    def __init__(self, session: Session, pool: Pool, ahead: int) -> None:
        self._session = session
        self._pool = pool
        self._ahead = ahead
        self.finished: list[tuple[Request, RawReply, int]] = []

    def send(self, request: Request) -> None:
        in_flight = self._session.depart()

        def over(reply: RawReply) -> None:
            self._session.arrived()
            self.finished.append((request, reply, in_flight))

        self._pool.start(request, over)

    def settle(self, until_ns: int | None = None) -> None:
        """Parse and record what is over, as far as the time before ``until_ns`` allows."""
        self._pool.open_ahead(self._ahead)
        while self.finished and (until_ns is None or time.monotonic_ns() < until_ns):
            request, reply, in_flight = self.finished.pop(0)
            self._session.finish(request, outcome(reply), in_flight)


class HttpxSender:
    """The portable client: one asyncio task per request."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._client = AsyncHttpxClient(session.access)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, request: Request) -> None:
        task = asyncio.get_running_loop().create_task(self._one(request, self._session.depart()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, request: Request, in_flight: int) -> None:
        response: Response = await self._client.send(request, self._session.timeout_s)
        self._session.arrived()
        self._session.finish(request, response, in_flight)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()


async def drive(session: Session, schedule: Iterator[Arrival], client: str) -> None:
    """Run the whole point; returns when the last request is over or cut."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if client == "httpx":
        await _drive_httpx(session, schedule, stop)
    else:
        await _drive_fast(session, schedule, stop)


async def _drive_fast(session: Session, schedule: Iterator[Arrival], stop: asyncio.Event) -> None:
    def ring() -> None:
        due_ns = dispatcher.send_due()
        if due_ns is not None:
            alarm.set(due_ns)
        settle()

    def send_overdue() -> None:
        if dispatcher.overdue():
            ring()

    def settle() -> None:
        due_ns = dispatcher.due_ns
        until_ns = time.monotonic_ns() + SETTLE_NS
        sender.settle(until_ns if due_ns is None else min(until_ns, due_ns - GUARD_NS))

    watcher = AsyncioLoop(asyncio.get_running_loop())
    pool = Pool(session.target, Checking(watcher, send_overdue), session.timeout_s)
    ahead = open_ahead(session.live.point)
    sender = FastSender(session, pool, ahead)
    dispatcher = Dispatcher(session, schedule, sender)
    alarm = Alarm(watcher, ring)
    pool.open_ahead(ahead)
    await asyncio.sleep(TICK_S)  # the connections stand before the first send
    alarm.set(dispatcher.begin(time.monotonic_ns()))
    while not session.tick(time.monotonic_ns()) and not stop.is_set():
        pool.expire()
        settle()
        await asyncio.sleep(TICK_S)
    alarm.close()
    session.phases.stop(time.monotonic_ns())
    pool.cut("still open when the drain ended")
    sender.settle()
    pool.close()


async def _drive_httpx(session: Session, schedule: Iterator[Arrival], stop: asyncio.Event) -> None:
    sender = HttpxSender(session)
    dispatcher = Dispatcher(session, schedule, sender)
    watcher = AsyncioLoop(asyncio.get_running_loop())

    def ring() -> None:
        due_ns = dispatcher.send_due()
        if due_ns is not None:
            alarm.set(due_ns)

    alarm = Alarm(watcher, ring)
    alarm.set(dispatcher.begin(time.monotonic_ns()))
    while not session.tick(time.monotonic_ns()) and not stop.is_set():  # noqa: ASYNC110
        await asyncio.sleep(TICK_S)
    alarm.close()
    session.phases.stop(time.monotonic_ns())
    await sender.close()
