"""The policy out of what was measured: at each length the quicker kind of those that answer right."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile

from analysis.statistics.noninferiority import judge
from greenbench.contract.policy import Barred, Policy, PolicyModel, Pool, Range, Rule, When
from scripts.demo_policy.experiment import (
    BACKENDS,
    CORES,
    LENGTHS,
    MODEL,
    SECOND,
    Answer,
    Measured,
    kind,
)


def verdict(reference: list[Answer], told: list[Answer]) -> str:
    """The project's answer gate on the same prompts: no worse, worse, or undecided."""
    right = {answer.index: answer.right for answer in reference}
    pairs = [(right[answer.index], answer.right) for answer in told]
    return judge(pairs.count((True, False)), pairs.count((False, True)), len(pairs))


def by_place(measured: Sequence[Measured]) -> dict[tuple[str, int], Measured]:
    return {(each.pool, each.context): each for each in measured}


def served(measured: Sequence[Measured]) -> list[int]:
    """The lengths, from the shortest, up to which the window's answers are shown to be no worse."""
    at = by_place(measured)
    return list(takewhile(lambda n: at["window", n].verdict == "no worse", LENGTHS))


def quicker(measured: Sequence[Measured], length: int) -> str:
    """Of those that may serve the length."""
    at = by_place(measured)
    may = BACKENDS if length in served(measured) else ("exact",)
    return min(may, key=lambda name: at[name, length].e2e_s)


def policy_of(measured: Sequence[Measured]) -> Policy:
    """At each length the quicker kind, until it is so much more loaded than the other; between two lengths
    the rules meet at their geometric mean. The window takes nothing beyond where its answers are shown to be
    no worse.
    """
    at, lengths = by_place(measured), served(measured)
    rules = list[Rule]()
    low: int | None = None
    for name, group in groupby(lengths, key=lambda n: quicker(measured, n)):
        own = list(group)
        (other,) = set(BACKENDS) - {name}
        ratio = statistics.geometric_mean(at[other, n].e2e_s / at[name, n].e2e_s for n in own)
        rest = [n for n in lengths if n > own[-1]]
        high = round(math.sqrt(own[-1] * rest[0])) if rest else own[-1] + 1
        rules.append(
            Rule(
                name=f"{name}-from-{low or 0}",
                pool=name,
                when=When(uncached_prompt_tokens=Range(at_least=low, below=high)),
                spill={other: round(ratio, 3)},
                measured=Range(at_least=own[0], below=own[-1] + 1),
            )
        )
        low = high
    bars = [bar(at, lengths)]
    pools = {
        name: Pool(backend=backend, barred=bars if name == "window" else [])
        for name, backend in BACKENDS.items()
    }
    return plain_policy(rules, pools)


def bar(at: Mapping[tuple[str, int], Measured], lengths: Sequence[int]) -> Barred:
    """What the window may not take, and why."""
    first = next((at["window", n] for n in LENGTHS if n not in lengths), None)
    why = "its answers were not tested there"
    if first is not None:
        why = (
            f"its answers are {first.verdict} at {first.context} tokens: {first.right} of {first.count} "
            "right"
        )
    return Barred(prompt_tokens=Range(at_least=max(lengths, default=0) + 1), why=why)


def both_servers(name: str) -> Policy:
    """Two servers of a kind: the less busy one takes a request."""
    rule = Rule(name="less-busy", pool=name, spill={name + SECOND: 1.0})
    return plain_policy([rule], {each: Pool(backend=BACKENDS[kind(each)]) for each in CORES})


def plain_policy(rules: list[Rule], pools: dict[str, Pool]) -> Policy:
    model = PolicyModel(name=MODEL)
    return Policy(schema=1, objective="e2e", model=model, default="exact", pools=pools, rules=rules)
