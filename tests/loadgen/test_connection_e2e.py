"""Locust, the open loop and the search on servers that want a key, sit behind a prefix, or only chat."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

from greenbench.contract.installation import ROOT
from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import (
    GoldenServer,
    Script,
    Seen,
    json_script,
    stream_script,
    well_behaved,
)
from tests.fakes.waiting import HUNG_S

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"
LOCUST = ["locust", "-f", "loadgen/longctx.py", "--headless"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    shutil.copy(ROOT / "models/retriever/model/tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.rglob("requests/*.jsonl") for line in file.open()]


def chat_only(model: Path, running_usage: bool) -> Callable[[Seen], Script]:
    """Counts a message's tokens with its own rendering; thinks first, answers with a call of a tool."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    template = Environment().from_string(TEMPLATE)

    def script(seen: Seen) -> Script:
        if seen.path != "/v1/chat/completions":
            return json_script({"error": {"message": "only chats here"}}, "404 Not Found")
        if not seen.body.get("stream"):
            return json_script({"choices": []})
        text = template.render(messages=seen.body["messages"])
        prompt = len(tokenizer.encode(text, add_special_tokens=False).ids)
        wanted = seen.body["max_tokens"]
        deltas: list[dict[str, Any]] = [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0}]}]
        deltas += [{"content": f" w{n}"} for n in range(2, wanted)]
        events: list[dict[str, Any]] = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        ]
        for done, delta in enumerate(deltas, 1):
            finish = "length" if done == wanted else None
            event: dict[str, Any] = {"choices": [{"delta": delta, "finish_reason": finish}]}
            if running_usage:
                event["usage"] = {"prompt_tokens": prompt, "completion_tokens": done}
            events.append(event)
        last = {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": wanted}}
        encoded = [json.dumps(event).encode() for event in [*events, last]]
        return stream_script([*encoded, b"[DONE]"], 0.005, 0.002)

    return script


@pytest.mark.parametrize("running_usage", [True, False])
def test_a_chat_is_found_asked_in_exact_lengths_and_counted(
    model: Path, tmp_path: Path, running_usage: bool
) -> None:
    with GoldenServer(chat_only(model, running_usage)) as server:
        argv = ["-H", server.url, "-t", "10s", "--context-tokens", "256", "--prompts", "3"]
        ended = run(*LOCUST, *argv, "--model-path", str(model), "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    done = [row for row in rows(tmp_path) if row["error_type"] != "cut_at_drain"]
    assert {row["error_message"] for row in done} == {None}
    assert {row["prompt_tokens"] for row in done} == {256}
    wanted = done[0]["max_output_tokens"]
    assert {row["output_tokens"] for row in done} == {wanted}
    assert {len(row["chunk_ns"]) for row in done} == {wanted}  # the first delta brings none
    expected = list(range(1, wanted + 1)) if running_usage else None
    assert all(row["chunk_tokens"] == expected for row in done)


def test_turns_of_a_chat_are_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path, "http://127.0.0.1:9", load={"kind": "closed", "users": 1, "turns": 2})
    text = (path / "config.yaml").read_text().replace("endpoint: auto", "endpoint: chat")
    (path / "config.yaml").write_text(text)
    ended = run(*LOCUST, "--run-dir", str(path))
    assert ended.returncode == 2
    assert "turns and traces send prompts of other lengths" in ended.stderr


def guarded(seen: Seen) -> Script:
    if seen.headers.get("authorization") != "Bearer sk-team" or seen.headers.get("x-route") != "b":
        return json_script({"error": "Unauthorized"}, "401 Unauthorized")
    return well_behaved(0.002, 0.001)(seen)


def test_locust_sends_the_key_and_stores_it_nowhere(tmp_path: Path) -> None:
    argv = ["-t", "10s", "--context-tokens", "256", "--prompts", "2", "--out", str(tmp_path)]
    argv += ["--model-path", str(ROOT / "models/retriever/model"), "--header", "X-Route=b"]
    with GoldenServer(guarded) as server:
        argv += ["-H", server.url + "/v1/"]
        refused = run(*LOCUST, *argv)
        ended = run(*LOCUST, *argv, "--api-key-env", "TEAM_KEY", TEAM_KEY="sk-team")
    assert (refused.returncode, ended.returncode) == (2, 0), refused.stderr + ended.stderr
    assert "wants a key" in refused.stderr
    good = [row for row in rows(tmp_path) if row["error_type"] is None]
    assert good
    assert not any("sk-team" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "sk-team" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("client", ["fast", "httpx"])
def test_the_open_loop_goes_by_the_points_own_connection(tmp_path: Path, client: str) -> None:
    with GoldenServer(guarded) as server:
        load = {"kind": "open", "rate_per_s": 37, "arrivals": "constant"}
        path = make_run(tmp_path, server.url, load=load)
        text = (path / "config.yaml").read_text()
        text = text.replace("api_key_env: null", "api_key_env: TEAM_KEY")
        (path / "config.yaml").write_text(text.replace("headers: {}", "headers: {X-Route: b}"))
        argv = ["loadgen.openloop", "--run-dir", str(path), "--client", client]
        unset = run(*argv)
        ended = run(*argv, TEAM_KEY="sk-team")
    assert (unset.returncode, ended.returncode) == (2, 0), ended.stderr
    assert "TEAM_KEY is not set" in unset.stderr
    assert {row["error_message"] for row in rows(path)} == {None}


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://127.0.0.1:abc", "http://u:p4ss@h", "http://h:99999"]
)
def test_a_malformed_address_is_one_sentence_for_locust_and_search(
    url: str, tmp_path: Path
) -> None:
    search = ["loadgen.search", "--base-url", url, "--ladder", "1", "--out", str(tmp_path / "s")]
    for argv in ([*LOCUST, "-t", "1s", "-H", url, "--out", str(tmp_path)], search):
        ended = run(*argv)
        assert ended.returncode == 2
        assert "error: " in ended.stderr and "Traceback" not in ended.stderr
        assert "p4ss" not in ended.stdout + ended.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
