"""A real vLLM server behind the gateway: answers, lengths by /tokenize, KV cache, clients that leave."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import App
from gateway.options import read_options
from greenbench.vllm_python import vllm_python
from tests.fakes.gateways import running_app, write_policy
from tests.fakes.serving import launched, ready
from tests.fakes.waiting import wait_until

pytestmark = pytest.mark.e2e
EDGE = 40  # prompt tokens at which the rule of the policy begins


def test_vllm_behind_the_gateway(tmp_path: Path) -> None:
    if not vllm_python().exists():
        pytest.skip("no vLLM python; run `make setup`")
    with launched("cpu_attn", tmp_path / "server") as launcher:
        real = ready(launcher, tmp_path / "server")
        rule = {"name": "long", "pool": "a", "when": {"uncached_prompt_tokens": {"at_least": EDGE}}}
        content = {
            "schema": 1,
            "objective": "ttft",
            "model": {"name": "tiny-llama"},
            "default": "a",
        }
        pools = {"a": {"backend": "cpu_attn", "url": real["base_url"]}}
        write_policy(tmp_path / "policy.yaml", content | {"pools": pools, "rules": [rule]})
        options = [
            f"--policy={tmp_path / 'policy.yaml'}",
            f"--access-log={tmp_path / 'access.jsonl'}",
        ]
        with running_app(App(read_options(options))) as url:
            body = {
                "model": real["served_model"],
                "max_tokens": 12,
                "temperature": 0,
                "ignore_eos": True,
            }
            answers_are_the_servers(url, real["base_url"], body)
            text_is_counted_by_the_server(url, body)
            the_cache_is_known(url)
            a_client_that_leaves_ends_the_request(url, real["base_url"], body)


def said(url: str, body: dict[str, Any]) -> tuple[str, httpx.Headers]:
    """The text of a stream, and its headers."""
    answer = httpx.post(f"{url}/v1/completions", json=body | {"stream": True}, timeout=120)
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert data[-1] == "[DONE]"
    choices = [json.loads(each)["choices"] for each in data[:-1]]
    return "".join(c[0]["text"] for c in choices if c), answer.headers


def answers_are_the_servers(url: str, direct: str, body: dict[str, Any]) -> None:
    asked = body | {"prompt": list(range(100, 150))}
    text, headers = said(url, asked)
    assert text == said(direct, asked)[0]
    assert headers["x-greenbench-rule"] == "long"
    models = httpx.get(f"{url}/v1/models").json()["data"]
    assert [card["id"] for card in models] == [body["model"]]
    unknown = httpx.post(f"{url}/v1/completions", json=asked | {"model": "gpt-9"})
    assert unknown.status_code == 404


def text_is_counted_by_the_server(url: str, body: dict[str, Any]) -> None:
    """The rule's edge lies within the estimate, so the server is asked; it counts as its answer does."""
    asked = body | {"prompt": "one two three four five " * 6}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=120)
    counted = re.search(r"(\d+) prompt tokens \(/tokenize\)", answer.headers["x-greenbench-reason"])
    assert counted is not None
    assert int(counted[1]) == answer.json()["usage"]["prompt_tokens"]


def the_cache_is_known(url: str) -> None:
    def free() -> bool:
        (pool,) = httpx.get(f"{url}/gateway/pools").json()
        return pool["total_kv_tokens"] and pool["free_kv_tokens"] == pool["total_kv_tokens"]

    wait_until(free, "an idle server's whole cache to be free")


def a_client_that_leaves_ends_the_request(url: str, direct: str, body: dict[str, Any]) -> None:
    """vLLM stops long before the 4,000 tokens that were asked for."""

    def told(name: str) -> float:
        page = httpx.get(f"{direct}/metrics", timeout=60).text
        (value,) = re.findall(rf"^vllm:{name}\{{.*\}} (\S+)", page, re.MULTILINE)
        return float(value)

    before = told("generation_tokens_total")
    asked = body | {"prompt": [100] * 50, "max_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=120) as answer:
        next(answer.iter_raw())
    wait_until(lambda: told("num_requests_running") == 0, "the server to let it go")
    assert told("generation_tokens_total") - before < 4000
