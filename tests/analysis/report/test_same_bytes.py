"""Two processes write the same report byte for byte: the order of a set, their own, is nowhere seen."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.rundirs import FakeRun, write_run

RUNS = [
    FakeRun(model=model, backend=backend, users=1, measure_s=12, output_tokens=4)
    for model, backend in (
        ("tiny", "cpu_attn"),
        ("small", "sdpa"),
        ("middle", "triton"),
        ("large", "sink_window"),
        ("huge", "cpu_attn"),
    )
]
ROOT = Path(__file__).parents[3]


def test_two_processes_write_the_same_report(tmp_path: Path) -> None:
    for fake in RUNS:
        write_run(tmp_path / "runs", fake)
    processes = [_report(tmp_path, hash_seed) for hash_seed in ("1", "2")]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    first, second = (tmp_path / seed / "page.html" for seed in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


def _report(folder: Path, hash_seed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "analysis", "report", "runs", "--out", f"{hash_seed}/page.html"],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
