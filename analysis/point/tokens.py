"""Tokens that arrived between two moments: output, input, and the context they were decoded at."""

from dataclasses import dataclass

import numpy as np

from analysis.runs.run import ChunkBatch, Run


@dataclass(frozen=True)
class Tokens:
    """Work done in a window. Input tokens count at their request's first token (or end, not streamed).

    What the edges of a window cut is in these counts: rates are not worked out from them.
    """

    output: int
    input: int
    completions: int


def count_tokens(run: Run, start_unix_ns: int, end_unix_ns: int) -> Tokens:
    """Work that arrived between two moments; for joules, which are counted over an interval of their own."""
    output = prompts = completions = 0
    for batch in run.chunk_batches():
        _, found = work_within(batch, start_unix_ns, end_unix_ns)
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


def work_within(batch: ChunkBatch, start: int, end: int) -> tuple[int, Tokens]:
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
