"""The rig of the client's benchmark: loads, the golden server, a client's CPU, and the figures of a run.

Server and client have a core each and come first on it where the system allows it. What a client says
of each request is held against the golden server's log; its CPU is that of all its processes while
requests were under way, read from /proc, and so is what others took of its core.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from greenbench.contract.cpu import this_cpu
from greenbench.contract.errors import how_it_ended

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE, CLIENT_CORE = 0, 1
SESSION_NICENESS = "-20"
CPU_EVERY_S = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CannotRunHere(RuntimeError):
    """A client that dies of an illegal instruction: trying it again would end the same way."""


@dataclass(frozen=True)
class Scenario:
    """One load: ``streams`` users, each request ``tokens`` chunks, after ``ttft_us`` every ``gap_us``."""

    name: str
    streams: int
    tokens: int
    ttft_us: int
    gap_us: int
    measure_s: float
    context: int = 64
    rate_per_s: float | None = None  # an open loop instead of users
    peers: bool = False  # peers run it too


SCENARIOS = [
    Scenario("16 streams, 20 ms", 16, 64, 50_000, 20_000, 4),
    Scenario("64 streams, 20 ms", 64, 64, 50_000, 20_000, 4),
    Scenario("256 streams, 20 ms", 256, 64, 50_000, 20_000, 4, peers=True),
    Scenario("16,000 chunks/s", 256, 256, 50_000, 15_870, 5, peers=True),
    Scenario("64,000 chunks/s", 256, 256, 50_000, 3_820, 4, peers=True),
    Scenario("100,000 chunks/s", 256, 256, 50_000, 2_370, 4),
    Scenario("128,000 chunks/s", 256, 256, 50_000, 1_810, 4),
    Scenario("saturation", 64, 1, 0, 0, 4, peers=True),
    Scenario("32k-token prompts", 16, 1, 0, 0, 4, context=32_768),
    Scenario("pacing, 200 requests/s", 0, 64, 50_000, 10_000, 6, rate_per_s=200),
]


@dataclass
class Truth:
    """One request as the golden server logged it, CLOCK_MONOTONIC ns."""

    request_id: str
    received_ns: int
    sent_ns: list[int]


@dataclass
class Told:
    """One request as a client tells it. None: it does not say. ``mean_gap_ms``: where gaps are not told."""

    ttft_ms: float | None
    gaps_ms: list[float] | None
    mean_gap_ms: float | None = None
    lag_ms: float | None = None


@dataclass
class Result:
    """Figures of one run of one client. ms unless named otherwise."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    chunks: int = 0
    cpu_s: float | None = None
    others_share: float | None = None  # of the client's core, taken by other programs
    miscounted: int = 0  # requests told with another number of chunks than were sent
    ttft_errors_ms: list[float] = field(default_factory=list)
    itl_errors_ms: list[float] = field(default_factory=list)
    told_gaps_ms: list[float] = field(default_factory=list)
    true_gaps_ms: list[float] = field(default_factory=list)
    mean_gap_errors_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)

    def take_cpu(self, meter: "CpuMeter", start_ns: int, end_ns: int) -> None:
        self.cpu_s = meter.between(start_ns, end_ns)
        self.others_share = meter.others_share(start_ns, end_ns)

    def compare(self, told: Told, true: Truth) -> None:
        """TTFT and gap by gap, against what the server saw and sent."""
        first = true.sent_ns[0] - true.received_ns
        true_gaps = [(b - a) / 1e6 for a, b in pairwise(true.sent_ns)]
        if told.ttft_ms is not None:
            self.ttft_errors_ms.append(abs(told.ttft_ms - first / 1e6))
        if told.lag_ms is not None:
            self.lags_ms.append(told.lag_ms)
        if told.gaps_ms is not None:
            self.miscounted += len(told.gaps_ms) != len(true_gaps)
            self.told_gaps_ms += told.gaps_ms
            self.true_gaps_ms += true_gaps
            pairs = zip(told.gaps_ms, true_gaps, strict=False)
            self.itl_errors_ms += [abs(told_ms - true_ms) for told_ms, true_ms in pairs]
        elif told.mean_gap_ms is not None and true_gaps:
            mean_ms = sum(true_gaps) / len(true_gaps)
            self.mean_gap_errors_ms.append(abs(told.mean_gap_ms - mean_ms))

    def figures(self) -> dict[str, float | None]:
        told_p99, true_p99 = quantile(self.told_gaps_ms, 0.99), quantile(self.true_gaps_ms, 0.99)
        cpu_ms = None if self.cpu_s is None else 1e3 * self.cpu_s
        off = None
        if told_p99 is not None and true_p99:
            off = 100 * (told_p99 / true_p99 - 1)
        return {
            "ttft_error_p50_ms": quantile(self.ttft_errors_ms, 0.5),
            "ttft_error_p99_ms": quantile(self.ttft_errors_ms, 0.99),
            "itl_error_p99_ms": quantile(self.itl_errors_ms, 0.99),
            "itl_p99_off_percent": off,
            "mean_gap_error_p99_ms": quantile(self.mean_gap_errors_ms, 0.99),
            "chunks_per_s": self.chunks / self.seconds if self.seconds else None,
            "cpu_ms_per_1000_chunks": 1e3 * cpu_ms / self.chunks
            if cpu_ms and self.chunks
            else None,
            "requests_per_s": self.requests / self.seconds if self.seconds else None,
            "cpu_ms_per_request": cpu_ms / self.requests if cpu_ms and self.requests else None,
            "lag_p99_ms": quantile(self.lags_ms, 0.99),
            "lag_worst_ms": max(self.lags_ms, default=None),
            "miscounted": float(self.miscounted),
            "failed": float(self.failed),
            "others_percent": None if self.others_share is None else 100 * self.others_share,
        }


