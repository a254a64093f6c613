"""`make demo`: its sweep decides what it asks, and one fault in it costs one thing."""

import os
import subprocess
from pathlib import Path

import pytest

from greenbench.contract.config import CONFIGS, ROOT, load_sweep
from greenbench.sweep.order import quality_warnings

STAND_IN = """\
#!/bin/sh
echo "$1" >> said
case $1 in run) exit $RUN;; ceilings) exit $CEILINGS;; report) exit $REPORT;; esac
"""


def test_every_gate_of_the_demo_can_be_decided() -> None:
    """Guards against "undecided" at every length of the first report that a person sees."""
    assert quality_warnings(load_sweep(CONFIGS / "sweeps" / "demo.yaml"), ["perplexity"]) == []


@pytest.mark.parametrize(
    ("run", "ceilings", "report", "said", "well"),
    [
        (0, 0, 0, ["run", "ceilings", "report"], True),
        (0, 2, 0, ["run", "ceilings", "report"], True),  # no roofline, and a report all the same
        (1, 0, 0, ["run", "ceilings", "report"], False),  # a point failed: the report says which
        (2, 0, 0, ["run"], False),  # bad input: nothing was measured
        (130, 0, 0, ["run"], False),  # Ctrl-C
        (0, 0, 2, ["run", "ceilings", "report"], False),
    ],
)
def test_what_fails_in_the_demo_costs_no_more_than_itself(
    tmp_path: Path, run: int, ceilings: int, report: int, said: list[str], well: bool
) -> None:
    command = tmp_path / "bin" / "greenbench"
    command.parent.mkdir()
    command.write_text(STAND_IN)
    command.chmod(0o755)
    codes = {"RUN": str(run), "CEILINGS": str(ceilings), "REPORT": str(report)}
    argv = ["make", "-s", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "-o", "setup", "demo"]
    done = subprocess.run(
        [*argv, f"BENCH={command.parent}"],
        env=os.environ | codes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "said").read_text().split() == said
    assert (done.returncode == 0) is well, done.stderr
    assert ("goes on; the report has no roofline" in done.stdout) is (ceilings != 0)
