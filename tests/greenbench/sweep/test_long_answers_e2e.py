"""A long retriever on real vLLM servers: an exact backend answers at every length, a broken one only until
its positions end (``tests/fakes/broken_backend/stuck_positions.py``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from greenbench.contract.config import ROOT, PromptRequest, TaskConfig, load_model
from greenbench.vllm_python import vllm_python
from loadgen.make_prompts import make_prompts, open_encoder
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply
from tests.fakes.serving import launched, ready

pytestmark = pytest.mark.e2e
if not vllm_python().exists():
    pytest.skip("no vLLM python; run `make setup`", allow_module_level=True)

MODEL = "retriever-32k"
STUCK = ROOT / "tests" / "fakes" / "broken_backend" / "stuck_positions.yaml"
PROMPTS = 6
REQUEST_LIMIT_S = 600  # of one short answer: for what hangs, on any machine


@contextmanager
def served(backend: str, out: Path) -> Iterator[dict[str, Any]]:
    """The ``server`` part of a ready server's server.json."""
    flags = ("--model", MODEL, "--max-model-len", "2304", "--kv-cache-gib", "0.5")
    with launched(backend, out, *flags) as launcher:
        yield ready(launcher, out)


def right(server: dict[str, Any], task: str, context: int) -> int:
    """Right answers of PROMPTS."""
    request = PromptRequest(
        model_path=str(load_model(MODEL).path),
        task=TaskConfig(name=task),
        context_tokens=context,
        count=PROMPTS,
        seed=11,
    )
    count = 0
    for prompt in make_prompts(request, open_encoder(request)):
        body = TASKS[task].body(server["served_model"], prompt) | {"stream": False}
        body.pop("stream_options")
        reply = httpx.post(
            f"{server['base_url']}/v1/completions", json=body, timeout=REQUEST_LIMIT_S
        )
        text = reply.raise_for_status().json()["choices"][0]["text"]
        count += bool(grade_reply(prompt, "r", text, None).correct)
    return count


def test_exact_attention_answers_and_positions_that_end_early_do_not(tmp_path: Path) -> None:
    with served("cpu_attn", tmp_path / "exact") as exact:
        assert right(exact, "retrieve", 2048) == PROMPTS
        assert right(exact, "variables", 2048) == PROMPTS
    with served(f"{STUCK}(last=512)", tmp_path / "stuck") as stuck:
        assert stuck["proof"] == "proven"
        assert right(stuck, "retrieve", 500) == PROMPTS  # prompt and answer before the end
        assert right(stuck, "retrieve", 2048) <= 1
