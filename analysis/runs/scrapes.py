"""What the server's /metrics said over time.

A server with data parallel has several engines, each with rows of its own (label ``engine``). Counts are
summed over them; a share is not: of the whole pool it is the mean of the engines' shares by pool size.
"""

import re

import numpy as np
import pandas as pd

from analysis.runs.activity import Series
from analysis.runs.parquet import LABEL_SEPARATOR
from analysis.runs.run import Run

# vllm:kv_cache_usage_perc since vLLM 0.10 or so, the other name before; for a time both were served
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
POOLS = "vllm:cache_config_info"


def metric_series(run: Run, metric: str) -> Series | None:
    """A count of the server over time, summed over its label sets; None when not scraped."""
    samples = _samples(run, metric)
    if len(samples) == 0:
        return None
    if not samples["unix_ns"].is_monotonic_increasing or not samples["unix_ns"].is_unique:
        samples = samples.groupby("unix_ns", sort=True, as_index=False)["value"].sum()
    return Series(
        samples["unix_ns"].to_numpy(dtype=np.int64), samples["value"].to_numpy(dtype=float)
    )


def label_sets(run: Run, metric: str) -> list[np.ndarray]:
    """The values of a metric in order of time, an array each of its label sets; none when not scraped."""
    groups = _samples(run, metric).groupby("labels", dropna=False, sort=False)["value"]
    return [values.to_numpy(dtype=float) for _, values in groups]


def counter_gain(run: Run, metric: str) -> float | None:
    """Last minus first value of a counter, summed over its label sets; None when it was not scraped."""
    series = label_sets(run, metric)
    return float(sum(values[-1] - values[0] for values in series)) if series else None


def _samples(run: Run, metric: str) -> pd.DataFrame:
    return run.server[run.server["metric"] == metric]


def kv_usage_series(run: Run) -> Series | None:
    """Share (0..1) of the KV pool of all engines in use over time; None when not scraped."""
    return usage_series(run.server)


def usage_series(server: pd.DataFrame) -> Series | None:
    """The same of a table as ``Run.server``."""
    usage = kv_usage(server)
    if usage.empty:
        return None
    return Series(usage["unix_ns"].to_numpy(dtype=np.int64), usage["value"].to_numpy(dtype=float))


def kv_usage(server: pd.DataFrame) -> pd.DataFrame:
    """One row a scrape, in order of time: ``unix_ns``, ``mono_ns``, ``value``. ``server``: ``Run.server``."""
    metrics = set(server["metric"].unique())
    name = next((name for name in KV_USAGE if name in metrics), None)
    if name is None:
        return server.head(0)[["unix_ns", "mono_ns", "value"]]
    shares = server[server["metric"] == name]
    weighted = shares.assign(size=_label(shares, "engine").fillna("").map(_pool_tokens(server)))
    if weighted["size"].isna().any():  # where one pool's size is not known all count alike
        weighted["size"] = 1.0
    weighted["value"] *= weighted["size"]
    sums = weighted.groupby(["unix_ns", "mono_ns"], sort=True)[["value", "size"]].sum()
    return (sums["value"] / sums["size"]).rename("value").reset_index()


def _pool_tokens(server: pd.DataFrame) -> dict[str, float]:
    """Engine → tokens of its KV pool, of the engines that say it."""
    pools = server[server["metric"] == POOLS]
    sizes = pd.to_numeric(_label(pools, "kv_cache_size_tokens"), errors="coerce")
    tokens = sizes.to_numpy(dtype=float, na_value=np.nan)
    said = zip(_label(pools, "engine").fillna(""), tokens, strict=True)
    return {engine: size for engine, size in said if size > 0}


def _label(rows: pd.DataFrame, name: str) -> pd.Series:
    """One label of each row; null where a row lacks it."""
    labels = rows["labels"] if "labels" in rows else pd.Series("", index=rows.index)
    key = re.escape(f"{LABEL_SEPARATOR}{name}=")
    return labels.astype("string").str.extract(f"{key}([^{LABEL_SEPARATOR}]*)", expand=False)
