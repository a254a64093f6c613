"""`python -m telemetry selftest --out DIR`: oracles G-1 to G-12 of docs/energy.md, as this host allows.

Captures only: a known GPU load (telemetry/selftest/gpu_load.py, under the Python with torch) beside the
ordinary recorder, and marks of what ran when. `python -m analysis.selftest.judge DIR` then judges the
recording. Without a GPU there is nothing to test: a sentence with the reason, exit code 2, and no folder.
"""

import contextlib
import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenbench.contract.errors import UserError
from greenbench.contract.installation import PACKAGES, bench_env
from greenbench.contract.run_dir import write_atomic
from greenbench.vllm_python import vllm_python
from telemetry.sensors.gpu import NoGpu
from telemetry.sensors.nvml import NvmlReader

logger = logging.getLogger(__name__)

MARKS = "marks.jsonl"
SETUP = "selftest.json"
RECORDER_START_S = 60.0  # longest wait for the recorder: its probe alone takes 3 s


@dataclass(frozen=True)
class Lengths:
    """Seconds of each experiment. ``quick`` windows are shorter than the oracles ask, and are so labelled."""

    steady: float = 60.0  # G-2, G-3
    wave: float = 20.0  # G-4, each period
    kind: float = 20.0  # G-5, G-6, G-10
    sampler: float = 10.0  # G-7, each of the four
    idle: float = 15.0  # G-7
    settle: float = 3.0  # idle between what must not overlap
    launches: int = 8000  # G-11

    @classmethod
    def quick(cls) -> "Lengths":
        return cls(steady=15, wave=8, kind=8, sampler=5, idle=6, launches=5000)


class LoadFailed(Exception):
    """The load program ended or refused; the text says why."""


