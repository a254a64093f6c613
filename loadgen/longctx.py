"""The locustfile: long-context requests to an OpenAI-compatible completions server.

Of a sweep:    locust -f loadgen/longctx.py --headless --run-dir runs/demo/<run_id>
By itself:     locust -f loadgen/longctx.py --headless -u 4 -t 20s          (against `make serve`)
With the page: locust -f loadgen/longctx.py
All options:   python -m loadgen.longctx --help      (Locust answers its own --help before it reads a file)

Locust gives users, the web page, headless mode and workers; the requests themselves go through
`loadgen.wire.connection`, and every one is a row in the run directory. TTFT, TPOT and E2E are separate
rows of Locust's table; only E2E counts as a request in its totals. Only absolute imports and one concrete
User: Locust loads this file by path and spawns every User class it finds in it.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import gevent
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser, get_parser
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import MasterRunner, Runner, WorkerRunner

from greenbench.contract.address import opened_warning
from greenbench.contract.config import load_live_point
from greenbench.contract.errors import USAGE_EXIT, UserError, say_error
from greenbench.contract.privacy import keep_private
from greenbench.contract.terminal import visible
from loadgen import direct_run
from loadgen.driver.process_setup import (
    end_measuring_on_signal,
    raise_file_limit,
    take_priority,
)
from loadgen.driver.session import Session
from loadgen.driver.worker_split import DONE, START, Part, WorkerReports, parts
from loadgen.locust_run import Drive, run_httpx_user, run_user
from loadgen.locust_tab import Live, install
from loadgen.tasks import TASKS

logger = logging.getLogger(__name__)

LOOPBACK: Final = (
    "127.0.0.1"  # of the page and of a master's port, which anyone could drive load with
)


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    parser.set_defaults(web_host=LOOPBACK, master_bind_host=LOOPBACK)
    group = parser.add_argument_group(
        "greenbench",
        f"The page and a master listen on {LOOPBACK}; --web-host and --master-bind-host '*' open them.",
    )
    group.add_argument("--run-dir", type=str, default="", help="a point's run directory (headless)")
    group.add_argument(
        "--client",
        choices=("fast", "httpx"),
        default="fast",
        help="fast: times of the kernel; httpx: portable, times of the program (default: fast)",
    )
    direct_run.add_connection_arguments(group)
    group.add_argument(
        "--task",
        choices=sorted(TASKS),
        default="retrieve",
        metavar="TASK",
        help="what prompts ask (default: retrieve; `python -m loadgen tasks` lists them)",
    )
    group.add_argument(
        "--context-tokens", type=int, default=1024, help="length of a prompt (default: 1024)"
    )
    group.add_argument(
        "--prompts", type=int, default=32, help="different prompts to make (default: 32)"
    )
    group.add_argument("--seed", type=int, default=7, help="of prompts and arrivals (default: 7)")
    group.add_argument("--model-path", type=str, default="", help="tokenizer; default: as served")
    group.add_argument(
        "--telemetry-url", help="its joules go on the page, e.g. http://127.0.0.1:9400/metrics"
    )
    group.add_argument("--out", type=str, default="runs/adhoc", help="where stand-alone runs go")


class LongContextUser(User):
    """One closed loop: the next request goes out when the reply to the last is over."""

    @task
    def converse(self) -> None:
        drive: Drive | None = getattr(self.environment, "drive", None)
        if drive is not None and drive.session.live.point.load.kind == "closed":
            if drive.options and drive.options.client == "httpx":
                run_httpx_user(drive)
            else:
                run_user(drive)
        gevent.sleep(3600)  # sending is over: wait to be stopped, or Locust would begin anew


@events.init.add_listener
def on_init(environment: Environment, runner: Runner, **_: Any) -> None:
    """Of a sweep: the users come from the point's config. A bad run directory ends Locust with 2.

    By hand without a page the prompts are made here, before the time limit runs; with one a server that does
    not answer is told.
    """
    options = environment.parsed_options
    keep_private()
    raise_file_limit()
    take_priority()
    _warn_of_what_is_opened(options, runner)
    live = Live(options.telemetry_url if options else None)
    install(environment, live)
    _refuse_a_page_without_a_port(environment)
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
    elif options and options.headless:
        try:
            environment.prepared = direct_run.prepare(environment.host, options)  # type: ignore[attr-defined]
        except UserError as error:
            _refuse(error)
    elif options:
        gevent.spawn(_warn_of_no_server, environment)  # what swallows packets holds up no page
    gevent.get_hub().loop.update_now()  # or what was done so far would count against the time limit


def _refuse_a_page_without_a_port(environment: Environment) -> None:
    """Of its listener's own error a sentence and 2, where Locust has two tracebacks. No port is tried before:
    what is free then may be taken when the page comes.
    """
    page = environment.web_ui
    if page is None:
        return
    serve = page.start_server

    def served() -> None:
        try:
            serve()
        except (OSError, OverflowError) as error:  # the latter: of no port, as 99999
            why = str(getattr(error, "strerror", None) or error).partition(": (")[0]
            _refuse(
                UserError(
                    f"Locust's page cannot listen on {page.host or '*'}, port {page.port} ({why}); "
                    "give another --web-port or --web-host"
                )
            )

    page.start_server = served


def _warn_of_no_server(environment: Environment) -> None:
    """With the page this is no error: the server may come, or the address be corrected there."""
    options = environment.parsed_options
    assert options is not None
    if why := direct_run.unanswered(environment.host, options):
        logger.warning("%s; each start on the page asks again", visible(why))


def _refuse(error: UserError) -> NoReturn:
    say_error(error)
    raise SystemExit(USAGE_EXIT) from error


def _refuse_start(environment: Environment, error: UserError) -> None:
    """End Locust with 2, or only the run where there is a web page. In a greenlet an exit goes unheard."""
    say_error(error)
    runner, options = environment.runner, environment.parsed_options
    assert runner is not None
    if isinstance(runner, WorkerRunner) or (options and options.headless):
        environment.process_exit_code = USAGE_EXIT
        gevent.spawn(runner.quit)
    else:  # the web page stays: the address can be corrected and the run started again
        gevent.spawn(runner.stop)


def _on_part(environment: Environment, msg: Message, **_: Any) -> None:
    """A worker learns its part, before Locust tells it to spawn users."""
    environment.part = Part(**msg.data)  # type: ignore[attr-defined]


def _on_done(environment: Environment, msg: Message, **_: Any) -> None:
    reports: WorkerReports | None = getattr(environment, "reports", None)
    if reports is not None:
        reports.report(msg.node_id, msg.data)


def _warn_of_what_is_opened(options: Any, runner: Runner) -> None:
    listening: dict[str, str] = {}
    if options and not options.headless and not isinstance(runner, WorkerRunner):
        listening["Locust's page"] = options.web_host
    if options and isinstance(runner, MasterRunner):
        listening["Locust's master"] = options.master_bind_host
    for what, host in listening.items():
        if warning := opened_warning(host, what):
            logger.warning("%s", warning)


@events.test_start.add_listener
def on_test_start(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    try:
        if isinstance(runner, MasterRunner):
            _give_parts(environment, runner, _run_path(environment))
            return
        if isinstance(runner, WorkerRunner):
            session = _part_session(environment)
        else:
            run_path = _run_path(environment)
            session = Session(run_path, load_live_point(run_path), "locust")
            end_measuring_on_signal(session.phases)
    except UserError as error:
        _refuse_start(environment, error)
        return
    if session is not None:
        environment.drive = Drive(environment, session)  # type: ignore[attr-defined]


def _run_path(environment: Environment) -> Path:
    """The run directory that was given; outside a sweep a new one, with its prompts."""
    options = environment.parsed_options
    assert options is not None
    if options.run_dir:
        return Path(options.run_dir)
    prepared: Path | None = getattr(environment, "prepared", None)
    return prepared or direct_run.prepare(environment.host, options)


def _part_session(environment: Environment) -> Session | None:
    """The session of this worker's part; None for a worker that joined too late to have one."""
    part: Part | None = getattr(environment, "part", None)
    if part is None:
        logger.error("this worker joined a run under way and has no part in it")
        return None
    environment.part = None  # type: ignore[attr-defined]
    return part.open(load_live_point(Path(part.run_path)), lambda: gevent.sleep(0))


