"""Open-loop load: requests go out when the schedule says, whether or not earlier ones are answered.

Latency counts from the scheduled moment (``scheduled_unix_ns`` of each row); what could not be sent
is a row too (`not_sent`). One process, one asyncio loop, no Locust. Example:

    python -m loadgen.openloop --run-dir runs/demo/20261123T074812Z-sdpa-retrieve-2048-open2-3f9a1c2e
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from greenbench.contract.config import load_live_point
from greenbench.contract.errors import UserError, exit_on_user_error
from loadgen.driver.arrivals import shard
from loadgen.driver.dispatch import schedule
from loadgen.driver.open_loop import drive
from loadgen.driver.process_setup import (
    end_measuring_on_signal,
    raise_file_limit,
    take_priority,
)
from loadgen.driver.session import Session

logger = logging.getLogger(__name__)


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
    end_measuring_on_signal(session.phases)
    try:
        asyncio.run(drive(session, part_of_it, client))
    finally:
        session.close()
    logger.info("%d sent, %d good, %d failed", session.sent, session.ok, session.failed)


if __name__ == "__main__":
    sys.exit(main())
