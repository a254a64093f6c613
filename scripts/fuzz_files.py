"""Feed broken and odd files to the importers, and to every loader of a run directory.

    python -m scripts.fuzz_files imports --count 10000 --seed 7
    python -m scripts.fuzz_files runs --count 10000 --seed 7

Each input is a sound file in which something is changed: cut, emptied, of another type, NaN, Infinity, 2^70,
a key left out, no UTF-8, another schema, nested deeply. An import must end in run directories of the
contract's form, or in one sentence with nothing written. Of ``runs``, each group is a folder of a sound run
and ``GROUP`` damaged ones: check and report must pass, name what is wrong in sentences, and give the sound
run the figures that it has alone. Prints counts by outcome and the peak of memory; ends with 1 at the first
fault, after writing that input's seed. Where a library crashes, the input stays in /tmp/fuzz-files-*/case.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from analysis.importers.convert import read_result, write_all
from analysis.point.verdict import verdict
from analysis.report.page import write_report
from analysis.runs.check_forms import read_forms
from analysis.runs.run import load_run, read_runs
from analysis.study import Study, study
from analysis.summary import write_summary
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import RunDir
from scripts.damage import damaged
from tests.fakes import tool_results as tools
from tests.fakes.rows import rehash
from tests.fakes.rundirs import FakeRun, write_run

MOST_GROWTH_BYTES: Final = 192 * 2**20  # over the whole run
SLOW_S: Final = 20.0  # of CPU, for one import or one group of runs
GROUP: Final = 10  # damaged runs beside a sound one
REPORT_EVERY: Final = 5  # groups, of which one goes through the whole report
PAGE_EVERY: Final = 50  # groups, of which one is also written as HTML
LONGEST_SENTENCE: Final = 1500


@dataclass(frozen=True)
class Failed(Exception):
    """What went against the promise, whatever the input was."""

    what: str


# imports


def tool_files(place: Path) -> dict[str, dict[str, bytes]]:
    """A sound result of each tool and version, as the files of its folder; the first is the one imported."""
    made: dict[str, Callable[[Path], Path]] = {
        "vllm-bench": lambda at: tools.write_json(at / "bench.json", tools.vllm_bench()),
        "vllm-bench-appended": lambda at: tools.write_json(
            at / "bench.json", tools.vllm_bench(), tools.vllm_bench(3, date="20261123-111500")
        ),
        "guidellm": lambda at: tools.write_json(at / "benchmarks.json", tools.guidellm(3, 2, 1)),
        "guidellm-0.3": lambda at: tools.write_json(at / "benchmarks.json", tools.guidellm_0_3()),
        "aiperf": lambda at: tools.write_aiperf(
            at,
            {
                "models": {"items": [{"name": "acme/llm"}]},
                "phases": [{"kind": "profiling", "type": "concurrency", "concurrency": 2}],
            },
        ),
        "aiperf-0.6": lambda at: tools.write_aiperf(
            at,
            {"endpoint": {"model_names": ["acme/llm"]}, "loadgen": {"request_rate": 1.0}},
            issued=False,
        ),
    }
    for form in ("0.2", "0.5", "0.6"):
        made[f"inference-perf-{form}"] = lambda at, form=form: tools.write_inference_perf(at, form)
    found: dict[str, dict[str, bytes]] = {}
    for name, make in made.items():
        first = make(place / name)
        others = sorted(path for path in first.parent.iterdir() if path != first)
        found[name] = {path.name: path.read_bytes() for path in (first, *others)}
    return found


def one_import(rng: random.Random, sound: dict[str, dict[str, bytes]], place: Path) -> str:
    """One damaged result through the import; how it ended."""
    files = sound[rng.choice(sorted(sound))]
    hit = rng.choice(sorted(files)) if rng.random() < 0.3 else next(iter(files))
    place.mkdir()
    for name, content in files.items():
        changed = damaged(rng, name, content) if name == hit else content
        if changed is not None:
            (place / name).write_bytes(changed)
    given, out = place / next(iter(files)), place / "out"
    try:
        made = write_all(read_result(given), "flash_attn", out)
    except UserError as error:
        a_sentence(str(error))
        if out.exists():
            raise Failed(f"it was refused, and {out.name} is there") from error
        return "refused"
    if sorted(path.name for path in out.iterdir()) != sorted(path.name for path in made):
        raise Failed("other things than the runs were written")
    for fault in read_forms(out).faults:
        raise Failed(f"an imported run has not the form of the contract: {fault}")
    for path in made:
        for fault in verdict(load_run(path)):
            a_sentence(fault.sentence)
    return "imported"


# run directories

SHAPES: Final = (
    FakeRun(gpu_power_w=300.0),
    FakeRun(rate_per_s=2.0, gpu_power_w=300.0),
    FakeRun(failed_every=5),
    FakeRun(streaming=False, task="perplexity", output_tokens=1, nll_per_token=2.0),
    FakeRun(tokens_per_chunk=3, kv_usage=None),
    FakeRun(jitter=0.1, correct_share=0.5, weights="trained"),
)
STEP: Final = (
    "{0:.6f} INFO Engine 000: Iteration({1}): 0 context requests, 0 context tokens, 4 generation requests, "
    "4 generation tokens, iteration elapsed time: 5.00 ms, CPU KV cache usage: 3.1%\n"
)
Files = dict[str, bytes]


def _files(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "derived" not in path.parts
    }


@dataclass(frozen=True)
class Sound:
    """Sound runs by their folder's name, and the other files of their sweep; the first run is left so."""

    runs: dict[str, Files]
    sweep: Files
    first: str
    figures: Any = None


