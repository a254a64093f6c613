"""Which candidate to take, in words: decisions of one task and load by context, and clauses that tell them.

Every clause reads decisions and their differences, and nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.compare.cells import load_order
from analysis.compare.decisions import Decision
from analysis.compare.differences import Difference
from analysis.objectives import SPEED, Objective
from analysis.report.formats import count, factor, measured, significant
from analysis.runs.identity import Scenario
from analysis.study import Study

MOST = 6  # named or told of one kind
MOST_RIVALS = 3  # named in one clause
NEXT_BEST = "the next best"


@dataclass(frozen=True)
class Group:
    """Decisions by one objective at one task and load, by context."""

    objective: Objective
    task: str
    load: str
    model: str
    decisions: tuple[Decision, ...]

    @property
    def compared(self) -> list[Decision]:
        return [d for d in self.decisions if d.outcome != "alone" or d.out]

    @property
    def where(self) -> str:
        return f"{self.task} with {self.load}"

    @property
    def spans(self) -> list[list[Decision]]:
        """Neighbouring contexts with one outcome together."""
        spans: list[list[Decision]] = []
        for decision in self.decisions:
            if spans and outcome_of(spans[-1][-1]) == outcome_of(decision):
                spans[-1].append(decision)
            else:
                spans.append([decision])
        return spans


def headline_groups(whole: Study) -> list[Group]:
    """One a task and load, by the objective that its headline goes by."""
    return groups_by(whole, whole.headlines)


def groups_by(whole: Study, by: Mapping[Scenario, Objective]) -> list[Group]:
    """One a task and load in which an objective is given (by family of scenarios) and has decisions."""
    families: dict[Scenario, list[Decision]] = {}
    for decision in whole.decisions:
        if by.get(decision.scenario.family) is decision.objective:
            families.setdefault(decision.scenario.family, []).append(decision)
    groups: list[Group] = []
    for family, members in families.items():
        members.sort(key=lambda d: d.scenario.context_tokens)
        first, named = members[0].scenario, whole.labels
        groups.append(
            Group(by[family], named.tasks[first], named.loads[first], first.model, tuple(members))
        )
    return sorted(groups, key=lambda g: (g.task, load_order(g.decisions[0].scenario), g.load))


def title_of(groups: Sequence[Group]) -> str:
    return " or ".join(dict.fromkeys(group.objective.title for group in groups))


def choice_words(whole: Study, group: Group) -> str:
    """``take `a` from 512 to 2,048 tokens (…); no clear winner at 4,096 tokens``."""
    return "; ".join(span_words(whole, span) for span in group.spans)


def outcome_of(decision: Decision) -> tuple[str, tuple[str, ...]]:
    return ("nobody", ()) if all_zero(decision) else (decision.outcome, decision.front)


def span_words(
    whole: Study,
    span: Sequence[Decision],
    rivals: int = MOST_RIVALS,
    untested: str = "; indicative",
    nobody: str = "no clear winner",
) -> str:
    """``rivals``: of how many it is said by how much they are behind. ``untested``, ``nobody``: words."""
    last = span[-1]
    two_peaks = any(peaked(whole, each) for each in last.against)
    ahead = ahead_words(whole, last, rivals) if len(span) == 1 else by_words(whole, last, rivals)
    by = "its times have two peaks, so no ratio is given" if two_peaks else ahead
    absent = absent_words(span)
    at = lengths([d.scenario.context_tokens for d in span])
    if last.outcome == "winner":
        return f"**take {marked(last, last.front[0])} {at}** ({by}{absent})"
    if last.outcome == "indicative":
        return f"{marked(last, last.front[0])} was ahead {at} ({by}{absent}{untested})"
    if all_zero(last):
        return f"{last.objective.all_zero} {at}"
    if last.outcome == "alone" and last.front:
        others = "no other may win" if last.out else "no other has a value"
        return f"{marked(last, last.front[0])} {at}, where {others}"
    if last.outcome == "alone":
        return f"no candidate can be recommended {at}"
    if last.outcome == "not comparable":
        return f"not comparable {at} ({last.against[0].reason if last.against else 'no pair'})"
    if last.among_all and len(last.front) > MOST:
        return f"{nobody} {at} among all {len(last.front)} that may win"
    return f"{nobody} {at} ({listed(marked(last, name) for name in last.front)}{absent})"


def absent_words(span: Sequence[Decision]) -> str:
    """``; `a` has no value there``: of those whom a lead does not speak of."""
    lengths_of: dict[str, list[int]] = {}
    for decision in span:
        for label in decision.absent:
            lengths_of.setdefault(label, []).append(decision.scenario.context_tokens)
    return "".join(
        f"; `{label}` has no value "
        + ("there" if len(span) == 1 else f"at {listed(map(count, held))} tokens")
        for label, held in sorted(lengths_of.items())[:MOST_RIVALS]
    )


def untested_words(decisions: Iterable[Decision]) -> str | None:
    """``one start each is too few to test``; None where some two were tested or nothing was compared."""
    decided = [d for d in decisions if d.outcome != "not comparable" and len(d.contenders) > 1]
    starts: dict[str, int] = {}
    for contender in (c for d in decided for c in d.contenders):
        starts[contender.label] = max(contender.starts, starts.get(contender.label, 0))
    pairs = any(d.outcome != "alone" for d in decided) or set(starts.values()) == {1}
    if not pairs or any(d.tested for d in decided):
        return None
    few, many = min(starts.values()), max(starts.values())
    if many < TESTABLE:
        some = "one start each is" if many == 1 else f"{few} to {many} starts each are"
        return f"{f'{many} starts each are' if 1 < few == many else some} too few to test"
    short = sorted(label for label, n in starts.items() if n < TESTABLE)
    if not short:
        return "starts that share no repeat are too few to test"
    return f"fewer than {TESTABLE} starts of {listed(f'`{label}`' for label in short)} are too few to test"


TESTABLE = 3  # starts of each that a sweep should ask for


def all_zero(decision: Decision) -> bool:
    said = decision.objective.all_zero is not None
    return said and all(c.value == 0 for c in decision.contenders)


def marked(decision: Decision, label: str) -> str:
    mark = next((c.eligible.mark for c in decision.contenders if c.label == label), None)
    return f"`{label}` ({mark})" if mark else f"`{label}`"


def by_words(whole: Study, decision: Decision, rivals: int = MOST_RIVALS) -> str:
    words = ahead_words(whole, decision, rivals)
    comma = "," if words.endswith(NEXT_BEST) else ""
    return f"{words}{comma} at {count(decision.scenario.context_tokens)} tokens"


def ahead_words(whole: Study, decision: Decision, rivals: int = MOST_RIVALS) -> str:
    """By how much the leader is ahead of its rivals, nearest rival first."""
    near = nearest(decision.against)
    parts = [difference_words(whole, each) for each in near[:rivals]]
    if len(near) > rivals:
        more = f"ahead of {len(near) - rivals} others by more"
        parts.append(NEXT_BEST if rivals == 1 else more)
    return ", ".join(parts)


def nearest(against: Iterable[Difference]) -> list[Difference]:
    """The smallest gain first; those without one, as from 0, last."""
    return sorted(against, key=lambda d: d.gain or float("inf"))


def difference_words(whole: Study, difference: Difference) -> str:
    """``1.31× [1.20, 1.42] higher goodput than `alpha```, said of the better one."""
    objective, gain = difference.objective, difference.gain
    if gain is None:
        ahead, behind = difference.values
        if behind == 0 and objective.zero is not None:
            return f"{significant(ahead)} {objective.unit}, while {_at_zero(whole, difference)}"
        return f"{significant(ahead)} against {significant(behind)} {objective.unit} of `{difference.b}`"
    interval = difference.gain_interval if difference.tested else None
    less = not objective.higher_is_better
    return f"{factor(gain, interval, less)} {objective.better} {than(difference)}"


def than(difference: Difference) -> str:
    """``than `b```, and in which blocks where the figures of the tables are over more starts than these."""
    if not difference.left_out:
        return f"than `{difference.b}`"
    blocks = len(difference.blocks)
    where = {0: "on the cards that ran both", 1: "in the block that has both"}
    return f"than `{difference.b}` {where.get(blocks, f'in the {blocks} blocks that have both')}"


def _at_zero(whole: Study, difference: Difference) -> str:
    """```b` met the SLO in no request (24,300 total tokens/s)``: its server did not stand still."""
    of = (difference.scenario, difference.b)
    speeds = (cell.mean(SPEED) for cell in whole.cells if (cell.scenario, cell.backend) == of)
    speed = next((f" ({significant(each)} total tokens/s)" for each in speeds if each), "")
    return f"`{difference.b}` {difference.objective.zero}{speed}"


def gap_words(difference: Difference) -> str:
    """``1.31× [1.20, 1.42] higher goodput than `b```, or ``lower`` where the first is behind."""
    objective, gain = difference.objective, difference.gain
    if gain is None:
        values = " against ".join(measured(value, objective.unit) for value in difference.values)
        return f"{values} of `{difference.b}`"
    ahead = gain >= 1
    held = difference if ahead else difference.turned
    interval = held.gain_interval if difference.tested else None
    words = objective.better if ahead else objective.worse
    less = ahead != objective.higher_is_better
    return f"{factor(gain if ahead else 1 / gain, interval, less)} {words} {than(difference)}"


def between_words(difference: Difference) -> str:
    """``between 6.3 % lower and 9.7 % higher goodput than `b```: no direction is shown."""
    objective = difference.objective
    ends = [end for end in (difference.ratio.low, difference.ratio.high) if end is not None]
    if not ends:
        return f"as `{difference.b}`"
    more, less = objective.better, objective.worse
    if not objective.higher_is_better:
        more, less = less, more
    quantity = more.split(" ", 1)[1]
    sizes = [f"{abs(end - 1) * 100:.1f} %" for end in ends]
    ways = [(more if end >= 1 else less).split(" ", 1)[0] for end in ends]
    if len(set(ways)) == 1:
        told = f"{' and '.join(sorted(sizes, key=lambda size: float(size[:-2])))} {ways[0]}"
    else:
        told = " and ".join(f"{size} {way}" for size, way in zip(sizes, ways, strict=True))
    return f"between {told} {quantity} {than(difference)}"


def lower(title: str) -> str:
    """``Goodput`` inside a sentence; ``TTFT p50`` stays."""
    return title[0].lower() + title[1:] if title[1:2].islower() else title


def lengths(contexts: Sequence[int]) -> str:
    """``at 512 tokens``, ``from 512 to 4,096 tokens``."""
    return f"{'at' if len(contexts) == 1 else 'from'} {token_range(contexts)}"


def token_range(contexts: Sequence[int]) -> str:
    first, last = count(contexts[0]), count(contexts[-1])
    return f"{first} tokens" if len(contexts) == 1 else f"{first} to {last} tokens"


def peaked(whole: Study, difference: Difference) -> bool:
    """Whether the median of one of the two is that of a distribution with two peaks."""
    return any(
        difference.objective.measure(point).modes is not None
        for point in whole.usable
        if point.scenario == difference.scenario and point.candidate in difference.of
    )


def listed(names: Iterable[str]) -> str:
    words = list(names)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
