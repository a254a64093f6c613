"""Recorded traffic as a schedule; the formats are those of ``greenbench.contract.traces``.

Prompts are the point's own, cut to the recorded length.
"""

from pathlib import Path

from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError
from greenbench.contract.traces import read_lengths
from loadgen.driver.arrivals import Arrival


def read_trace(load: LoadConfig, context_tokens: int) -> list[Arrival]:
    """The arrivals of ``load.trace`` in order of time, the first at 0. What is wrong: UserError.

    Prompts longer than ``context_tokens`` are refused, or cut to it with ``trace_clip``.
    """
    assert load.trace is not None
    path = Path(load.trace)
    rows = read_lengths(path, load.trace_format)
    longest = max(tokens for _, tokens, _ in rows)
    if longest > context_tokens and not load.trace_clip:
        raise UserError(
            f"{path}: its longest prompt is {longest} tokens, the point's context is {context_tokens}; "
            "raise the context, or set trace_clip: true to cut longer ones"
        )
    first_s = rows[0][0]
    return [
        Arrival((at_s - first_s) / load.trace_speed, min(tokens, context_tokens), output)
        for at_s, tokens, output in rows
    ]
