"""What the server's /metrics said over time."""

import numpy as np
import pandas as pd

from analysis.runs.activity import Series
from analysis.runs.run import Run


def metric_series(run: Run, metric: str) -> Series | None:
    """A gauge or counter of the server over time, summed over its label sets; None when not scraped."""
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
