"""The policy of a study: what is shown to be better at some lengths, and pays with as many servers.

A pool of its own takes a server. One that is better at few lengths, or may serve few, can cost more than it
gains; so each set of pools is played against as many servers of whichever candidate does best alone. What is
left is played once more, on traces drawn anew (``planning.fresh``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.report.choices import listed
from analysis.runs.identity import Candidate
from greenbench.contract.policy import Policy, PolicyObjective
from planning.evidence import Evidence
from planning.fresh import REQUESTS, SHARE, Course, Fresh, every
from planning.playing import BUSY, Fold, fold_of, play, usual_rate
from planning.policy import written
from planning.regions import Draft, draft
from planning.requests import Traffic, generated
from planning.score import Score, scored
from planning.sentences import WORDS

SEED = 7
DRAWN_FROM = 1_000  # prompt lengths of the fresh traces


@dataclass(frozen=True)
class Trial:
    """A drafted policy, and how it fared beside ``single``, the candidate that does best alone."""

    made: Draft
    policy: Policy
    fold: Fold
    score: Score
    single: str

    @property
    def pays(self) -> bool:
        return self.score.over_single[1] > 1 and self.score.as_good >= SHARE

    @property
    def servers(self) -> int:
        return len(self.policy.pools)


def policy_of(evidence: Evidence, on_fresh: bool = True) -> Policy | None:
    """None where no candidate may serve at any place. Without ``on_fresh`` one that pays in its one trace is
    not played on fresh ones, which takes seconds to a minute.
    """
    first = draft(evidence)
    if first is None:
        return None
    if not first.decided or first.needed:
        return written(first)
    best = _without_what_does_not_pay(_trial(first))
    if not best.pays:
        than = f"{best.servers} servers of {best.single}"
        refused = f"{_fared(best)}, which is not shown to be better than {than}"
        return written(replace(first, refused=refused))
    found = every(_course(best), SEED) if on_fresh else []
    if found and not found[-1].shown:
        return written(replace(first, refused=_loses(best, found[-1])))
    dropped = [label for c, label in evidence.labels.items() if c in best.made.evidence.excluded]
    said = [
        *best.policy.said,
        f"With {best.servers} servers each, {_fared(best)}; `greenbench policy replay` plays it on "
        "repeats that it was not made of, and on your traffic.",
        *([_wins(best, found)] if found else []),
        *(
            f"{label} has no pool: it is better at some length, and a server of its own does not pay."
            for label in dropped
        ),
    ]
    return best.policy.model_copy(update={"said": said})


def _without_what_does_not_pay(trial: Trial) -> Trial:
    """Pools taken away one by one while that makes it better."""
    while True:
        others = [c for c in _switched(trial.made) if c != trial.made.default]
        fewer = [found for c in others if (found := _less(trial, c)) is not None]
        best = max(fewer, key=lambda each: each.score.over_single[0], default=None)
        if best is None or best.score.over_single[0] <= trial.score.over_single[0]:
            return trial
        trial = best


def _switched(made: Draft) -> list[Candidate]:
    return list(dict.fromkeys(region.candidate for region in made.regions))


def _less(trial: Trial, candidate: Candidate) -> Trial | None:
    """The same without a pool of ``candidate``; None where no policy is left."""
    evidence = trial.made.evidence
    made = draft(replace(evidence, excluded=evidence.excluded | {candidate}))
    return None if made is None or not made.decided else _trial(made)


def _trial(made: Draft) -> Trial:
    policy, evidence = written(made), made.evidence
    fold = fold_of(policy, evidence)
    servers = len(policy.pools)
    traffic = usual_traffic(fold, evidence, REQUESTS, SEED)
    whom = ("oracle", "policy", "best single")
    by = _judged_by(policy.objective)
    done = play(fold, traffic, servers, by, policy.slo, SEED, whom)
    scores = scored([done], traffic, by, policy.slo, SEED)
    by_who = {score.who: score for score in scores}
    (single,) = by_who["best single"].shares
    label = policy.pools[single].label if single in policy.pools else single
    return Trial(made, policy, fold, by_who["policy"], label or single)


def _course(trial: Trial) -> Course:
    """Prompts log-uniform over the measured lengths, as in the one trace."""
    policy, evidence = trial.policy, trial.made.evidence
    usual = usual_traffic(trial.fold, evidence, DRAWN_FROM, SEED)
    return Course(
        fold=trial.fold,
        servers=trial.servers,
        objective=_judged_by(policy.objective),
        slo=policy.slo,
        lengths=usual.prompt_tokens,
        output=int(usual.output_tokens[0]),
    )


def _loses(trial: Trial, fresh: Fresh) -> str:
    return (
        f"by {WORDS[_judged_by(trial.policy.objective)]} switching is at least as good as {trial.servers} "
        f"servers of whichever does best alone in {fresh.words} of the generated traces of {REQUESTS} "
        f"requests, and it is not shown to be so in {SHARE:.0%} of such traces"
    )


def _wins(trial: Trial, found: Sequence[Fresh]) -> str:
    return (
        f"Of generated traces of {REQUESTS} requests it is at least as good as {trial.servers} servers of "
        f"whichever does best alone in {listed([each.words for each in found])}."
    )


def _judged_by(objective: PolicyObjective) -> PolicyObjective:
    """Below saturation nearly all requests meet an SLO: room for more shows in the time that they take."""
    return "e2e" if objective == "capacity" else objective


def usual_traffic(fold: Fold, evidence: Evidence, count: int, seed: int) -> Traffic:
    """Within the measured lengths, of the measured output, and as much as keeps the best single pool's
    servers busy for BUSY of the time.
    """
    contexts = [place.context for place in evidence.places]
    lengths, output = (min(contexts), max(contexts)), evidence.places[0].output_tokens
    pattern = generated(count, 1.0, lengths, output, seed)
    rate = usual_rate(fold.truth[fold.policy.default], pattern, len(fold.policy.pools))
    return generated(count, rate, lengths, output, seed)


def _fared(trial: Trial) -> str:
    ratio, low, high = trial.score.over_single
    what = WORDS[_judged_by(trial.policy.objective)]
    return (
        f"best single ({trial.single}) takes {ratio:.2f}× [{low:.2f}, {high:.2f}] the {what} of the "
        f"policy on generated traffic (prompts log-uniform over the measured lengths, {BUSY:.0%} busy)"
    )
