"""Open-loop load: requests go out when the schedule says, whether or not earlier ones are answered.

Latency counts from the scheduled moment (``scheduled_unix_ns`` of each row); what could not be sent
is a row too (`not_sent`). One process, one asyncio loop, no Locust. Example:

    python -m loadgen.openloop --run-dir runs/demo/20261123T074812Z-sdpa-retrieve-2048-open2-3f9a1c2e
"""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from greenbench.config import load_live_point
from greenbench.errors import UserError, exit_on_user_error
from loadgen.arrivals import Arrival, shard
from loadgen.client import AsyncHttpxClient
from loadgen.dispatch import Dispatcher, open_ahead, schedule
from loadgen.exchange import Exchange, Outgoing, Reply
from loadgen.fast import outcome
from loadgen.loops import Alarm, AsyncioLoop, Checking
from loadgen.pool import Pool
from loadgen.session import TICK_S, Session

logger = logging.getLogger(__name__)

SETTLE_NS: Final = 2_000_000  # parse for so long at a time …
GUARD_NS: Final = 300_000  # … and not in the last moments before a send
REALTIME_PRIORITY: Final = 1
NICENESS: Final = -10


class FastSender:
    """Sends on pooled connections; replies are parsed after the sends that are due."""

    def __init__(self, session: Session, pool: Pool, ahead: int) -> None:
        self._session = session
        self._pool = pool
        self._ahead = ahead
        self.finished: list[tuple[Outgoing, Reply, int]] = []

    def send(self, outgoing: Outgoing) -> None:
        in_flight = self._session.depart()

        def over(reply: Reply) -> None:
            self._session.arrived()
            self.finished.append((outgoing, reply, in_flight))

        self._pool.start(outgoing, over)

    def settle(self, until_ns: int | None = None) -> None:
        """Parse and record what is over, as far as the time before ``until_ns`` allows."""
        self._pool.open_ahead(self._ahead)
        while self.finished and (until_ns is None or time.monotonic_ns() < until_ns):
            outgoing, reply, in_flight = self.finished.pop(0)
            self._session.finish(outgoing, outcome(reply), in_flight)


class HttpxSender:
    """The portable client: a task a request."""

    def __init__(self, session: Session, base_url: str) -> None:
        self._session = session
        self._client = AsyncHttpxClient(base_url)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, outgoing: Outgoing) -> None:
        task = asyncio.get_running_loop().create_task(self._one(outgoing, self._session.depart()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, outgoing: Outgoing, in_flight: int) -> None:
        exchange: Exchange = await self._client.exchange(outgoing, self._session.timeout_s)
        self._session.arrived()
        self._session.finish(outgoing, exchange, in_flight)

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
    sender = HttpxSender(session, session.live.base_url)
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


def raise_file_limit() -> None:
    """Every connection is a descriptor: take as many as the host allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def take_priority() -> None:
    """Ask for the core ahead of others, where the system allows it: a late look is a late time.

    Beside a busy server on few cores a client that needs 2 % of one otherwise waits tens of
    milliseconds for it. Real-time first: niceness counts only among the processes of one session
    where the kernel groups them so. What came of it is in the audit (``priority``).
    """
    with contextlib.suppress(OSError):  # no right to: go on as we are
        os.setpriority(os.PRIO_PROCESS, 0, min(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(REALTIME_PRIORITY))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadgen.openloop", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="a point's run directory")
    parser.add_argument("--client", choices=("fast", "httpx"), default="fast")
    parser.add_argument(
        "--shard", default="0/1", help="this process's part of the schedule, INDEX/COUNT"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return exit_on_user_error(lambda: _run(options.run_dir, options.client, options.shard))


def _run(run_path: Path, client: str, part: str) -> None:
    live = load_live_point(run_path)
    load = live.point.load
    if load.kind != "open":
        raise UserError(
            f"{run_path}/config.yaml: load.kind is '{load.kind}', this runner needs 'open'; "
            "use locust -f loadgen/longctx.py"
        )
    index, _, count = part.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard '{part}': give INDEX/COUNT with INDEX < COUNT, e.g. 0/2")
    place = (int(index), int(count))
    raise_file_limit()
    take_priority()
    part_of_it = shard(schedule(live.point), *place)
    session = Session(run_path, live, f"openloop{place[0]}", place)
    try:
        asyncio.run(drive(session, part_of_it, client))
    finally:
        session.close()
    logger.info("%d sent, %d good, %d failed", session.sent, session.ok, session.failed)


if __name__ == "__main__":
    sys.exit(main())
