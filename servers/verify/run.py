"""Run the comparison of ``servers.verify.compare`` on real servers: the reference first, then each backend.

Writes OUT/verify/<backend>/verify.json beside that server's own files, as soon as that backend and the
reference have answered: a comparison that is cut short keeps what it found. Servers run one after
another, or all at once where the device has room (``parallel``).
"""

import asyncio
import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from greenbench import SCHEMA_VERSION
from greenbench.contract.config import BackendChoice, ModelConfig, ServerConfig, ServerRequest
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.run_dir import slug, write_atomic
from servers.backends.choice import resolve
from servers.backends.host_facts import model_facts
from servers.launch.process import ServerDied
from servers.launch.server import BootFailed, Launch, Surroundings
from servers.verify import compare
from servers.verify.compare import Answer, Ask, Floor, Tolerance

VERIFY_JSON = "verify.json"
VERIFY_DIR = "verify"
ROUNDED = "rounded-reference-"
LONGEST_TOKENS = 4096  # window asked of the servers; the longest request needs 2048
STEP_TOKENS = 512  # scheduler step: longer prompts are prefilled in chunks
REQUEST_TIMEOUT_S = 600.0
UNKNOWN_VOCAB = 1000  # ids below exist in every vocabulary
FORCING_BIAS = 100.0  # added to a logit; the most that vLLM takes


@dataclass(frozen=True, slots=True)
class Order:
    """What to compare. ``reference_model`` may be the same weights under another config.

    ``tolerance_nats`` None: by the dtypes.
    """

    model: ModelConfig
    backends: list[BackendChoice]
    reference: BackendChoice
    reference_model: ModelConfig
    dtype: str
    reference_dtype: str
    execution: str = "eager"
    kv_cache_gib: float = 1.0
    parallel: bool = False
    skip_refused: bool = False
    tolerance_nats: float | None = None

    @property
    def measures_rounding(self) -> bool:
        """Whether the reference's kernel also runs in the short dtype, to see what rounding alone does."""
        exact = self.reference_dtype == "float32" != self.dtype
        return exact and self.tolerance_nats is None

    @property
    def tolerance(self) -> Tolerance:
        usual = Tolerance.of(self.dtype, self.reference_dtype)
        return usual if self.tolerance_nats is None else Tolerance.flat(self.tolerance_nats)


@dataclass(slots=True)
class Arm:
    choice: BackendChoice
    dtype: str
    folder: Path
    launch: Launch
    server: Server | None = None
    answers: dict[str, Answer] | None = None
    error: str | None = None


