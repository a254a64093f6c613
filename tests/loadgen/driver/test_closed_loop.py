"""A closed loop's user, moment by moment: when it sends, when a reply gets its row, how it stops."""

import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenbench.contract.clock import Anchor
from greenbench.contract.config import load_live_point
from loadgen.driver.closed_loop import ClosedLoop, Finished
from loadgen.driver.retry import FAILURE_PAUSE_S
from loadgen.driver.session import Session
from loadgen.wire.connection import Done, outcome
from loadgen.wire.response import RawReply, Request
from tests.fakes.loadruns import make_run

HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
EVENT = (
    b'data: {"choices":[{"text":"a","finish_reason":"length"}],'
    b'"usage":{"prompt_tokens":64,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)


class Wire:
    """A connection whose replies the test hands over."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self._open: tuple[RawReply, Done] | None = None

    def start(self, request: Request, timeout_s: float, done: Done) -> None:
        assert self._open is None, "one request at a time"
        reply = RawReply(request, 0)
        reply.sent = Anchor.now()
        self.sent.append(request)
        self._open = reply, done

    def answer(self, status: int = 200, body: bytes = EVENT) -> None:
        assert self._open is not None, "nothing was asked"
        (reply, done), self._open = self._open, None
        assert reply.add(HEAD % (status, len(body)) + body, time.monotonic_ns(), None)
        done(reply)

    def abort(self, error_type: str, message: str) -> None:
        if self._open is not None:
            (reply, done), self._open = self._open, None
            reply.error = error_type, message
            done(reply)


class Drive:
    """A process with one user; what is put off is done when the test says so."""

    def __init__(self, folder: Path) -> None:
        run = make_run(
            folder, "http://127.0.0.1:9", output_tokens=1, load={"kind": "closed", "users": 1}
        )
        self.session = Session(run, load_live_point(run), "c")
        self.wire = Wire()
        self.loop = self
        self.put_off: deque[Callable[[], object]] = deque()
        self.pauses: list[tuple[float, Callable[[], object]]] = []
        self.aside: list[Callable[[], object]] = []
        self.user = ClosedLoop(self, self.wire)  # type: ignore[arg-type]

    def later(self, callback: Callable[[], object]) -> None:
        self.put_off.append(callback)

    def after(self, seconds: float, callback: Callable[[], object]) -> None:
        self.pauses.append((seconds, callback))

    def run_later(self) -> None:
        while self.put_off:
            self.put_off.popleft()()

    def at_leisure(self, callback: Callable[[], object]) -> None:
        self.aside.append(callback)

    def run_at_leisure(self) -> None:
        while self.aside:
            self.aside.pop()()

    def settle(self, over: Finished) -> Any:
        if over.record is None:
            over.record = self.session.finish(over.request, outcome(over.reply), over.in_flight)
        return over.record

    def rows(self) -> list[str]:
        self.run_at_leisure()
        self.session.flush()
        return (self.session.run.requests_dir / "c.jsonl").read_text().splitlines()

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Requests sent, good rows, bad rows."""
        return self.session.sent, self.session.ok, self.session.failed


def test_the_next_send_waits_for_the_reads_and_the_row_for_leisure(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.user.send()
    drive.wire.answer()
    assert drive.outcomes == (1, 0, 0)  # nothing happens within the read
    drive.run_later()
    assert drive.outcomes == (2, 0, 0) and len(drive.aside) == 1
    drive.wire.answer()
    drive.run_later()
    assert drive.outcomes == (3, 1, 0)  # at the latest when the next reply is over
    drive.run_at_leisure()
    assert drive.outcomes == (3, 2, 0)
    assert [request.prompt_at for request in drive.wire.sent] == [0, 1, 2]


def test_without_leisure_no_reply_is_kept_but_the_last(tmp_path: Path) -> None:
    """At saturation leisure never comes: what stands in line for it must not grow."""
    drive = Drive(tmp_path)
    drive.user.send()
    for _ in range(20):
        drive.wire.answer()
        drive.run_later()
    assert drive.outcomes == (21, 19, 0)
    assert len(drive.aside) == 1
    drive.run_at_leisure()
    drive.wire.answer()
    drive.run_later()
    assert drive.outcomes == (22, 20, 0)
    assert len(drive.aside) == 1  # and it stands in line again


def test_who_had_to_parse_first_sends_after_what_else_is_to_be_parsed(tmp_path: Path) -> None:
    """So that sends go out in a row; nobody else waits in front of a user that had leisure."""
    drive = Drive(tmp_path)
    drive.user.send()
    drive.wire.answer()
    drive.put_off.popleft()()
    assert drive.outcomes == (2, 0, 0)
    drive.wire.answer()
    drive.put_off.popleft()()
    assert drive.outcomes == (2, 1, 0) and len(drive.put_off) == 1
    drive.put_off.popleft()()
    assert drive.outcomes == (3, 1, 0)


def test_a_failing_server_is_not_hammered(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.user.send()
    drive.wire.answer(503, b"busy")
    drive.run_later()
    assert drive.outcomes == (1, 0, 1)
    ((seconds, go_on),) = drive.pauses
    assert seconds == FAILURE_PAUSE_S
    go_on()
    assert drive.outcomes == (2, 0, 1)


def test_failures_that_only_the_body_tells_of_are_paced_as_well(tmp_path: Path) -> None:
    """Status 200 and an error in the stream: the second in a row is known before the third is sent."""
    drive = Drive(tmp_path)
    drive.user.send()
    refusal = b'data: {"error":"no blocks"}\n\ndata: [DONE]\n\n'
    for _ in range(2):
        drive.wire.answer(body=refusal)
        drive.run_later()
    assert drive.outcomes == (2, 0, 2)
    assert [seconds for seconds, _ in drive.pauses] == [FAILURE_PAUSE_S]
    drive.pauses[0][1]()
    drive.wire.answer()
    drive.run_later()
    assert drive.outcomes == (4, 1, 2)  # a good one ends the pacing
    drive.wire.answer()
    drive.run_later()
    assert (len(drive.pauses), drive.outcomes[0]) == (1, 5)


def test_stopped_with_a_request_open_it_is_a_row_and_the_last(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.user.send()
    drive.wire.answer()
    drive.run_later()
    drive.user.stop()
    drive.run_later()
    assert drive.outcomes == (2, 1, 1)
    assert drive.session.in_flight == drive.session.unfinished == 0


def test_stopped_between_a_reply_and_the_next_send_nothing_is_lost_or_sent(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.user.send()
    drive.wire.answer()
    drive.run_later()
    drive.wire.answer()
    drive.user.stop()
    drive.run_later()
    assert drive.outcomes == (2, 2, 0)
    assert drive.session.in_flight == drive.session.unfinished == 0


def test_a_stop_in_a_pause_sends_no_more(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.user.send()
    drive.wire.answer(503, b"busy")
    drive.run_later()
    drive.user.stop()
    drive.pauses[0][1]()
    assert drive.outcomes == (1, 0, 1)


def test_rows_say_which_user_sent_them_numbered_over_all_processes(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, "http://127.0.0.1:9", output_tokens=1, load={"kind": "closed", "users": 5}
    )
    live = load_live_point(run)
    first, second = (Session(run, live, f"w{index}", (index, 2)) for index in (0, 1))
    users = [session.conversation().user for session in (first, first, first, second, second)]
    assert users == [0, 2, 4, 1, 3]
    drive = Drive(tmp_path / "one")
    drive.user.send()
    for _ in range(2):
        drive.wire.answer()
        drive.run_later()
    rows = (json.loads(line) for line in drive.rows())
    assert [row["user"] for row in rows] == [0, 0]
