"""Held-out traffic played against the policy, the best single pool, a random one and an oracle.

All have the same number of servers. The truth is the measured curves of repeats that the played policy was
not made of: for each repeat the policy is made anew of the others, by the same procedure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.runs.identity import Block
from greenbench.contract.counted import ranged
from greenbench.contract.errors import UserError
from greenbench.contract.policy import Policy, PolicyObjective
from planning.curves import Floats, curves
from planning.evidence import Evidence
from planning.fit import policy_of
from planning.playing import Fold, Truth, alone_of, candidates_of, fold_of, play, rivals_of
from planning.policy import runs_hash
from planning.regions import BEYOND
from planning.requests import Traffic
from planning.score import Play, Score, Who, scored
from planning.simulate import Outcome


@dataclass(frozen=True)
class Replay:
    """``folds``: how many truths it was played against. ``said``: what to know, a sentence each."""

    objective: PolicyObjective
    unit: str
    higher_is_better: bool
    servers: int
    requests: int
    folds: int
    held_out: bool
    scores: tuple[Score, ...]
    said: tuple[str, ...]

    def score(self, who: Who) -> Score:
        return next(each for each in self.scores if each.who == who)


def replay(
    policy: Policy,
    evidence: Evidence,
    traffic: Traffic,
    seed: int = 7,
) -> Replay:
    """UserError where the runs do not have the policy's pools, or nothing of the traffic can be played."""
    found, held_out, how = folds(policy, evidence)
    kept, said = within(traffic, [fold.truth for fold in found])
    servers = len(policy.pools)
    plays = [play(fold, kept, servers, policy.objective, policy.slo, seed) for fold in found]
    scores = scored(plays, kept, policy.objective, policy.slo, seed)
    return Replay(
        objective=policy.objective,
        unit=UNITS[policy.objective],
        higher_is_better=policy.objective == "capacity",
        servers=servers,
        requests=len(kept),
        folds=len(found),
        held_out=held_out,
        scores=scores,
        said=(how, *said, *_loads_said(plays, kept, found)),
    )


UNITS: dict[PolicyObjective, str] = {
    "ttft": "s TTFT",
    "tpot": "s a token",
    "e2e": "s E2E",
    "energy": "J a request",
    "capacity": "of the requests met the SLO",
}


# What is played against what


def folds(policy: Policy, evidence: Evidence) -> tuple[list[Fold], bool, str]:
    """(policies with their truths, whether the truths are held out, a sentence on it)."""
    used = {run for rule in policy.rules for run in rule.runs}
    ids = [point.run_id for point in evidence.usable]
    own = policy.provenance.runs_hash == runs_hash(ids)
    if own and len(evidence.blocks) > 1 and _as_made(policy, evidence):
        crossed = [_fold(policy, evidence, block) for block in evidence.blocks]
        good = [fold for fold in crossed if fold is not None]
        if len(good) > 1:
            return (
                good,
                True,
                (
                    f"Held out: played against each of {len(good)} repeats by a policy made of the other "
                    f"{len(evidence.blocks) - 1}, in the same way as this one"
                    f"{', fresh traces apart' if policy.decided else ''}."
                ),
            )
    whole = fold_of(policy, evidence)
    if not used & set(ids) and used:
        return [whole], True, "Held out: none of these runs is one that the policy was made of."
    return (
        [whole],
        False,
        (
            "Not held out: the truth is the curves that the policy was made of, so it looks better than it "
            "is; measure at least 2 repeats, or give other runs with --runs."
        ),
    )


def _as_made(policy: Policy, evidence: Evidence) -> bool:
    """Whether these runs give this policy: it was not changed by hand."""
    anew = policy_of(evidence, on_fresh=not policy.decided)
    return anew is not None and (anew.rules, anew.default) == (policy.rules, policy.default)


def _fold(policy: Policy, evidence: Evidence, block: Block) -> Fold | None:
    """None where the repeat, or the others without it, lack a pool."""
    others = evidence.of_blocks(b for b in evidence.blocks if b != block)
    alone = evidence.of_blocks([block])
    if len(others.candidates) < 2:
        return None
    made = policy_of(others, on_fresh=not policy.decided)
    if made is None or len(made.pools) > len(policy.pools):
        return None
    rivals = rivals_of(made, evidence)
    wanted = candidates_of(policy, evidence) | candidates_of(made, evidence) | rivals
    truth = {
        name: found
        for name, candidate in wanted.items()
        if (found := curves(alone, candidate)) is not None
    }
    return (
        Fold(made, truth, alone_of(rivals, made, evidence))
        if wanted.keys() == truth.keys()
        else None
    )


def within(traffic: Traffic, truths: Sequence[Truth]) -> tuple[Traffic, list[str]]:
    """The requests whose length is at most twice beyond the measured ones, and what must be said."""
    every = [curve for truth in truths for curve in truth.values()]
    low = max(min(map(min, c.ttft_s.contexts)) for c in every)
    high = min(max(map(max, c.ttft_s.contexts)) for c in every)
    span, tokens = ranged(low, high), traffic.prompt_tokens
    kept = (tokens * BEYOND >= low) & (tokens <= high * BEYOND)
    if not kept.any():
        raise UserError(
            f"no prompt of the traffic is within twice of the measured {span} tokens (found "
            f"{ranged(tokens.min(), tokens.max())}); measure those lengths"
        )
    said: list[str] = []
    out, beyond = int((~kept).sum()), int(((tokens < low) | (tokens > high))[kept].sum())
    if out:
        said.append(
            f"Refused: {out:,} of {len(traffic):,} requests are more than twice beyond the measured "
            f"{span} tokens, and are left out."
        )
    if beyond:
        said.append(
            f"Extrapolated: {beyond:,} of {int(kept.sum()):,} requests are up to twice beyond the measured "
            f"{span} tokens."
        )
    return traffic.of(kept), said


# One fold


def _loads_said(plays: Sequence[Play], traffic: Traffic, found: Sequence[Fold]) -> list[str]:
    """How many requests the policy's requests met at their server, beside the measured loads."""
    met = np.concatenate([_met(play["policy"][0], traffic) for play in plays])
    loads = {load for fold in found for c in fold.truth.values() for load in c.ttft_s.loads}
    least, most = min(loads), max(loads)
    said = [
        f"Load: a request of the policy was one of {met.mean():.1f} at its server on average (measured: "
        f"{', '.join(f'{load:g}' for load in sorted(loads))})."
    ]
    above, below = float((met > most).mean()), float((met < least).mean())
    if above:
        said.append(
            f"Extrapolated: {above:.0%} met more than {most:g}; there a server is taken to serve no more a "
            "second than at that load."
        )
    if below:
        said.append(
            f"Extrapolated: {below:.0%} met fewer than {least:g}; there times are taken to be those at "
            "that load."
        )
    return said


def _met(outcome: Outcome, traffic: Traffic) -> Floats:
    """Of each served request, how many were open at its server as it came, itself counted."""
    found: list[Floats] = []
    for number in np.unique(outcome.server[outcome.server >= 0]):
        mine = outcome.server == number
        at, ends = traffic.at_s[mine], np.sort((traffic.at_s + outcome.e2e_s)[mine])
        came = np.arange(1, len(at) + 1)
        found.append((came - np.searchsorted(ends, at, side="right")).astype(float))
    return np.concatenate(found) if found else np.zeros(1)
