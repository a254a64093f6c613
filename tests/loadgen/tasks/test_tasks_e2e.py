"""Tasks on real vLLM servers: exact lengths, the model's chat template, and a wrong backend that is caught.

Two servers of the trained retriever, started together: vLLM's own attention, and one that is wrong on
purpose (``tests/fakes/broken_backend``), named by its path as a person's own backend is.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from greenbench.contract.config import ROOT, PromptRequest, TaskConfig, load_model
from greenbench.contract.schema import OutputRecord
from greenbench.vllm_python import vllm_python
from loadgen.make_prompts import make_prompts, open_encoder
from loadgen.prompts import haystack
from loadgen.prompts.encoder import load_encoder
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply
from servers.verify.compare import OUTPUT_TOKENS, judge, requests, rounding, usual_tolerance
from servers.verify.run import ask_all
from tests.fakes.serving import Pace, launched, ready

pytestmark = pytest.mark.e2e
if not vllm_python().exists():
    pytest.skip("no vLLM python; run `make setup`", allow_module_level=True)

GREENBENCH = str(ROOT / ".venv" / "bin" / "greenbench")
BROKEN = str(ROOT / "tests" / "fakes" / "broken_backend" / "drops_a_block.yaml")
BACKENDS = {"cpu_attn": "cpu_attn", "drops_a_block": BROKEN}
CONTEXT = 700  # no multiple of a block, a scheduler step or anything else
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}User:\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
PROMPTS = 48
REQUEST_LIMIT_S = 600  # of one request of some hundred tokens: for what hangs, on any machine
Servers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retriever, with a chat template that it has not been trained with."""
    folder = tmp_path_factory.mktemp("model")
    source = Path(str(load_model("retriever").path))
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    path = folder / "retriever.yaml"
    row = {"name": "retriever", "path": str(folder), "weights": "trained", "max_model_len": 8192}
    path.write_text(yaml.safe_dump(row))
    return path


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Backend → the ``server`` part of its server.json."""
    out = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(
                launched(asked, out / name, "--model", str(model), "--kv-cache-gib", "0.5")
            )
            for name, asked in BACKENDS.items()
        }
        yield {name: ready(launcher, out / name) for name, launcher in started.items()}


def made(model: Path, task: str, context: int, text_file: str | None, **params: Any):
    request = PromptRequest(
        model_path=str(model.parent),
        task=TaskConfig(name=task, params=params),
        context_tokens=context,
        count=2,
        seed=5,
        text_file=text_file,
    )
    return make_prompts(request, open_encoder(request))


def asked(server: dict[str, Any], prompt: Prompt) -> tuple[int, OutputRecord]:
    """Prompt tokens as the server counted them, and the graded reply."""
    task = TASKS[prompt.task]
    body = task.body(server["served_model"], prompt) | {"stream": False}
    body.pop("stream_options", None)
    reply = httpx.post(f"{server['base_url']}/v1/completions", json=body, timeout=REQUEST_LIMIT_S)
    found = reply.raise_for_status().json()
    text = found["choices"][0]["text"] if task.streaming else None
    return found["usage"]["prompt_tokens"], grade_reply(prompt, "r", text, found)


@pytest.mark.parametrize(
    ("task", "params", "taught"),
    [
        ("retrieve", {}, True),
        ("retrieve", {"absent_share": 1.0}, True),
        ("retrieve", {"chat": True}, True),
        ("multi_key", {"distractors": 16}, True),
        ("summarize", {}, True),
        ("multi_value", {}, False),
        ("variables", {}, False),
        ("frequent_word", {}, False),
        ("documents", {}, False),
    ],
)
def test_every_task_is_of_exact_length_on_the_server(
    servers: Servers, model: Path, task: str, params: dict[str, Any], taught: bool
) -> None:
    for prompt in made(model, task, CONTEXT, None, **params):
        counted, graded = asked(servers["cpu_attn"], prompt)
        assert counted == CONTEXT
        assert graded.correct is not None
        assert graded.correct or not taught, graded


def test_the_chat_prompt_is_what_the_server_makes_of_the_same_words(
    servers: Servers, model: Path
) -> None:
    """Second method: vLLM's own rendering and tokenising of the template."""
    (prompt, _) = made(model, "retrieve", CONTEXT, None, chat=True)
    text = load_encoder(str(model.parent)).decode(prompt.token_ids)
    words = text.partition("User:\n")[2].partition("\n\nAssistant:")[0]
    body = {"messages": [{"role": "user", "content": words}], "add_generation_prompt": True}
    server = servers["cpu_attn"]
    body["model"] = server["served_model"]
    reply = httpx.post(f"{server['base_url']}/tokenize", json=body, timeout=REQUEST_LIMIT_S)
    tokens = reply.raise_for_status().json()["tokens"]
    assert prompt.token_ids[: len(tokens)] == tokens
    assert len(tokens) > CONTEXT - 10  # what follows is the start of the answer


