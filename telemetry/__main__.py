"""`python -m telemetry record --run-dir RUN` and `python -m telemetry serve`: see docs/contract.md."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from greenbench.errors import UserError, exit_on_user_error
from telemetry.nvml import NvmlReader
from telemetry.recorder import Recorder, RecordRequest
from telemetry.selftest import Lengths, selftest
from telemetry.serve import Exporter


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    args = _parser().parse_args(argv)
    return exit_on_user_error(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m telemetry", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    record = commands.add_parser("record", help="sample into a run directory until SIGTERM")
    record.add_argument("--run-dir", type=Path, required=True)
    record.add_argument("--pid", type=int, help="the server's process; its children count with it")
    record.add_argument("--base-url", help="the server whose /metrics is scraped")
    record.add_argument(
        "--period-s", type=float, help="between GPU samples; default: half the refresh"
    )
    record.add_argument("--scrape-s", type=float, help="between scrapes of /metrics; default 0.5")
    record.set_defaults(run=_record)
    serve = commands.add_parser("serve", help="Prometheus metrics until SIGTERM")
    serve.add_argument("--port", type=int, default=9400, help="default 9400; 0 takes a free one")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1"
    )
    serve.add_argument("--pid", type=int, help="a server's process whose memory and CPU are shown")
    serve.add_argument(
        "--period-s", type=float, help="between GPU samples; default: half the refresh"
    )
    serve.add_argument(
        "--dcgm-names", action="store_true", help="also serve the names of dcgm-exporter"
    )
    serve.set_defaults(run=_serve)
    test = commands.add_parser(
        "selftest", help="check the GPU's energy sensors against known loads"
    )
    test.add_argument("--out", type=Path, required=True, help="new folder for the recording")
    test.add_argument("--quick", action="store_true", help="about 4 minutes instead of 9")
    test.set_defaults(
        run=lambda args: selftest(args.out, Lengths.quick() if args.quick else Lengths())
    )
    return parser


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _record(args: argparse.Namespace) -> int:
    stop = _stop_on_signal()
    request = record_request(args)
    try:
        Recorder(request, NvmlReader, stop).run()
    except OSError as error:
        print(f"error: the recording ended: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(args: argparse.Namespace) -> int:
    Exporter(
        open_reader=NvmlReader,
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
    for name in ("period_s", "scrape_s"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {value}: seconds above 0 are wanted; leave it out for the default"
            )
    pid, base_url = args.pid, args.base_url
    period_s, scrape_s = args.period_s, args.scrape_s
    if (args.run_dir / "config.yaml").is_file():
        # imported here: the exporter and the recorder of idle power do without pydantic's 20 MB
        from greenbench.config import load_live_point

        live = load_live_point(args.run_dir)
        pid = pid if pid is not None else live.server_pid
        base_url = base_url or live.base_url
        period_s = period_s or live.point.telemetry.period_s
        scrape_s = scrape_s or live.point.telemetry.scrape_s
    return RecordRequest(args.run_dir, pid, base_url, period_s, scrape_s or 0.5)


if __name__ == "__main__":
    raise SystemExit(main())
