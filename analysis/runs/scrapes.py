"""What the server's /metrics said over time."""

import numpy as np

from analysis.runs.activity import Series
from analysis.runs.run import Run


def metric_series(run: Run, metric: str) -> Series | None:
    """A gauge or counter of the server over time, summed over its label sets; None when not scraped."""
    samples = run.server[run.server["metric"] == metric]
    if len(samples) == 0:
        return None
    summed = samples.groupby("unix_ns", sort=True)["value"].sum()
    return Series(summed.index.to_numpy(dtype=np.int64), summed.to_numpy(dtype=float))