def test_own_questions_and_own_text(servers: Servers, model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"The report. {haystack.record('owl', code)}{haystack.ask_one('owl').plain}",
            "answers": [code],
        }
        for code in ("482133", "905118")
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for prompt in made(model, "own", CONTEXT, None, path=str(path)):
        counted, graded = asked(servers["cpu_attn"], prompt)
        assert counted == len(prompt.token_ids) < CONTEXT
        assert graded.correct is True
    text = tmp_path / "mine.txt"
    text.write_text("The old mill stood by the river. Nobody had ground corn there in years. " * 9)
    for source in (None, str(text)):
        for prompt in made(model, "perplexity", CONTEXT, source):
            counted, graded = asked(servers["cpu_attn"], prompt)
            assert counted == CONTEXT
            assert graded.nll_tokens == CONTEXT - 1
            assert graded.nll_buckets is not None and len(graded.nll_buckets) == 8
            assert graded.nll_sum is not None and graded.nll_sum > 0
            summed = sum(bucket["nll_sum"] for bucket in graded.nll_buckets)
            assert summed == pytest.approx(graded.nll_sum)


def test_the_gate_catches_a_backend_that_drops_one_block(
    servers: Servers, model: Path, tmp_path: Path, pace: Pace
) -> None:
    """It is proven, fluent and wrong: one of the four blocks of a 512-token report is never read."""
    broken = servers["drops_a_block"]
    assert (broken["proof"], broken["observed_backend"]) == ("proven", "DropsABlockImpl x3")
    # all prompts one after another, of a model a little larger than the one that the pace is of
    all_s = 2 * PROMPTS * pace.alone_s(512, 16)
    limit_s = pace.limit_s(all_s)
    for name, choice in BACKENDS.items():
        sweep = {
            "name": name,
            "models": [str(model)],
            "backends": [choice],
            "contexts": [512],
            "tasks": [{"name": "retrieve", "requests": PROMPTS}],
            "loads": [{"kind": "closed", "users": 2}],
            "prompts_per_point": PROMPTS,
            "server": {"base_url": servers[name]["base_url"]},
            "phases": {"warmup_s": 0.5, "measure_s": max(60.0, 4 * all_s), "drain_s": 30},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sweep))
        command = [GREENBENCH, "run", str(path), "--out", str(tmp_path / "runs" / name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit_s)
        # a busy machine may make the timing invalid; the answers are there all the same
        assert f"{PROMPTS} ok, 0 failed" in done.stdout, done.stdout + done.stderr
    command = [GREENBENCH, "report", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit_s)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    (gate,) = summary["gates"]
    assert (gate["backend"], gate["reference"]) == ("drops_a_block", "cpu_attn")
    assert gate["prompts"] == gate["reference_right"] == PROMPTS
    assert gate["verdict"] == "worse"
    # needles stand evenly in the report, a quarter of which is lost (the last block has the question)
    assert 0.15 < gate["worse_by"] < 0.45
    assert len(gate["examples"]) == 3
    stands = {each["backend"]: each["kind"] for each in summary["standings"]}
    assert stands == {"cpu_attn": "reference", "drops_a_block": "disqualified"}
    assert not [d for d in summary["decisions"] if "drops_a_block" in d["front"]]
    assert "drops_a_block" in (tmp_path / "runs" / "report.html").read_text()


def test_verify_fails_the_broken_backend(servers: Servers) -> None:
    """Log-probabilities tell at once what the gate needs 48 prompts for."""
    asks = [ask for ask in requests(vocab_size=3779) if ask.group.startswith("alone")]

    def answers(name: str):
        server = servers[name]
        return asyncio.run(ask_all(server["base_url"], server["served_model"], asks))

    exact, again, broken = answers("cpu_attn"), answers("cpu_attn"), answers("drops_a_block")
    dtypes = {servers[name]["dtype"] for name in BACKENDS}
    assert len(dtypes) == 1
    (dtype,) = dtypes
    flat = usual_tolerance(dtype, dtype)
    assert judge(asks, again, exact, flat).verdict == "pass"
    # block 1 ends at 256: shorter prompts do not lose it within their 48 tokens, and only round otherwise
    whole = [ask for ask in asks if len(ask.prompt) + OUTPUT_TOKENS <= 256]
    _, tolerance = rounding(whole, broken, exact, flat)
    assert judge(whole, broken, exact, tolerance).verdict == "pass"
    found = judge(asks, broken, exact, tolerance)
    assert found.verdict == "fail"
    wrong = {row.name for row in found.per_request if row.typical_nats > tolerance.typical_nats}
    assert wrong and wrong <= {"alone-500", "alone-1000", "alone-2000"}