def sound_sweep(place: Path) -> Sound:
    runs: dict[str, Files] = {}
    for number in range(GROUP + 1):
        shape = FakeRun() if number == 0 else SHAPES[number % len(SHAPES)]
        facts = {**vars(shape), "repeat": number, "started_s": 100.0 * number}
        facts |= {"measure_s": 12.0, "warmup_s": 1.0, "ttft_s": 0.8, "backend": f"b{number}"}
        run = write_run(place, FakeRun(**facts))
        start = int(json.loads(run.manifest_path.read_bytes())["phases"]["measure"][0]) / 1e9
        steps = "".join(STEP.format(start + 0.05 * n, n) for n in range(60))
        (run.logs_dir / "server.log").write_text(steps)
        (run.telemetry_dir / "sources.json").write_text(json.dumps(SOURCES))
        rehash(run)
        runs[run.path.name] = _files(run.path)
    sweep: Files = {
        "sweep.yaml": b"name: fake\nmodels: [tiny]\nbackends: [alpha]\ncontexts: [1024]\ntasks: [retrieve]\n"
        b"loads: [{kind: closed, users: 4}]\nobjective: ttft\n",
        "refused.json": b'{"tiny gamma": ["no card"], "tiny delta": ["no library", "no card"]}',
        "servers/tiny-x-r0-1/server.json": b'{"state": "failed", "error": "no memory", "server": {"model": '
        b'"tiny", "requested_backend": "x", "ready_s": null}}',
        "verify/b1/verify.json": json.dumps(VERIFIED).encode(),
        "ceilings.json": json.dumps(CEILINGS).encode(),
    }
    for number in range(1, GROUP + 1):
        name = sorted(runs)[number]
        if "telemetry/gpu.jsonl" in runs[name]:
            idle = f"servers/tiny-b{number}-r{number}/idle_before/telemetry/gpu.jsonl"
            sweep[idle] = runs[name]["telemetry/gpu.jsonl"]
    return Sound(runs, sweep, sorted(runs)[0])


SOURCES: Final = {
    "facts": {
        "cpu": {"name": "Fake CPU", "threads": 2},
        "gpus": [{"uuid": "GPU-0", "name": "Fake", "visible": True, "own_pids": [1]}],
    },
    "counter": {"status": "available", "refresh_s": {"GPU-0": 0.1}},
    "host": {"status": "unavailable", "reason": "no such file"},
}
VERIFIED: Final = {
    "model": "tiny", "label": "b1", "reference": "b0", "verdict": "pass", "reasons": ["as near"], "steps": 64,
    "same_choice": 63, "typical_gap_nats": 0.01, "worst_gap_nats": 0.2, "doubts": [],
}  # fmt: skip
CEILINGS: Final = {
    "host_cpu": "Fake CPU", "cores": 2, "device": "cpu", "threads": 2, "torch": "2.9",
    "flops_per_s": {"bfloat16": 1e12, "float32": 5e11}, "copy_bytes_per_s": 1e10, "read_bytes_per_s": 2e10,
}  # fmt: skip


