"""index.html: what each strategy gave, in a table and in sentences."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.report import document
from analysis.statistics.samples import wilson
from greenbench.contract.policy import Policy, dump_policy
from planning.fresh import Fresh
from scripts.demo_policy.choice import by_place, quicker
from scripts.demo_policy.comparison import Turn
from scripts.demo_policy.experiment import (
    BUSY,
    DEPTH,
    LENGTHS,
    SINGLE,
    STRATEGIES,
    USERS,
    Answer,
    Measured,
)
from scripts.demo_policy.gain import told_before


@dataclass(frozen=True)
class Row:
    """A strategy over all rounds. ``rates``: requests/s of each round. Times: seconds, by length (0: all)."""

    strategy: str
    words: str
    rates: list[float]
    ttft_p50: dict[int, float]
    ttft_p95: dict[int, float]
    e2e_p50: float
    right: dict[int, tuple[int, int]]
    span: tuple[float, float]  # 95 % interval of the share that is right
    taken: dict[str, int]  # requests by pool

    @property
    def rate(self) -> float:
        return statistics.fmean(self.rates)


def row(strategy: str, answers: list[Answer]) -> Row:
    own = [a for a in answers if a.strategy == strategy]
    rounds = sorted({a.round for a in own})
    lengths = (0, *LENGTHS)

    def at(length: int) -> list[Answer]:
        return [a for a in own if length in (0, a.context)]

    def ttft(share: float) -> dict[int, float]:
        return {n: quantile([a.ttft_s for a in at(n)], share) for n in lengths}

    right = {n: (sum(a.right for a in at(n)), len(at(n))) for n in lengths}
    return Row(
        strategy=strategy,
        words=STRATEGIES[strategy],
        rates=[
            len(each) / max(a.end_s for a in each)
            for each in ([a for a in own if a.round == number] for number in rounds)
        ],
        ttft_p50=ttft(0.5),
        ttft_p95=ttft(0.95),
        e2e_p50=quantile([a.e2e_s for a in own], 0.5),
        right=right,
        span=wilson(*right[0]),
        taken=dict(Counter(a.pool for a in own)),
    )


def quantile(values: list[float], share: float) -> float:
    """NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else math.nan


def sentences(
    rows: dict[str, Row], turns: list[Turn], measured: Sequence[Measured], found: Sequence[Fresh]
) -> list[str]:
    """What came out, whatever it is; first whether the policy is better than the best single kind."""
    most = max(turn.others for turn in turns)
    doubt = [
        f"Other programs took up to {100 * most:.0f} % of a serving core in a turn (what its server left "
        "idle, or more): rates and TTFT are in doubt. Answers are not."
    ]
    by = rows["policy"]
    best = max((rows[name] for name in SINGLE), key=lambda each: each.rate)
    others = [each for each in rows.values() if each not in (by, best)]
    return [
        f"{paid(best, ratios(by, best))} The policy served {by.rate:.2f} requests/s, {best.words} "
        f"{best.rate:.2f}: {over(by, best)}.",
        told_before(found),
        told_alone(measured),
        *(doubt if most > BUSY else []),
        "The others: "
        + "; ".join(
            f"{each.words} {each.rate:.2f} requests/s, of which the policy has {over(by, each)}"
            for each in others
        )
        + ".",
        "Right answers: "
        + "; ".join(f"{r.words} {r.right[0][0]} of {r.right[0][1]}" for r in rows.values())
        + ".",
        "TTFT p50 and p95, and E2E p50: "
        + "; ".join(
            f"{r.words} {1e3 * r.ttft_p50[0]:.0f} and {1e3 * r.ttft_p95[0]:.0f} ms, {r.e2e_p50:.2f} s"
            for r in rows.values()
        )
        + ".",
    ]


def told_alone(measured: Sequence[Measured]) -> str:
    at = by_place(measured)
    each = [
        f"{at['exact', n].e2e_s / at['window', n].e2e_s:.2f} at {n:,} tokens ({quicker(measured, n)} serves)"
        for n in LENGTHS
    ]
    return (
        f"E2E of an exact server over a window server's, one request at a time: {', '.join(each)}."
    )


def ratios(one: Row, other: Row) -> list[float]:
    """Of the rates, a round."""
    return [a / b for a, b in zip(one.rates, other.rates, strict=True)]


def over(one: Row, other: Row) -> str:
    each = ratios(one, other)
    rounds = f" ({', '.join(f'{r:.2f}' for r in each)} in the rounds)" if len(each) > 1 else ""
    return f"{statistics.fmean(each):.2f} times{rounds}"


def paid(best: Row, each: Sequence[float]) -> str:
    """Whether one server of each kind served more than two of the better one, by the ratio in each round."""
    if len(each) == 1:
        more = "served more" if each[0] > 1 else "did not serve more"
        return f"One round shows little: in it the policy {more} than {best.words}, the best single kind."
    if min(each) > 1:
        return f"In these {len(each)} rounds the policy served more than {best.words}, the best single kind."
    if max(each) < 1:
        return f"The policy did not pay: {best.words}, the best single kind, served more in each round."
    return (
        f"Whether the policy pays is not shown: against {best.words}, the best single kind, the rounds "
        "disagree."
    )


def page(
    made: Policy,
    measured: list[Measured],
    found: Sequence[Fresh],
    answers: list[Answer],
    turns: list[Turn],
    facts: dict[str, str],
) -> str:
    rows = {strategy: row(strategy, answers) for strategy in STRATEGIES}
    decided = [a for a in answers if a.strategy == "policy"]
    last = [a for a in decided if a.round == max(a.round for a in decided)]
    switched = Counter((a.context, a.pool, a.rule, a.why) for a in decided)
    template = document.environment(Path(__file__).parent).get_template("demo_policy.html.j2")
    return template.render(
        **document.frame(None, document.TEXT),
        title="Does a policy pay? Two servers behind the gateway",
        sentences=sentences(rows, turns, measured, found),
        turns=turns,
        words=STRATEGIES,
        rows=list(rows.values()),
        lengths=LENGTHS,
        depth=DEPTH,
        measured=measured,
        policy_yaml=dump_policy(made),
        timeline=last,
        end_s=max(a.end_s for a in last),
        users=USERS,
        switched=sorted(switched.items(), key=lambda item: (item[0][0], -item[1])),
        facts=facts,
    )