def run(
    order: Order, out: Path, around: Surroundings, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All verdicts, in the order asked. Bad input raises UserError before a server starts.

    With ``order.skip_refused`` a backend that this host cannot run is said and left out.
    """
    if not resolve(order.reference)[0].exact:
        raise UserError(
            f"'{order.reference.name}' is approximate by design; take an exact reference"
        )
    asks = compare.requests(model_facts(order.model).vocab_size or UNKNOWN_VOCAB)
    folder = out / VERIFY_DIR

    def arm(model: ModelConfig, choice: BackendChoice, dtype: str, prefix: str = "") -> Arm:
        config = _server_config(order, model, dtype)
        request = ServerRequest(model=model, backend=choice, server=config)
        where = folder / f"{prefix}{slug(choice.label)}"
        return Arm(choice, dtype, where, Launch(request, where, around, say))

    reference = arm(order.reference_model, order.reference, order.reference_dtype, "reference-")
    arms: list[Arm] = []
    for choice in order.backends:
        try:
            arms.append(arm(order.model, choice, order.dtype))
        except UserError as error:
            if not order.skip_refused:
                raise
            say(f"left out {choice.label}: {error}")
    rounded = None
    if order.measures_rounding:
        rounded = arm(order.reference_model, order.reference, order.dtype, ROUNDED)
    started = [each for each in (reference, rounded, *arms) if each is not None]
    groups = [started] if order.parallel else [[one] for one in started]
    verdicts: dict[str, dict[str, Any]] = {}
    unjudged: list[Arm] = []
    comparable = False
    tolerance = order.tolerance
    with closing(_answered(groups, asks)) as finished:
        for one in finished:
            if one is reference or one is rounded:
                _answers_of(one)  # nothing can be compared without them
                comparable = all(each is None or each.answers for each in (reference, rounded))
                if comparable and rounded:
                    found = _answers_of(rounded), _answers_of(reference)
                    floor, tolerance = compare.rounding(asks, *found, order.tolerance)
                    say(_rounding_told(order, floor))
            else:
                unjudged.append(one)
            while comparable and unjudged:
                next_one = unjudged.pop(0)
                verdict = _verdict(order, next_one, reference, rounded, asks, say)
                verdicts[str(next_one.folder)] = verdict
    _add_doubts(arms, verdicts, _answers_of(reference), asks, tolerance, say)
    return [verdicts[str(each.folder)] for each in arms]


def _rounding_told(order: Order, floor: Floor) -> str:
    return (
        f"{order.reference.label} in {order.dtype} is off by {floor.typical_nats:.2g} nats typically "
        f"and {floor.worst_nats:.2g} at worst, from rounding alone"
    )


def _add_doubts(
    arms: list[Arm],
    verdicts: dict[str, dict[str, Any]],
    reference: dict[str, Answer],
    asks: list[Ask],
    tolerance: Tolerance,
    say: Callable[[str], None],
) -> None:
    """Say where the reference may be wrong, and write it beside the verdicts of those who say so."""
    exact = {
        arm.choice.label: arm.answers
        for arm in arms
        if arm.answers and resolve(arm.choice)[0].exact
    }
    found = compare.doubts(asks, exact, reference, tolerance)
    for _, sentence in found:
        say(sentence)
    for arm in arms:
        if told := [sentence for labels, sentence in found if arm.choice.label in labels]:
            verdict = verdicts[str(arm.folder)]
            verdict["doubts"] = told
            _write(arm, verdict)


def _answers_of(reference: Arm) -> dict[str, Answer]:
    if reference.answers is None:
        name = f"{reference.choice.label} in {reference.dtype}"
        raise ServerDied(f"The reference {name} gave no answers: {reference.error}")
    return reference.answers


def _server_config(order: Order, model: ModelConfig, dtype: str) -> ServerConfig:
    servers = len(order.backends) + 2 if order.parallel else 1
    return ServerConfig.model_validate(
        {
            "dtype": dtype,
            "execution": order.execution,
            "max_model_len": min(model.max_model_len, LONGEST_TOKENS),
            "max_num_batched_tokens": STEP_TOKENS,
            "max_num_seqs": 16,
            "prefix_caching": "--no-enable-prefix-caching" not in model.server_args,
            "kv_cache_gib": order.kv_cache_gib,  # not a share: servers that boot together disturb it
            "gpu_memory_utilization": 0.85 / servers,
        }
    )


def _answered(groups: list[list[Arm]], asks: list[Ask]) -> Generator[Arm, None, None]:
    """Each arm once it has answered or failed. The servers of a group run at the same time."""
    for group in groups:
        with ExitStack() as running:
            pool = running.enter_context(ThreadPoolExecutor(len(group)))
            for arm in group:  # entered after the pool: they are stopped before it is waited for
                running.enter_context(arm.launch)
            for done in as_completed([pool.submit(_boot_and_ask, arm, asks) for arm in group]):
                yield done.result()


def _boot_and_ask(arm: Arm, asks: list[Ask]) -> Arm:
    """The arm with its answers; one that fails keeps its sentence."""
    try:
        arm.server = server = arm.launch.boot()
        arm.answers = asyncio.run(ask_all(server.base_url, server.served_model, asks))
    except BootFailed as error:
        arm.error = str(error)
    except httpx.HTTPStatusError as error:
        arm.error = arm.launch.failed_serving(_refused(error.response))
    except WrongAnswer as error:
        arm.error = arm.launch.failed_serving(f"A request of the comparison failed: {error}")
    except httpx.HTTPError as error:
        what = f"A request of the comparison failed ({type(error).__name__}: {error})"
        arm.error = arm.launch.failed_serving(what)
    return arm


def _refused(response: httpx.Response) -> str:
    """What the server answered instead; vLLM says there, for one, that log-probabilities are not numbers."""
    said = " ".join(response.text.split())[:300]
    return f"A request of the comparison was answered with HTTP {response.status_code}: {said}"


async def ask_all(base_url: str, model: str, asks: list[Ask]) -> dict[str, Answer]:
    """Group after group, the requests of a group at their delays. A failed request raises HTTPError."""
    answers: dict[str, Answer] = {}
    async with httpx.AsyncClient(
        base_url=base_url, timeout=REQUEST_TIMEOUT_S, limits=httpx.Limits(), trust_env=False
    ) as client:
        for group in dict.fromkeys(ask.group for ask in asks):
            members = [ask for ask in asks if ask.group == group]
            found = await asyncio.gather(*(_ask(client, model, ask) for ask in members))
            answers |= {ask.name: answer for ask, answer in zip(members, found, strict=True)}
    return answers


async def _ask(client: httpx.AsyncClient, model: str, ask: Ask) -> Answer:
    await asyncio.sleep(ask.delay_s)
    body = {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": compare.OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {str(ask.forced): FORCING_BIAS},
        "logprobs": 1,
        "logprob_token_ids": ask.candidates,  # before the bias
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    response = await client.post("/v1/completions", json=body)
    return read_answer(response.raise_for_status().json(), ask)


class WrongAnswer(Exception):
    """A server answered something else than it was asked for; the text says what."""


def read_answer(body: dict[str, Any], ask: Ask) -> Answer:
    """An answer from the response of /v1/completions with tokens named ``token_id:N``."""
    choice = body["choices"][0]
    if choice["token_ids"] != [ask.forced] * compare.OUTPUT_TOKENS:
        raise WrongAnswer(
            f"{ask.name} was answered with {_some(choice['token_ids'])} "
            f"and not {compare.OUTPUT_TOKENS} times with token {ask.forced}"
        )
    steps = [
        {int(name.partition(":")[2]): value for name, value in step.items()}
        for step in choice["logprobs"]["top_logprobs"]
    ]
    for step, told in enumerate(steps):
        if missing := set(ask.candidates) - told.keys():
            raise WrongAnswer(
                f"{ask.name} was answered without the log-probabilities of {_some(sorted(missing))} "
                f"at step {step}"
            )
    details = body["usage"].get("prompt_tokens_details") or {}
    return Answer(tuple(steps), details.get("cached_tokens"))


def _some(tokens: list[int]) -> str:
    shown = ", ".join(str(token) for token in tokens[:5])
    return f"tokens {shown}{', ...' if len(tokens) > 5 else ''}"


def _verdict(
    order: Order,
    arm: Arm,
    reference: Arm,
    rounded: Arm | None,
    asks: list[Ask],
    say: Callable[[str], None],
) -> dict[str, Any]:
    backend, options = resolve(arm.choice)
    window = None if backend.exact else _window_to_judge(order, options)
    if arm.answers is None:
        judged: dict[str, Any] = {"verdict": "fail", "reasons": [arm.error or "it gave no answers"]}
    else:
        rounding = _answers_of(rounded) if rounded else None
        answers = arm.answers, _answers_of(reference)
        judged = compare.judge(asks, *answers, order.tolerance, rounding, window)
    body = {
        "schema_version": SCHEMA_VERSION,
        "backend": arm.choice.name,
        "label": arm.choice.label,
        "model": order.model.name,
        "weights": order.model.weights,
        "dtype": arm.dtype,
        "execution": order.execution,
        "observed_backend": arm.server.observed_backend if arm.server else None,
        "proof": arm.server.proof if arm.server else "unproven",
        "reference": order.reference.label,
        "reference_model": order.reference_model.name,
        "reference_dtype": order.reference_dtype,
        **judged,
        "doubts": [],
    }
    _write(arm, body)
    say(summary(body))
    return body


def _write(arm: Arm, body: dict[str, Any]) -> None:
    write_atomic(arm.folder / VERIFY_JSON, json.dumps(body, indent=1) + "\n")


def _window_to_judge(order: Order, options: dict[str, Any]) -> int | None:
    """Tokens up to which an approximate backend must agree; None: everywhere.

    Without sinks it does what a model's own sliding window of that length does.
    """
    own_window = model_facts(order.reference_model).sliding_window
    same = own_window == options["window"] and options.get("sink", 0) == 0
    return None if same else int(options["window"])


def summary(body: dict[str, Any]) -> str:
    """One line a person reads; the reasons below it."""
    line = f"{body['label']}: {body['verdict']}"
    if body.get("compared"):
        off = body["off"]
        line += (
            f", log-probabilities off by {body['typical_gap_nats']:.2g} nats typically and "
            f"{body['worst_gap_nats']:.2g} at worst, at position {body['worst_gap_position']}; "
            f"{off['first']} of {body['compared']} first tokens and {off['decode']} of "
            f"{body['steps'] - body['compared']} decoded ones are off; "
            f"the likeliest candidate is the same at {body['same_choice']} of {body['steps']} steps"
        )
    if body.get("not_comparable"):
        line += f"; {body['not_comparable']} requests reach beyond its window"
    return "\n  ".join([line, *body["reasons"]])
