"""One test run in one Locust process: session, connections, timers.

The locustfile (`loadgen.longctx`) starts and ends it. gevent's hub sends and reads; greenlets only wait.
"""

import logging
import math
import time
from functools import partial
from typing import Final, NoReturn

import gevent
from gevent import GreenletExit
from locust.env import Environment
from locust.runners import WorkerRunner

from greenbench.contract.schema import RequestRecord
from greenbench.contract.slo import time_per_token_ns
from greenbench.contract.terminal import visible
from loadgen.driver.arrivals import shard
from loadgen.driver.closed_loop import ClosedLoop, Finished
from loadgen.driver.dispatch import Dispatcher, open_ahead, schedule
from loadgen.driver.naps import FEW, MANY, Naps
from loadgen.driver.retry import pause_after
from loadgen.driver.session import TICK_S, Session
from loadgen.driver.worker_split import DONE
from loadgen.locust_tab import Live
from loadgen.wire.asyncio_loop import Alarm, Checking
from loadgen.wire.connection import outcome
from loadgen.wire.gevent_loop import GeventLoop
from loadgen.wire.httpx_client import HttpxClient
from loadgen.wire.pool import Pool
from loadgen.wire.response import RawReply, Request, Response

logger = logging.getLogger(__name__)

QUIET_TICK_S: Final = 0.1  # each takes 180 µs of a cold core: 50 a second were 9 ms of CPU
ROWS_OF_CUT_S: Final = 1.0  # for users to write rows of what was cut; httpx's are cut by the stop


