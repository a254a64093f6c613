"""The traffic that a plan is for: a rate and lengths out of a short YAML file, or a recorded trace.

rate_per_s: 5                       # at the busiest; trace: speed instead
arrivals: poisson                   # or gamma, with burstiness (1: Poisson, below 1: in bursts)
prompt_tokens: {512: 0.7, 4096: 0.3}      # a number, lengths with their shares, or {from: 1k, to: 8k}
output_tokens: 128
cached_share: 0.3                   # of each prompt, found in the prefix cache
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.strict import StrictModel
from greenbench.contract.traces import MOST_TOKENS, format_of, read_requests, repeated_tokens
from greenbench.contract.yaml_files import load_yaml
from planning.curves import Floats, Ints
from planning.requests import Traffic

LEAST_S, LEAST_REQUESTS, MOST_REQUESTS = 120.0, 2_000, 20_000  # of one simulated stretch
SUM_TO_ONE = 1e-6
A_FEW = 0.05  # of the prompts' tokens: a share of the cache that is so far off is none
LEAST_RATE, MOST_RATE = (
    1e-6,
    1e9,
)  # requests/s: one in 11 days, and beyond all that one service gets
Row = tuple[float, int, int]  # seconds, prompt, output
Rows = tuple[Floats, Ints, Ints]  # seconds since the one before, prompts, outputs


class Span(StrictModel):
    """Log-uniform between two lengths, tokens."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid", frozen=True)
    low: int = Field(alias="from", ge=1, le=MOST_TOKENS)
    high: int = Field(alias="to", ge=1, le=MOST_TOKENS)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"'to' must be at least 'from', found {self.low} to {self.high}")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, Span) or (isinstance(value, dict) and {"from", "to"} & {*value}):
        return "span"
    return "shares" if isinstance(value, dict) else "length"


Lengths = Annotated[
    Annotated[int, Tag("length")]
    | Annotated[dict[int, float], Tag("shares")]
    | Annotated[Span, Tag("span")],
    Discriminator(_kind),
]


class TrafficFile(StrictModel):
    rate_per_s: float | None = Field(default=None, ge=LEAST_RATE, le=MOST_RATE)
    arrivals: Literal["poisson", "gamma"] = "poisson"
    burstiness: float = Field(default=1.0, gt=0)
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    cached_share: float = Field(default=0.0, ge=0, lt=1)
    trace: str | None = None
    trace_format: Literal["mooncake", "burstgpt", "azure"] | None = None
    speed: float = Field(default=1.0, ge=1e-6, le=1e6)

    @field_validator("prompt_tokens", "output_tokens", mode="before")
    @classmethod
    def _is_lengths(cls, value: Any) -> Any:
        """Numbers, or what pydantic can say of a span: the rest, such as percentiles, is one sentence."""
        parts = [*value, *value.values()] if isinstance(value, dict) else [value]
        odd = [one for one in parts if isinstance(one, str) and one not in ("from", "to")]
        if odd:
            raise ValueError(
                "a number of tokens is wanted, shares of such numbers, as {512: 0.7, 4096: 0.3}, or a range, "
                f"as {{from: 1024, to: 8192}}; found '{odd[0]}'"
            )
        return value

    @model_validator(mode="after")
    def _says_what_comes(self) -> Self:
        self._has_no_idle_key()
        if self.trace is not None:
            if not (
                self.rate_per_s is None
                and self.prompt_tokens is None
                and self.output_tokens is None
            ):
                raise ValueError("a trace has its own rate and lengths; leave these keys out")
            return self
        missing = [
            key
            for key in ("rate_per_s", "prompt_tokens", "output_tokens")
            if getattr(self, key) is None
        ]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} missing; a plan needs a rate and both lengths"
            )
        for key in ("prompt_tokens", "output_tokens"):
            _check(key, getattr(self, key))
        return self

    def _has_no_idle_key(self) -> None:
        """A key that changes nothing here was meant to."""
        traced = self.trace is not None
        for key, unused, because in (
            ("arrivals", traced, "a trace has its own times"),
            ("burstiness", traced, "a trace has its own times"),
            ("burstiness", self.arrivals != "gamma", "only 'arrivals: gamma' has it"),
            ("speed", not traced, "it is a trace's; rate_per_s says how many come"),
            ("trace_format", not traced, "there is no trace"),
        ):
            if unused and key in self.model_fields_set:
                raise ValueError(f"{key} would change nothing: {because}; leave the key out")


