"""Engine steps out of vLLM's iteration log: what each step computed and how long it took."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pandas as pd

from greenbench.rundir import RunDir

# 1795461709.47 (APIServer pid=1) INFO … Engine 000: Iteration(19): 0 context requests, 0 context tokens,
# 1 generation requests, 1 generation tokens, iteration elapsed time: 4.89 ms, CPU KV cache usage: 0.0%
STEP = re.compile(
    r"^(?P<epoch>\d{9,}\.\d+)?.*?Engine (?P<engine>\d+): Iteration\((?P<index>\d+)\): "
    r"(?P<prefill_requests>\d+) context requests, (?P<prefill_tokens>\d+) context tokens, "
    r"(?P<decode_requests>\d+) generation requests, (?P<decode_tokens>\d+) generation tokens, "
    r"iteration elapsed time: (?P<elapsed_ms>[\d.]+) ms(?P<dummy> \(dummy\))?, "
    r"\w+ KV cache usage: (?P<kv_percent>[\d.]+)%"
)
COLUMNS = {
    "unix_ns": "Int64",  # when the line was written: the end of the step; null without an epoch stamp
    "engine": "int64",
    "index": "int64",
    "elapsed_s": "float64",
    "prefill_requests": "int64",
    "prefill_tokens": "int64",
    "decode_requests": "int64",
    "decode_tokens": "int64",
    "kv_usage": "float64",  # 0..1
}


class HasDir(Protocol):
    @property
    def dir(self) -> RunDir: ...


def parse_steps(lines: Iterable[str]) -> pd.DataFrame:
    """One row a step, in the order of the log; dummy steps (idle ranks of data parallel) are left out."""
    rows: list[tuple[object, ...]] = []
    for line in lines:
        found = STEP.match(line) if "Iteration(" in line else None
        if found is None or found["dummy"]:
            continue
        seconds, _, fraction = (found["epoch"] or "").partition(".")
        rows.append(
            (
                # in whole numbers: a float holds an epoch only to 0.2 µs
                int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9]) if seconds else None,
                int(found["engine"]),
                int(found["index"]),
                float(found["elapsed_ms"]) / 1e3,
                int(found["prefill_requests"]),
                int(found["prefill_tokens"]),
                int(found["decode_requests"]),
                int(found["decode_tokens"]),
                float(found["kv_percent"]) / 100,
            )
        )
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    # column by column: a frame of rows would make floats of integers with a null among them
    named = zip(COLUMNS.items(), columns, strict=True)
    return pd.DataFrame({name: pd.array(list(v), dtype=kind) for (name, kind), v in named})  # type: ignore[call-overload]


def read_steps(run: HasDir) -> pd.DataFrame:
    """Steps of one run, from its slice of the server's log; empty when the log has none."""
    path: Path = run.dir.logs_dir / "server.log"
    if not path.is_file():
        return parse_steps([])
    with path.open(encoding="utf-8", errors="replace") as log:
        return parse_steps(log)