class Drive:
    """One test run of this process: session, connections, timers."""

    def __init__(self, environment: Environment, session: Session) -> None:
        self.environment = environment
        self.session = session
        self.options = environment.parsed_options
        self._live: Live = environment.live  # type: ignore[attr-defined]
        load = session.live.point.load
        opened = load.kind == "open"
        self._naps = Naps()
        # nothing has a moment of its own: neither sends, nor times that the program takes
        self._quiet = not opened and not load.turn_pause_s and self._fast
        self.loop = GeventLoop(self._nap_until_ns, session.flush)
        reads = Checking(self.loop, self._send_overdue) if opened else self.loop
        self.pool = Pool(session.target, reads, session.timeout_s)
        self._alarm = self._open_loop() if opened else None
        self._ticking = gevent.spawn(self._tick)
        self._ticking.link_exception(self._end_broken)

    def _open_loop(self) -> Alarm:
        """Of an open load the hub itself sends what is due; the users only stand by."""
        point = self.session.live.point
        self._ahead = open_ahead(point)
        self._dispatcher = Dispatcher(
            self.session, shard(schedule(point), *self.session.shard), self
        )
        alarm = Alarm(self.loop, self._ring)
        self.pool.open_ahead(self._ahead)
        start_ns = self.session.phases.warmup_start or time.monotonic_ns() + round(TICK_S * 1e9)
        alarm.set(self._dispatcher.begin(start_ns))
        return alarm

    def _ring(self) -> None:
        due_ns = self._dispatcher.send_due()
        if due_ns is not None and self._alarm is not None:
            self._alarm.set(due_ns)

    def _send_overdue(self) -> None:
        if self._alarm is not None and self._dispatcher.overdue():
            self._ring()

    def send(self, request: Request) -> None:
        """Send now, on a pooled connection (called by the dispatcher, in the hub)."""
        in_flight = self.session.depart()

        def over(reply: RawReply) -> None:
            self.session.arrived()
            self.set_aside(Finished(request, reply, in_flight))

        self.pool.start(request, over)

    def _tick(self) -> None:
        """Marks, time limits, and the end of a run that has phases."""
        while not self.session.tick(time.monotonic_ns(), tick_s := self._tick_s):
            self.pool.expire()
            if self._alarm is not None:
                self.pool.open_ahead(self._ahead)
            gevent.sleep(tick_s)
        self.pool.cut("still open when the drain ended")
        for _ in range(round(ROWS_OF_CUT_S / TICK_S)):
            if not self.session.unfinished:
                break
            gevent.sleep(TICK_S)
        gevent.spawn(self._end_run)

    def _end_broken(self, ticking: gevent.Greenlet) -> None:
        """Without ticks a run has no marks and no end: it ends now (a disk that fails), with 1."""
        logger.error("the run cannot go on: %s", ticking.exception)
        self.environment.process_exit_code = 1
        assert self.environment.runner is not None
        gevent.spawn(self.environment.runner.quit)

    def _end_run(self) -> None:
        """All is sent and answered: a worker tells its master, who ends the run for all."""
        runner = self.environment.runner
        assert runner is not None
        if isinstance(runner, WorkerRunner):
            self.close()
            runner.send_message(DONE, self.session.report())
        elif self._of_a_sweep:
            runner.quit()
        else:
            runner.stop()

    @property
    def _of_a_sweep(self) -> bool:
        return bool(self.options and self.options.run_dir)

    def close(self) -> None:
        """Cut what is open, write what is known, grade. Safe to call twice."""
        self._ticking.kill()
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
        self.session.phases.stop(time.monotonic_ns())
        self.pool.close()
        self.loop.close()
        self.session.close()
        logger.info("records in %s", self.session.run.path)

    @property
    def _fast(self) -> bool:
        return not self.options or self.options.client != "httpx"

    @property
    def _tick_s(self) -> float:
        """Few streams leave rest to write rows in; with many only a tick may."""
        return QUIET_TICK_S if self._quiet and self.session.in_flight < MANY else TICK_S

    def _nap_until_ns(self, looked_ns: int) -> int:
        """No nap in an open loop; with few streams none where users pause, or beyond the next tick."""
        session = self.session
        in_flight = session.in_flight
        if in_flight >= MANY and self._alarm is None:
            return self._naps.until_ns(time.monotonic_ns(), looked_ns)
        if in_flight < FEW or not self._quiet:
            return looked_ns
        now_ns = time.monotonic_ns()
        until_ns = self._naps.until_ns_of_few(now_ns, session.sent, self.pool.open_replies)
        return min(until_ns, session.next_tick_ns or now_ns)

    def set_aside(self, over: Finished) -> None:
        """Parse it when there is time, between two looks at the sockets."""
        self.loop.at_leisure(partial(self.settle, over))

    def settle(self, over: Finished) -> RequestRecord:
        """Parse and record a reply that is over, once."""
        if over.record is None:
            response = outcome(over.reply)
            now_ns, in_flight = time.monotonic_ns(), self.session.in_flight
            self._naps.learn(over.request, response, now_ns, in_flight)
            over.record = self.record(over.request, response, over.in_flight)
        return over.record

    def record(self, request: Request, response: Response, in_flight: int) -> RequestRecord:
        record = self.session.finish(request, response, in_flight)
        self.show(record)
        return record

    def show(self, record: RequestRecord) -> None:
        """Feed Locust's own table: TTFT, TPOT and E2E as rows of their own, failures with their type."""
        self._live.add(record)
        if record.error_type == "cut_at_drain":
            return  # a row, but no failure: the run was over
        error = None
        if record.error_type is not None:
            error = visible(f"{record.error_type}: {record.error_message}")
        for name, time_ns in ({} if error else token_times_ns(record)).items():
            # a row of its own and no request: it would count twice in the totals and in requests/s
            self.environment.stats.get(name, record.task).log(round(time_ns / 1e6), 0)
        self.environment.events.request.fire(
            request_type=record.task,
            name="E2E",
            response_time=None if record.end_ns is None else record.end_ns / 1e6,
            response_length=record.output_tokens or 0,
            exception=error,
            context={},
        )


def token_times_ns(record: RequestRecord) -> dict[str, float]:
    """TTFT, and TPOT of a reply with two tokens or more."""
    first_ns, last_ns = record.first_token_ns, record.last_token_ns
    if first_ns is None:
        return {}
    times: dict[str, float] = {"TTFT": first_ns}
    if last_ns is not None:
        tpot_ns = time_per_token_ns(
            first_ns, last_ns, record.output_tokens or 0, record.chunk_tokens
        )
        if not math.isnan(tpot_ns):
            times["TPOT"] = tpot_ns
    return times


def run_user(drive: Drive) -> NoReturn:
    """The hub sends the user's requests; the user's greenlet only waits to be stopped."""
    user = ClosedLoop(drive, drive.pool.connection())
    try:
        user.send()
        while True:
            gevent.sleep(3600)
    finally:
        user.stop()


def run_httpx_user(drive: Drive) -> None:
    session = drive.session
    client = HttpxClient(session.access)
    conversation = session.conversation()
    while (request := session.next(time.monotonic_ns(), conversation)) is not None:
        in_flight = session.depart()
        response = client.send(request, session.timeout_s)
        session.arrived()
        record = drive.record(request, response, in_flight)
        if record.error_type == "cut_at_drain":
            raise GreenletExit
        turn_pause_s = session.live.point.load.turn_pause_s if conversation.turn else 0.0
        gevent.sleep(pause_after(record) or turn_pause_s)
    client.close()
