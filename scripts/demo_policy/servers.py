"""Real servers, one a core, and the gateway before them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greenbench.contract.errors import UserError
from greenbench.contract.installation import ROOT
from scripts.demo_policy.experiment import BACKENDS, BOOT_S, LONGEST, MODEL, kind


@contextmanager
def pool(name: str, core: int, folder: Path) -> Iterator[int]:
    """A proven vLLM server on one core; its process id. Ended at the end."""
    argv = [sys.executable, "-m", "servers", "--backend", BACKENDS[kind(name)], "--model", MODEL]
    argv += ["--kv-cache-gib", "0.5", "--max-model-len", str(LONGEST), "--out", str(folder)]
    env = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": str(core), "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "launcher.log").open("w") as log:
        launcher = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=log)
        os.sched_setaffinity(launcher.pid, {core})
        try:
            yield launcher.pid
        finally:
            launcher.terminate()
            launcher.wait(60)


def address(folder: Path) -> str:
    """Once the server is ready and proven."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        said = (folder / "launcher.log").read_text()
        if "\nready at" in said:
            return json.loads((folder / "server.json").read_text())["server"]["base_url"]
        if "error: " in said or "failed: " in said:
            break
        time.sleep(0.5)
    raise UserError(f"the server of {folder.name} did not start; see {folder / 'launcher.log'}")


@contextmanager
def gateway(folder: Path, urls: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    argv = [sys.executable, "-m", "gateway", f"--policy={folder / 'policy.yaml'}", "--port=0"]
    argv += [f"--access-log={folder / 'access.jsonl'}"]
    argv += [f"--pool={name}={url}" for name, url in urls.items()]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[2], process.pid
    finally:
        process.terminate()
        process.wait(30)
