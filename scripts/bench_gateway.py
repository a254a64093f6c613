"""What the gateway costs: direct, through it, and through vllm-router, by turns on one rig.

    .venv/bin/python scripts/bench_gateway.py [--rounds 5] [--router /path/to/bin/vllm-router] [--out FILE]

Two golden servers (tests/fakes/golden.c) are the pools. Each scenario goes through all targets in each round,
in shuffled order, so that a busy moment meets all alike. Proxies are held to one core; servers and client
share another. `pip install vllm-router` into an environment of its own gives the second proxy.
"""

import argparse
import json
import os
import random
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from servers.launch.process import pick_port  # noqa: E402
from tests.fakes.gateways import policy, write_policy  # noqa: E402

SERVER_CORE, PROXY_CORE = 0, 1
NAMES = ("a", "b")
LONG = 4096  # prompt tokens from which pool b takes a request
END = b"\r\n0\r\n\r\n"
READY_S = 30.0


@dataclass(frozen=True)
class Scenario:
    """``rate_per_s``: an open loop; else ``streams`` users, each of whom sends again once it is answered."""

    name: str
    body: bytes
    tokens: int
    ttft_us: int
    gap_us: int
    streams: int
    rate_per_s: float | None = None


def request_body(prompt: object, tokens: int, padding: int = 0) -> bytes:
    body = {"model": "golden", "prompt": prompt, "max_tokens": tokens, "stream": True}
    return json.dumps(body | ({"user": "x" * padding} if padding else {})).encode()


def scenarios() -> list[Scenario]:
    rng = random.Random(7)
    ids = [rng.randrange(100_000) for _ in range(8192)]
    words = " ".join(
        f"w{rng.randrange(10**4):04d}" for _ in range(5500)
    )  # some 33 kB, as 8k tokens have
    large = "".join(rng.choices("abcdefgh ", k=220_000))
    return [
        Scenario("one after another, 8k ids", request_body(ids, 1), 1, 0, 0, 1),
        Scenario("TTFT, 50/s, 8k ids", request_body(ids, 4), 4, 20_000, 1_000, 64, 50.0),
        Scenario(
            "TTFT, 50/s, 8k tokens as text", request_body(words, 4), 4, 20_000, 1_000, 64, 50.0
        ),
        Scenario("220 KB bodies", request_body(large, 1), 1, 0, 0, 16),
        Scenario("64 streams, 20 ms", request_body([1] * 64, 64), 64, 20_000, 20_000, 64),
        Scenario("256 streams, 5 ms", request_body([1] * 64, 256), 256, 20_000, 5_000, 256),
    ]


@dataclass
class Figures:
    ttft_ms: list[float] = field(default_factory=list)
    chunks: int = 0
    requests: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    failed: int = 0

    def add(self, other: "Figures") -> None:
        self.ttft_ms += other.ttft_ms
        for name in ("chunks", "requests", "seconds", "cpu_s", "failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def ttft(self, share: float) -> float:
        return sorted(self.ttft_ms)[min(int(share * len(self.ttft_ms)), len(self.ttft_ms) - 1)]


@dataclass
class Stream:
    """One connection. ``due``: when its request was to be sent; None: it is free."""

    sock: socket.socket
    due: float | None = None
    first: bool = False
    tail: bytes = b""


class Client:
    """One thread, raw sockets: what it takes itself is the same for all targets."""

    def __init__(self, port: int, scenario: Scenario) -> None:
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"content-length: {len(scenario.body)}\r\n\r\n"
        )
        self._request = head.encode() + scenario.body
        self._scenario = scenario
        self._selector = selectors.DefaultSelector()
        self._streams = [Stream(self._connect(port)) for _ in range(scenario.streams)]
        for stream in self._streams:
            self._selector.register(stream.sock, selectors.EVENT_READ, stream)
        self.figures = Figures()

    def _connect(self, port: int) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def run(self, seconds: float, warmup_s: float, pid: int | None) -> Figures:
        rate = self._scenario.rate_per_s
        begin = time.perf_counter()
        start, end = begin + warmup_s, begin + warmup_s + seconds
        arrivals = self._arrivals(begin, rate) if rate else iter(())
        due = next(arrivals, None)
        if not rate:
            for stream in self._streams:
                self._send(stream, time.perf_counter())
        cpu_then: float | None = None
        while (now := time.perf_counter()) < end:
            if cpu_then is None and now >= start:
                cpu_then, self.figures = cpu_of(pid), Figures()
                started = now
            if due is not None and now >= due:
                free = next((s for s in self._streams if s.due is None), None)
                if free is not None:
                    self._send(free, due)
                else:
                    self.figures.failed += 1
                due = next(arrivals)
                continue
            wait = min(end, due if due is not None else end) - now
            for key, _ in self._selector.select(max(0.0, wait)):
                self._read(key.data)
        self.figures.seconds = time.perf_counter() - started
        self.figures.cpu_s = cpu_of(pid) - (cpu_then or 0.0)
        for stream in self._streams:
            stream.sock.close()
        return self.figures

    def _arrivals(self, begin: float, rate: float) -> Iterator[float]:
        """Evenly apart, each a little off, so that no two targets meet another clock's beat."""
        rng, number = random.Random(1), 0
        while True:
            yield begin + (number + rng.random() / 2) / rate
            number += 1

    def _send(self, stream: Stream, due: float) -> None:
        stream.due, stream.first, stream.tail = due, False, b""
        stream.sock.setblocking(True)
        stream.sock.sendall(self._request)
        stream.sock.setblocking(False)

    def _read(self, stream: Stream) -> None:
        data = stream.sock.recv(1 << 18)
        if not data:
            self._selector.unregister(stream.sock)
            self.figures.failed += 1
            return
        chunks = data.count(b"data: ")
        if chunks and not stream.first and stream.due is not None:
            stream.first = True
            self.figures.ttft_ms.append(1e3 * (time.perf_counter() - stream.due))
        self.figures.chunks += chunks
        stream.tail = (stream.tail + data[-len(END) :])[-len(END) :]
        if stream.tail == END:
            self.figures.requests += 1
            stream.due = None
            if not self._scenario.rate_per_s:
                self._send(stream, time.perf_counter())


