"""Checks a recording of `python -m telemetry selftest`: oracles G-1 to G-12, figure, bound and verdict.

    python -m analysis.selftest.judge DIR [--served RUNS] [--published-j-per-token J]

RUNS is a finished sweep, for what needs a served model. Writes DIR/oracles.json and prints the table.
Exit code 1 when an oracle failed, 0 otherwise, also when none could run. Every figure comes from the
recorder's files and the marks of the load program.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.energy.series import (
    EnergyCurve,
    Readings,
    clean,
    energy_curve,
    integrate_average,
    integrate_hold,
)
from analysis.runs.gpu_rows import read_gpu_rows
from analysis.runs.run import read_sources
from analysis.selftest.served import (
    Judged,
    Missing,
    Served,
    near_a_published_figure,
    real_over_random,
    same_backend_twice,
)
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.forms import SourceName, Sources
from greenbench.contract.run_dir import read_jsonl, write_atomic

SECOND_NS = 1_000_000_000
SETTLE_NS = 2_000_000_000  # a load's first two seconds: the 1 s average has not arrived yet
WATCHED: tuple[SourceName, ...] = ("counter", "average", "instant", "memory_scope")
FILLS = ("", "-zeros", "-uniform")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table. ``verdict``: pass | fail | published (no bound) | not run."""

    oracle: str
    about: str
    figure: str
    bound: str
    verdict: str


@dataclass(frozen=True)
class Sensors:
    """One card's readings in the main recording."""

    curve: EnergyCurve
    average: Readings
    instant: Readings

    def counter_w(self, start_ns: int, end_ns: int) -> float:
        edges = self.curve.aligned(start_ns, end_ns)
        joules = self.curve.energy_j(*edges) if edges else None
        if not edges or joules is None:
            raise Missing("the counter did not change inside the window")
        return joules / ((edges[1] - edges[0]) / 1e9)

    def average_w(self, start_ns: int, end_ns: int) -> float:
        return _watts(integrate_average(self.average, start_ns, end_ns), start_ns, end_ns)

    def instant_w(self, start_ns: int, end_ns: int) -> float:
        return _watts(integrate_hold(self.instant, start_ns, end_ns), start_ns, end_ns)


def _watts(integral: Any, start_ns: int, end_ns: int) -> float:
    if integral is None or not integral.whole:
        raise Missing("power samples are missing in the window")
    return integral.joules / ((end_ns - start_ns) / 1e9)


@dataclass(frozen=True)
class Recording:
    """A self-test's folder, read once."""

    setup: dict[str, Any]
    marks: dict[str, dict[str, Any]]
    sources: Sources
    sensors: Sensors | None
    served: Served | None = None

    @classmethod
    def read(cls, folder: Path, served: Served | None = None) -> "Recording":
        setup_path = folder / "selftest.json"
        if not setup_path.is_file():
            raise UserError(
                f"{folder}: no selftest.json; give a folder that `telemetry selftest` wrote"
            )
        setup = json.loads(setup_path.read_text())
        marks_path, main = folder / "marks.jsonl", folder / "main"
        marks = {row["name"]: row for row in read_jsonl(marks_path)} if marks_path.is_file() else {}
        sources = read_sources(main / "telemetry" / "sources.json")
        sensors = _sensors(main, setup.get("gpu", {}).get("uuid"))
        return cls(setup, marks, sources, sensors, served)

    def mark(self, name: str) -> dict[str, Any]:
        if name not in self.marks:
            raise Missing(self.setup.get("cut_short") or f"{name} was not captured")
        return self.marks[name]

    def window(self, name: str) -> tuple[int, int]:
        """The part of an experiment in which its power stands."""
        mark = self.mark(name)
        return mark["start_mono_ns"] + SETTLE_NS, mark["end_mono_ns"]

    def see(self) -> Sensors:
        if self.sensors is None:
            raise Missing("the recording has no counter of this GPU")
        return self.sensors

    def steady(self, name: str) -> tuple[float, float, float]:
        """(counter, integrated average, integrated instant) mean watts of an experiment.

        Over one and the same whole number of seconds, which the 1 s averages tile without a rest: a second
        cut in two would hold another part of a square wave.
        """
        sensors = self.see()
        edges = sensors.curve.aligned(*self.window(name))
        seconds = (edges[1] - edges[0]) // SECOND_NS if edges else 0
        if edges is None or not seconds:
            raise Missing(f"{name} is shorter than its settling and a second")
        start_ns, end_ns = edges[0], edges[0] + seconds * SECOND_NS
        joules = sensors.curve.energy_j(start_ns, end_ns)
        assert joules is not None  # both ends lie between two changes
        averages = sensors.average_w(start_ns, end_ns), sensors.instant_w(start_ns, end_ns)
        return joules / seconds, *averages

    def shorter(self, asked_s: float, name: str) -> str:
        """A label for a window that is shorter than its oracle asks for."""
        start_ns, end_ns = self.window(name)
        length_s = (end_ns - start_ns) / 1e9
        return (
            f" [{length_s:.0f} s window, {asked_s:.0f} s asked]"
            if length_s < asked_s * 0.95
            else ""
        )


