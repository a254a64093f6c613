"""Rows of requests that are wrong, as a fault that counts them and names the first."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.runs.fault import Fault
from analysis.runs.run import Run

Mask = pd.Series


def imported(run: Run) -> bool:
    return run.manifest.server.shown.imported_from is not None


def good(rows: pd.DataFrame) -> pd.DataFrame:
    """Those that succeeded."""
    fine = rows["error_type"].isna()
    return rows if fine.all() else rows[fine]


def some(rows: pd.DataFrame, wrong: Mask) -> tuple[int, str]:
    """How many rows are wrong, and the request id of the first."""
    hit = wrong.fillna(False).to_numpy(dtype=bool)
    first = np.flatnonzero(hit)[:1]
    return int(hit.sum()), str(rows["request_id"].iloc[first[0]]) if len(first) else ""


def fault(code: str, rows: pd.DataFrame, wrong: Mask, what: str) -> Iterator[Fault]:
    """One fault when any row is wrong; ``what`` follows the number of rows."""
    count, first = some(rows, wrong)
    if count:
        yield Fault(code, f"{count} of {len(rows)} requests {what} (first: {first})")