def cpu_of(pid: int | None) -> float:
    """Seconds of a process and its children; 0 for nobody."""
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


@contextmanager
def started(argv: list[str], core: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out)
        os.sched_setaffinity(process.pid, {core})
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_ready(port: int, request: bytes) -> None:
    """Until a whole answer comes back."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
                sock.sendall(request)
                if sock.recv(64).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing answers at port {port} within {READY_S:.0f} s")
        time.sleep(0.2)


def measure(scenario: Scenario, options: argparse.Namespace, folder: Path) -> dict[str, Figures]:
    """Each target's figures over all rounds."""
    golden = folder / "golden"
    ports = {name: pick_port(None) for name in NAMES}
    proxies = {"gateway": pick_port(None)} | (
        {"vllm-router": pick_port(None)} if options.router else {}
    )
    with ExitStack() as stack:
        for name, port in ports.items():
            argv = [str(golden), "--port", str(port), "--log", "/dev/null"]
            argv += ["--ttft-us", str(scenario.ttft_us), "--gap-us", str(scenario.gap_us)]
            stack.enter_context(started(argv, SERVER_CORE, folder / f"{name}.log"))
        rule = {"name": "long", "pool": "b", "when": {"uncached_prompt_tokens": {"at_least": LONG}}}
        write_policy(folder / "policy.yaml", policy(list(NAMES), rules=[rule]))
        pids: dict[str, int | None] = {"direct": None}
        for target, port in proxies.items():
            argv = command(target, port, ports, options, folder)
            process = stack.enter_context(started(argv, PROXY_CORE, folder / f"{target}.log"))
            pids[target] = process.pid
        at = {"direct": ports["b"], **proxies}
        probe = b'{"model":"golden","prompt":[1],"max_tokens":1,"stream":true}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        for port in at.values():
            wait_ready(port, head + b"content-length: %d\r\n\r\n" % len(probe) + probe)
        found = {target: Figures() for target in at}
        rng = random.Random(scenario.name)
        for _ in range(options.rounds):
            for target in rng.sample(list(at), len(at)):
                client = Client(at[target], scenario)
                found[target].add(client.run(options.seconds, options.warmup_s, pids[target]))
        return found


def command(
    target: str, port: int, ports: dict[str, int], options: argparse.Namespace, folder: Path
) -> list[str]:
    urls = {name: f"http://127.0.0.1:{at}" for name, at in ports.items()}
    if target == "gateway":
        argv = [sys.executable, "-m", "gateway", "--policy", str(folder / "policy.yaml")]
        argv += ["--port", str(port), "--access-log", str(folder / "access.jsonl")]
        return argv + [f"--pool={name}={url}" for name, url in urls.items()]
    argv = [str(options.router), "--worker-urls", *urls.values(), "--port", str(port)]
    return [*argv, "--prometheus-port", str(pick_port(None)), "--log-level", "error"]


def table(scenario: Scenario, found: dict[str, Figures]) -> list[str]:
    direct = found["direct"]
    lines = []
    for target, got in found.items():
        cells = [scenario.name, target]
        if scenario.rate_per_s or scenario.streams == 1:
            p50, p99 = got.ttft(0.5), got.ttft(0.99)
            added = (p50 - direct.ttft(0.5), p99 - direct.ttft(0.99))
            cells += [f"{p50:.2f} / {p99:.2f} ms"]
            cells += ["" if got is direct else f"+{added[0]:.2f} / +{added[1]:.2f} ms"]
        elif scenario.tokens == 1:
            cells += [f"{got.requests / got.seconds:,.0f} requests/s", ""]
        else:
            cells += [f"{got.chunks / got.seconds:,.0f} chunks/s", ""]
        if got.cpu_s:
            per = 1e6 * got.cpu_s
            of_chunk = f"{per / max(got.chunks, 1):.1f} µs a chunk"
            of_request = f"{per / max(got.requests, 1):,.0f} µs a request"
            cells += [of_request if scenario.rate_per_s or scenario.tokens == 1 else of_chunk]
            cells += [f"{100 * got.cpu_s / got.seconds:.0f} %"]
        else:
            cells += ["", ""]
        cells += [str(got.failed)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--warmup-s", type=float, default=1.0)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--router", default=shutil.which("vllm-router"), help="path of vllm-router")
    parser.add_argument("--out", type=Path, help="where the table goes besides")
    options = parser.parse_args()
    os.sched_setaffinity(0, {SERVER_CORE})
    lines = [
        "| load | target | p50 / p99, or rate | added to direct | CPU of the proxy | of its core | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = ROOT / "tests" / "fakes" / "golden.c"
        subprocess.run(["cc", "-O2", "-o", str(folder / "golden"), str(source)], check=True)
        for scenario in scenarios():
            if options.only in scenario.name:
                rows = table(scenario, measure(scenario, options, folder))
                print(*rows, sep="\n", flush=True)
                lines += rows
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
