"""What a soak runs: server, gateway, recorder, exporter and two loads, each a process of its own.

open load ──┐                                            ┌── recorder (scrapes the server)
            ├─ proxy ── gateway ── proxy ── vLLM server ─┤
closed load ┘                                            └── exporter
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psutil
import yaml

from greenbench.contract.config import LoadConfig, PhaseConfig, dump_yaml, load_live_point
from greenbench.contract.errors import UserError
from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import write_atomic
from loadgen.direct_run import Options, write_point
from scripts.soak.faults import Kind
from scripts.soak.kept import Kept
from scripts.soak.proxy import Proxy
from scripts.soak.recording import records
from servers.launch.process import pick_port

BOOT_S: Final = 1800.0  # a busy machine
DRAIN_S: Final = 30.0
REQUEST_S: Final = 30.0
CONTEXT: Final = 256
PROMPTS: Final = 16
STEP_S: Final = 30  # of the clock
LOADS: Final = {
    "open": LoadConfig(kind="open", rate_per_s=3),
    "closed": LoadConfig(kind="closed", users=2, turns=2, turn_pause_s=1),
}
TOKENIZER: Final = ROOT / "models" / "retriever" / "model"


@dataclass(frozen=True, slots=True)
class Wanted:
    """``fake``: the tests' server instead of vLLM."""

    out: Path
    length_s: float
    seed: int
    fake: bool
    mark: str