def _put(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def one_group(seed: int, sound: Sound, place: Path) -> tuple[Counter[str], int]:
    """A folder of one sound and GROUP damaged runs through check and report: statuses, and damaged files."""
    rng, hits = random.Random(seed), 1
    sweep = place / "fake"
    _put(sweep, sound.sweep)
    for name, files in sound.runs.items():
        _put(sweep / name, files)
        if name != sound.first:
            hits += _damage_run(rng, sweep / name, files)
    hit = rng.choice(sorted(sound.sweep))
    _replace(sweep / hit, damaged(rng, hit, sound.sweep[hit]))
    statuses = check(sweep)
    if seed % REPORT_EVERY == 0:
        whole = report(sweep, page=seed % PAGE_EVERY == 0)
        if figures_of(whole, sound.first) != sound.figures:
            raise Failed("the sound run's figures are others beside damaged runs")
    return statuses, hits


def _damage_run(rng: random.Random, folder: Path, files: Files) -> int:
    """One file, so that all rules are asked of what it holds; or all that a run can be read without."""
    hits = [rng.choice(sorted(files))]
    if rng.random() < 0.6:
        hits = [name for name in sorted(files) if name not in ("manifest.json", "config.yaml")]
    for hit in hits:
        _replace(folder / hit, damaged(rng, hit, files[hit]))
    if rng.random() < 0.8 and "manifest.json" not in hits:
        # so that what the file holds is what is at fault, not that it is another one
        with contextlib.suppress(ValueError, AttributeError, OSError, RecursionError):
            rehash(RunDir(folder))
    return len(hits)


def _replace(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def check(folder: Path) -> Counter[str]:
    """How many runs are unreadable, unusable and usable: what ``greenbench check`` and the sweep ask."""
    for sentence in read_forms(folder).faults:
        a_sentence(sentence)
    runs, unreadable = read_runs(folder)
    statuses = Counter({"unreadable": len(unreadable)})
    for run in unreadable:
        a_sentence(run.why)
    for run in runs:
        found = verdict(run)
        statuses["invalid" if found else "ok"] += 1
        for fault in found:
            a_sentence(fault.sentence)
    return statuses


def report(folder: Path, page: bool) -> Study:
    whole = study(folder)
    for point in whole.points:
        for sentence in (*point.reasons, *point.notes):
            a_sentence(sentence)
        if point.status != "ok" and not point.reasons:
            raise Failed(f"{point.run_id} is {point.status} without a reason")
    for left in whole.unmeasured:
        a_sentence(left.why)
    write_summary(whole, folder / "summary.json")
    json.loads((folder / "summary.json").read_bytes(), parse_constant=_no_number)
    if page:
        write_report(whole, folder / "report.html")
    return whole


def _no_number(name: str) -> float:
    raise Failed(f"summary.json holds {name}")


def figures_of(whole: Study, name: str) -> dict[str, Any]:
    point = next(p for p in whole.points if Path(p.path).name == name)
    return {
        "status": point.status,
        "reasons": point.reasons,
        "latency": asdict(point.latency) if point.latency else None,
        "throughput": asdict(point.throughput) if point.throughput else None,
    }


def a_sentence(text: str) -> None:
    """Words for a person: there, on one line, of a length to be read, without a traceback."""
    if not text.strip() or "\n" in text or "Traceback" in text or "\x1b" in text:
        raise Failed(f"no sentence: {text[:300]!r}")
    if len(text) > LONGEST_SENTENCE:
        raise Failed(f"a sentence of {len(text)} characters: {text[:300]!r}")


# all


Step = Callable[[int], tuple[Counter[str], int]]  # seed → outcomes, and how many inputs they are of


def import_step(place: Path) -> Step:
    sound = tool_files(place / "sound")

    def step(seed: int) -> tuple[Counter[str], int]:
        return Counter([one_import(random.Random(seed), sound, place / "case")]), 1

    return step


def run_step(place: Path) -> Step:
    sound = sound_sweep(place / "sound")
    _put(place / "alone" / sound.first, sound.runs[sound.first])
    figures = figures_of(report(place / "alone", page=False), sound.first)
    sound = Sound(sound.runs, sound.sweep, sound.first, figures)

    return lambda seed: one_group(seed, sound, place / "case")


STEPS: Final = {"imports": import_step, "runs": run_step}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=STEPS)
    parser.add_argument("--count", type=int, default=1000, help="inputs")
    parser.add_argument("--seed", type=int, default=7, help="of the first; the others follow")
    parser.add_argument("--go-on", action="store_true", help="count faults, and go on")
    options = parser.parse_args()
    faulthandler.enable()
    place = Path(tempfile.mkdtemp(prefix="fuzz-files-"))
    try:
        return fuzz(STEPS[options.what](place), place / "case", options)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def fuzz(step: Step, case: Path, options: argparse.Namespace) -> int:
    outcomes: Counter[str] = Counter()
    inputs = broken = base = 0
    started = time.process_time()
    seed = options.seed - 1
    while inputs < options.count:
        seed += 1
        before = time.process_time()
        fault = None
        try:
            found, count = step(seed)
            outcomes += found
            inputs += count
        except Failed as failed:
            fault = failed.what
        except Exception as error:
            traceback.print_exc()
            fault = f"it raised {type(error).__name__}"
        shutil.rmtree(case, ignore_errors=True)
        if fault is None and time.process_time() - before > SLOW_S:
            fault = f"it took over {SLOW_S:g} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if inputs >= min(1000, options.count // 2) and not base:
            base = peak
        if base and peak - base > MOST_GROWTH_BYTES:
            fault = f"memory grew by {(peak - base) / 2**20:.0f} MiB"
        if fault is not None:
            print(f"seed {seed}: {fault}", file=sys.stderr, flush=True)
            broken += 1
            inputs += 1
            if not options.go_on:
                return 1
    for name, count in outcomes.most_common():
        print(f"{count:9,} {name}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{inputs:,} inputs, {broken or 'no'} faults, {time.process_time() - started:.0f} s of CPU, peak "
        f"{peak:.0f} MiB, grown {peak - base / 2**20:.0f}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ.setdefault("TZ", "UTC")
    sys.exit(main())
