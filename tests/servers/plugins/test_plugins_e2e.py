"""Our attention backends in real vLLM servers on the CPU, in float32, where tokens must be equal."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from greenbench.contract.config import CONFIGS, ROOT
from greenbench.vllm_python import vllm_python
from servers.verify.compare import Ask, judge, requests, usual_tolerance
from servers.verify.run import ask_all
from tests.fakes.serving import Pace, launched, ready

pytestmark = pytest.mark.e2e
if not vllm_python().exists():
    pytest.skip("no vLLM python; run `make setup`", allow_module_level=True)

WINDOW = 256
POOL_TOKENS = 2**30 // (4 * 2 * 64 * 2 * 4)  # 1 GiB; layers x heads x head size x K and V x float32


@contextmanager
def serving(backend: str, model: str | Path, out: Path) -> Iterator[dict]:
    """The ``server`` part of server.json of a running server, stopped at the end."""
    flags = ("--model", str(model), "--dtype", "float32", "--max-model-len", "8192")
    with launched(backend, out, *flags) as launcher:
        yield ready(launcher, out)


def test_exact_backends_give_the_tokens_of_cpu_attn(tmp_path: Path, pace: Pace):
    """28 requests alone, together, staggered, sharing prefixes with caching on, in chunks of 512."""
    backends = "sdpa,sink_window(window=9000)"
    command = [sys.executable, "-m", "servers", "verify", "--backends", backends]
    command += ["--model", "tiny-llama", "--dtype", "float32", "--out", str(tmp_path)]
    # 28 requests of at most 2,000 tokens and 48 more, alone and together, on three servers
    limit_s = pace.limit_s(3 * 2 * 28 * pace.alone_s(2000, 48), boots=3)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [json.loads(path.read_text()) for path in tmp_path.glob("verify/*/verify.json")]
    assert len(found) == 2
    for body in found:
        assert body["verdict"] == "pass", body["reasons"]
        assert body["same_choice"] == body["steps"] == 28 * 48


def sliding_mistral(folder: Path) -> tuple[Path, Path]:
    """Two model files with the same weights: a Llama, and a Mistral whose layers see WINDOW tokens."""
    llama = yaml.safe_load((CONFIGS / "models" / "tiny-llama.yaml").read_text())
    mistral = json.loads(json.dumps(llama)) | {"name": "tiny-mistral"}
    mistral["build"]["config"] |= {"model_type": "mistral", "sliding_window": WINDOW}
    paths = folder / "tiny-llama.yaml", folder / "tiny-mistral.yaml"
    for path, model in zip(paths, (llama, mistral), strict=True):
        path.write_text(yaml.safe_dump(model))
    return paths


def answers(server: dict, asks: list[Ask]) -> dict:
    return asyncio.run(ask_all(server["base_url"], server["served_model"], asks))


def test_without_a_sink_it_is_vllms_own_sliding_window_and_frees_what_it_does_not_see(
    tmp_path: Path,
    pace: Pace,
):
    """Guards the window's edge, and the freeing of blocks, against an independent kernel and manager."""
    llama, mistral = sliding_mistral(tmp_path)
    asks = requests(vocab_size=4096)
    assert sum(len(ask.prompt) > WINDOW for ask in asks) >= 15
    with serving("cpu_attn", mistral, tmp_path / "vllm") as server:
        expected = answers(server, asks)
    backend = f"sink_window(window={WINDOW},sink=0,free_blocks=true)"
    with serving(backend, llama, tmp_path / "ours") as server:
        assert server["proof"] == "proven"
        found = answers(server, asks)
        used = kv_use(server, prompts=4, tokens=6000, pace=pace)
        log = (tmp_path / "ours" / "server.log").read_text()
    judged = judge(asks, found, expected, usual_tolerance("float32", "float32"))
    assert judged.verdict == "pass", judged.reasons
    # full attention would hold 4 x 6,000 tokens; here at most the window, what one scheduler
    # step of 2,048 adds, and two blocks of rounding a request
    held = 4 * (WINDOW + 2 * 128) + 2048
    assert 0 < used * POOL_TOKENS < held < 4 * 6000 / 3
    # vLLM's own estimate of how many requests of 8,192 tokens fit, each of which holds 19 blocks of 128
    # at most: ceil((256 - 1 + 2,048) / 128) + 1
    line = next(line for line in log.splitlines() if "Maximum concurrency for" in line)
    concurrency = float(line.rsplit(" ", 1)[-1].rstrip("x"))
    assert concurrency == pytest.approx(POOL_TOKENS / (19 * 128), abs=0.01)


def kv_use(server: dict, prompts: int, tokens: int, pace: Pace) -> float:
    """Largest share of KV blocks in use until ``prompts`` requests of ``tokens`` tokens decode together.

    That they do is what the same scrape of the server says, and they do not stream: a front end busy
    with four streams answered a scrape so late that a request was over before ten were seen.
    """
    body = {"model": server["served_model"], "max_tokens": 2000, "ignore_eos": True}
    limit_s = pace.limit_s(prompts * pace.alone_s(tokens, 2000), boots=0)
    prompt = [[(i * 7 + k * 13) % 4000 + 8 for i in range(tokens)] for k in range(prompts)]

    async def drive() -> float:
        async with httpx.AsyncClient(base_url=server["base_url"], timeout=limit_s) as client:

            async def scrape() -> str:
                return (await client.get("/metrics")).raise_for_status().text

            read_before = metric(await scrape(), "vllm:prompt_tokens_total")
            asking = [
                asyncio.create_task(client.post("/v1/completions", json=body | {"prompt": ids}))
                for ids in prompt
            ]
            most, together = 0.0, False
            while not together:
                for task in asking:
                    if task.done():
                        task.result().raise_for_status()
                        raise AssertionError("a request ended before all were seen to decode")
                text = await scrape()
                most = max(most, metric(text, "vllm:kv_cache_usage_perc"))
                read = metric(text, "vllm:prompt_tokens_total") - read_before
                running = metric(text, "vllm:num_requests_running")
                together = running == prompts and read == prompts * tokens
                await asyncio.sleep(0.02)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            return most

    return asyncio.run(drive())


def metric(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))
