"""What the server's /metrics said over time."""

import numpy as np

from analysis.runs.activity import Series
from analysis.runs.run import Run


def metric_series(run: Run, metric: str) -> Series | None:
    """A gauge or counter of the server over time, summed over its label sets; None when not scraped."""
    samples = run.metric(metric)
    if len(samples) == 0:
        return None
    if not samples["unix_ns"].is_monotonic_increasing or not samples["unix_ns"].is_unique:
        samples = samples.groupby("unix_ns", sort=True, as_index=False)["value"].sum()
    return Series(
        samples["unix_ns"].to_numpy(dtype=np.int64), samples["value"].to_numpy(dtype=float)
    )
