"""The locustfile: long-context requests to an OpenAI-compatible completions server.

Of a sweep:    locust -f loadgen/longctx.py --headless --run-dir runs/demo/<run_id>
By itself:     locust -f loadgen/longctx.py --headless -u 4 -t 20s          (against `make serve`)
With the page: locust -f loadgen/longctx.py

Locust gives users, the web page, headless mode and workers; the requests themselves go through
`loadgen.wire.connection`, and every one is a row in the run directory. TTFT and E2E are separate rows of
Locust's table; only E2E counts as a request in its totals. Only absolute imports and one concrete
User: Locust loads this file by path and spawns every User class it finds in it.
"""

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import gevent
from gevent import GreenletExit
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import MasterRunner, Runner, WorkerRunner

from greenbench.contract.config import load_live_point
from greenbench.contract.errors import UserError
from greenbench.contract.schema import RequestRecord
from loadgen import direct_run
from loadgen.driver.arrivals import shard
from loadgen.driver.closed_loop import ClosedLoop, Finished
from loadgen.driver.dispatch import Dispatcher, open_ahead, schedule
from loadgen.driver.process_setup import raise_file_limit, take_priority
from loadgen.driver.retry import pause_after
from loadgen.driver.session import TICK_S, Session
from loadgen.driver.worker_split import DONE, START, Part, Roll, parts
from loadgen.locust_tab import Live, install
from loadgen.tasks import TASKS
from loadgen.wire.asyncio_loop import Alarm, Checking
from loadgen.wire.connection import outcome
from loadgen.wire.gevent_loop import GeventLoop
from loadgen.wire.httpx_client import HttpxClient
from loadgen.wire.pool import Pool
from loadgen.wire.response import RawReply, Request, Response

logger = logging.getLogger(__name__)

NAP_STREAMS: Final = 32  # with fewer, a nap could hold up the next send of a fast server's user
NO_NAP_NS: Final = 1_000_000_000  # after tokens that shared a read, or had no kernel time
ROWS_OF_CUT_S: Final = (
    1.0  # for users to write the rows of what was cut; httpx's are cut by the stop
)


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("greenbench")
    group.add_argument("--run-dir", type=str, default="", help="a point's run directory (headless)")
    group.add_argument("--client", choices=("fast", "httpx"), default="fast")
    group.add_argument("--task", choices=sorted(TASKS), default="retrieve")
    group.add_argument("--context-tokens", type=int, default=1024)
    group.add_argument("--prompts", type=int, default=32, help="different prompts to make")
    group.add_argument("--seed", type=int, default=7)
    group.add_argument("--model-path", type=str, default="", help="tokenizer; default: as served")
    group.add_argument(
        "--telemetry-url", help="its joules go on the page, e.g. http://127.0.0.1:9400/metrics"
    )
    group.add_argument("--out", type=str, default="runs/adhoc", help="where stand-alone runs go")


class Drive:
    """One test run of this process: its session, its connections, and its clockwork."""

    def __init__(self, environment: Environment, session: Session) -> None:
        self.environment = environment
        self.session = session
        self.options = environment.parsed_options
        self._live: Live = environment.live  # type: ignore[attr-defined]
        self._naps_at_ns: int | None = None  # no nap before this moment; None: not at all
        self.loop = GeventLoop(self._nap_now)
        opened = session.live.point.load.kind == "open"
        reads = Checking(self.loop, self._send_overdue) if opened else self.loop
        self.pool = Pool(session.target, reads, session.timeout_s)
        self._alarm = self._open_loop() if opened else None
        self._ticking = gevent.spawn(self._tick)

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
        while not self.session.tick(time.monotonic_ns()):
            self.pool.expire()
            if self._alarm is not None:
                self.pool.open_ahead(self._ahead)
            gevent.sleep(TICK_S)
        self.pool.cut("still open when the drain ended")
        for _ in range(round(ROWS_OF_CUT_S / TICK_S)):
            if not self.session.unfinished:
                break
            gevent.sleep(TICK_S)
        gevent.spawn(self._end_run)

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

    def _nap_now(self) -> bool:
        """With many streams, while naps cost no time that is kept, and nothing is left to do."""
        return (
            self._naps_at_ns is not None
            and self.session.in_flight >= NAP_STREAMS
            and self._alarm is None
            and time.monotonic_ns() > self._naps_at_ns
        )

    def _learn_of_naps(self, response: Response) -> None:
        """Naps want the kernel's times, and an end when tokens share a read."""
        if not response.kernel_times:
            self._naps_at_ns = None
        elif response.shared_bounds_ns:
            self._naps_at_ns = time.monotonic_ns() + NO_NAP_NS
        elif self._naps_at_ns is None:
            self._naps_at_ns = 0

    def set_aside(self, over: Finished) -> None:
        """Parse it when there is time, between two looks at the sockets."""
        self.loop.at_leisure(partial(self.settle, over))

    def settle(self, over: Finished) -> RequestRecord:
        """Parse and record a reply that is over, once."""
        if over.record is None:
            response = outcome(over.reply)
            self._learn_of_naps(response)
            over.record = self.record(over.request, response, over.in_flight)
        return over.record

    def record(self, request: Request, response: Response, in_flight: int) -> RequestRecord:
        record = self.session.finish(request, response, in_flight)
        self.show(record)
        return record

    def show(self, record: RequestRecord) -> None:
        """Feed Locust's own table: TTFT and E2E as rows of their own, failures with their type."""
        self._live.add(record)
        if record.error_type == "cut_at_drain":
            return  # a row, but no failure: the run was over
        error = None
        if record.error_type is not None:
            error = f"{record.error_type}: {record.error_message}"
        elif record.first_token_ns is not None:
            # a row of its own and no request: it would count twice in the totals and in requests/s
            ttft_ms = round(record.first_token_ns / 1e6)
            self.environment.stats.get("TTFT", record.task).log(ttft_ms, 0)
        self.environment.events.request.fire(
            request_type=record.task,
            name="E2E",
            response_time=None if record.end_ns is None else record.end_ns / 1e6,
            response_length=record.output_tokens or 0,
            exception=error,
            context={},
        )