@dataclass
class Load:
    """The load program, one command at a time."""

    process: "subprocess.Popen[str]"
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    def ask(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.answer()

    def send(self, **command: Any) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise LoadFailed(f"the load program ended: {error}") from error

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise LoadFailed("the load program ended; see load.log")
        reply = json.loads(line)
        if not reply["ok"]:
            raise LoadFailed(reply["error"])
        return reply


@contextlib.contextmanager
def started_load(out: Path, python: str) -> Iterator[Load]:
    with (out / "load.log").open("w") as log:
        try:
            process = subprocess.Popen(
                [python, str(PACKAGES / "telemetry" / "selftest" / "gpu_load.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        except OSError as error:
            raise UserError(
                f"{python} cannot be started ({error.strerror}); set VLLM_PYTHON to a Python that has torch"
            ) from error
        try:
            load = Load(process)
            load.about = load.answer()
            yield load
        finally:
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def recording(run_dir: Path, period_s: float) -> Iterator[None]:
    """The ordinary recorder as a process of its own, from its first sample to its last."""
    run_dir.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "telemetry", "record", "--run-dir", str(run_dir)]
    with (run_dir / "recorder.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--period-s", str(period_s)], env=bench_env(), stdout=log, stderr=log
        )
        try:
            _wait_for_rows(run_dir / "telemetry" / "gpu.jsonl", process)
            yield
            time.sleep(1.5)  # samples beyond the last window
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode:
            raise LoadFailed(
                f"the recorder ended with {process.returncode}; see {run_dir}/recorder.log"
            )


def _wait_for_rows(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + RECORDER_START_S
    while not (path.exists() and path.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise LoadFailed(f"the recorder wrote no sample; see {path.parent.parent}/recorder.log")
        time.sleep(0.05)


@dataclass
class Marks:
    """DIR/marks.jsonl: what ran when, for the judge. One line an experiment, as soon as it is over."""

    path: Path
    load: Load
    deadline_s: float = math.inf  # of time.monotonic()

    def run(self, name: str, **command: Any) -> dict[str, Any]:
        if time.monotonic() + command.get("seconds", 0) > self.deadline_s:
            raise LoadFailed(f"the time limit came before {name}")
        return self.write(name, command, self.load.ask(**command))

    def write(self, name: str, command: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        logger.info("%s done", name)
        row = {"name": name, "command": command, **answer}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row


def selftest(
    out: Path, lengths: Lengths, limit_s: float = math.inf, judging: Sequence[str] = ()
) -> int:
    """Capture into ``out``, judge, print. 0: nothing failed; 1: an oracle failed. UserError without a GPU.

    No experiment starts that would end after ``limit_s``; the oracles it was for are `not run`.
    ``judging`` are further words for the judge (a sweep for what needs a served model).
    """
    deadline_s = time.monotonic() + limit_s
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; give a new one")
    try:
        reader = NvmlReader()
    except NoGpu as error:
        raise UserError(
            f"no GPU can be read here ({error}), so there are no energy sensors to test; run this on a host "
            "with an NVIDIA GPU and its driver"
        ) from error
    setup: dict[str, Any] = {"lengths": vars(lengths)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with started_load(out, str(vllm_python())) as load:
            setup["load"] = load.about
            gpu = _match(reader, load.about["uuid"])
            setup["gpu"] = gpu
            marks = Marks(out / MARKS, load, deadline_s)
            capture(out, marks, reader, gpu["index"], lengths)
    except LoadFailed as error:  # what was captured before it is still judged
        setup["cut_short"] = str(error)
        logger.error("the experiments ended early: %s", error)
    finally:
        reader.close()
    write_atomic(out / SETUP, json.dumps(setup, indent=1) + "\n")
    return subprocess.run(
        [sys.executable, "-m", "analysis.selftest.judge", str(out), *judging], env=bench_env()
    ).returncode


def _match(reader: NvmlReader, cuda_uuid: str) -> dict[str, Any]:
    """The NVML card that the load runs on: CUDA counts its own way, so by UUID."""
    bare = cuda_uuid.removeprefix("GPU-")
    cards = [gpu for gpu in reader.gpus() if gpu.uuid.removeprefix("GPU-") == bare] if bare else []
    if not cards and len(reader.gpus()) == 1:
        cards = reader.gpus()
    if not cards:
        raise LoadFailed(f"the load's GPU {cuda_uuid!r} is none of NVML's")
    card = cards[0]
    peak = reader.peak_memory_bytes_per_s(card.index)
    return {
        "index": card.index,
        "uuid": card.uuid,
        "name": card.name,
        "driver": card.driver,
        "power_limit_w": card.power_limit_w,
        "peak_memory_bytes_per_s": peak,
    }


def capture(out: Path, marks: Marks, reader: NvmlReader, index: int, lengths: Lengths) -> None:
    """Every experiment, once. The order lets the card warm up before what is compared."""
    marks.run("warm-up", op="matmul", seconds=lengths.sampler, fill="normal")
    with recording(out / "main", 0.05):
        marks.run("before-step", op="idle", seconds=lengths.settle + 1)
        marks.run("matmul", op="matmul", seconds=lengths.steady, fill="normal")
        marks.run("settle", op="idle", seconds=lengths.settle)
        marks.run("idle", op="idle", seconds=lengths.steady)
        for period_s in (0.1, 0.137, 1.0):
            name = f"square-{period_s * 1e3:.0f}ms"
            marks.run(name, op="square", period_s=period_s, seconds=lengths.wave)
        _copy_with_gpm(marks, reader, index, lengths.kind)
        for fill in ("zeros", "uniform"):
            marks.run(f"matmul-{fill}", op="matmul", seconds=lengths.kind, fill=fill)
        for fill in ("zeros", "uniform"):
            marks.run(f"copy-{fill}", op="copy", seconds=lengths.kind, fill=fill)
        marks.run("settle-2", op="idle", seconds=lengths.settle + 3)
        for name, launches in (("once", lengths.launches), ("twice", 2 * lengths.launches)):
            marks.run(f"work-{name}", op="count", launches=launches, fill="normal")
            marks.run(f"rest-{name}", op="idle", seconds=3)
    # off, on, on, off: what drifts with temperature falls on both alike
    for period_s, order in ((0.1, ("off", "on")), (0.05, ("on", "off"))):
        for which in order:
            name = f"{which}-{period_s * 1e3:.0f}ms"
            sampling = (
                recording(out / name, period_s) if which == "on" else contextlib.nullcontext()
            )
            with sampling:
                _idle_and_matmul(marks, reader, index, name, lengths)


def _idle_and_matmul(
    marks: Marks, reader: NvmlReader, index: int, name: str, lengths: Lengths
) -> None:
    """G-7: the counter is read at the two ends only, so that reading it is not what is measured."""
    marks.run(f"{name}-settle", op="idle", seconds=lengths.settle)
    before = _next_change(reader, index)
    row = marks.load.ask(op="idle", seconds=lengths.idle)
    after = _next_change(reader, index)
    watts = None
    if before and after:
        watts = (after[1] - before[1]) / 1e3 / ((after[0] - before[0]) / 1e9)
    marks.write(f"{name}-idle", {"op": "idle"}, {**row, "counter_w": watts})
    marks.run(f"{name}-matmul", op="matmul", seconds=lengths.sampler, fill="normal")


def _next_change(reader: NvmlReader, index: int) -> tuple[int, int] | None:
    """(mono_ns, mJ) when the counter next changes; None when it does not within a second or cannot be read.

    Between changes the counter is up to 100 ms old, which over 6 s of idle would be 2 W.
    """
    first = reader.read(index).energy_mj
    deadline_ns = time.monotonic_ns() + 1_000_000_000
    while (now_ns := time.monotonic_ns()) < deadline_ns and first is not None:
        energy_mj = reader.read(index).energy_mj
        if energy_mj is not None and energy_mj != first:
            return now_ns, energy_mj
        time.sleep(0.002)
    return None


def _copy_with_gpm(marks: Marks, reader: NvmlReader, index: int, seconds: float) -> None:
    """G-10: GPM's own share of memory bandwidth over the middle of a copy whose bytes are known."""
    command = {"op": "copy", "seconds": seconds, "fill": "normal"}
    marks.load.send(**command)
    time.sleep(seconds * 0.4)  # past the making of the tensors
    first = reader.gpm_sample(index)
    time.sleep(seconds * 0.4)
    second = reader.gpm_sample(index)
    share = reader.gpm_dram_share(first, second)
    marks.write("copy", command, {**marks.load.answer(), "gpm_dram_share": share})
