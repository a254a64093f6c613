"""Run the comparison of ``servers.verify.compare`` on real servers: the reference first, then each backend.

Writes OUT/verify/<backend>/verify.json beside that server's own files, as soon as that backend and the
reference have answered: a comparison that is cut short keeps what it found. Servers run one after
another, or all at once where the device has room (``parallel``).
"""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from greenbench import SCHEMA_VERSION
from greenbench.contract.config import BackendChoice, ModelConfig, ServerConfig, ServerRequest
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError
from greenbench.contract.forms import Judgement, Tolerance, VerifyFile, VerifySubject
from greenbench.contract.manifest import Server
from greenbench.contract.model_shape import ModelShape
from greenbench.contract.run_dir import slug, write_atomic
from servers.backends.choice import resolve
from servers.launch.process import ServerDied
from servers.launch.server import BootFailed, Launch, LaunchContext
from servers.models.shapes import Wish, model_shapes
from servers.verify import compare
from servers.verify.compare import Answer, Ask

VERIFY_JSON = "verify.json"
VERIFY_DIR = "verify"
ROUNDED = "rounded-reference-"
LONGEST_TOKENS = 4096  # window asked of the servers; the longest request needs 2048
STEP_TOKENS = 512  # scheduler step: longer prompts are prefilled in chunks
REQUEST_TIMEOUT_S = 600.0
UNKNOWN_VOCAB = 1000  # ids below exist in every vocabulary
FORCING_BIAS = 100.0  # added to a logit; the most that vLLM takes


@dataclass(frozen=True, slots=True)
class Comparison:
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
        if self.tolerance_nats is not None:
            return compare.flat_tolerance(self.tolerance_nats)
        return compare.usual_tolerance(self.dtype, self.reference_dtype)


@dataclass(slots=True, eq=False)
class ComparedServer:
    """One server of a comparison; ``server`` and ``answers``, or ``error``, once it has ended."""

    choice: BackendChoice
    dtype: str
    folder: Path
    launch: Launch
    server: Server | None = None
    answers: dict[str, Answer] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Servers:
    """``rounded``: the reference's own kernel in the short dtype, where rounding is measured."""

    reference: ComparedServer
    rounded: ComparedServer | None
    judged: list[ComparedServer]

    @property
    def all(self) -> list[ComparedServer]:
        return [self.reference, *([self.rounded] if self.rounded else []), *self.judged]


def run(
    comparison: Comparison, out: Path, context: LaunchContext, say: Callable[[str], None]
) -> list[VerifyFile]:
    """All verdicts, in the order asked. Bad input raises UserError before a server starts.

    With ``comparison.skip_refused`` a backend that this host cannot run is named and skipped.
    """
    if not resolve(comparison.reference)[0].exact:
        raise UserError(
            f"'{comparison.reference.name}' is approximate by design; take an exact reference"
        )
    models = (comparison.model, comparison.reference_model)
    shapes = Shapes(*model_shapes([Wish(model) for model in models], context.place))
    asks = compare.requests(shapes.judged.vocab_size or UNKNOWN_VOCAB)
    servers = _servers(comparison, shapes, out / VERIFY_DIR, context, say)
    judge = _Judge(comparison, servers, asks, say)
    groups = [servers.all] if comparison.parallel else [[one] for one in servers.all]
    with closing(_answered(groups, asks)) as finished:
        for server in finished:
            judge.take(server)
    return judge.verdicts()


class Shapes(NamedTuple):
    """Of the two models, resolved at once."""

    judged: ModelShape
    reference: ModelShape


