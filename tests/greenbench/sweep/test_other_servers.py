"""Servers that are not vLLM: the sweep works with what they give, or says in a sentence what is missing."""

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import list_runs
from tests.fakes.openai_server import (
    GoldenServer,
    Script,
    Seen,
    event,
    json_script,
    stream_script,
    well_behaved,
)
from tests.fakes.waiting import HUNG_S

COMMAND = [sys.executable, "-c", "from greenbench.cli import main; main()"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
Answer = Callable[[Seen], Script]


class OtherServer(GoldenServer):
    """Has completions, and of the other pages none but those that it names."""

    def __init__(self, answer: Answer, pages: tuple[str, ...] = ("/v1/models",)) -> None:
        super().__init__(answer)
        self._pages = pages

    def _get(self, path: str) -> bytes:
        if path in self._pages:
            return super()._get(path)
        return b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found"


def sweep(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    path = folder / "other.yaml"
    whole = {
        "name": "other", "models": ["retriever"], "backends": ["sdpa"], "contexts": [256],
        "tasks": [{"name": "retrieve", "output_tokens": 4}], "loads": [{"users": 1}],
        "prompts_per_point": 2, "server": {"base_url": url},
        "phases": {"warmup_s": 0, "measure_s": 3, "drain_s": 10},
    }  # fmt: skip
    path.write_text(json.dumps(whole))
    return greenbench("run", str(path), "--out", str(folder / "out"))


def greenbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=HUNG_S, env=ENV, check=False
    )


def last_usage_only(seen: Seen) -> Script:
    """Text in each event, one usage at the end."""
    if not seen.body.get("stream"):
        return well_behaved()(seen)
    tokens, prompt = seen.body["max_tokens"], len(seen.body["prompt"])
    finish = [None] * (tokens - 1) + ["length"]
    events = [event(f" w{n}", None, prompt, end) for n, end in enumerate(finish)]
    return stream_script([*events, event(None, tokens, prompt), b"[DONE]"], 0.01, 0.01)


def refusing(key: str) -> Answer:
    """A strict server: an unknown field is an error."""
    answer = well_behaved()

    def script(seen: Seen) -> Script:
        if key in seen.body:
            error: dict[str, Any] = {"error": {"message": f"unknown field `{key}`"}}
            return json_script(error, "400 Bad Request")
        return answer(seen)

    return script


def test_without_metrics_and_running_usage_it_works_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    with OtherServer(last_usage_only) as server:
        done = sweep(tmp_path, server.url)
    (run,) = list_runs(tmp_path / "out")
    manifest = run.manifest()
    assert manifest.counts.ok > 0 and manifest.counts.failed == 0, done.stdout + done.stderr
    rows = [json.loads(line) for file in run.requests_dir.iterdir() for line in file.open()]
    good = [row for row in rows if row["error_type"] is None]
    assert {(row["prompt_tokens"], row["output_tokens"]) for row in good} == {(256, 4)}
    assert {row["chunk_tokens"] is None for row in good} == {True}
    said = [line.partition(":")[0] for line in manifest.server.shown.lacks]
    assert said == ["no /version", "no /metrics of vLLM's"]
    sources = json.loads((run.telemetry_dir / "sources.json").read_text())
    assert sources["metrics"]["status"] == "unavailable"
    assert "HTTP 404" in sources["metrics"]["reason"]
    reported = greenbench("report", str(tmp_path / "out"))
    assert reported.returncode == 0, reported.stderr
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    for line in manifest.server.shown.lacks:
        assert f"the server gives {line}" in page


@pytest.mark.parametrize("key", ["ignore_eos", "stream_options"])
def test_a_field_that_it_refuses_is_said_in_its_words(tmp_path: Path, key: str) -> None:
    with OtherServer(refusing(key)) as server:
        done = sweep(tmp_path, server.url)
    assert done.returncode in (1, 2)
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert f"unknown field `{key}`" in last


def test_without_a_list_of_models_that_is_said_before_any_point(tmp_path: Path) -> None:
    with OtherServer(well_behaved(), pages=()) as server:
        done = sweep(tmp_path, server.url)
    assert done.returncode != 0 and not list_runs(tmp_path / "out")
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert f"{server.url} answers, but not as an OpenAI-compatible server" in last
    assert "/v1/models: HTTP 404: not found" in last