class Rig:
    """``with Rig(wanted) as rig``: all is up and the loads run. ``skipped``: faults not made here."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.skipped: dict[Kind, str] = {}
        self.disk = wanted.out / "disk"
        self._clock = wanted.out / "clock"
        self._stack = ExitStack()
        server, gateway, exporter = (pick_port(None) for _ in range(3))
        self.behind, self.before = Proxy(server), Proxy(gateway)
        self.server_url, self.gateway_url, self.exporter_url = (
            f"http://127.0.0.1:{port}" for port in (server, gateway, exporter)
        )
        self.server = self._kept("server", self._server_argv(server))
        self.gateway = self._kept(
            "gateway", [
                "gateway", "--policy", str(wanted.out / "policy.yaml"), "--port", str(gateway),
                "--access-log", str(self.disk / "access.jsonl"),
            ],
        )  # fmt: skip
        self.recorder = self._kept(
            "recorder", [
                "telemetry", "record", "--run-dir", str(self.run("open")),
                "--base-url", self.server_url, "--scrape-s", "2",
            ],
        )  # fmt: skip
        self.exporter = self._kept("exporter", ["telemetry", "serve", "--port", str(exporter)])
        self.loads = [
            self._kept("open", ["loadgen.openloop", "--run-dir", str(self.run("open"))], again=False),
            self._kept(
                "closed", [
                    "locust", "-f", "loadgen/longctx.py", "--headless", "--only-summary", "--client", "httpx",
                    "--run-dir", str(self.run("closed")),
                ], again=False,
            ),
        ]  # fmt: skip

    @property
    def services(self) -> list[Kept]:
        return [self.server, self.gateway, self.recorder, self.exporter]

    @property
    def processes(self) -> list[Kept]:
        return [*self.services, *self.loads]

    def run(self, load: str) -> Path:
        return self.disk / load

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        self._prepare_disk()
        self._prepare_clock()
        for proxy in (self.behind, self.before):
            self._stack.enter_context(proxy)
        self._start(self.server)
        self._until(lambda: answers(f"{self.server_url}/health"), self.server)
        self._write_policy()
        self._start(self.gateway)
        self._until(lambda: answers(f"{self.gateway_url}/health"), self.gateway)
        for load, config in LOADS.items():
            self._write_run(self.run(load), config)
        self._start(self.exporter)
        self._start(self.recorder)
        self._until(lambda: answers(f"{self.exporter_url}/metrics"), self.exporter)
        self._until(self._recorded, self.recorder)
        for load in self.loads:
            self._start(load)
        self._until(self._both_send, self.loads[-1])

    # --- processes ------------------------------------------------------------------------------

    def _kept(self, name: str, argv: list[str], again: bool = True) -> Kept:
        whole = [sys.executable, *([] if argv[0].endswith(".py") else ["-m"]), *argv]
        kept = Kept(name, whole, self.wanted.out, self.wanted.mark, again)
        kept.settings["PYTHONPATH"] = str(ROOT)
        return kept

    def _server_argv(self, port: int) -> list[str]:
        if self.wanted.fake:
            fake = ROOT / "tests" / "fakes" / "openai_server.py"
            return [str(fake), "--root", str(TOKENIZER), "--port", str(port)]
        return [
            "servers", "--backend", "cpu_attn", "--model", "tiny-llama", "--port", str(port),
            "--kv-cache-gib", "0.5", "--out", str(self.wanted.out / "server"),
        ]  # fmt: skip

    def _start(self, kept: Kept) -> None:
        self._stack.callback(kept.stop)
        kept.start()

    def _until(self, up: Callable[[], bool], kept: Kept) -> None:
        deadline = time.monotonic() + BOOT_S
        while not up():
            kept.look()
            if time.monotonic() > deadline or len(kept.lives) > 1:
                log = kept.folder / f"{kept.name}.log"
                raise UserError(f"the {kept.name} did not start; see {log}")
            time.sleep(0.1)

    def all_up(self) -> bool:
        urls = (self.server_url, self.gateway_url)
        return (
            all(kept.runs for kept in self.services)
            and self._recorded()
            and all(answers(f"{url}/health") for url in urls)
        )

    def _recorded(self) -> bool:
        """Whether the recorder has begun: a soak that ends before would have no row behind its hole."""
        rows = self.run("open") / "telemetry" / "host.jsonl"
        return records(rows, self.recorder.lives[-1].began_s)

    def _both_send(self) -> bool:
        return len({name.partition("-")[0] for _, name in self.before.seen}) == len(self.loads)

    # --- files ----------------------------------------------------------------------------------

    def _prepare_disk(self) -> None:
        """A file system of its own for the runs, where this user may mount one."""
        self.disk.mkdir(parents=True)
        mib = 32 + round(self.wanted.length_s / 30)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "soak", str(self.disk)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            self.skipped[Kind.DISK] = "no file system can be mounted here (root is needed)"
            return
        self._stack.callback(self._unmount)

    def _unmount(self) -> None:
        """Keep what was written, on the disk that the soak writes to."""
        kept = self.wanted.out / "runs"
        with suppress(OSError):
            shutil.copytree(self.disk, kept, dirs_exist_ok=True)
        subprocess.run(["umount", str(self.disk)], capture_output=True, check=False)

    def _prepare_clock(self) -> None:
        """The closed load reads a wall clock of its own; nobody steps the machine's."""
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            self.skipped[Kind.CLOCK] = "no C compiler is here"
            return
        library = self.wanted.out / "clock.so"
        source = str(Path(__file__).with_name("clock.c"))
        argv = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
        subprocess.run(argv, check=True)
        self._set_clock(0)
        self.loads[1].settings |= {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._clock)}

    def _set_clock(self, seconds: int) -> None:
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("<q", seconds * 10**9))

    def _write_policy(self) -> None:
        policy = {
            "schema": 1, "objective": "ttft", "default": "main", "rules": [],
            "model": {"name": model_of(self.server_url)},
            "pools": {"main": {"backend": "cpu_attn", "url": self.behind.url}},
        }  # fmt: skip
        (self.wanted.out / "policy.yaml").write_text(yaml.safe_dump(policy))

    def _write_run(self, run: Path, load: LoadConfig) -> None:
        made = Options("retrieve", CONTEXT, PROMPTS, self.wanted.seed, "")
        write_point(run, self.before.url, made)
        live = load_live_point(run)
        phases = PhaseConfig(
            warmup_s=0, measure_s=self.wanted.length_s, drain_s=DRAIN_S,
            request_timeout_s=REQUEST_S,
        )  # fmt: skip
        point = live.point.model_copy(update={"load": load, "phases": phases})
        write_atomic(run / "config.yaml", dump_yaml(live.model_copy(update={"point": point})))

    # --- what breaks ----------------------------------------------------------------------------

    def begin(self, kind: Kind) -> None:
        BEGIN[kind](self)

    def end(self, kind: Kind) -> None:
        if kind in END:
            END[kind](self)

    def kill_server(self) -> None:
        """vLLM's own first process; the launcher is left to find out."""
        os.kill(self._vllm_pid() or self.server.pid, 9)

    def kill_engine(self) -> None:
        engines = [p for p in self._vllm_tree() if p.name().startswith("VLLM::Engine")]
        os.kill(engines[0].pid if engines else self._vllm_pid() or self.server.pid, 9)

    def _vllm_pid(self) -> int | None:
        tree = self._vllm_tree()
        return tree[0].pid if tree else None

    def _vllm_tree(self) -> list[psutil.Process]:
        return psutil.Process(self.server.pid).children(recursive=True)

    def fill_disk(self) -> None:
        with suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 20)):
                pass

    def free_disk(self) -> None:
        (self.disk / "filler").unlink(missing_ok=True)

    def step_clock(self) -> None:
        (ns,) = struct.unpack("<q", self._clock.read_bytes())
        self._set_clock(ns // 10**9 + STEP_S)


BEGIN: Final[dict[Kind, Callable[[Rig], None]]] = {
    Kind.SERVER: Rig.kill_server,
    Kind.ENGINE: Rig.kill_engine,
    Kind.GATEWAY: lambda rig: rig.gateway.kill(),
    Kind.RECORDER: lambda rig: rig.recorder.kill(),
    Kind.CUT_CLIENT: lambda rig: rig.before.cut(),
    Kind.CUT_SERVER: lambda rig: rig.behind.cut(),
    Kind.DISK: Rig.fill_disk,
    Kind.CLOCK: Rig.step_clock,
}
END: Final[dict[Kind, Callable[[Rig], None]]] = {
    Kind.CUT_CLIENT: lambda rig: rig.before.mend(),
    Kind.CUT_SERVER: lambda rig: rig.behind.mend(),
    Kind.DISK: Rig.free_disk,
}


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def model_of(url: str) -> str:
    said: dict[str, Any] = json.loads(httpx.get(f"{url}/v1/models", timeout=30).text)
    return said["data"][0]["id"]