def _servers(
    comparison: Comparison,
    shapes: Shapes,
    folder: Path,
    context: LaunchContext,
    say: Callable[[str], None],
) -> Servers:
    def server(
        model: ModelConfig, shape: ModelShape, choice: BackendChoice, dtype: str, prefix: str = ""
    ) -> ComparedServer:
        window = model.max_model_len or shape.window_tokens
        config = _server_config(comparison, model, window, dtype)
        request = ServerRequest(model=model, backend=choice, server=config)
        where = folder / f"{prefix}{slug(choice.label)}"
        return ComparedServer(choice, dtype, where, Launch(request, where, context, say, shape))

    model, choice = comparison.reference_model, comparison.reference
    reference = server(model, shapes.reference, choice, comparison.reference_dtype, "reference-")
    judged: list[ComparedServer] = []
    for backend in comparison.backends:
        try:
            judged.append(server(comparison.model, shapes.judged, backend, comparison.dtype))
        except UserError as error:
            if not comparison.skip_refused:
                raise
            say(f"skipped {backend.label}: {error}")
    rounded = None
    if comparison.measures_rounding:
        rounded = server(model, shapes.reference, choice, comparison.dtype, ROUNDED)
    return Servers(reference, rounded, judged)


class _Judge:
    """Judges each server as soon as it and the reference have answered, and writes its verdict."""

    def __init__(
        self,
        comparison: Comparison,
        servers: Servers,
        asks: list[Ask],
        say: Callable[[str], None],
    ) -> None:
        self._comparison = comparison
        self._servers = servers
        self._asks = asks
        self._say = say
        self._tolerance = comparison.tolerance
        self._unjudged: list[ComparedServer] = []
        self._verdicts: dict[ComparedServer, VerifyFile] = {}

    def take(self, server: ComparedServer) -> None:
        """One that has answered or failed. A reference without answers raises ServerDied."""
        if server in self._servers.judged:
            self._unjudged.append(server)
        else:
            _answers_of(server)  # nothing can be compared without them
            if self._comparable and self._servers.rounded:
                self._measure_rounding(self._servers.rounded)
        while self._comparable and self._unjudged:
            self._judge(self._unjudged.pop(0))

    @property
    def _comparable(self) -> bool:
        needed = (self._servers.reference, self._servers.rounded)
        return all(each is None or each.answers for each in needed)

    def _measure_rounding(self, rounded: ComparedServer) -> None:
        comparison = self._comparison
        answers = _answers_of(rounded), _answers_of(self._servers.reference)
        floor, self._tolerance = compare.rounding(self._asks, *answers, comparison.tolerance)
        self._say(
            f"{comparison.reference.label} in {comparison.dtype} is off by "
            f"{floor.typical_nats:.2g} nats typically and {floor.worst_nats:.2g} at worst, "
            "from rounding alone"
        )

    def _judge(self, server: ComparedServer) -> None:
        comparison, servers = self._comparison, self._servers
        backend, options = resolve(server.choice)
        own_window = servers.reference.launch.plan.facts.sliding_window
        window = None if backend.exact else _window_to_judge(own_window, options)
        if server.answers is None:
            judged = Judgement(verdict="fail", reasons=[server.error or "it gave no answers"])
        else:
            rounding = _answers_of(servers.rounded) if servers.rounded else None
            answers = server.answers, _answers_of(servers.reference)
            judged = compare.judge(self._asks, *answers, comparison.tolerance, rounding, window)
        verdict = VerifyFile(**dict(_subject(comparison, server)), **dict(judged))
        self._verdicts[server] = verdict
        _write(server, verdict)
        self._say(summary(verdict.label, verdict))

    def verdicts(self) -> list[VerifyFile]:
        """Of every judged server, with the doubts that they cast on the reference together."""
        judged = self._servers.judged
        exact = {
            server.choice.label: server.answers
            for server in judged
            if server.answers and resolve(server.choice)[0].exact
        }
        reference = _answers_of(self._servers.reference)
        doubts = compare.doubts(self._asks, exact, reference, self._tolerance)
        for _, sentence in doubts:
            self._say(sentence)
        for server in judged:
            if told := [s for labels, s in doubts if server.choice.label in labels]:
                doubted = self._verdicts[server].model_copy(update={"doubts": told})
                self._verdicts[server] = doubted
                _write(server, doubted)
        return [self._verdicts[server] for server in judged]


def _answers_of(reference: ComparedServer) -> dict[str, Answer]:
    if reference.answers is None:
        name = f"{reference.choice.label} in {reference.dtype}"
        raise ServerDied(f"The reference {name} gave no answers: {reference.error}")
    return reference.answers


