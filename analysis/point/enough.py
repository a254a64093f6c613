"""Whether a point that is being measured has enough by now: the report's own window over the rows on disk.

Requests that are open have no row yet, so the answer errs on the side of measuring longer. Rules of the
run as a whole (``analysis.runs.validity``) are asked when it is over.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from analysis.point.point import window_of
from analysis.point.steady_window import Window
from analysis.runs.activity import Series
from analysis.runs.parquet import LABEL_SEPARATOR
from analysis.runs.scrapes import KV_USAGE, POOLS, usage_series
from analysis.statistics.rates import users_of, whole_cycles
from greenbench.contract.config import LoadConfig, load_live_point
from greenbench.contract.enough import Answer, Question
from greenbench.contract.run_dir import RunDir

NO_ROWS = "no request has ended in the measured phase"
METRICS = tuple(f'"{name}"'.encode() for name in (*KV_USAGE, POOLS))


class Row(msgspec.Struct):
    """Of a request's row what windows and cycles are made of."""

    sent_unix_ns: int | None = None
    scheduled_unix_ns: int | None = None
    end_ns: int | None = None
    error_type: str | None = None
    conversation: int | None = None
    turn: int | None = None
    user: int | None = None


class Scrape(msgspec.Struct):
    unix_ns: int
    mono_ns: int
    metric: str
    value: float
    labels: dict[str, str] = {}


@dataclass
class Tail:
    """The lines of a file that grows, each once."""

    path: Path
    at: int = 0

    def lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.at)
            whole, end, _ = file.read().rpartition(b"\n")
        self.at += len(whole) + len(end)
        return whole.split(b"\n") if end else []


@dataclass
class SoFar:
    """A run as far as it is written; ``read`` takes up what came since."""

    run: RunDir
    load: LoadConfig
    rows: list[Row] = field(default_factory=list[Row])
    scrapes: list[Scrape] = field(default_factory=list[Scrape])
    marks: dict[str, int] = field(default_factory=dict[str, int])
    tails: dict[Path, Tail] = field(default_factory=dict[Path, Tail])

    @classmethod
    def of(cls, path: Path) -> "SoFar":
        return cls(RunDir(path), load_live_point(path).point.load)

    def read(self) -> None:
        rows, scrapes = msgspec.json.Decoder(Row), msgspec.json.Decoder(Scrape)
        for path in sorted(self.run.requests_dir.glob("*.jsonl")):
            self.rows += [rows.decode(line) for line in self._new(path)]
        server = self._new(self.run.telemetry_dir / "server.jsonl")
        self.scrapes += [
            scrapes.decode(line) for line in server if any(name in line for name in METRICS)
        ]
        for line in self._new(self.run.events_path):
            event = json.loads(line)
            self.marks[event["name"]] = event["unix_ns"]

    def _new(self, path: Path) -> list[bytes]:
        return self.tails.setdefault(path, Tail(path)).lines()

    def requests(self) -> pd.DataFrame:
        """In order of sending, with the columns of ``Run.requests`` that windows and cycles take."""
        frame = pd.DataFrame(
            [msgspec.structs.astuple(row) for row in self.rows], columns=list(Row.__struct_fields__)
        )
        whole = {name: "Int64" for name in ("sent_unix_ns", "scheduled_unix_ns")}
        real = {name: "float64" for name in ("end_ns", "turn", "user", "conversation")}
        return frame.astype({**whole, **real}).sort_values(
            "sent_unix_ns", kind="stable", ignore_index=True
        )

    def kv_usage(self) -> Series | None:
        said = [(s.unix_ns, s.mono_ns, s.metric, s.value, _labels(s.labels)) for s in self.scrapes]
        columns = ["unix_ns", "mono_ns", "metric", "value", "labels"]
        return usage_series(pd.DataFrame(said, columns=columns))

    def phase(self, requests: pd.DataFrame) -> tuple[int, int] | None:
        """The measured phase up to now: of what was sent before its end, all is over.

        In a closed loop the window itself ends where users with open requests are lacking.
        """
        start = self.marks.get("measure_start")
        if start is None or requests.empty:
            return None
        if "measure_end" in self.marks:
            return start, self.marks["measure_end"]
        took_ns = requests["end_ns"].to_numpy(dtype=float)
        last_ns = requests["sent_unix_ns"].to_numpy(dtype=np.int64) + took_ns
        end = np.nanmax(last_ns) - (np.nanmax(took_ns) if self.load.users is None else 0)
        return (start, int(end)) if end > start else None


def _labels(labels: dict[str, str]) -> str:
    named = [f"{name}={value}" for name, value in labels.items()]
    return LABEL_SEPARATOR.join(["", *named, ""])


def judge(so_far: SoFar, question: Question) -> Answer:
    """Whether the report would find a steady window so long and so full."""
    requests = so_far.requests()
    requests = requests[requests["sent_unix_ns"].notna() & requests["end_ns"].notna()]
    requests = requests.reset_index(drop=True)
    phase = so_far.phase(requests)
    if phase is None:
        return _nothing(question, [NO_ROWS])
    window = window_of(requests, phase, so_far.load, so_far.kv_usage())
    if not window.valid:
        return _nothing(question, [f"no steady state: {reason}" for reason in window.reasons])
    counted, fault = counted_requests(requests, window, so_far.load)
    lacking = [
        *([f"no rates: {fault}"] if fault else []),
        *_less(window.duration_s, question.seconds, "s of steady load"),
        *_less(counted, question.completions, "requests counted in it"),
    ]
    return Answer(
        path=question.path,
        enough=not lacking,
        steady_s=window.duration_s,
        completions=counted,
        lacking=lacking,
    )


def _nothing(question: Question, lacking: list[str]) -> Answer:
    return Answer(path=question.path, enough=False, steady_s=0.0, completions=0, lacking=lacking)


def _less(found: float, wanted: float, what: str) -> list[str]:
    return [f"{found:.4g} {what}, {wanted:,.10g} are wanted"] if found < wanted else []


def counted_requests(
    requests: pd.DataFrame, window: Window, load: LoadConfig
) -> tuple[int, str | None]:
    """How many requests the report's statistics would count (``analysis.point.requests``), and why there
    would be no rates.
    """
    good = requests["error_type"].isna().to_numpy(dtype=bool)
    span = window.start_unix_ns, window.end_unix_ns
    if load.users is None:
        base = requests["scheduled_unix_ns"].fillna(requests["sent_unix_ns"])
        inside = base.between(*span, inclusive="left").to_numpy(dtype=bool)
        return int(np.sum(good & inside)), None
    cycles = whole_cycles(requests, users_of(requests), span, load.users, load.turns)
    return int(np.sum(good[cycles.request])), cycles.reason


def answers(lines: Iterable[str]) -> Iterator[Answer]:
    """An answer to each question; of the last run what was read is kept."""
    so_far: SoFar | None = None
    for line in lines:
        began_s = time.process_time()
        question = Question.model_validate_json(line)
        path = Path(question.path)
        if so_far is None or so_far.run.path != path:
            so_far = SoFar.of(path)
        so_far.read()
        answer = judge(so_far, question)
        yield answer.model_copy(update={"took_s": time.process_time() - began_s})
