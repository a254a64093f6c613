"""Ends an auto point when the report's own rules hold for what it has measured.

The rules belong to the analysis, which answers from a process of its own (``python -m analysis enough``),
started once for a sweep; the load generator is told by a signal.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from pydantic import ValidationError

from greenbench.contract.config import PhaseConfig
from greenbench.contract.enough import (
    JOULES_REQUESTS,
    JOULES_S,
    WINDOW_REQUESTS,
    Answer,
    Question,
    needed,
)
from greenbench.contract.errors import UserError
from greenbench.contract.installation import bench_env
from greenbench.contract.run_dir import RunDir, read_json, read_jsonl
from greenbench.sweep.child_processes import end_with_parent, python_module
from greenbench.sweep.live import Live

EDGES_S = 2.0  # of a window for joules: its energy is taken between refreshes of the counter
ASK_EVERY_S = 2.0
REST = 20  # times as long as an answer took: the asking takes a twentieth of a core at most
LAST_ANSWER_S = 20.0
LOOK_S = 0.5
ROUNDING_S = 1e-3  # marks are whole nanoseconds
ENOUGH, CAP_REACHED = "measured_enough", "cap_reached"  # events


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a point's window must hold."""

    seconds: float
    completions: int

    @classmethod
    def of(cls, phases: PhaseConfig, joules: bool) -> Self:
        completions = max(WINDOW_REQUESTS, needed(phases.percentile))
        if phases.requests is not None:  # more are never sent
            completions = min(completions, phases.requests)
        if not joules:
            return cls(0.0, completions)
        return cls(JOULES_S + EDGES_S, max(completions, JOULES_REQUESTS))


def joules_to_measure(run: RunDir) -> bool:
    """Whether the recorder reads an energy counter of a card that the server may use."""
    try:
        sources = read_json(run.telemetry_dir / "sources.json")
    except UserError:
        return False
    cards = sources.get("facts", {}).get("gpus", [])
    counter = sources.get("counter", {}).get("status")
    return counter != "unavailable" and any(card.get("visible") is not False for card in cards)


def _aside() -> None:
    """What is measured comes first."""
    end_with_parent()
    os.nice(10)


class Judge:
    """``python -m analysis enough``. When it dies nothing is answered any more: points end at their cap."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._text = b""
        self.busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self) -> None:
        """Its imports take seconds: best while the load warms up. One that died is replaced."""
        if not self._lives:
            self._text, self.busy = b"", False
            self._process = subprocess.Popen(
                python_module("analysis", "enough"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=bench_env(),
                start_new_session=True,
                preexec_fn=_aside,
            )
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)

    def ask(self, question: Question) -> None:
        """Nothing while an earlier question is open."""
        if self.busy or self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(question.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
            self.busy = True

    def answer(self) -> Answer | None:
        """That to the open question, once it is there and can be read."""
        if self._process is None or not self.busy:
            return None
        assert self._process.stdout is not None
        self._text += self._process.stdout.read() or b""
        line, end, rest = self._text.partition(b"\n")
        if not end:
            return None
        self._text, self.busy = rest, False
        try:
            return Answer.model_validate_json(line)
        except ValidationError:  # of another version: the checkout was changed meanwhile
            return None

    def last_answer(self, question: Question, waiting: Callable[[], None]) -> Answer | None:
        """That to this question, waited for; None where there is none in time."""
        deadline_s = time.monotonic() + LAST_ANSWER_S
        self._await(deadline_s, waiting)  # an earlier question's
        self.ask(question)
        return self._await(deadline_s, waiting)

    def _await(self, deadline_s: float, waiting: Callable[[], None]) -> Answer | None:
        while self.busy and self._lives and time.monotonic() < deadline_s:
            if (found := self.answer()) is not None:
                return found
            waiting()
            time.sleep(0.05)
        return None

    @property
    def _lives(self) -> bool:
        return self._process is not None and self._process.poll() is None


class AutoEnd:
    """Of one point: asks when it can be enough, and then ends the measured phase."""

    def __init__(self, judge: Judge, live: Live, load: subprocess.Popen[bytes]) -> None:
        self.judge = judge
        self.live = live
        self.load = load
        self.wanted = Wanted.of(live.point.phases, joules_to_measure(live.run))
        self.ended_by: Answer | None = None
        self._look_s = self._ask_s = 0.0  # the next
        judge.start()

    @property
    def question(self) -> Question:
        return Question(
            path=str(self.live.run.path),
            seconds=self.wanted.seconds,
            completions=self.wanted.completions,
        )

    def look(self) -> None:
        """Call often; a question goes out only where the answer can be yes."""
        now_s = time.monotonic()
        if self.ended_by is not None or now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        self.live.look()
        found = self.judge.answer()
        if found is not None and found.path != self.question.path:
            found = None  # to what was asked of the point before
        if found is not None:
            self._ask_s = now_s + max(ASK_EVERY_S, REST * found.took_s)
        measured_s = self.live.measured_s
        if measured_s is None:
            return
        if found is not None and found.enough:
            self.ended_by = found
            self.load.send_signal(signal.SIGUSR1)
        elif self._may_be_enough(measured_s) and now_s >= self._ask_s:
            self._ask_s = now_s + ASK_EVERY_S
            self.judge.ask(self.question)

    def _may_be_enough(self, measured_s: float) -> bool:
        return measured_s >= self.wanted.seconds and self.live.done >= self.wanted.completions

    def at_the_cap(self, waiting: Callable[[], None]) -> str | None:
        """Once the load has ended: what the cap left undone, in a sentence; None where it ended nothing."""
        self.live.look()
        cap_s = self.live.point.phases.cap_s
        if (self.live.length_s or 0.0) < cap_s - ROUNDING_S:
            return None
        found = self.judge.last_answer(self.question, waiting)
        lacking = ["the report's rules gave no answer"] if found is None else found.lacking
        return f"the cap of {cap_s:g} s came first: {'; '.join(lacking)}" if lacking else None


def left_undone(run: RunDir) -> str | None:
    """Of an auto point that ended at its cap: what it lacks, in one sentence."""
    if not run.events_path.exists():
        return None
    with suppress(UserError):  # events that cannot be read are a fault of the report's rules
        for event in read_jsonl(run.events_path):
            if event.get("name") == CAP_REACHED:
                return event["detail"]["lacking"]
    return None