def _check(key: str, lengths: Lengths) -> None:
    each = lengths if isinstance(lengths, dict) else [lengths] if isinstance(lengths, int) else []
    if max(each, default=0) > MOST_TOKENS:
        raise ValueError(f"{key}: at most {MOST_TOKENS:,} tokens are wanted, found {max(each):,}")
    if isinstance(lengths, dict):
        if min(lengths, default=0) < 1 or min(lengths.values()) <= 0:
            raise ValueError(f"{key}: lengths of at least 1 token with shares above 0 are wanted")
        if abs(sum(lengths.values()) - 1) > SUM_TO_ONE:
            raise ValueError(
                f"{key}: the shares must sum to 1, they sum to {sum(lengths.values()):g}"
            )
    elif isinstance(lengths, int) and lengths < 1:
        raise ValueError(f"{key}: at least 1 token is wanted, found {lengths}")


@dataclass(frozen=True)
class Demand:
    """``trace``: its busiest stretch, ``of`` so many requests. ``longer``: factors on every prompt and
    output. ``few``, ``most``: requests of a stretch. ``repeated``: of the prompt tokens of the stretch, the
    share with which an earlier prompt of the trace began too; None where it does not tell it of each.
    """

    file: TrafficFile
    trace: tuple[Row, ...] = ()
    of: int = 0
    longer: tuple[float, float] = (1.0, 1.0)
    few: int = LEAST_REQUESTS
    most: int = MOST_REQUESTS
    repeated: float | None = None

    @property
    def rate_per_s(self) -> float:
        if not self.trace:
            assert self.file.rate_per_s is not None
            return self.file.rate_per_s
        return self.file.speed * len(self.trace) / (self.trace[-1][0] - self.trace[0][0])

    @property
    def words(self) -> str:
        """What more than its rate and lengths decides a plan; empty of Poisson arrivals without a cache."""
        said: list[str] = []
        if self.file.cached_share:
            said.append(f"{100 * self.file.cached_share:g} % of each prompt in the prefix cache")
        if self.file.arrivals == "gamma":
            said.append(f"gamma arrivals of burstiness {self.file.burstiness:g}")
        if self.trace:
            said.append(self._trace_words)
        return ", ".join(said)

    @property
    def assumed(self) -> tuple[str, ...]:
        """What was taken of the prefix cache where the trace's own prompts say something else."""
        taken, shown = self.file.cached_share, self.repeated
        if shown is None or abs(taken - shown) <= A_FEW:
            return ()
        about = min(99, round(100 * shown))
        if taken < shown:
            then = f"if a cache holds them fewer replicas may do (cached_share: {about / 100:g})"
        else:
            then = f"if no other traffic shares them more may be needed (cached_share: {about / 100:g})"
        return (
            f"assumed: {cached_words(taken)} in the prefix cache, where by the trace's hash_ids about "
            f"{about} % of its prompts' tokens begin an earlier prompt too; {then}",
        )

    @property
    def _trace_words(self) -> str:
        many, lasts = len(self.trace), (self.trace[-1][0] - self.trace[0][0]) / self.file.speed
        of = f"all {many:,} requests of" if many == self.of else f"the busiest {many:,} requests of"
        longer = "; a load that lasts longer may take more" if lasts < 0.9 * LEAST_S else ""
        return f"{of} a trace{'' if many == self.of else f' of {self.of:,}'}, in {lasts:,.3g} s{longer}"

    def stretched(self, prompts: float, outputs: float) -> "Demand":
        return replace(self, longer=(prompts, outputs))

    def traffic(self, factor: float, seed: int, share: float = 1.0) -> Traffic:
        """A stretch of ``share`` of it, each request as likely, at ``factor`` times the rate: at least 2
        minutes and ``few`` requests, at most ``most``; of a trace all of it. At a higher rate the same
        requests come sooner, and of those drawn more after them.
        """
        rate = self.rate_per_s * share
        if self.trace:
            gaps, prompts, outputs = self._of_trace(seed, share)
        else:
            n = self._requests(rate * factor)
            gaps, prompts, outputs = (each[:n] for each in self._drawn(n, seed, share))
        p, o = (
            np.maximum(1, np.round(each * by)).astype(np.int64)
            for each, by in zip((prompts, outputs), self.longer, strict=True)
        )
        at = np.cumsum(gaps, dtype=float) / factor
        return Traffic(at, p, o, f"{rate * factor:.3g} requests/s")

    def shared(self, servers: int, most: int) -> tuple[int, float]:
        """How many of so many equal servers are played, and the share of the requests that is theirs:
        ``most``, or of a trace as many as leave ``few`` requests. More servers than requests change nothing.
        """
        rows = len(self.trace)
        whole = min(servers, rows) if rows else servers
        least = math.ceil(whole * self.few / rows) if rows else 1
        played = min(whole, max(most, least))
        return played, played / whole

    def _requests(self, rate: float) -> int:
        return int(min(self.most, max(self.few, rate * LEAST_S)))

    def _of_trace(self, seed: int, share: float) -> Rows:
        at, prompts, outputs = (np.array(column) for column in zip(*self.trace, strict=True))
        if share < 1:
            kept = np.random.default_rng(seed).random(len(at)) < share
            at, prompts, outputs = at[kept], prompts[kept], outputs[kept]
        return np.diff(at, prepend=at[0]) / self.file.speed, prompts, outputs

    def _drawn(self, n: int, seed: int, share: float) -> Rows:
        """``n`` requests or more at the asked rate, drawn in blocks of one length, so that the first do not
        depend on ``n``. Of gamma arrivals a share has a gap where so many lie between two that are kept.
        """
        rng = np.random.default_rng(seed)
        rate, each = self.rate_per_s, self._requests(self.rate_per_s * share)
        shape, kept = 1.0, share
        if self.file.arrivals == "gamma":
            shape, kept = self.file.burstiness, 1.0
        blocks: list[Rows] = []
        for _ in range(math.ceil(n / each)):
            many = rng.geometric(share, each) if kept > share else 1
            blocks.append(
                (
                    rng.gamma(shape * many, 1 / (shape * rate * kept), each),
                    _drawn(self.file.prompt_tokens, each, rng),
                    _drawn(self.file.output_tokens, each, rng),
                )
            )
        gaps, prompts, outputs = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return gaps, prompts, outputs


