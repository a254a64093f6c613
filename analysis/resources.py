"""What a point used: memory, joules and share of the KV pool, taken over its measured window."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.json as pajson

from analysis.energy import IdlePower, idle_power, point_energy
from analysis.load import Run
from analysis.memory import point_memory
from analysis.metrics import Tokens, count_tokens
from analysis.windows import Series, Window
from greenbench.rundir import SERVERS_DIR


def to_mono_ns(run: Run, unix_ns: int) -> int:
    """By the run's clock anchor."""
    clock = run.manifest.clock
    return clock.mono_ns + (unix_ns - clock.unix_ns)


def memory(run: Run, window: Window) -> dict[str, Any]:
    return point_memory(
        run,  # type: ignore[arg-type]  # the checker does not take a cached_property for what it yields
        to_mono_ns(run, window.start_unix_ns),
        to_mono_ns(run, window.end_unix_ns),
    ).as_dict()


def energy(run: Run, window: Window, mean_residence_s: float) -> dict[str, Any]:
    """Joules of the window with the work done in exactly the interval they were counted over."""
    offset = run.manifest.clock.unix_ns - run.manifest.clock.mono_ns

    def count(start_mono_ns: int, end_mono_ns: int) -> Tokens:
        return count_tokens(run, start_mono_ns + offset, end_mono_ns + offset)

    found = point_energy(
        run.gpu,
        run.host,
        run.sources,
        window.start_unix_ns - offset,
        window.end_unix_ns - offset,
        count,
        _idle(run, "idle_before"),
        _idle(run, "idle_after"),
        mean_residence_s,
        server_gpus=run.manifest.server.tensor_parallel,
    ).as_dict()
    if not run.sources and found["status"] == "unavailable":
        found["explain"] = ["no telemetry was recorded"]
    return found


def _idle(run: Run, name: str) -> IdlePower | None:
    """Power of this server loaded and without requests, where the sweep recorded it."""
    folder = run.path.parent / SERVERS_DIR / run.manifest.server.server_id / name
    path: Path = folder / "telemetry" / "gpu.jsonl"
    if not path.is_file() or path.stat().st_size == 0:
        return None
    return idle_power(pajson.read_json(path).to_pandas(), run.sources)


def metric_series(run: Run, metric: str) -> Series | None:
    """A gauge or counter of the server over time, summed over its label sets; None when not scraped."""
    samples = run.server[run.server["metric"] == metric]
    if len(samples) == 0:
        return None
    summed = samples.groupby("unix_ns", sort=True)["value"].sum()
    return Series(summed.index.to_numpy(dtype=np.int64), summed.to_numpy(dtype=float))


def temperature_series(run: Run) -> Series | None:
    """The hottest GPU at each tick."""
    known = run.gpu[run.gpu["temp_c"].notna()]
    if len(known) == 0:
        return None
    hottest = known.groupby("unix_ns", sort=True)["temp_c"].max()
    return Series(hottest.index.to_numpy(dtype=np.int64), hottest.to_numpy(dtype=float))


def kv_share_per_sequence(run: Run, window: Window) -> float | None:
    """Mean over the window's scrapes of KV usage / running requests; None when nothing ran or was seen."""
    usage = metric_series(run, "vllm:kv_cache_usage_perc")
    running = metric_series(run, "vllm:num_requests_running")
    if usage is None or running is None:
        return None
    usage, running = (s.within(window.start_unix_ns, window.end_unix_ns) for s in (usage, running))
    if not np.array_equal(usage.unix_ns, running.unix_ns):
        return None
    busy = (running.values > 0) & (usage.values > 0)
    return float(np.mean(usage.values[busy] / running.values[busy])) if busy.any() else None
