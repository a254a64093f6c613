"""Tokens and requests a second: of whole cycles (closed loop) or of work spread over time (open loop)."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.point.requests import NS, PointRequests
from analysis.point.steady_window import Window
from analysis.statistics.rates import (
    Cycles,
    Floats,
    Ints,
    Ratio,
    Work,
    ratio,
    spread_ratio,
)


@dataclass(frozen=True)
class Rates:
    """A second, by whole cycles or spread work. ``little``: requests open by Little's law (requests/s × mean
    time) over those that were: the check by a second method, 1 where both agree. ``streamed``: whether an
    output token means anything.
    """

    estimator: str
    streamed: bool
    output: Ratio
    total: Ratio
    requests: Ratio
    good: Ratio
    little: float | None = None
    cycles: int | None = None
    cycles_per_user: float | None = None


@dataclass(frozen=True)
class Throughput:
    """Rates, and beside them the counts of the window, which its edges cut."""

    output: Ratio
    total: Ratio
    requests: Ratio
    estimator: str
    streamed: bool
    output_tokens: int | None
    input_tokens: int
    completions: int
    tokens_per_chunk: float | None
    little: float | None
    cycles: int | None
    cycles_per_user: float | None

    @property
    def reason(self) -> str | None:
        """Why a rate is missing that could be there."""
        of_output = self.output.reason if self.streamed else None
        return self.requests.reason or self.total.reason or of_output


NOT_STREAMED = "the task is not streamed"


NO_COUNTS = "the number of {} tokens is not known of every request"


def point_rates(
    frame: pd.DataFrame, cycles: Cycles | None, window: Window, good: np.ndarray | None
) -> Rates:
    """Output tokens, total tokens, requests and good requests a second.

    A task that is not streamed (scoring) has no rate of output tokens: it asks for one it does not use.
    Failed requests end a cycle and bring nothing.
    """
    counts = TokenCounts.of(frame, cycles)
    found = (
        _open_rates(counts, frame, window, good)
        if cycles is None
        else _closed_rates(counts, frame, cycles, good)
    )
    level, per_s = window.evidence.mean_in_flight, found.requests.value
    took = frame["end_ns"][frame["in_window"] if cycles is None else cycles.request].mean()
    if not level or per_s is None or np.isnan(took):
        return found
    return replace(found, little=per_s * took / NS / level)


@dataclass(frozen=True)
class TokenCounts:
    """Of each request; nothing for a failed one. A reason stands where no rate can be made of them."""

    output: Floats
    prompt: Floats
    no_output: str | None
    no_total: str | None
    streamed: bool

    @classmethod
    def of(cls, frame: pd.DataFrame, cycles: Cycles | None) -> "TokenCounts":
        """``cycles`` None: an open loop, of which requests cut at the drain's end count by what came."""
        ok = frame["ok"].to_numpy(dtype=bool)
        cut = (frame["error_type"] == "cut_at_drain").to_numpy(dtype=bool)
        begun = cut & frame["first_token_ns"].notna().to_numpy(dtype=bool)
        served = ok | begun if cycles is None else ok
        output = frame["arrived_tokens"].to_numpy(dtype=float)
        prompt = frame["prompt_tokens"].to_numpy(dtype=float)
        asked = np.flatnonzero(ok) if cycles is None else cycles.request[ok[cycles.request]]
        streamed = bool(frame["first_token_ns"].notna().any())
        unknown_output = NO_COUNTS.format("output") if np.isnan(output[asked]).any() else None
        unknown_prompt = NO_COUNTS.format("prompt") if np.isnan(prompt[asked]).any() else None
        return cls(
            np.where(served, np.nan_to_num(output), 0.0),
            np.where(served, np.nan_to_num(prompt), 0.0),
            unknown_output if streamed else NOT_STREAMED,
            unknown_output or unknown_prompt,
            streamed,
        )


def _or_reason(reason: str | None, found: Ratio) -> Ratio:
    return Ratio(reason=reason) if reason is not None else found


def _closed_rates(
    counts: TokenCounts, frame: pd.DataFrame, cycles: Cycles, good: np.ndarray | None
) -> Rates:
    at, ok = cycles.request, frame["ok"].to_numpy(dtype=float)

    def rate(amounts: Floats) -> Ratio:
        return ratio(cycles, amounts[at] * cycles.users, cycles.seconds)

    return Rates(
        "whole cycles",
        counts.streamed,
        _or_reason(counts.no_output, rate(counts.output)),
        _or_reason(counts.no_total, rate(counts.output + counts.prompt)),
        rate(ok),
        Ratio(reason="the sweep sets no SLO") if good is None else rate(good.astype(float)),
        cycles=len(cycles),
        cycles_per_user=cycles.per_user,
    )


@dataclass(frozen=True)
class SpreadWork:
    """An open loop's work by the time it took: prompts from sending to the first token, output tokens from
    the first to the last, requests (and what is not streamed) over their whole life.
    """

    output: Work
    prompt: Work
    requests: Work
    good: Work | None

    @classmethod
    def of(cls, counts: TokenCounts, frame: pd.DataFrame, good: np.ndarray | None) -> "SpreadWork":
        seen = frame["sent_unix_ns"].notna().to_numpy(dtype=bool)
        rows = frame[seen]
        sent = rows["sent_unix_ns"].to_numpy(dtype=np.int64)
        ended = rows["end_ns"].fillna(rows["last_token_ns"]).fillna(0)
        first = rows["first_token_ns"]

        def until(offset: pd.Series) -> Ints:
            return sent + offset.to_numpy(dtype=np.int64)

        begun, end = until(first.fillna(0)), until(ended)
        whole = (sent, end)
        return cls(
            Work(begun, until(rows["last_token_ns"].fillna(ended)), counts.output[seen]),
            Work(sent, until(first.fillna(ended)), counts.prompt[seen]),
            Work(*whole, rows["ok"].to_numpy(dtype=float)),
            None if good is None else Work(*whole, good[seen].astype(float)),
        )


def _open_rates(
    counts: TokenCounts, frame: pd.DataFrame, window: Window, good: np.ndarray | None
) -> Rates:
    work = SpreadWork.of(counts, frame, good)
    span = window.start_unix_ns, window.end_unix_ns

    def rate(*parts: Work) -> Ratio:
        return spread_ratio(parts, None, span, window.residence_s)

    return Rates(
        "spread work",
        counts.streamed,
        _or_reason(counts.no_output, rate(work.output)),
        _or_reason(counts.no_total, rate(work.output, work.prompt)),
        rate(work.requests),
        Ratio(reason="the sweep sets no SLO") if work.good is None else rate(work.good),
    )


def throughput(measured: PointRequests, rates: Rates) -> Throughput:
    """The rates with the window's counts; no output tokens where some request came without its chunks."""
    frame = measured.frame
    blind = bool((frame["first_token_ns"].notna() & frame["ok"] & (frame["chunks"] == 0)).any())
    return Throughput(
        output=rates.output,
        total=rates.total,
        requests=rates.requests,
        estimator=rates.estimator,
        streamed=rates.streamed,
        output_tokens=None if blind else measured.tokens.output,
        input_tokens=measured.tokens.input,
        completions=measured.tokens.completions,
        tokens_per_chunk=measured.tokens_per_chunk,
        little=rates.little,
        cycles=rates.cycles,
        cycles_per_user=rates.cycles_per_user,
    )
