"""`python -m telemetry record --run-dir RUN` and `python -m telemetry serve`: see docs/contract.md."""

import argparse
import json
import logging
import math
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from greenbench.contract.access import access
from greenbench.contract.command_name import typed_as
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError, exit_on_user_error, say_error
from greenbench.contract.flags import port, positive
from greenbench.contract.installation import results
from telemetry.exporter.exporter import Exporter
from telemetry.recorder import Recorder, RecordRequest
from telemetry.selftest.run import Lengths, selftest
from telemetry.sensors.dcgm import DcgmReader
from telemetry.sensors.gpu import Reader
from telemetry.sensors.nvidia_smi import import_smi
from telemetry.sensors.nvml import NvmlReader
from telemetry.sensors.zeus import ZeusReader

SHOWN_LINES = 10  # of those that an import leaves out
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    args = _parser().parse_args(argv)
    return exit_on_user_error(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m telemetry", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_record, _add_serve, _add_selftest, _add_import_smi):
        add(commands)
    return parser


def _add_record(commands: Commands) -> None:
    record = commands.add_parser("record", help="sample into a run directory until SIGTERM")
    record.add_argument("--run-dir", type=Path, required=True, help="where telemetry/ is written")
    record.add_argument("--pid", type=int, help="the server's process; its children count with it")
    record.add_argument("--base-url", help="the server whose /metrics is scraped")
    record.add_argument(
        "--period-s", type=positive, help="between GPU samples; default: half the refresh"
    )
    record.add_argument(
        "--scrape-s", type=positive, help="between scrapes of /metrics; default 0.5"
    )
    _add_source(record)
    record.set_defaults(run=_record)


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="Prometheus metrics until SIGTERM")
    serve.add_argument("--port", type=port, default=9400, help="default 9400; 0 takes a free one")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1"
    )
    serve.add_argument(
        "--pid", type=running, help="a server's process whose memory and CPU are shown"
    )
    serve.add_argument(
        "--period-s", type=positive, help="between GPU samples; default: half the refresh"
    )
    serve.add_argument(
        "--dcgm-names", action="store_true", help="also serve the names of dcgm-exporter"
    )
    _add_source(serve)
    serve.set_defaults(run=_serve)


def _add_selftest(commands: Commands) -> None:
    said = "check the GPU's energy sensors against known loads"
    name = typed_as("python -m telemetry selftest")
    test = commands.add_parser("selftest", prog=name, help=said, description=said)
    test.add_argument(
        "--out",
        type=Path,
        help="new folder for the recording; default: runs/energy-selftest/<time>",
    )
    test.add_argument("--quick", action="store_true", help="about 4 minutes instead of 9")
    test.add_argument(
        "--steady-s",
        type=positive,
        help="length of the windows of constant load and of none; "
        f"default {Lengths().steady:g}, with --quick {Lengths.quick().steady:g}",
    )
    test.add_argument(
        "--limit-s",
        type=float,
        default=math.inf,
        help="stop after so many seconds and keep what there is",
    )
    test.add_argument(
        "--served",
        type=Path,
        help="a finished sweep, for the checks that need a served model",
    )
    test.add_argument(
        "--published-j-per-token",
        type=positive,
        help="joules per token that somebody published for a model near that of --served",
    )
    test.set_defaults(run=_selftest)


def _add_import_smi(commands: Commands) -> None:
    smi = commands.add_parser(
        "import-smi", help="a CSV recording of nvidia-smi, into a run directory"
    )
    smi.add_argument("file", type=Path, help="what nvidia-smi --format=csv wrote")
    smi.add_argument("--run-dir", type=Path, required=True, help="where telemetry/ is written")
    smi.add_argument(
        "--utc", action="store_true", help="its stamps are UTC; default: this host's zone"
    )
    smi.set_defaults(run=_import_smi)


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gpu-source",
        type=reader_opener,
        default="nvml",
        help="nvml (default), zeus, or dcgm=http://HOST:PORT",
    )


