"""A sweep against a real vLLM that wants a key, behind a gateway with a prefix and its own certificate."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from greenbench.contract.config import ROOT, load_model
from greenbench.contract.run_dir import list_runs
from greenbench.vllm_python import vllm_python
from tests.fakes.certificates import make_certificate
from tests.fakes.ports import free_port
from tests.fakes.tls_proxy import tls_proxy

pytestmark = pytest.mark.e2e
if not vllm_python().exists():
    pytest.skip("no vLLM python; run `make setup`", allow_module_level=True)

KEY, VARIABLE = "sk-of-the-team-7193", "TEAM_KEY"
BOOT_LIMIT_S, SWEEP_LIMIT_S, STOP_LIMIT_S = (
    300,
    180,
    30,
)  # some ten times what an idle machine takes
COMMAND = [sys.executable, "-c", "from greenbench.cli import main; main()", "run"]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server of the retriever; its key comes by the environment."""
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "server.log"
    model = str(load_model("retriever").path)
    argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    argv += ["--served-model-name", "team-model", "--dtype", "float32", "--enforce-eager"]
    argv += ["--max-model-len", "1024", "--no-enable-prefix-caching"]
    env = {**os.environ, "VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as out:
        command = [str(vllm_python()), *argv]
        server = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + BOOT_LIMIT_S
        while not answers(url):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        stop(server)


def stop(server: "subprocess.Popen[bytes]") -> None:
    """By TERM; what is left of its group after STOP_LIMIT_S, by KILL."""
    server.terminate()
    try:
        server.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(STOP_LIMIT_S)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def sweep(folder: Path, url: str, **server: object) -> Path:
    path = folder / "team.yaml"
    whole = {
        "name": "team", "models": ["retriever"], "backends": ["cpu_attn"], "contexts": [256],
        "tasks": [{"name": "retrieve", "output_tokens": 8}], "loads": [{"users": 1}],
        "prompts_per_point": 4, "server": {"base_url": url, "api_key_env": VARIABLE, **server},
        "phases": {"warmup_s": 0, "measure_s": 8, "drain_s": 60},
    }  # fmt: skip
    path.write_text(json.dumps(whole))
    return path


def run(file: Path, out: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(file), "--out", str(out)], capture_output=True, text=True, check=False,
        timeout=SWEEP_LIMIT_S, cwd=ROOT, env={**os.environ, **env},
    )  # fmt: skip


def test_it_is_reached_and_the_key_is_in_no_file(vllm: str, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    out = tmp_path / "out"
    with tls_proxy(vllm, "/llm/team", tmp_path) as proxy:
        url = f"{proxy.url}/llm/team"
        untrusted = run(sweep(tmp_path, url), out, **{VARIABLE: KEY})
        known = sweep(tmp_path, url, ca_file="cert.pem")
        wrong = run(known, out, **{VARIABLE: "sk-wrong"})
        done = run(known, out, **{VARIABLE: KEY})
    assert "certificate" in untrusted.stdout + untrusted.stderr and untrusted.returncode != 0
    assert "refuses the key" in wrong.stderr and wrong.returncode == 2
    manifests = [run.manifest() for run in list_runs(out)]
    assert manifests, done.stdout + done.stderr
    measured = manifests[-1]
    assert measured.counts.ok > 0 and measured.counts.failed == 0, done.stdout
    assert measured.status == "complete" or "no_steady_state" in measured.invalid_reasons
    assert (measured.server.served_model, measured.server.proof) == ("team-model", "unproven")
    run_path = list_runs(out)[-1].path
    scraped = (run_path / "telemetry" / "server.jsonl").read_text()
    assert "vllm:" in scraped  # /metrics by the same way
    for file in (path for path in out.rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in done.stdout + done.stderr