def _server_config(
    comparison: Comparison, model: ModelConfig, window: int | None, dtype: str
) -> ServerConfig:
    servers = len(comparison.backends) + 2 if comparison.parallel else 1
    return ServerConfig.model_validate(
        {
            "dtype": dtype,
            "execution": comparison.execution,
            "max_model_len": min(window or LONGEST_TOKENS, LONGEST_TOKENS),
            "max_num_batched_tokens": STEP_TOKENS,
            "max_num_seqs": 16,
            "prefix_caching": "--no-enable-prefix-caching" not in model.server_args,
            "kv_cache_gib": comparison.kv_cache_gib,  # not a share: servers that boot together disturb it
            "gpu_memory_utilization": 0.85 / servers,
        }
    )


def _answered(
    groups: list[list[ComparedServer]], asks: list[Ask]
) -> Generator[ComparedServer, None, None]:
    """Each server once it has answered or failed. Those of a group run at the same time."""
    for group in groups:
        with ExitStack() as running:
            pool = running.enter_context(ThreadPoolExecutor(len(group)))
            for server in group:  # entered after the pool: they are stopped before it is waited for
                running.enter_context(server.launch)
            for done in as_completed([pool.submit(_boot_and_ask, each, asks) for each in group]):
                yield done.result()


def _boot_and_ask(compared: ComparedServer, asks: list[Ask]) -> ComparedServer:
    """The server with its answers; one that fails keeps its sentence."""
    launch = compared.launch
    try:
        compared.server = server = launch.boot()
        compared.answers = asyncio.run(ask_all(server.base_url, server.served_model, asks))
    except BootFailed as error:
        compared.error = str(error)
    except httpx.HTTPStatusError as error:
        compared.error = launch.failed_serving(_refused(error.response))
    except WrongAnswer as error:
        compared.error = launch.failed_serving(f"A request of the comparison failed: {error}")
    except httpx.HTTPError as error:
        what = f"A request of the comparison failed ({type(error).__name__}: {error})"
        compared.error = launch.failed_serving(what)
    return compared


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
            answered = await asyncio.gather(*(_ask(client, model, ask) for ask in members))
            answers |= {ask.name: answer for ask, answer in zip(members, answered, strict=True)}
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


def _subject(comparison: Comparison, server: ComparedServer) -> VerifySubject:
    return VerifySubject(
        schema_version=SCHEMA_VERSION,
        backend=server.choice.name,
        label=server.choice.label,
        model=comparison.model.name,
        weights=comparison.model.weights,
        dtype=server.dtype,
        execution=comparison.execution,
        observed_backend=server.server.observed_backend if server.server else None,
        proof=server.server.proof if server.server else "unproven",
        reference=comparison.reference.label,
        reference_model=comparison.reference_model.name,
        reference_dtype=comparison.reference_dtype,
    )


def _write(server: ComparedServer, verdict: VerifyFile) -> None:
    write_atomic(server.folder / VERIFY_JSON, verdict.model_dump_json(indent=1) + "\n")


def _window_to_judge(own_window: int | None, options: dict[str, Any]) -> int | None:
    """Tokens up to which an approximate backend must agree; None: everywhere.

    Without sinks it does what the reference model's own sliding window of that length does.
    """
    same = own_window == options["window"] and options.get("sink", 0) == 0
    return None if same else int(options["window"])


def summary(label: str, judged: Judgement) -> str:
    """One line a person reads; the reasons below it."""
    line = f"{label}: {judged.verdict}"
    if judged.compared and judged.off and judged.steps:
        line += (
            f", log-probabilities off by {judged.typical_gap_nats:.2g} nats typically and "
            f"{judged.worst_gap_nats:.2g} at worst, at position {judged.worst_gap_position}; "
            f"{judged.off.first} of {judged.compared} first tokens and {judged.off.decode} of "
            f"{judged.steps - judged.compared} decoded ones are off; "
            f"the likeliest candidate is the same at {judged.same_choice} of {judged.steps} steps"
        )
    if judged.not_comparable:
        line += (
            f"; {counted(judged.not_comparable, 'request', 'reaches', 'reach')} beyond its window"
        )
    return "\n  ".join([line, *judged.reasons])