def _sensors(folder: Path, uuid: str | None) -> Sensors | None:
    rows = read_gpu_rows(folder)
    if rows.empty or uuid is None:
        return None
    own = rows[rows["gpu_uuid"] == uuid]
    curve = energy_curve(own["mono_ns"], own["energy_mj"])
    if curve is None:
        return None
    stamps = own["mono_ns"]
    return Sensors(
        curve,
        clean(stamps, own["power_avg_w"]),
        clean(stamps, own["power_w"]),
    )


def refresh_and_boxcar(r: Recording) -> Judged:
    """A boxcar of length b answers a step by a ramp of length b, which lags by b/2."""
    periods = {name: _refresh_s(r.sources, name) for name in WATCHED}
    step_ns = r.mark("matmul")["start_mono_ns"]
    sensors = r.see()
    low_w = sensors.average_w(step_ns - 2_000_000_000, step_ns)
    high_w = sensors.average_w(step_ns + 3_000_000_000, step_ns + 6_000_000_000)
    spent = integrate_hold(sensors.average, step_ns, step_ns + 3_000_000_000)
    truth_j = sensors.curve.energy_j(step_ns, step_ns + 3_000_000_000)
    if spent is None or truth_j is None:
        raise Missing("no samples around the step")
    boxcar_s = 2 * (truth_j - spent.joules) / (high_w - low_w)
    told = ", ".join(f"{s} {p * 1e3:.0f} ms" if p else f"{s} –" for s, p in periods.items())
    return f"{told}; average window {boxcar_s:.2f} s", "window 0.7 to 1.3 s", 0.7 <= boxcar_s <= 1.3


def _refresh_s(sources: Sources, name: SourceName) -> float | None:
    status = sources.source(name)
    return next(iter(status.refreshes_s), None) if status else None


def matmul(r: Recording) -> Judged:
    counter, average, instant = r.steady("matmul")
    limit_w = r.setup["gpu"].get("power_limit_w")
    figure = f"{counter:.1f} W; counter/average {counter / average:.4f}"
    figure += f", counter/instant {counter / instant:.4f}"
    passed = abs(counter / average - 1) <= 0.01 and abs(counter / instant - 1) <= 0.03
    if limit_w:
        figure += f", {counter / limit_w:.3f} of the limit"
        passed = passed and counter <= limit_w * 1.03
    return figure + r.shorter(60, "matmul"), "±1 %, ±3 %, ≤ 1.03 of the limit", passed


def idle(r: Recording) -> Judged:
    counter, average, _ = r.steady("idle")
    ratio = counter / average
    return (
        f"{counter:.1f} W; counter/average {ratio:.4f}" + r.shorter(60, "idle"),
        "±3 %",
        abs(ratio - 1) <= 0.03,
    )


def square_waves(r: Recording) -> Judged:
    parts, passed = [], True
    for name in ("100ms", "137ms", "1000ms"):
        counter, average, instant = r.steady(f"square-{name}")
        parts.append(f"{name}: average {counter / average:.4f}, instant {counter / instant:.4f}")
        passed = passed and abs(counter / average - 1) <= 0.02
    return "counter over " + "; ".join(parts), "average ±2 %; instant is published", passed


def order_of_powers(r: Recording) -> Judged:
    watts = [r.see().counter_w(*r.window(name)) for name in ("idle", "copy", "matmul")]
    figure = " < ".join(
        f"{name} {w:.0f} W" for name, w in zip(("idle", "copy", "matmul"), watts, strict=True)
    )
    return (
        figure,
        "in this order, matmul over idle > 1.5",
        (watts[0] < watts[1] < watts[2] and watts[2] / watts[0] > 1.5),
    )


def data_dependence(r: Recording) -> Judged:
    def of(kind: str) -> str:
        watts = [r.see().counter_w(*r.window(kind + fill)) for fill in FILLS]
        rates = [_rate(r.mark(kind + fill)) for fill in FILLS]
        names = ("normal", "zeros", "uniform")
        return f"{kind}: " + ", ".join(
            f"{n} {w:.0f} W {rate}" for n, w, rate in zip(names, watts, rates, strict=True)
        )

    return f"{of('matmul')}; {of('copy')}", "published", None


def _rate(mark: dict[str, Any]) -> str:
    seconds = (mark["end_mono_ns"] - mark["start_mono_ns"]) / 1e9
    if mark["flop"]:
        return f"({mark['flop'] / seconds / 1e12:.0f} TFLOP/s)"
    return f"({mark['bytes'] / seconds / 1e12:.2f} TB/s)"


def samplers_own_cost(r: Recording) -> Judged:
    parts, passed = [], True
    for name in ("100ms", "50ms"):
        if name == "50ms" and not {"off-50ms-matmul", "on-50ms-matmul"} <= r.marks.keys():
            parts.append("50ms: not captured in the time given")
            continue
        off, on = (r.mark(f"{which}-{name}-matmul") for which in ("off", "on"))
        slower = 1 - _per_s(on) / _per_s(off)
        off_w, on_w = (r.mark(f"{which}-{name}-idle")["counter_w"] for which in ("off", "on"))
        if off_w is None or on_w is None:
            raise Missing("no counter")
        parts.append(f"{name}: throughput {-slower * 100:+.2f} %, idle {on_w - off_w:+.2f} W")
        passed = passed and slower < 0.005 and on_w - off_w < 1
    return "; ".join(parts), "throughput > −0.5 %, idle < +1 W", passed


