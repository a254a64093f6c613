"""Per-request and per-point metrics; every formula is in the docstring of the function that applies it.

Definitions shared by all of them:

* *base*: the moment latency counts from: the scheduled moment in open loop, else the moment of sending.
* *counted*: latency statistics take the successful requests of whole cycles (closed loop, see
  ``analysis.rates``), so that all users weigh alike and no edge picks among them; in open loop those whose
  base lies in the window. Rates are those of whole cycles, or of work spread over its time.
* A statistic says how many values stand behind it and refuses a percentile they cannot carry.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from analysis.load import ChunkBatch, Run
from analysis.rates import (
    Cycles,
    Floats,
    Ints,
    Ratio,
    Work,
    ratio,
    spread_ratio,
    users_of,
    whole_cycles,
)
from analysis.windows import Window
from greenbench.config import SloConfig
from greenbench.slo import is_good

NS = 1e9

# The tail percentiles need ten values beyond them (p90: 10 of 100, p99: 10 of 1,000). The median needs 6:
# the fewest for which two order statistics enclose it with 95 % confidence (1 − 2·0.5⁶ = 0.969).
PERCENTILE_NEEDS = {50: 6, 90: 100, 99: 1000}


@dataclass(frozen=True)
class Statistic:
    """Of ``n`` values. A percentile is None when refused; ``refused`` says what it would need."""

    n: int
    mean: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    p50: float | None = None
    p50_low: float | None = None  # 95 % order-statistic interval of the median
    p50_high: float | None = None
    p90: float | None = None
    p99: float | None = None
    refused: list[str] = field(default_factory=list)


def statistic(values: np.ndarray, interval: bool = True) -> Statistic:
    """Mean, range and the percentiles that n allows (linear interpolation). NaN values are left out."""
    values = np.asarray(values, dtype=float) if len(values) < 1_000_000 else np.asarray(values)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Statistic(0, refused=["no values"])
    wanted = [p for p, need in PERCENTILE_NEEDS.items() if n >= need]
    found = dict(zip(wanted, np.percentile(values, wanted), strict=True)) if wanted else {}
    refused = [
        f"p{p} needs {need:,}, has {n:,}" for p, need in PERCENTILE_NEEDS.items() if n < need
    ]
    low, high = _median_interval(values) if interval and 50 in found else (None, None)
    return Statistic(
        n,
        mean=float(np.mean(values, dtype=float)),
        minimum=float(values.min()),
        maximum=float(values.max()),
        p50=_maybe(found.get(50)),
        p50_low=low,
        p50_high=high,
        p90=_maybe(found.get(90)),
        p99=_maybe(found.get(99)),
        refused=refused,
    )


def _maybe(value: float | None) -> float | None:
    return None if value is None else float(value)


def _median_interval(values: np.ndarray) -> tuple[float, float]:
    """The order statistics x(k), x(n+1−k) with the largest k whose coverage is at least 95 %.

    Coverage is 1 − 2·P(Binomial(n, ½) < k) and holds for any continuous distribution.
    """
    n = len(values)
    k = max(1, int(binom.ppf(0.025, n, 0.5)))
    while k > 1 and 2 * binom.cdf(k - 1, n, 0.5) > 0.05:
        k -= 1
    ordered = np.partition(values, [k - 1, n - k])
    return float(ordered[k - 1]), float(ordered[n - k])


@dataclass(frozen=True)
class Tokens:
    """Work done in a window. Input tokens count at their request's first token (or end, not streamed).

    What the edges of a window cut is in these counts: rates are not worked out from them.
    """

    output: int
    input: int
    completions: int


@dataclass(frozen=True)
class PointRequests:
    """What the chunk pass over a run yields.

    ``frame``: one row a request, with ``base_ns ttft_s tpot_s e2e_s lag_s ok in_window
    counted`` beside raw columns. ``itl_s``: one value a token, of the counted requests.
    ``untimed``: such requests whose chunks carry no token counts, so that their gaps cannot be used.
    """

    frame: pd.DataFrame
    itl_s: np.ndarray
    untimed: int
    tokens: Tokens
    tokens_per_chunk: float | None


def run_cycles(run: Run, window: Window) -> Cycles | None:
    """Whole cycles of a closed loop's users in the window, by rows of ``point_requests``' frame; None in
    open loop.
    """
    load = run.point.load
    if load.users is None:
        return None
    span = window.start_unix_ns, window.end_unix_ns
    found = whole_cycles(run.requests, users_of(run.requests), span, load.users, load.turns)
    return replace(found, request=run.file_order[found.request])


def point_requests(run: Run, window: Window, cycles: Cycles | None = None) -> PointRequests:
    """Walk all chunks of a run once, block by block. ``cycles``: of a closed loop, by ``run_cycles``."""
    wanted = None
    if cycles is not None:
        wanted = np.zeros(len(run.requests), dtype=bool)
        wanted[cycles.request] = True
    parts: list[_Part] = []
    at = 0
    for batch in run.chunk_batches():
        here = slice(at, at + len(batch.rows))
        parts.append(_batch(batch, window, None if wanted is None else wanted[here]))
        at = here.stop
    if not parts:
        return PointRequests(pd.DataFrame(), np.empty(0), 0, Tokens(0, 0, 0), None)
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    chunks = sum(part.chunks for part in parts)
    gained = sum(part.gained for part in parts)
    return PointRequests(
        frame,
        np.concatenate([part.itl_s for part in parts]),
        sum(part.untimed for part in parts),
        _total(parts),
        gained / chunks if chunks else None,
    )


def count_tokens(run: Run, start_unix_ns: int, end_unix_ns: int) -> Tokens:
    """Work that arrived between two moments; for joules, which are counted over an interval of their own."""
    output = prompts = completions = 0
    for batch in run.chunk_batches():
        _, found = _work(batch, start_unix_ns, end_unix_ns)
        output, prompts = output + found.output, prompts + found.input
        completions += found.completions
    return Tokens(output, prompts, completions)


def count_context(run: Run, start_unix_ns: int, end_unix_ns: int) -> tuple[int, float]:
    """(tokens, Σ context) of the decoded tokens that arrived between two moments.

    A token's context is its prompt and the tokens before it; the first token comes from the prefill and
    is left out. A chunk that brings n tokens up to the c-th adds n·prompt + Σ (c−n … c−1).
    """
    tokens, summed = 0, 0.0
    for batch in run.chunk_batches():
        if batch.offsets[-1] == 0:
            continue
        lengths = np.diff(batch.offsets)
        sent = batch.rows["sent_unix_ns"].astype("Int64").fillna(0).to_numpy(dtype=np.int64)
        prompt = np.repeat(batch.rows["prompt_tokens"].to_numpy(dtype=float), lengths)
        at = batch.ns - np.repeat(start_unix_ns - sent, lengths)
        gained = np.diff(batch.tokens, prepend=0).astype(np.int64)
        first_of = batch.offsets[:-1][lengths > 0]
        gained[first_of] = batch.tokens[first_of] - 1
        use = (at >= 0) & (at < end_unix_ns - start_unix_ns) & (batch.tokens >= 0) & (gained > 0)
        n, c = gained[use], batch.tokens[use]
        tokens += int(n.sum())
        summed += float(np.nansum(n * prompt[use] + n * (2 * c - n - 1) / 2))
    return tokens, summed


@dataclass(frozen=True)
class _Part:
    frame: pd.DataFrame
    itl_s: np.ndarray
    untimed: int
    output: int
    input: int
    completions: int
    chunks: int
    gained: int


def _total(parts: list[_Part]) -> Tokens:
    return Tokens(
        output=sum(part.output for part in parts),
        input=sum(part.input for part in parts),
        completions=sum(part.completions for part in parts),
    )


def _batch(batch: ChunkBatch, window: Window, wanted: np.ndarray | None) -> _Part:
    frame = request_metrics(batch)
    start, end = window.start_unix_ns, window.end_unix_ns
    frame["in_window"] = frame["base_ns"].between(start, end, inclusive="left").fillna(False)
    frame["in_window"] = frame["in_window"].astype(bool)
    frame["counted"] = frame["ok"] & (frame["in_window"] if wanted is None else wanted)
    gaps = token_gaps(batch, frame["counted"].to_numpy(dtype=bool))
    arrived, work = _work(batch, start, end)
    return _Part(
        frame,
        gaps.seconds,
        gaps.untimed,
        work.output,
        work.input,
        work.completions,
        arrived,
        work.output,
    )


def _work(batch: ChunkBatch, start: int, end: int) -> tuple[int, Tokens]:
    """Chunks that brought tokens in [start, end), and the work done in it."""
    rows = batch.rows
    served = rows["error_type"].isna() | (rows["error_type"] == "cut_at_drain")
    output, arrived = _output_tokens(batch, served.to_numpy(), start, end)
    sent = (rows["sent_unix_ns"] - start).astype("float64")  # small numbers: exact as floats
    length = end - start
    prompt_at = sent + rows["first_token_ns"].fillna(rows["end_ns"])
    prompt_in = served & (prompt_at >= 0) & (prompt_at < length)
    ended = sent + rows["end_ns"]
    done = rows["error_type"].isna() & (ended >= 0) & (ended < length)
    unstreamed = done & rows["first_token_ns"].isna()  # no chunks: its tokens count when it ends
    return arrived, Tokens(
        output + int(rows.loc[unstreamed, "output_tokens"].fillna(0).sum()),
        int(rows.loc[prompt_in, "prompt_tokens"].fillna(0).sum()),
        int(done.sum()),
    )


def request_metrics(batch: ChunkBatch) -> pd.DataFrame:
    """Per request, in seconds:

    * ``ttft_s`` = first_token_ns + lag: base to the first chunk with text. Null when not streamed.
    * ``tpot_s`` = (t_last − t_first) / (c_last − c_first) over the chunks, c being cumulative tokens;
      without token counts (last_token_ns − first_token_ns) / (output_tokens − 1). Null below 2 tokens.
    * ``e2e_s`` = end_ns + lag: base to the end of the response.
    * ``lag_s`` = sent − scheduled in open loop, else 0.
    * ``arrived_tokens``: output tokens, of a request that was cut those that came.
    """
    rows = batch.rows.copy()
    sent, scheduled = (rows[name].astype("Int64") for name in ("sent_unix_ns", "scheduled_unix_ns"))
    lag_ns = (sent - scheduled).astype("float64").fillna(0.0)
    rows["base_ns"] = scheduled.fillna(sent)
    rows["lag_s"] = lag_ns / NS
    rows["ttft_s"] = (rows["first_token_ns"].astype(float) + lag_ns) / NS
    rows["e2e_s"] = (rows["end_ns"].astype(float) + lag_ns) / NS
    rows["tpot_s"] = _tpot_s(batch)
    rows["chunks"] = np.diff(batch.offsets)
    rows["ok"] = rows["error_type"].isna()
    rows["arrived_tokens"] = _arrived_tokens(batch)
    return rows


def _arrived_tokens(batch: ChunkBatch) -> np.ndarray:
    """Output tokens of a request: the server's total, else the last count of its chunks (cut requests)."""
    known = batch.rows["output_tokens"].to_numpy(dtype=float, copy=True)
    last = np.full(len(known), np.nan)
    has = np.diff(batch.offsets) > 0
    counts = batch.tokens[batch.offsets[1:][has] - 1].astype(float)
    last[has] = np.where(counts >= 0, counts, np.nan)
    return np.where(np.isnan(known), last, known)