def _give_parts(environment: Environment, runner: MasterRunner, run_path: Path) -> None:
    workers = sorted(client.id for client in runner.clients.ready)
    for worker, part in zip(workers, parts(run_path, len(workers)), strict=True):
        runner.send_message(START, part.to_message(), worker)
    environment.reports = WorkerReports(run_path, workers)  # type: ignore[attr-defined]
    gevent.spawn(_await_workers, environment, runner, environment.reports)  # type: ignore[attr-defined]


def _await_workers(environment: Environment, runner: MasterRunner, reports: WorkerReports) -> None:
    """End the run when every worker has come to its end, or is gone."""
    while not reports.over(
        {client.id for client in runner.clients.values() if client.state != "missing"}
    ):
        gevent.sleep(0.1)
    _write_reports(environment, reports)
    if environment.parsed_options and environment.parsed_options.run_dir:
        runner.quit()
    else:
        runner.stop()


def _write_reports(environment: Environment, reports: WorkerReports) -> None:
    reports.write()
    if reports.lost:
        logger.error("lost workers: %s", ", ".join(reports.lost))
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


@events.quitting.add_listener
def on_quitting(environment: Environment, **_: Any) -> None:
    """By hand, a run in which no request came to its end has measured nothing: no success."""
    options, runner = environment.parsed_options, environment.runner
    by_hand = options and options.headless and not options.run_dir
    if not by_hand or isinstance(runner, WorkerRunner) or environment.process_exit_code is not None:
        return
    if environment.stats.total.num_requests == 0:
        say_error("no request came to its end; give a longer --run-time")
        environment.process_exit_code = 1


def main() -> NoReturn:
    """Locust with this file, and a ``--help`` that names this file's options too."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        get_parser().parse_args(["--help"])
    argv = [sys.executable, "-m", "locust", "-f", __file__, *sys.argv[1:]]
    os.execv(sys.executable, argv)


if __name__ == "__main__":
    main()
