"""What a client process keeps and refuses, without any server: late sends, pauses, prompts, rows."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.config import load_live_point
from greenbench.contract.errors import UserError
from greenbench.contract.schema import RequestRecord
from loadgen.driver.dispatch import Dispatcher, schedule
from loadgen.driver.request_log import RowWriter
from loadgen.driver.retry import pause_after
from loadgen.driver.session import Session
from loadgen.wire.response import Request, failed
from tests.fakes.loadruns import make_run

SECOND = 10**9
OPEN = {"kind": "open", "rate_per_s": 10, "arrivals": "constant"}


def session(folder: Path, **more: Any) -> Session:
    run = make_run(folder, "http://127.0.0.1:9", **more)
    return Session(run, load_live_point(run), "c")


def rows(made: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.run.requests_dir / "c.jsonl").open()]


class Sender:
    def __init__(self) -> None:
        self.sent: list[Request] = []

    def send(self, request: Request) -> None:
        self.sent.append(request)


def test_what_is_due_too_late_is_a_row_and_the_rest_is_sent(tmp_path: Path) -> None:
    """A client that hung for 2 s at 10 requests/s: due 0.1 to 1.0 s in are over 1 s late."""
    made = session(tmp_path, load=OPEN, phases={"warmup_s": 0, "measure_s": 60})
    sender = Sender()
    dispatcher = Dispatcher(made, schedule(made.live.point), sender)
    assert not dispatcher.overdue()  # before it begins, nothing is due
    begun = time.monotonic_ns() - 2 * SECOND - SECOND // 20
    dispatcher.begin(begun)
    assert dispatcher.overdue()
    due = dispatcher.send_due()
    assert due is not None and due > time.monotonic_ns()
    assert not dispatcher.overdue()
    assert made.audit.report()["over_budget"]
    made.close()
    late = rows(made)
    assert [row["error_type"] for row in late] == ["not_sent"] * 10
    assert "behind its schedule" in late[0]["error_message"]
    due_ns = [row["scheduled_unix_ns"] - late[0]["scheduled_unix_ns"] for row in late]
    assert due_ns == pytest.approx([i * SECOND // 10 for i in range(10)], abs=1e6)
    assert [o.scheduled_mono_ns - begun for o in sender.sent if o.scheduled_mono_ns] == [
        i * SECOND // 10 for i in range(11, 21)
    ]


def record(message: str | None) -> RequestRecord:
    error = None if message is None else "http_4xx"
    return RequestRecord(
        run_id="r",
        client_id="c",
        request_id="1",
        phase="measure",
        task="retrieve",
        prompt_index=0,
        prompt_sha256="",
        context_tokens_target=1,
        max_output_tokens=1,
        in_flight_at_send=0,
        time_source="kernel",
        error_type=error,
        error_message=message,
    )


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        (None, 0.0),
        ("HTTP 429; retry-after: 2; slow down", 2.0),
        ("HTTP 429; retry-after: 3600; slow down", 5.0),
        ("HTTP 429; retry-after: Mon, 23 Nov 2026 07:48:12 GMT; x", 0.1),
        ("HTTP 503; busy", 0.1),
    ],
)
def test_a_user_waits_as_long_as_the_server_asks_within_bounds(
    message: str | None, seconds: float
) -> None:
    assert pause_after(record(message)) == seconds


def test_another_prompt_file_than_the_planned_one_is_refused(tmp_path: Path) -> None:
    """A worker with an old copy of the prompts would measure something else."""
    run = make_run(tmp_path / "planned", "http://127.0.0.1:9")
    make_run(tmp_path / "other", "http://127.0.0.1:9", count=5)
    (tmp_path / "other/prompts.jsonl").replace(tmp_path / "planned/prompts.jsonl")
    with pytest.raises(UserError, match="give every worker the same file"):
        Session(run, load_live_point(run), "c")


def test_rows_are_written_at_each_tick_in_whole_lines(tmp_path: Path) -> None:
    made = session(tmp_path)
    request = made.next(time.monotonic_ns())
    assert request is not None
    path = made.run.requests_dir / "c.jsonl"
    for _ in range(3):
        made.depart()
        made.finish(request, failed("connect", "refused"), 0)
    assert path.read_bytes() == b""
    made.tick(time.monotonic_ns())
    written = path.read_bytes()
    assert written.count(b"\n") == 3 and written.endswith(b"}\n")
    made.depart()
    made.finish(request, failed("connect", "refused"), 0)
    made.close()
    assert len(rows(made)) == 4


def test_a_writer_that_is_closed_has_written_all(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "x" / "rows.jsonl")
    writer.write(record(None))
    writer.close()
    assert json.loads((tmp_path / "x" / "rows.jsonl").read_text())["request_id"] == "1"


def test_the_loops_lag_counts_from_the_moment_at_which_a_tick_was_to_come(tmp_path: Path) -> None:
    made = session(tmp_path)
    made.tick(10**9, 0.1)
    assert made.next_tick_ns == 1_100_000_000
    made.tick(1_103_000_000, 0.1)
    assert made.audit.loop_lag.figures()["max_ms"] == 3.0