def _drawn(lengths: Lengths | None, n: int, rng: np.random.Generator) -> Ints:
    assert lengths is not None  # the file was checked
    if isinstance(lengths, Span):
        logs = rng.uniform(np.log(lengths.low), np.log(lengths.high), n)
        return np.exp(logs).round().astype(np.int64)
    if isinstance(lengths, dict):
        return rng.choice(list(lengths), n, p=list(lengths.values()))
    return np.full(n, lengths, dtype=np.int64)


def load_demand(path: Path) -> Demand:
    """UserError in one sentence for what is no traffic."""
    data: Any = load_yaml(path)
    file = parse(TrafficFile, data, str(path))
    if file.trace is None:
        return Demand(file)
    trace = Path(file.trace).expanduser()
    trace = trace if trace.is_absolute() else path.parent / trace
    requests = read_requests(trace, file.trace_format or format_of(trace))
    rows = [lengths for lengths, _ in requests]
    if len(rows) < 2 or rows[0][0] == rows[-1][0]:
        raise UserError(
            f"{path}: trace: at least 2 requests at two times are wanted, found {len(rows)}"
            + (" at one time" if len(rows) > 1 else "")
        )
    within = busiest(rows, file.speed)
    repeated: float | None = None
    if all(blocks for _, blocks in requests[within]):
        held = sum(repeated_tokens(requests)[within])
        repeated = held / sum(prompt for _, prompt, _ in rows[within])
    return Demand(file, tuple(rows[within]), of=len(rows), repeated=repeated)


def cached_words(share: float) -> str:
    return f"{100 * share:.3g} % of each prompt" if share else "no part of a prompt"


def busiest(rows: Sequence[Row], speed: float) -> slice:
    """The most requests that come within 2 minutes, with others beside them up to ``LEAST_REQUESTS``: of all
    stretches of as many the shortest, at most ``MOST_REQUESTS``.
    """
    at = np.array([row[0] for row in rows]) / speed
    within = np.searchsorted(at, at + LEAST_S, side="right") - np.arange(len(at))
    n = min(len(at), MOST_REQUESTS, max(LEAST_REQUESTS, int(within.max())))
    start = int(np.argmin(at[n - 1 :] - at[: len(at) - n + 1]))
    return slice(start, start + n) if at[start] < at[start + n - 1] else slice(0, len(rows))
