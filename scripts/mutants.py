"""Proves that the oracles of energy and telemetry bite: each fault below must turn at least one test red.

    .venv/bin/python scripts/mutants.py [NAME …]

Works on a copy of the tree, one fault at a time. Exit code 1 when a fault goes unnoticed, or when the tests
are red without any.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENERGY = ("tests/analysis/energy/test_window.py", "tests/analysis/energy/test_trust.py")


@dataclass(frozen=True)
class Mutant:
    """One fault: in ``file``, ``old`` (which stands there exactly once) becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ENERGY


MUTANTS = (
    Mutant(
        "window edges dropped: energy of the whole recording",
        "analysis/energy/series.py",
        "inside = self.at_ns[(self.at_ns >= start_ns) & (self.at_ns <= end_ns)]",
        "inside = self.at_ns",
    ),
    Mutant(
        "integral not clipped to the window",
        "analysis/energy/series.py",
        "held_ns = np.clip(np.minimum(ends, end_ns) - np.maximum(stamps, start_ns), 0, None)",
        "held_ns = np.diff(np.append(stamps, end_ns))",
    ),
    Mutant(
        "bad power readings taken as zero",
        "analysis/energy/series.py",
        "np.where(np.isfinite(read) & (read > 0), read, np.nan)",
        "np.nan_to_num(read, posinf=0.0)",
    ),
    Mutant(
        "zero from NVML taken as a reading",
        "telemetry/sensors/nvml.py",
        'return (raw, "") if raw > 0 else (None, "zero")',
        'return (raw, "")',
        ("tests/telemetry/sensors/test_nvml.py",),
    ),
    Mutant(
        "failed NVML field taken as zero",
        "telemetry/sensors/nvml.py",
        "return None, _code(self._nvml.NVMLError(value.nvmlReturn))",
        'return 0.0, ""',
        ("tests/telemetry/sensors/test_nvml.py",),
    ),
    Mutant(
        "instant power integrated",
        "analysis/energy/cards.py",
        'clean(rows["mono_ns"], rows["power_avg_w"])',
        'clean(rows["mono_ns"], rows["power_w"])',
    ),
    Mutant(
        "joined on the wall clock",
        "analysis/energy/cards.py",
        'energy_curve(rows["mono_ns"], rows["energy_mj"])',
        'energy_curve(rows["unix_ns"] - 1_700_000_000 * 10**9, rows["energy_mj"])',
    ),
    Mutant(
        "a stepped wall clock goes unnoticed",
        "analysis/runs/clocks.py",
        "LARGEST_STEP_NS = 50_000_000",
        "LARGEST_STEP_NS = 10**18",
    ),
    Mutant(
        "joined by index instead of UUID",
        "analysis/energy/cards.py",
        'for uuid, rows in gpu.groupby("gpu_uuid", sort=True)',
        'for _, rows in gpu.groupby("gpu_index", sort=True) for uuid in [rows["gpu_uuid"].iloc[0]]',
    ),
    Mutant(
        "counter resets ignored",
        "analysis/energy/series.py",
        "resets_ns=tuple(int(at) for at in stamps[1:][steps < 0]),",
        "resets_ns=(),",
    ),
    Mutant(
        "millijoules taken as joules",
        "analysis/energy/series.py",
        "np.cumsum(np.maximum(steps, 0.0)))) / 1e3",
        "np.cumsum(np.maximum(steps, 0.0)))) / 1e0",
    ),
    Mutant(
        "repeated readings dropped before integrating",
        "analysis/energy/series.py",
        "    stamps, first = np.unique(stamps, return_index=True)\n    read = read[first]\n",
        "    stamps, first = np.unique(stamps, return_index=True)\n    read = read[first]\n"
        "    kept = np.concatenate(([True], np.diff(read) != 0))\n"
        "    stamps, read = stamps[kept], read[kept]\n",
    ),
    Mutant(
        "lag of the 1 s average not corrected",
        "analysis/energy/cards.py",
        "integral = integrate_average(card.average, start_ns, end_ns)",
        "from analysis.energy.series import integrate_hold\n"
        "    integral = integrate_hold(card.average, start_ns, end_ns)",
    ),
    Mutant(
        "seven GPUs pass for eight",
        "analysis/energy/cards.py",
        "complete=len(measured) == len(wanted) and",
        "complete=True and",
    ),
    Mutant(
        "holes in the samples ignored",
        "analysis/energy/series.py",
        "return self.gap_share <= LARGEST_GAP_SHARE and self.longest_gap_s <= LONGEST_GAP_S",
        "return True",
    ),
    Mutant(
        "no cross-check of counter and integral",
        "analysis/energy/trust.py",
        "return abs(ratio - 1) <= bound",
        "return True",
    ),
    Mutant(
        "work counted over the asked window",
        "analysis/energy/window.py",
        "work = inputs.count(window.start_ns, window.end_ns)",
        "work = inputs.count(*asked_ns)",
    ),
    Mutant(
        "thermal slowdown not looked at",
        "analysis/energy/trust.py",
        "THERMAL_OR_HW_SLOWDOWN = 0x08 | 0x20 | 0x40 | 0x80",
        "THERMAL_OR_HW_SLOWDOWN = 0",
    ),
    Mutant(
        "an estimate adds to a measurement",
        "analysis/energy/quantities.py",
        '            raise TypeError(f"only measured energy adds to measured energy, not {_kind(other)}")',
        "            return Measured(self.joules + other.high_j, self.scope, self.provenance)",
    ),
    Mutant(
        "RAPL wrap not followed",
        "analysis/energy/cpu.py",
        "steps = np.where(steps < 0, steps + span_uj, steps)",
        "steps = np.where(steps < 0, 0, steps)",
    ),
    Mutant(
        "exported counter falls with NVML's",
        "telemetry/exporter/collectors.py",
        "            self.resets += 1",
        "            self.total = raw",
        ("tests/telemetry/exporter/test_exporter.py",),
    ),
    Mutant(
        "exported energy in millijoules",
        "telemetry/exporter/collectors.py",
        "counter.total / 1e3",
        "counter.total / 1e0",
        ("tests/telemetry/exporter/test_exporter.py",),
    ),
    Mutant(
        "sampling drifts with the time of the reads",
        "telemetry/ticker.py",
        "self._deadline_ns += (skipped + 1) * self._period_ns",
        "self._deadline_ns = time.monotonic_ns() + 15_000_000 + self._period_ns",
        ("tests/telemetry/test_ticker.py",),
    ),
    Mutant(
        "negative prices allowed in the attribution",
        "analysis/energy/attribution.py",
        "scaled, _ = nnls(amounts / norms, above)",
        "scaled = np.linalg.lstsq(amounts / norms, above)[0] - 1e9 * (norms == norms.max())",
        ("tests/analysis/energy/test_attribution.py",),
    ),
    Mutant(
        "attribution learns from spoilt windows",
        "analysis/energy/attribution.py",
        "prices = _solve(amounts[learnt][:, used], above[learnt])",
        "prices = _solve(amounts[~learnt][:, used] * above[~learnt][:, None] / 1e9, above[~learnt])",
        ("tests/analysis/energy/test_attribution.py",),
    ),
)


def copy_tree(target: Path) -> None:
    """Tracked and new files of the checkout, as they are on disk."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    wanted = re.compile(r"(greenbench|telemetry|analysis|tests|configs)/|pyproject\.toml$")
    for name in filter(wanted.match, listed.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """(all green, the first red test) of the named files in a tree."""
    # no byte code: a mutant can have its file's size and second, and the old code would be run for it
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    red = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
    return done.returncode == 0, red[1] if red else done.stdout[-300:] + done.stderr[-300:]


def try_mutant(tree: Path, mutant: Mutant) -> tuple[bool, str]:
    """(noticed, by which test). The file is put back after."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return False, f"the text to change stands {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        green, red = run_tests(tree, mutant.tests)
    finally:
        path.write_text(text)
    return not green, "" if green else red


def main(names: list[str]) -> int:
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        green, red = run_tests(tree, tests)
        if not green:
            print(f"red without any fault: {red}")
            return 1
        missed = 0
        for mutant in chosen:
            noticed, by = try_mutant(tree, mutant)
            missed += not noticed
            print(f"{'red  ' if noticed else 'GREEN'} {mutant.name}: {by}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults are noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