def quantile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def build(folder: Path) -> Path:
    """The golden server, compiled."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit(
            "error: no C compiler found; install one (cc) to run the client's benchmark"
        )
    program = folder / "golden"
    subprocess.run(
        [compiler, "-O2", "-o", str(program), str(ROOT / "tests/fakes/golden.c")], check=True
    )
    return program


@contextmanager
def golden(program: Path, scenario: Scenario, log: Path) -> Iterator[str]:
    """The server on a core of its own; its URL. The log is there after the block."""
    argv = [str(program), "--log", str(log), "--prompt-tokens", str(scenario.context)]
    argv += ["--ttft-us", str(scenario.ttft_us), "--gap-us", str(scenario.gap_us)]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=_on(SERVER_CORE))
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def _core(number: int) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)]


def _on(core: int) -> Callable[[], None]:
    """What a child does before it becomes its program: go to its core; the server, ahead of others."""
    number = _core(core)

    def settle() -> None:
        os.sched_setaffinity(0, {number})
        if core == SERVER_CORE:
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    return settle


def read_truth(log: Path) -> list[Truth]:
    """What the server logged, in order of arrival: the reply to number N had the id cmpl-<N, hex>."""
    truths: list[Truth] = []
    for line in log.open():
        request_id, received, _, *sent = line.split()
        truths.append(Truth(request_id, int(received), [int(t) for t in sent]))
    return truths


class CpuMeter:
    """CPU seconds of a session of processes, and of all on the client's core, sampled.

    So any window can be asked for later.
    """

    def __init__(self, session_id: int) -> None:
        self._session = str(session_id)
        self._core = f"cpu{_core(CLIENT_CORE)} "
        self._samples: list[tuple[int, float, float]] = []  # (mono ns, the session's, the core's)
        self._last: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(CPU_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if fields[3] == self._session:
                self._last[folder.name] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        # a process that has ended keeps the last value that was seen of it
        taken = time.monotonic_ns(), sum(self._last.values()), self._busy_s()
        self._samples.append(taken)

    def _busy_s(self) -> float:
        """All but idle and waiting for a disk."""
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith(self._core):
                user, nice, system, _, _, irq, softirq, steal, *_ = map(int, line.split()[1:])
                return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
        return 0.0

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def between(self, start_ns: int, end_ns: int) -> float | None:
        """The session's CPU seconds in a window, interpolated; None outside what was sampled."""
        if not self._covers(start_ns, end_ns):
            return None
        return self._at(end_ns, 1) - self._at(start_ns, 1)

    def others_share(self, start_ns: int, end_ns: int) -> float | None:
        """What the core did for others, of the window."""
        own_s = self.between(start_ns, end_ns)
        if own_s is None:
            return None
        busy_s = self._at(end_ns, 2) - self._at(start_ns, 2)
        return max(0.0, busy_s - own_s) / ((end_ns - start_ns) / 1e9)

    def _covers(self, start_ns: int, end_ns: int) -> bool:
        samples = self._samples
        return bool(samples) and samples[0][0] <= start_ns < end_ns <= samples[-1][0]

    def _at(self, moment_ns: int, column: int) -> float:
        for one, other in pairwise(self._samples):
            if one[0] <= moment_ns <= other[0]:
                share = (moment_ns - one[0]) / (other[0] - one[0])
                return one[column] + (other[column] - one[column]) * share
        raise AssertionError("a moment outside the samples")


def run_pinned(
    argv: list[str], log: Path, env: dict[str, str] | None = None, timeout_s: float = 170
) -> CpuMeter:
    """Run a client, and all it starts, on its core; the meter that watched it."""
    with log.open("w") as out:
        client = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            preexec_fn=_on(CLIENT_CORE),
            start_new_session=True,
        )
        with suppress(OSError):  # ahead of what else the machine does, all of its processes alike
            Path(f"/proc/{client.pid}/autogroup").write_text(SESSION_NICENESS)
        meter = CpuMeter(client.pid)
        try:
            code = client.wait(timeout_s)
        except BaseException:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
            raise
        finally:
            meter.stop()
    if code == -signal.SIGILL:
        raise CannotRunHere(
            f"{how_it_ended(code)}: it was built for instructions that {this_cpu().name} lacks"
        )
    if code:
        raise RuntimeError(f"{argv[:4]} ended with {code}: {log.read_text()[-1500:]}")
    return meter
