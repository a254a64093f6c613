"""Per-request and per-point metrics; every formula is in the docstring of the function that applies it.

Definitions shared by all of them:

* *base*: the moment latency counts from: the scheduled moment in open loop, else the moment of sending.
* *counted*: latency statistics take the successful requests of whole cycles (closed loop, see
  ``analysis.statistics.rates``), so that all users weigh alike and no edge picks among them; in open loop
  those whose base lies in the window. Rates are those of whole cycles, or of work spread over its time.
* A statistic says how many values stand behind it and refuses a percentile they cannot carry.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.point.steady_window import Window
from analysis.point.tokens import Tokens, work_within
from analysis.runs.run import ChunkBatch, Run
from analysis.statistics.rates import (
    Cycles,
    users_of,
    whole_cycles,
)

NS = 1e9


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
    arrived, work = work_within(batch, start, end)
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