def _per_s(mark: dict[str, Any]) -> float:
    return mark["count"] / ((mark["end_mono_ns"] - mark["start_mono_ns"]) / 1e9)


def bandwidth(r: Recording) -> Judged:
    mark = r.mark("copy")
    share, peak = mark.get("gpm_dram_share"), r.setup["gpu"].get("peak_memory_bytes_per_s")
    if share is None or not peak:
        raise Missing("GPM gives no memory bandwidth here")
    counted = mark["bytes"] / ((mark["end_mono_ns"] - mark["start_mono_ns"]) / 1e9)
    ratio = share * peak / counted
    figure = (
        f"GPM {share * peak / 1e12:.2f} TB/s, counted {counted / 1e12:.2f} TB/s, ratio {ratio:.3f}"
    )
    return figure, "±10 %", abs(ratio - 1) <= 0.10


def doubled_work(r: Recording) -> Judged:
    """Energy above idle of n launches and of 2 n, each with the idle seconds around it in the window."""
    idle_w = r.see().counter_w(*r.window("settle-2")) if "settle-2" in r.marks else None
    above = []
    for name in ("once", "twice"):
        start_ns = r.mark(f"work-{name}")["start_mono_ns"] - 300_000_000
        end_ns = r.mark(f"rest-{name}")["start_mono_ns"] + 1_500_000_000
        joules = r.see().curve.energy_j(start_ns, end_ns)
        if joules is None or idle_w is None:
            raise Missing("no samples around the work")
        above.append(joules - idle_w * (end_ns - start_ns) / 1e9)
    ratio = above[1] / above[0]
    figure = f"{above[0]:.0f} J, {above[1]:.0f} J, ratio {ratio:.3f} (matmul launches; tokens need a server)"
    return figure, "2.00 ± 2 %", abs(ratio / 2 - 1) <= 0.02


def of_a_sweep(judged: Callable[[Served], Judged]) -> Callable[[Recording], Judged]:
    def of_recording(r: Recording) -> Judged:
        if r.served is None:
            raise Missing("needs a served model: give a finished sweep with --served RUNS")
        return judged(r.served)

    return of_recording


ORACLES: tuple[tuple[str, str, Callable[[Recording], Judged]], ...] = (
    ("G-1", "refresh of each sensor, window of the average", refresh_and_boxcar),
    ("G-2", "constant matmul", matmul),
    ("G-3", "idle with a context", idle),
    ("G-4", "square waves of matmul and sleep", square_waves),
    ("G-5", "order of powers", order_of_powers),
    ("G-6", "power against the values computed on", data_dependence),
    ("G-7", "cost of the sampler", samplers_own_cost),
    ("G-8", "A/A: one backend listed twice", of_a_sweep(same_backend_twice)),
    ("G-9", "real against random weights", of_a_sweep(real_over_random)),
    ("G-10", "bytes copied against GPM's bandwidth", bandwidth),
    ("G-11", "twice the work", doubled_work),
    ("G-12", "a public figure of a near model", of_a_sweep(near_a_published_figure)),
)


def judge(recording: Recording) -> list[Verdict]:
    """One verdict an oracle, in order; what the host did not allow is `not run` with the reason."""
    verdicts: list[Verdict] = []
    for oracle, about, judged in ORACLES:
        try:
            figure, bound, passed = judged(recording)
        except Missing as reason:
            verdicts.append(Verdict(oracle, about, str(reason), "", "not run"))
            continue
        word = "published" if passed is None else "pass" if passed else "fail"
        verdicts.append(Verdict(oracle, about, figure, bound, word))
    return verdicts


def table(verdicts: list[Verdict]) -> str:
    return "\n".join(
        f"{v.oracle:<5} {v.verdict:<9} {v.about}: {v.figure}"
        + (f"  (bound: {v.bound})" if v.bound else "")
        for v in verdicts
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Judge what `python -m telemetry selftest` wrote.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--served", type=Path, help="a finished sweep")
    parser.add_argument("--published-j-per-token", type=float, help="of a near model")
    options = parser.parse_args(argv)
    folder = options.folder
    served = Served.read(options.served, options.published_j_per_token) if options.served else None
    recording = Recording.read(folder, served)
    verdicts = judge(recording)
    content = {"setup": recording.setup, "oracles": [asdict(verdict) for verdict in verdicts]}
    write_atomic(folder / "oracles.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    gpu = recording.setup.get("gpu")
    print(
        f"{gpu['name']} {gpu['uuid']}, driver {gpu['driver']}" if gpu else "no GPU was under load"
    )
    print(table(verdicts))
    return int(any(verdict.verdict == "fail" for verdict in verdicts))


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: main(sys.argv[1:])))
