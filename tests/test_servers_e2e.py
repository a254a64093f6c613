"""The real vLLM on the CPU: booted, proven, answering, stopped with nothing left."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from greenbench.config import ROOT
from greenbench.vllm_python import vllm_python

pytestmark = pytest.mark.e2e
OBSERVED = {"cpu_attn": "CPUAttentionBackendImpl x4", "sdpa": "SdpaImpl x4"}


@pytest.mark.skipif(not vllm_python().exists(), reason="no vLLM python; run `make setup`")
@pytest.mark.parametrize("backend", OBSERVED)
def test_a_real_server_is_proven_and_leaves_nothing(backend: str, tmp_path: Path):
    command = [sys.executable, "-m", "servers", "--backend", backend, "--out", str(tmp_path)]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    try:
        said = [launcher.stdout.readline() for _ in range(2)]
        assert said[1].startswith("ready at http://127.0.0.1:"), said
        body = json.loads((tmp_path / "server.json").read_text())
        server = body["server"]
        assert (body["state"], server["proof"]) == ("ready", "proven")
        assert server["observed_backend"] == OBSERVED[backend]
        # 1 GiB over 4 layers x 2 heads x 64 values x K and V x 2 bytes
        assert server["kv_cache_tokens"] == 2**30 // (4 * 2 * 64 * 2 * 2)
        assert server["vllm_version"] == "0.32.0"
        tree = psutil.Process(server["pid"]).children(recursive=True)
        assert len(tree) >= 2  # engine core and worker
        answer = httpx.post(
            f"{server['base_url']}/v1/completions",
            json={
                "model": "tiny-llama",
                "prompt": "The harbour",
                "max_tokens": 4,
                "ignore_eos": True,
            },
            timeout=60,
        ).json()
        assert answer["usage"]["completion_tokens"] == 4
    finally:
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 0
    assert json.loads((tmp_path / "server.json").read_text())["state"] == "stopped"
    assert not any(running(process) for process in tree)


def running(process: psutil.Process) -> bool:
    """A dead worker that a container's first process has not reaped yet does not run."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
