"""Engine steps out of vLLM's iteration log: what each step computed and how long it took.

With asynchronous scheduling, vLLM's default on a GPU, the "elapsed time" of the log ends when a step is
launched: 0.03 ms for a decode step that takes 3.3 (seen on an H100). There a step's time is what passed
between its line and the line before while a request was open.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.runs.activity import Activity, activity, in_flight
from analysis.runs.archived import read_archived_steps
from greenbench.contract.archive import STEPS
from greenbench.contract.clock import NS_PER_S

# 1795461709.47 (APIServer pid=1) INFO … Engine 000: Iteration(19): 0 context requests, 0 context tokens,
# 1 generation requests, 1 generation tokens, iteration elapsed time: 4.89 ms, CPU KV cache usage: 0.0%
STEP = re.compile(
    r"^(?P<epoch>\d{9,10}\.\d+)?.*?Engine (?P<engine>\d{1,9}): Iteration\((?P<index>\d{1,18})\): "
    r"(?P<prefill_requests>\d{1,18}) context requests, (?P<prefill_tokens>\d{1,18}) context tokens, "
    r"(?P<decode_requests>\d{1,18}) generation requests, (?P<decode_tokens>\d{1,18}) generation tokens, "
    r"iteration elapsed time: (?P<elapsed_ms>\d+(?:\.\d+)?) ms(?P<dummy> \(dummy\))?, "
    r"(?P<device>\w+) KV cache usage: (?P<kv_percent>\d+(?:\.\d+)?)%"
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
    "device": "string",  # GPU or CPU
}


def parse_steps(lines: Iterable[str]) -> pd.DataFrame:
    """One row a step, in the order of the log; dummy steps (idle ranks of data parallel) are left out."""
    rows: list[tuple[object, ...]] = []
    for line in lines:
        step = STEP.match(line) if "Iteration(" in line else None
        if step is None or step["dummy"]:
            continue
        seconds, _, fraction = (step["epoch"] or "").partition(".")
        rows.append(
            (
                # in whole numbers: a float holds an epoch only to 0.2 µs
                int(seconds) * NS_PER_S + int(fraction.ljust(9, "0")[:9]) if seconds else None,
                int(step["engine"]),
                int(step["index"]),
                float(step["elapsed_ms"]) / 1e3,
                int(step["prefill_requests"]),
                int(step["prefill_tokens"]),
                int(step["decode_requests"]),
                int(step["decode_tokens"]),
                float(step["kv_percent"]) / 100,
                step["device"],
            )
        )
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    # column by column: a frame of rows would make floats of integers with a null among them
    named = zip(COLUMNS.items(), columns, strict=True)
    return pd.DataFrame({name: pd.array(list(v), dtype=kind) for (name, kind), v in named})  # type: ignore[call-overload]


def read_steps(log: Path, async_scheduling: bool | None, requests: pd.DataFrame) -> pd.DataFrame:
    """Steps of one run, from its slice of the server's log; empty when the log has none."""
    steps = logged_steps(log)
    if not overlapped(steps, async_scheduling):
        return steps
    return steps.assign(elapsed_s=between_lines(steps, in_engine(requests)))


def logged_steps(log: Path) -> pd.DataFrame:
    """Steps as the log tells them; of an archived run from the table beside it."""
    archived = log.with_name(STEPS)
    if archived.is_file():
        return read_archived_steps(archived).astype(COLUMNS)  # type: ignore[arg-type]
    if not log.is_file():
        return parse_steps([])
    with log.open(encoding="utf-8", errors="replace") as lines:
        return parse_steps(lines)


def overlapped(steps: pd.DataFrame, async_scheduling: bool | None) -> bool:
    """Whether the log's own times are those of launches; where the server did not say, by the device."""
    if async_scheduling is not None:
        return async_scheduling
    return bool((steps["device"] == "GPU").any())


def in_engine(requests: pd.DataFrame) -> Activity:
    """When the engine had each request, where it says how long that was until the first token.

    What comes before, the network, the server's front end and the end of a running step, is no step's time.
    """
    own_ms = [f"server_metrics.{name}_ms" for name in ("queue_time", "time_to_first_token")]
    if not {*own_ms} <= {*requests.columns}:
        return activity(requests)
    before_ns = requests["first_token_ns"].astype(float) - 1e6 * requests[own_ms].sum(
        axis=1, skipna=False
    )
    before_ns = before_ns.fillna(0).clip(lower=0).astype("int64")
    return activity(
        requests.assign(
            sent_unix_ns=requests["sent_unix_ns"] + before_ns,
            end_ns=requests["end_ns"] - before_ns,
        )
    )


def between_lines(steps: pd.DataFrame, load: Activity) -> pd.Series:
    """Seconds from each engine's line to its next, without those in which it had no request.

    NaN where the log has no time stamps. The first step counts from the first request.
    """
    if steps["unix_ns"].isna().any():
        return pd.Series(np.nan, index=steps.index)
    busy_s = pd.Series(open_seconds(load, steps["unix_ns"].to_numpy(dtype=np.int64)), steps.index)
    return busy_s.groupby(steps["engine"]).diff().fillna(busy_s)


def open_seconds(load: Activity, unix_ns: np.ndarray) -> np.ndarray:
    """How long a request had been open, in all, by each moment."""
    times, levels = in_flight(load)
    if len(times) == 0:
        return np.zeros(len(unix_ns))
    offsets_s = (times - times[0]) / NS_PER_S
    summed_s = np.concatenate([[0.0], np.cumsum(np.diff(offsets_s) * (levels[:-1] > 0))])
    return np.interp((unix_ns - times[0]) / NS_PER_S, offsets_s, summed_s)
