"""Secrets are planted and everything that is written is searched: files, output, command lines.

A whole sweep against a running server, with its report and archive; and a server that is started, by the
stand-in for vLLM. The gateway's own: tests/gateway/test_faults.py.
"""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from greenbench.contract.config import ModelConfig, ServerConfig, parse
from greenbench.contract.errors import UserError
from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import list_runs
from tests.fakes import vllm_server
from tests.fakes.openai_server import GoldenServer
from tests.fakes.waiting import HUNG_S

COMMAND = [sys.executable, "-c", "from greenbench.cli import main; main()"]
PLANTED = {
    "OPENAI_API_KEY": "planted-bearer-3f9a",
    "TEAM_KEY": "planted-header-77b1",
    "HF_TOKEN": "planted-hub-c02d",
    "MY_TOKEN": "planted-passed-on-915e",
    "AWS_SECRET_ACCESS_KEY": "planted-bystander-d4d4",
    "HTTPS_PROXY": "http://user:planted-proxy-5e5e@127.0.0.1:1",
}
ENV = {**os.environ, **PLANTED, "NO_PROXY": "*", "PYTHONPATH": str(ROOT)}


@contextmanager
def watched() -> Iterator[set[str]]:
    """Command lines of all processes below this one, seen ten times a second."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        here = psutil.Process()
        while not over.wait(0.1):
            for process in here.children(recursive=True):
                try:
                    seen.add("\0".join(process.cmdline()))
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and unpacked bytes of every file below ``folder``."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            if path.suffix == ".parquet":
                content += str(pq.read_table(path).to_pydict()).encode()
            yield str(path.relative_to(folder)), content


def leaks(folder: Path, said: str, lines: set[str]) -> list[str]:
    places = [
        *contents(folder),
        ("output", said.encode()),
        ("command line", "\n".join(lines).encode()),
    ]
    return [f"{name} in {place}" for place, content in places for name, value in PLANTED.items()
            if (value.rpartition("@")[0] or value).encode() in content]  # fmt: skip


def test_a_sweep_its_report_and_its_archive_hold_none(tmp_path: Path) -> None:
    out, env = tmp_path / "out", ENV | {"VLLM_PYTHON": vllm_server.install(tmp_path)}
    with GoldenServer() as server, watched() as lines:
        sweep = {
            "name": "planted", "models": ["retriever"], "backends": ["sdpa"], "contexts": [256],
            "tasks": [{"name": "retrieve", "output_tokens": 8}], "loads": [{"users": 2}],
            "prompts_per_point": 4, "phases": {"warmup_s": 0, "measure_s": 3, "drain_s": 5},
            "server": {
                "base_url": server.url, "api_key_env": "OPENAI_API_KEY",
                "headers_env": {"X-Team": "TEAM_KEY"},
            },
        }  # fmt: skip
        (tmp_path / "planted.yaml").write_text(json.dumps(sweep))
        said = ""
        for words in (
            ["run", str(tmp_path / "planted.yaml"), "--out", str(out)],
            ["report", str(out)],
            ["archive", str(out), "--out", str(tmp_path / "archive"), "--prompts"],
        ):
            done = subprocess.run(
                [*COMMAND, *words], capture_output=True, text=True, env=env, timeout=HUNG_S
            )
            said += done.stdout + done.stderr
    (run, *_) = list_runs(out)
    assert run.manifest().counts.ok > 0, said
    sent = {(seen.headers.get("authorization"), seen.headers.get("x-team")) for seen in server.seen}
    assert sent == {
        (f"Bearer {PLANTED['OPENAI_API_KEY']}", PLANTED["TEAM_KEY"])
    }  # it did need them
    assert any("loadgen" in line for line in lines) and any("telemetry" in line for line in lines)
    assert {path.name for path in out.iterdir()} >= {"report.html", "summary.json", "sweep.yaml"}
    assert (tmp_path / "archive").is_dir(), said
    assert leaks(tmp_path, said, lines) == []


def test_a_started_server_gets_its_tokens_and_nothing_of_them_is_written(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "config.json").write_text('{"num_attention_heads": 4, "head_dim": 64}')
    request = {
        "model": {"name": "m", "path": str(model)}, "backend": {"name": "sdpa"},
        "server": {"env": {"MY_TOKEN": None}, "extra_args": ["--fake", "tells_environment"]},
    }  # fmt: skip
    argv = [sys.executable, "-m", "servers", "start", "--request", "-", "--out", str(out)]
    env = ENV | {"VLLM_PYTHON": vllm_server.install(tmp_path)}
    with watched() as lines:
        done = subprocess.run(
            argv,
            input=json.dumps(request),
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=HUNG_S,
        )
    told = (out / "server.log").read_text()
    assert "its environment has HF_TOKEN, HTTPS_PROXY, MY_TOKEN" in told, done.stdout + done.stderr
    assert "AWS_SECRET_ACCESS_KEY" not in told
    assert any("--attention-backend" in line for line in lines)
    assert leaks(tmp_path, done.stdout + done.stderr, lines) == []


@pytest.mark.parametrize("args", [["--hf-token", "planted-x"], ["--hf_token=planted-x"]])
def test_a_token_on_a_command_line_is_refused_unseen(args: list[str]) -> None:
    for model, given in (
        (ServerConfig, {"extra_args": args}),
        (ModelConfig, {"name": "m", "path": "/m", "server_args": args}),
    ):
        with pytest.raises(
            UserError, match="--hf-token: its value would be stored in each run"
        ) as refused:
            parse(model, given, "a file")
        assert "planted-x" not in str(refused.value)


def test_the_search_sees_into_packed_files(tmp_path: Path) -> None:
    secret = PLANTED["HF_TOKEN"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(secret.encode()))
    pq.write_table(pa.table({"text": [secret]}), tmp_path / "b.parquet", compression="zstd")
    assert leaks(tmp_path, secret, {secret}) == [
        f"HF_TOKEN in {place}"
        for place in [*(n for n, _ in contents(tmp_path)), "output", "command line"]
    ]