def _tpot_s(batch: ChunkBatch) -> np.ndarray:
    rows = batch.rows
    span = (rows["last_token_ns"] - rows["first_token_ns"]).to_numpy(dtype=float, copy=True)
    steps = rows["output_tokens"].to_numpy(dtype=float) - 1
    lengths = np.diff(batch.offsets)
    has = np.flatnonzero(lengths > 0)
    first, last = batch.offsets[has], batch.offsets[has + 1] - 1
    counted = has[batch.tokens[first] >= 0] if len(has) else has
    first, last = batch.offsets[counted], batch.offsets[counted + 1] - 1
    span[counted] = batch.ns[last] - batch.ns[first]
    steps[counted] = batch.tokens[last] - batch.tokens[first]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(steps >= 1, span / steps / NS, np.nan)


@dataclass(frozen=True)
class TokenGaps:
    seconds: np.ndarray  # float32, one a token
    untimed: int


def token_gaps(batch: ChunkBatch, wanted: np.ndarray) -> TokenGaps:
    """Token-weighted inter-token latency: a gap that yields n tokens counts as n values of gap / n.

    The first chunk of a request opens no gap. A chunk that brings no new token lengthens the gap of the
    next one that does. Never one value a chunk, never padded with zeros.
    """
    lengths = np.diff(batch.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    use = wanted[owner] if len(owner) else np.empty(0, dtype=bool)
    known = batch.tokens >= 0
    first_of = batch.offsets[:-1][wanted & (lengths > 0)]
    untimed = int(np.sum(batch.tokens[first_of] < 0))
    use &= known
    owner, ns, count = owner[use], batch.ns[use], batch.tokens[use]
    if len(owner) == 0:
        return TokenGaps(np.empty(0, dtype=np.float32), untimed)
    opens = np.concatenate(([True], owner[1:] != owner[:-1]))
    gained = np.diff(count, prepend=0)
    gained[opens] = count[opens]
    keep = opens | (gained > 0)
    opens, ns, gained = opens[keep], ns[keep], gained[keep]
    gap = np.diff(ns, prepend=0).astype(np.float32) / np.float32(NS)
    inner = ~opens
    gap, gained = gap[inner], gained[inner]
    if len(gained) and gained.max() > 1:
        gap = np.repeat(gap / gained, gained)
    return TokenGaps(gap.astype(np.float32, copy=False), untimed)


def _output_tokens(batch: ChunkBatch, served: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Tokens, and chunks that brought them, that arrived in [start, end).

    Where chunks carry no counts, the server's total is spread evenly over the request's chunks.
    """
    lengths = np.diff(batch.offsets)
    if batch.offsets[-1] == 0:
        return 0, 0
    # rows never sent have no chunks, so what stands in for their time is never used
    sent = batch.rows["sent_unix_ns"].astype("Int64").fillna(0).to_numpy(dtype=np.int64)
    lower = np.repeat(start - sent, lengths)
    upper = np.repeat(end - sent, lengths)
    inside = (batch.ns >= lower) & (batch.ns < upper) & np.repeat(served, lengths)
    gained = np.diff(batch.tokens, prepend=0).astype(np.int64)
    first_of = batch.offsets[:-1][lengths > 0]
    gained[first_of] = batch.tokens[first_of]
    unknown = batch.tokens < 0
    total = int(gained[inside & ~unknown].sum())
    if unknown.any():
        share = batch.rows["output_tokens"].to_numpy(dtype=float) / np.maximum(lengths, 1)
        total += round(float(np.nansum(np.repeat(share, lengths)[inside & unknown])))
    return total, int(inside.sum())


@dataclass(frozen=True)
class Goodput:
    """Requests that met the SLO. ``share`` is of all that were counted, failed ones included."""

    good: int | None = None
    sent: int | None = None
    share: float | None = None
    per_s: float | None = None
    per_s_se: float | None = None
    reason: str | None = None  # why there is none


def good_requests(frame: pd.DataFrame, slo: SloConfig) -> np.ndarray | None:
    """Which requests are good, by ``greenbench.slo``; None where the SLO bounds nothing.

    A reply that is not streamed comes at once: its first token is its end.
    """
    if not any(limit is not None for limit in slo.model_dump().values()):
        return None
    found = is_good(
        slo,
        frame["ok"].to_numpy(dtype=bool),
        frame["ttft_s"].fillna(frame["e2e_s"]).to_numpy(dtype=float),
        frame["tpot_s"].to_numpy(dtype=float),
        frame["e2e_s"].to_numpy(dtype=float),
        frame["output_tokens"].to_numpy(dtype=float),
    )
    return np.asarray(found, dtype=bool)


def goodput(
    frame: pd.DataFrame, good: np.ndarray | None, cycles: Cycles | None, rate: Ratio
) -> Goodput:
    """``rate`` of good requests, with the counts and the share of those it was taken over: the requests of
    whole cycles, in open loop those whose base lies in the window.
    """
    if good is None:
        return Goodput(reason="the sweep sets no SLO")
    among = frame["in_window"].to_numpy(dtype=bool) if cycles is None else cycles.request
    met = good[among]
    if len(met) == 0:
        return Goodput(reason=rate.reason or "no request was sent in the window")
    count = int(met.sum())
    share = count / len(met)
    return Goodput(count, len(met), share, rate.value, rate.standard_error, rate.reason)


@dataclass(frozen=True)
class Answers:
    """Grades of the measured phase. Greedy answers to one prompt repeat, so prompts are counted too."""

    graded: int = 0
    prompts: int = 0
    correct: int | None = None
    correct_share: float | None = None
    low: float | None = None  # 95 % Wilson interval over distinct prompts
    high: float | None = None
    mean_score: float | None = None
    nll_per_token: float | None = None  # nats; perplexity = exp of it
    perplexity: float | None = None
    nll_tokens: int | None = None
    reason: str | None = None


def answers(run: Run) -> Answers:
    """Right answers per prompt (a prompt counts by the mean of its answers), mean score, perplexity.

    perplexity = exp(Σ nll / Σ tokens) over all scored tokens of the measured phase.
    """
    joined = graded_prompts(run)
    if len(joined) == 0:
        return Answers(reason="no graded answers were stored")
    by_prompt = joined.groupby("prompt_index")[["correct", "score"]].mean()
    graded = joined[joined["correct"].notna()]
    tokens = joined["nll_tokens"].sum()
    nll = float(joined["nll_sum"].sum() / tokens) if tokens else None
    share = float(by_prompt["correct"].mean()) if len(graded) else None
    prompts = int(by_prompt["correct"].notna().sum()) or len(by_prompt)
    low, high = wilson(share * prompts, prompts) if share is not None else (None, None)
    return Answers(
        graded=len(joined),
        prompts=prompts,
        correct=int(graded["correct"].sum()) if len(graded) else None,
        correct_share=share,
        low=low,
        high=high,
        mean_score=_maybe(by_prompt["score"].mean()) if joined["score"].notna().any() else None,
        nll_per_token=nll,
        perplexity=float(np.exp(nll)) if nll is not None else None,
        nll_tokens=int(tokens) if tokens else None,
    )


def graded_prompts(run: Run) -> pd.DataFrame:
    """One row a graded answer of a successful measured request: prompt_index, correct, score, nll_*."""
    outputs = run.outputs
    requests = run.requests
    if len(outputs) == 0 or len(requests) == 0:
        return pd.DataFrame()
    measured = requests[(requests["phase"] == "measure") & requests["error_type"].isna()]
    joined = outputs[outputs["request_id"].isin(measured["request_id"])].copy()
    for column in ("correct", "score", "nll_sum", "nll_tokens"):
        joined[column] = pd.to_numeric(joined[column].map(_number), errors="coerce")
    return joined[joined[["correct", "score", "nll_tokens"]].notna().any(axis=1)]


def _number(value: Any) -> float | None:
    return None if value is None or value is pd.NA else float(value)


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}  # of the objectives' names


def latency(measured: PointRequests) -> dict[str, dict[str, Any]]:
    """Statistics of TTFT, TPOT, ITL and E2E (seconds) over the counted requests."""
    counted = measured.frame[measured.frame["counted"]]
    found = {name: statistic(counted[name].to_numpy(dtype=float)) for name in LATENCIES.values()}
    # tokens of one request are not independent, so ITL gets no interval
    found["itl_s"] = statistic(measured.itl_s, interval=False)
    return {name: asdict(value) for name, value in found.items()}


@dataclass(frozen=True)
class Rates:
    """A second, by whole cycles or spread work. ``little``: requests open by Little's law (requests/s × mean
    time) over those that were: the check by a second method, 1 where both agree.
    """

    estimator: str
    output: Ratio
    total: Ratio
    requests: Ratio
    good: Ratio
    little: float | None = None
    cycles: int | None = None
    cycles_per_user: float | None = None

    def items(self) -> dict[str, Ratio]:
        """By the objectives' names."""
        return {
            "output": self.output,
            "total": self.total,
            "requests": self.requests,
            "goodput": self.good,
        }


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
    level, per_s = window.evidence.get("mean_in_flight"), found.requests.value
    took = frame["end_ns"][frame["in_window"] if cycles is None else cycles.request].mean()
    known = bool(level) and per_s is not None and not np.isnan(took)
    return replace(found, little=per_s * took / NS / level) if known else found  # type: ignore[operator]


@dataclass(frozen=True)
class TokenCounts:
    """Of each request; nothing for a failed one. A reason stands where no rate can be made of them."""

    output: Floats
    prompt: Floats
    no_output: str | None
    no_total: str | None

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
    residence_s = window.evidence.get("mean_residence_s", 0.0)

    def rate(*parts: Work) -> Ratio:
        return spread_ratio(parts, None, span, residence_s)

    return Rates(
        "spread work",
        _or_reason(counts.no_output, rate(work.output)),
        _or_reason(counts.no_total, rate(work.output, work.prompt)),
        rate(work.requests),
        Ratio(reason="the sweep sets no SLO") if work.good is None else rate(work.good),
    )


def throughput(measured: PointRequests, rates: Rates) -> dict[str, Any]:
    """Rates with their standard errors, and beside them the counts of the window, which its edges cut."""
    blind = bool(
        (
            measured.frame["first_token_ns"].notna()
            & measured.frame["ok"]
            & (measured.frame["chunks"] == 0)
        ).any()
    )
    reasons = [found.reason for found in (rates.requests, rates.total, rates.output)]
    known = [reason for reason in reasons if reason not in (None, NOT_STREAMED)]
    return {
        "output_tokens": None if blind else measured.tokens.output,
        "input_tokens": measured.tokens.input,
        "completions": measured.tokens.completions,
        "output_tokens_per_s": rates.output.value,
        "output_tokens_per_s_se": rates.output.standard_error,
        "total_tokens_per_s": rates.total.value,
        "total_tokens_per_s_se": rates.total.standard_error,
        "requests_per_s": rates.requests.value,
        "requests_per_s_se": rates.requests.standard_error,
        "tokens_per_chunk": measured.tokens_per_chunk,
        "estimator": rates.estimator,
        "cycles": rates.cycles,
        "cycles_per_user": rates.cycles_per_user,
        "little_ratio": rates.little,
        "reason": known[0] if known else None,
    }


def errors(run: Run) -> dict[str, int]:
    """Failed requests of the measured phase by error type."""
    frame = run.requests
    measured = frame[(frame["phase"] == "measure") & frame["error_type"].notna()]
    return {str(kind): int(count) for kind, count in measured["error_type"].value_counts().items()}


NOT_FAILURES = frozenset({"cut_at_drain", "not_sent"})  # the load generator's own doing


def failures(run: Run) -> tuple[int, int]:
    """Requests of the measured phase that failed, and all of them; those that were cut or not sent are
    neither."""
    measured = run.requests[run.requests["phase"] == "measure"]
    kinds = measured["error_type"]
    counted = ~kinds.isin(NOT_FAILURES)
    return int((kinds.notna() & counted).sum()), int(counted.sum())
