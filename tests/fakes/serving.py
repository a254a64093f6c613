"""Real vLLM servers for the end-to-end tests, and how fast this machine serves.

Loads, windows and limits of those tests go by ``Pace``: a constant that suits one machine is too short on a
slower one and too long on a faster.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from greenbench.contract.config import ROOT

STOP_LIMIT_S = 120  # the launcher kills what is left after 17 s; a busy machine may take its time
ROUNDS = 6  # answers of each user in a window: twice what a steady state asks for
PATIENCE = 20  # what takes so many times as long as it should hangs


@contextmanager
def launched(backend: str, out: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    """The launcher of one server, which ends by itself when the server does not boot in time."""
    command = [sys.executable, "-m", "servers", "--backend", backend, "--out", str(out), *flags]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield launcher
    finally:
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(STOP_LIMIT_S) == 0


def ready(launcher: "subprocess.Popen[str]", out: Path) -> dict[str, Any]:
    """The ``server`` part of server.json, once the launcher says that it is ready."""
    assert launcher.stdout is not None
    while line := launcher.stdout.readline():
        if line.startswith("ready at"):
            return json.loads((out / "server.json").read_text())["server"]
    raise AssertionError((out / "server.json").read_text())


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a server of tiny-llama with ``cpu_attn`` that computes one request at a time."""

    boot_s: float
    prefill_token_s: float
    decode_token_s: float

    def alone_s(self, prompt: int, output: int) -> float:
        """One request that nothing else holds up."""
        return prompt * self.prefill_token_s + output * self.decode_token_s

    def window_s(self, users: int, prompt: int, output: int) -> float:
        """So long that each user gets ROUNDS answers, even from a server that batches nothing."""
        return ROUNDS * users * self.alone_s(prompt, output)

    def limit_s(self, work_s: float = 0.0, boots: int = 1) -> float:
        """When so much work, and so many boots one after another, must have ended."""
        return PATIENCE * (boots * self.boot_s + work_s) + STOP_LIMIT_S


def measure_pace(out: Path, prompt: int = 1000, output: int = 48) -> Pace:
    """The slowest of three requests each: a probe that meets a quiet moment would promise too much."""
    started = time.monotonic()
    with launched("cpu_attn", out) as launcher:
        server = ready(launcher, out)
        boot_s = time.monotonic() - started
        with httpx.Client(base_url=server["base_url"], timeout=PATIENCE * boot_s) as client:

            def takes_s(output: int, shift: int) -> float:
                ids = [(i * 7 + shift) % 4000 + 8 for i in range(prompt)]
                body = {"model": server["served_model"], "prompt": ids, "max_tokens": output}
                before = time.monotonic()
                client.post("/v1/completions", json=body | {"ignore_eos": True}).raise_for_status()
                return time.monotonic() - before

            first_s = max(takes_s(1, shift) for shift in range(3))
            whole_s = max(takes_s(1 + output, shift) for shift in range(3, 6))
    decode_s = max(whole_s - first_s, whole_s / 10)  # a busy moment may have met the first ones
    return Pace(boot_s, first_s / prompt, decode_s / output)
