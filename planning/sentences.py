"""Sentences of a policy: whether there is one and why, what it rests on, who may not serve where."""

from collections.abc import Mapping, Sequence

from analysis.report.choices import listed
from analysis.runs.identity import Candidate
from greenbench.contract.policy import PolicyObjective
from planning.evidence import Evidence
from planning.regions import Draft

WORDS: Mapping[PolicyObjective, str] = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "e2e": "E2E time",
    "energy": "J per output token",
    "capacity": "requests/s within the SLO",
}
EQUAL = "no candidate is shown to be better than {default} at any length that it may serve"


def sentences(made: Draft, used: Sequence[Candidate]) -> list[str]:
    """Of a policy, or of none. ``used``: the candidates that have pools."""
    evidence = made.evidence
    label = evidence.labels[made.default]
    said: list[str] = []
    if not made.decided:
        said.append(_no_policy(made, label))
    elif made.gain is not None and made.gain.ratio is not None:
        said.append(_beats(made, label))
    said += _unjudged_sentences(evidence, used)
    said += [f"Left out: {sentence}." for sentence in evidence.refused]
    said += _barred_sentences(evidence)
    said.append(_measured_sentence(evidence, made.decided))
    return said


def _no_policy(made: Draft, label: str) -> str:
    switched = [r for r in made.regions if r.candidate != made.default]
    if made.refused is not None:
        why = made.refused
    elif len(made.evidence.blocks) < 2:
        why = "one server start of each shows nothing; measure at least 3 repeats"
        return f"No policy: {why}. Until then serve all with {label}."
    elif not switched:
        why = EQUAL.format(default=label)
    else:
        why = f"switching is not shown to beat {label} alone over the measured lengths"
    return f"No policy: {why}. Serve all with {label}."


def _beats(made: Draft, label: str) -> str:
    assert made.gain is not None and made.gain.ratio is not None
    gain = made.gain
    span = "" if gain.low is None or gain.high is None else f" [{gain.low:.2f}, {gain.high:.2f}]"
    places = len({pick.place for r in made.regions for pick in r.own})
    objective = made.evidence.objective
    how = (
        f"geometric mean over the {places} measured combinations of length, load and output, all weighing "
        "the same"
    )
    if objective.higher_is_better:
        who, than = "The policy", f"{objective.better} over its default ({label}) alone"
    else:
        who, than = (
            f"The default ({label}) alone",
            f"the {WORDS[made.evidence.asked]} of the policy",
        )
    return f"{who} has {gain.ratio:.2f}×{span} {than}: {how}."


def _barred_sentences(evidence: Evidence) -> list[str]:
    said: list[str] = []
    for candidate in evidence.candidates:
        why_not = {
            place.context: why
            for place in evidence.places
            if (why := evidence.standing(candidate, place) or evidence.misses_slo(candidate, place))
        }
        said += [
            f"{evidence.labels[candidate]} may not serve {at} tokens: {why}."
            for at, why in _by_reason(why_not)
        ]
    return said


def _unjudged_sentences(evidence: Evidence, used: Sequence[Candidate]) -> list[str]:
    """What is recommended though nobody judged its answers."""
    return [
        f"Not judged: the answers of {evidence.labels[candidate]} at {at} tokens ({why}). "
        f"{_chosen_by(evidence, candidate)}."
        for candidate in used
        for at, why in _by_reason(evidence.serves_unjudged(candidate))
    ]


def _chosen_by(evidence: Evidence, candidate: Candidate) -> str:
    loses = evidence.may_lose(candidate)
    by = f"by {WORDS[evidence.asked]} alone"
    return (
        f"It is here {by}" if loses is None else f"They may be worse, as {loses}; it is here {by}"
    )


def _by_reason(why: Mapping[int, str]) -> list[tuple[str, str]]:
    """(contexts in words, reason), one a reason."""
    contexts: dict[str, list[str]] = {}
    for context, reason in why.items():
        contexts.setdefault(reason, []).append(f"{context:,}")
    return [(listed(each), reason) for reason, each in contexts.items()]


def _measured_sentence(evidence: Evidence, decided: bool) -> str:
    loads = sorted({f"{place.load:g}" for place in evidence.places}, key=float)
    outputs = sorted({place.output_tokens for place in evidence.places})
    contexts = sorted({place.context for place in evidence.places})
    what = (
        f"Measured at {listed([f'{c:,}' for c in contexts])} tokens, {_counted(loads, 'request')} open at a "
        f"server, {_counted(list(map(str, outputs)), 'output token')}, "
        f"{_counted([str(len(evidence.blocks))], 'repeat')}"
    )
    if not decided:
        return f"{what}."
    return f"{what}; other loads and outputs, and lengths up to twice beyond, are extrapolated."


def _counted(numbers: Sequence[str], what: str) -> str:
    """``1 repeat``, ``3 repeats``, ``4 and 8 requests``."""
    return f"{listed(numbers)} {what}{'' if list(numbers) == ['1'] else 's'}"