def running(text: str) -> int:
    """The ID of a process that is there."""
    try:
        pid = int(text)
        if psutil.pid_exists(pid):
            return pid
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f"the ID of a running process is wanted, found '{text}'; `ps` lists them"
    )


def reader_opener(text: str) -> Callable[[], Reader]:
    """'nvml', 'zeus' or 'dcgm=URL' to what opens that reader."""
    kind, _, address = text.partition("=")
    openers: dict[str, Callable[[], Reader]] = {
        "nvml": NvmlReader,
        "zeus": ZeusReader,
        "dcgm": lambda: DcgmReader(address),
    }
    if kind not in openers or bool(address) != (kind == "dcgm"):
        raise argparse.ArgumentTypeError(f"{text!r}: give nvml, zeus or dcgm=http://HOST:PORT")
    return openers[kind]


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _record(args: argparse.Namespace) -> int:
    stop = _stop_on_signal()
    request = record_request(args)
    try:
        Recorder(request, args.gpu_source, stop).run()
    except OSError as error:
        say_error(f"the recording ended: {error}")
        return 1
    return 0


def _selftest(args: argparse.Namespace) -> int:
    lengths = Lengths.quick() if args.quick else Lengths()
    if args.steady_s is not None:
        lengths = replace(lengths, steady=args.steady_s)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    out = args.out or results() / "energy-selftest" / stamp
    judging: list[str] = []
    if args.served is not None:
        judging += ["--served", str(args.served.resolve())]
        if not args.served.is_dir():
            raise UserError(f"--served {args.served}: no such folder; give one that a sweep wrote")
    if args.published_j_per_token is not None:
        judging += ["--published-j-per-token", str(args.published_j_per_token)]
    code = selftest(out, lengths, args.limit_s, judging)
    print(f"written to {out}")
    return code


def _import_smi(args: argparse.Namespace) -> int:
    left_out: list[str] = []
    rows = import_smi(args.file, args.run_dir, UTC if args.utc else None, left_out.append)
    print(f"{counted(rows, 'sample')} written to {args.run_dir / 'telemetry'}")
    for said in left_out[:SHOWN_LINES]:
        print(f"left out: {said}")
    if len(left_out) > SHOWN_LINES:
        print(f"left out: {len(left_out) - SHOWN_LINES} more, listed in sources.json")
    return 0


def _serve(args: argparse.Namespace) -> int:
    Exporter(
        open_reader=args.gpu_source,
        host=args.host,
        port=args.port,
        pid=args.pid,
        period_s=args.period_s,
        dcgm_names=args.dcgm_names,
        ready=lambda port: print(f"serving http://{args.host}:{port}/metrics", flush=True),
        stop=_stop_on_signal(),
    ).run()
    return 0


def record_request(args: argparse.Namespace) -> RecordRequest:
    """Flags first, then what the run's config.yaml says, then the defaults."""
    if not args.run_dir.is_dir():
        raise UserError(f"--run-dir {args.run_dir}: no such folder; give a run directory")
    pid, base_url = args.pid, args.base_url
    keys = _connection_keys(args.run_dir.parent / "request.json")
    period_s, scrape_s = args.period_s, args.scrape_s
    if (args.run_dir / "config.yaml").is_file():
        # imported here: the exporter and the recorder of idle power do without pydantic's 20 MB
        from greenbench.contract.config import load_live_point

        live = load_live_point(args.run_dir)
        pid = pid if pid is not None else live.server_pid
        base_url = base_url or live.base_url
        keys = live.point.server.connection
        period_s = period_s or live.point.telemetry.period_s
        scrape_s = scrape_s or live.point.telemetry.scrape_s
    server = access(base_url, keys) if base_url else None
    return RecordRequest(args.run_dir, pid, server, period_s, scrape_s or 0.5)


def _connection_keys(request: Path) -> dict[str, Any]:
    """How the server is reached that a recording of idle power lies beside; nothing said is all defaults."""
    try:
        return json.loads(request.read_bytes())["server"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}


if __name__ == "__main__":
    raise SystemExit(main())
