"""The real vLLM on the CPU: booted, proven, answering, stopped with nothing left."""

import json
from pathlib import Path

import httpx
import psutil
import pytest

from greenbench.contract.cpu import dtype_on_cpu, this_cpu
from greenbench.vllm_python import vllm_python
from tests.fakes.serving import Pace, launched, ready

pytestmark = pytest.mark.e2e
OBSERVED = {"cpu_attn": "CPUAttentionBackendImpl x4", "sdpa": "SdpaImpl x4"}
VALUE_BYTES = {"bfloat16": 2, "float32": 4}


@pytest.mark.skipif(not vllm_python().exists(), reason="no vLLM python; run `make setup`")
@pytest.mark.parametrize("backend", OBSERVED)
def test_a_real_server_is_proven_and_leaves_nothing(backend: str, tmp_path: Path, pace: Pace):
    with launched(backend, tmp_path) as launcher:
        server = ready(launcher, tmp_path)
        assert json.loads((tmp_path / "server.json").read_text())["state"] == "ready"
        assert server["proof"] == "proven"
        assert server["observed_backend"] == OBSERVED[backend]
        # vLLM's own word for what it serves in, against what this CPU has
        assert server["dtype"] == dtype_on_cpu(this_cpu().flags).name
        assert "this CPU" in server["dtype_why"]
        # 1 GiB over 4 layers x 2 heads x 64 values x K and V
        value_bytes = VALUE_BYTES[server["dtype"]]
        assert server["kv_cache_tokens"] == 2**30 // (4 * 2 * 64 * 2 * value_bytes)
        assert server["vllm_version"] == "0.32.0"
        tree = psutil.Process(server["pid"]).children(recursive=True)
        assert len(tree) >= 2  # engine core and worker
        body = {"model": "tiny-llama", "prompt": "The harbour", "max_tokens": 4}
        answer = httpx.post(
            f"{server['base_url']}/v1/completions",
            json=body | {"ignore_eos": True},
            timeout=pace.limit_s(pace.alone_s(3, 4), boots=0),
        ).json()
        assert answer["usage"]["completion_tokens"] == 4
    assert json.loads((tmp_path / "server.json").read_text())["state"] == "stopped"
    assert not any(running(process) for process in tree)


def running(process: psutil.Process) -> bool:
    """A dead worker that a container's first process has not reaped yet does not run."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