class LongContextUser(User):
    """One closed loop: the next request goes out when the reply to the last is over."""

    @task
    def converse(self) -> None:
        drive: Drive | None = getattr(self.environment, "drive", None)
        if drive is not None and drive.session.live.point.load.kind == "closed":
            if drive.options and drive.options.client == "httpx":
                _loop_httpx(drive)
            else:
                _loop_fast(drive)
        gevent.sleep(3600)  # sending is over: wait to be stopped, or Locust would begin anew


def _loop_fast(drive: Drive) -> NoReturn:
    """The hub drives the user's requests; its greenlet only waits to be stopped."""
    user = ClosedLoop(drive, drive.pool.connection())
    try:
        user.send()
        while True:
            gevent.sleep(3600)
    finally:
        user.stop()


def _loop_httpx(drive: Drive) -> None:
    session = drive.session
    client = HttpxClient(session.live.base_url)
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


@events.init.add_listener
def on_init(environment: Environment, runner: Runner, **_: Any) -> None:
    """Of a sweep: the users come from the point's config. A bad run directory ends Locust with 2."""
    options = environment.parsed_options
    raise_file_limit()
    take_priority()
    live = Live(options.telemetry_url if options else None)
    install(environment, live)
    environment.live = live  # type: ignore[attr-defined]
    if isinstance(runner, WorkerRunner):
        runner.register_message(START, _on_part)
        return
    if isinstance(runner, MasterRunner):
        runner.register_message(DONE, _on_done)
    if options and options.run_dir:
        try:
            load = load_live_point(Path(options.run_dir)).point.load
            if load.kind == "open" and not isinstance(runner, MasterRunner):
                raise UserError(
                    f"{options.run_dir}/config.yaml: an open load in one process runs with "
                    "python -m loadgen.openloop; with workers it runs here"
                )
        except UserError as error:
            _refuse(error)
        users = load.users or options.expect_workers
        options.num_users = options.spawn_rate = users
        environment.process_exit_code = 0  # failed requests are rows, not a failed run


def _refuse(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error


def _refuse_start(environment: Environment, error: UserError) -> None:
    """The test has begun in a greenlet, where an exit would go unheard: end Locust, or say it aside."""
    print(f"error: {error}", file=sys.stderr)
    runner, options = environment.runner, environment.parsed_options
    assert runner is not None
    if isinstance(runner, WorkerRunner) or (options and options.headless):
        environment.process_exit_code = 2
        gevent.spawn(runner.quit)
    else:  # the web page stays: a person can mend the address and start again
        gevent.spawn(runner.stop)


def _on_part(environment: Environment, msg: Message, **_: Any) -> None:
    """A worker learns its part, before Locust tells it to spawn users."""
    environment.part = Part(**msg.data)  # type: ignore[attr-defined]


def _on_done(environment: Environment, msg: Message, **_: Any) -> None:
    roll: Roll | None = getattr(environment, "roll", None)
    if roll is not None:
        roll.report(msg.node_id, msg.data)


@events.test_start.add_listener
def on_test_start(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    runner = environment.runner
    assert options is not None and runner is not None
    try:
        if isinstance(runner, WorkerRunner):
            part: Part | None = getattr(environment, "part", None)
            if part is None:
                logger.error("joined a run under way: this worker has no part in it")
                return
            environment.part = None  # type: ignore[attr-defined]
            session = part.open(load_live_point(Path(part.run_path)), lambda: gevent.sleep(0))
        else:
            run_path = (
                Path(options.run_dir)
                if options.run_dir
                else direct_run.prepare(environment.host, options)
            )
            if isinstance(runner, MasterRunner):
                _give_parts(environment, runner, run_path)
                return
            session = Session(run_path, load_live_point(run_path), "locust")
    except UserError as error:
        _refuse_start(environment, error)
        return
    environment.drive = Drive(environment, session)  # type: ignore[attr-defined]


def _give_parts(environment: Environment, runner: MasterRunner, run_path: Path) -> None:
    workers = sorted(client.id for client in runner.clients.ready)
    for worker, part in zip(workers, parts(run_path, len(workers)), strict=True):
        runner.send_message(START, part.to_message(), worker)
    environment.roll = Roll(run_path, workers)  # type: ignore[attr-defined]
    gevent.spawn(_await_workers, environment, runner, environment.roll)  # type: ignore[attr-defined]


def _await_workers(environment: Environment, runner: MasterRunner, roll: Roll) -> None:
    """End the run when every worker has come to its end, or is gone."""
    while not roll.over(
        {client.id for client in runner.clients.values() if client.state != "missing"}
    ):
        gevent.sleep(0.1)
    _call_roll(environment, roll)
    if environment.parsed_options and environment.parsed_options.run_dir:
        runner.quit()
    else:
        runner.stop()


def _call_roll(environment: Environment, roll: Roll) -> None:
    roll.write()
    if roll.lost:
        logger.error("lost workers: %s", ", ".join(roll.lost))
        environment.process_exit_code = 1


@events.test_stop.add_listener
def on_test_stop(environment: Environment, **_: Any) -> None:
    drive: Drive | None = getattr(environment, "drive", None)
    if drive is not None:
        environment.drive = None  # type: ignore[attr-defined]
        try:
            drive.close()
        except BaseException:  # Locust would log it and end with 0
            environment.process_exit_code = 1
            raise
        runner = environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(DONE, drive.session.report())
