"""telemetry/gpu.jsonl as a frame, all its parts, without the columns that energy does not need.

An hour of eight cards is 110 MB of JSON; naming the wanted columns halves the time to read it.
"""

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.json as pajson

from greenbench.contract.errors import UserError
from greenbench.contract.forms import line_faults
from greenbench.contract.schema import GpuSample
from greenbench.contract.segments import read_bytes

COLUMNS = pa.schema(
    [
        ("mono_ns", pa.int64()),
        ("gpu_uuid", pa.string()),
        ("power_w", pa.float64()),
        ("power_avg_w", pa.float64()),
        ("energy_mj", pa.int64()),
        ("sm_clock_mhz", pa.int64()),
        ("mem_clock_mhz", pa.int64()),
        ("throttle_reasons", pa.int64()),
    ]
)
BLOCK_BYTES = 8 * 2**20


def read_gpu_rows(run_dir: Path) -> pd.DataFrame:
    """Rows of a run's, or any recording's, GPU samples; empty with its columns when there are none.

    A torn last line is left out; another that cannot be read raises UserError.
    """
    path = run_dir / "telemetry" / "gpu.jsonl"
    text = read_bytes(path)
    whole = text[: text.rfind(b"\n") + 1]
    if not whole.strip():
        return COLUMNS.empty_table().to_pandas()
    try:
        table = pajson.read_json(
            io.BytesIO(whole),
            pajson.ReadOptions(block_size=BLOCK_BYTES),
            pajson.ParseOptions(explicit_schema=COLUMNS, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException as error:
        lines = whole.splitlines(keepends=True)
        first = next(line_faults(GpuSample, lines, unknown_keys=False), None)
        said = f"{path}:{first[0]}: {first[1]}" if first else f"{path}: {error}"
        raise UserError(said) from error
    return table.to_pandas()
