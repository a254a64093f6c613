"""telemetry/gpu.jsonl of any recording, also outside a run directory, as a frame of what energy needs.

An hour of eight cards is 110 MB of JSON; naming the wanted columns halves the time to read it.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from analysis.runs.parquet import arrow_schema, read_rows, row_files
from greenbench.contract.schema import GpuSample

NAMES = (
    "mono_ns",
    "gpu_uuid",
    "power_w",
    "power_avg_w",
    "energy_mj",
    "sm_clock_mhz",
    "mem_clock_mhz",
    "throttle_reasons",
)
COLUMNS = pa.schema([arrow_schema(GpuSample).field(name) for name in NAMES])


def read_gpu_rows(run_dir: Path) -> pd.DataFrame:
    """Rows of a run's, or any recording's, GPU samples; empty with its columns when there are none.

    A torn last line is left out; another that cannot be read raises UserError.
    """
    sources = row_files(run_dir, "telemetry/gpu.jsonl")
    return read_rows(GpuSample, sources, COLUMNS).to_pandas()
