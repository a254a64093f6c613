"""What a plan says of one point that was not measured: a candidate, a load and lengths, for a span of time.

The window is the point's own: an open loop counts what is due in it, a closed loop what is sent and over in
it.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from greenbench.contract.config import SloConfig
from planning.candidates import Measured
from planning.closed_loop import play_users
from planning.fleet import costs_of, judged, watts
from planning.requests import Traffic
from planning.simulator import Engine, Floats, Played, least_open, play

PLAYS = 5  # of a point; its figures are their medians
MOST_REQUESTS = 400  # to find the most that a server can do


@dataclass(frozen=True)
class Load:
    """``arrivals``: of an open loop when each request is sent, its prompt and output tokens; of a closed one
    ``users`` with requests of ``prompt`` and ``output`` tokens. Measured from ``warmup_s`` for ``measure_s``.
    """

    warmup_s: float
    measure_s: float
    users: int | None = None
    prompt: int = 0
    output: int = 0
    arrivals: tuple[tuple[float, int, int], ...] = ()
    cached: float = 0.0

    @property
    def end_s(self) -> float:
        return self.warmup_s + self.measure_s

    @property
    def prompt_tokens(self) -> float:
        return (
            float(np.mean([p for _, p, _ in self.arrivals]))
            if self.arrivals
            else float(self.prompt)
        )


@dataclass(frozen=True)
class Figures:
    """Of one point, predicted or measured; seconds, requests/s, watts, joules. None: not known.
    ``waiting_s``: mean, from the way to the engine to the first step that computes the prompt.
    """

    throughput: float
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    e2e_p50_s: float | None
    e2e_p90_s: float | None
    e2e_mean_s: float | None
    waiting_s: float | None = None
    utilisation: float | None = None
    watts: tuple[float, float] | None = None
    joules_per_request: tuple[float, float] | None = None


@dataclass(frozen=True)
class Predicted:
    """``reach``: how many times beyond what was measured, 1 within. ``of_most``: of an open loop its rate
    over the most that the server can do with such requests.
    """

    figures: Figures
    reach: float
    of_most: float | None = None


def predict(one: Measured, load: Load, slo: SloConfig, seed: int) -> Predicted:
    made = [_play(one, load, slo, seed + n) for n in range(PLAYS)]
    return Predicted(
        _median([m.figures for m in made]),
        statistics.median(m.reach for m in made),
        None if load.users is not None else len(load.arrivals) / load.end_s / most_rate(one, load),
    )


def most_rate(one: Measured, load: Load) -> float:
    """Requests/s of as many users as may run at once, with the load's lengths in its order."""
    rows = load.arrivals or ((0.0, load.prompt, load.output),)
    requests = itertools.cycle([(prompt, output) for _, prompt, output in rows])
    engine = Engine("", one.settings, costs_of(one, Traffic(*_lengths(load), "held out")))
    many = MOST_REQUESTS
    asked, played = play_users(
        one.settings.max_num_seqs,
        itertools.islice(requests, many),
        engine,
        lambda at, prompt: at + one.front.before_s(prompt),
        np.inf,
    )
    over = np.sort(asked.at_s + played.e2e_s)
    return float((many - many // 4 - 1) / (over[-1] - over[many // 4]))


def _median(plays: Sequence[Figures]) -> Figures:
    def of(pick: Callable[[Figures], float | None]) -> float | None:
        known = [value for one in plays if (value := pick(one)) is not None]
        return statistics.median(known) if known else None

    def pair(pick: Callable[[Figures], tuple[float, float] | None]) -> tuple[float, float] | None:
        low = of(lambda one: None if (both := pick(one)) is None else both[0])
        high = of(lambda one: None if (both := pick(one)) is None else both[1])
        return None if low is None or high is None else (low, high)

    return Figures(
        throughput=statistics.median(one.throughput for one in plays),
        ttft_p50_s=of(lambda one: one.ttft_p50_s),
        ttft_p90_s=of(lambda one: one.ttft_p90_s),
        e2e_p50_s=of(lambda one: one.e2e_p50_s),
        e2e_p90_s=of(lambda one: one.e2e_p90_s),
        e2e_mean_s=of(lambda one: one.e2e_mean_s),
        waiting_s=of(lambda one: one.waiting_s),
        utilisation=of(lambda one: one.utilisation),
        watts=pair(lambda one: one.watts),
        joules_per_request=pair(lambda one: one.joules_per_request),
    )


def _play(one: Measured, load: Load, slo: SloConfig, seed: int) -> Predicted:
    rng = np.random.default_rng(seed)
    front = one.front

    def before_s(prompts: Floats | int) -> Floats:
        return (front.request_s + front.token_s * np.asarray(prompts)) * rng.choice(
            front.spread, np.shape(prompts)
        )

    shape = Traffic(*_lengths(load), "held out")
    engine = Engine("", one.settings, costs_of(one, shape))
    if load.users is None:
        at, prompts, outputs = (np.array(c) for c in zip(*load.arrivals, strict=True))
        came = at + before_s(prompts)
        order = np.argsort(came, kind="stable")
        asked = Traffic(came[order], prompts[order], outputs[order], "held out")
        sent = at[order]
        played = play(asked, [engine], least_open, load.cached)
    else:
        requests = itertools.repeat((load.prompt, load.output))

        def coming_s(at: float, prompt: int) -> float:
            return at + front.reply_s + float(before_s(prompt))

        asked, played = play_users(load.users, requests, engine, coming_s, load.end_s, load.cached)
        sent = asked.at_s - front.before_s(load.prompt)
    seen = judged(played, asked, [one], slo, load.cached)
    figures = _figures(load, sent, asked, played, front.reply_s)
    power = watts([one], seen, (1,))
    joules = (
        None if power is None else (power[0] / figures.throughput, power[1] / figures.throughput)
    )
    return Predicted(
        replace(figures, watts=power, joules_per_request=joules, utilisation=played.utilisation),
        seen.reach,
    )


def _lengths(load: Load) -> tuple[Floats, np.ndarray, np.ndarray]:
    rows = load.arrivals or ((0.0, load.prompt, load.output),)
    at, prompts, outputs = zip(*rows, strict=True)
    return np.array(at, dtype=float), np.array(prompts), np.array(outputs)


def _figures(load: Load, sent: Floats, asked: Traffic, played: Played, reply_s: float) -> Figures:
    away = asked.at_s - sent + reply_s
    over = asked.at_s + played.e2e_s + reply_s
    return figures(load, sent, away + played.ttft_s, over - sent, played.waited_s)


def figures(load: Load, sent: Floats, ttft: Floats, e2e: Floats, waited: Floats) -> Figures:
    """Of requests sent so many seconds after the run's start; NaN where one did not get so far."""
    over = sent + e2e
    inside = (sent >= load.warmup_s) & (sent < load.end_s)
    if load.users is not None:
        inside &= over <= load.end_s
    ended = (over >= load.warmup_s) & (over < load.end_s)

    def at(values: Floats, percentile: float) -> float | None:
        known = values[inside & np.isfinite(values)]
        return float(np.percentile(known, percentile)) if len(known) else None

    def mean(values: Floats) -> float | None:
        known = values[inside & np.isfinite(values)]
        return float(known.mean()) if len(known) else None

    return Figures(
        throughput=float(ended.sum() / load.measure_s),
        ttft_p50_s=at(ttft, 50),
        ttft_p90_s=at(ttft, 90),
        e2e_p50_s=at(e2e, 50),
        e2e_p90_s=at(e2e, 90),
        e2e_mean_s=mean(e2e),
        waiting_s=mean(waited),
    )
