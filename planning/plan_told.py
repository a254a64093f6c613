"""A capacity plan in lines for people."""

from planning.capacity import Need
from planning.fleet import PERCENTILES
from planning.plan import Plan


def answer(made: Plan) -> str:
    """The first of the table in one sentence; names in backticks."""
    best, *others = made.needs
    if best.barred:
        return f"No candidate may serve. `{best.label}` would take {_counted(best)}."
    rivals = [one for one in others if not one.barred]
    equal = [_named(one) for one in rivals if one.machines == best.machines]
    words = f"`{best.label}` would serve this traffic with {_counted(best)}"
    if best.replicas_interval is not None:
        low, high = best.replicas_interval
        words += f" (95 %: {low} or more)" if high is None else f" (95 %: {low:,} to {high:,})"
    words += _doubt(best) + (", extrapolated" if best.extrapolated else "")
    if equal:
        return f"{words}; so would {', '.join(equal)}."
    if rivals:
        return f"{words}; the next, {_named(rivals[0])}, takes {rivals[0].replicas:,}{_cards(rivals[0])}."
    return f"{words}."


def _counted(one: Need) -> str:
    return f"{one.replicas:,} replica{'s' if one.replicas != 1 else ''}{_cards(one)}"


def _cards(one: Need) -> str:
    """Where a replica takes several."""
    return f" ({one.machines:,} cards)" if one.machines > one.replicas else ""


def _named(one: Need) -> str:
    """With what is to be doubted of its number."""
    doubts = [w for w in (_doubts(one), "extrapolated" if one.extrapolated else None) if w]
    return f"`{one.label}`" + (f" ({', '.join(doubts)})" if doubts else "")


def circumstances(made: Plan) -> str:
    bounds = ", ".join(
        f"{key.removesuffix('_s').upper()} ≤ {most:g} s"
        for key, most in made.slo
        if most is not None
    )
    return f"{made.traffic}, on {made.device}. SLO: {bounds}, met by nine of ten requests."


def said(made: Plan) -> list[str]:
    """What must be said of the traffic, the candidates, the policy's pools, and of who is left out."""
    of: dict[str, list[str]] = {}
    for one in every(made):
        for sentence in one.said:
            of.setdefault(sentence, []).append(f"`{one.label}`")
    sentences = [
        f"{', '.join(labels) if len(labels) < max(2, len(every(made))) else 'All'}: {sentence}."
        for sentence, labels in of.items()
    ]
    assumed = [f"{why[0].upper()}{why[1:]}." for why in made.assumed]
    return [*assumed, *sentences, *(f"Left out: {why}." for why in made.refused)]


def head(currency: str) -> tuple[str, ...]:
    return (
        "candidate", "replicas", "binds", "busy at the SLO", "headroom", "TTFT p50/p90/p99, s",
        "E2E p50/p90/p99, s", "prompts +25 %", "outputs +25 %", "W", "kWh a day", f"{currency} a day",
    )  # fmt: skip


def every(made: Plan) -> list[Need]:
    """The candidates, and after them the policy's pools together."""
    return [*made.needs, *([] if made.mixed is None else [made.mixed])]


def rows(made: Plan) -> list[tuple[str, ...]]:
    """One a candidate, and one of the policy's pools."""
    return [row(each) for each in every(made)]


BRACKETS = "TTFT, E2E, W, kWh, cost: of as many replicas as the plan has; in brackets 95 % over server starts"


def table(made: Plan) -> list[str]:
    cells = [head(made.currency), *rows(made)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return [line.rstrip() for line in lines]


def row(one: Need) -> tuple[str, ...]:
    mark, most = (
        " (extrapolated)" if beyond else "" for beyond in (one.extrapolated, one.most_extrapolated)
    )
    least = "≥ " if one.most_capped else ""
    return (
        one.label + _doubt(one),
        f"{one.replicas:,}{counts(one.replicas_interval)}{_cards(one)}{mark}",
        one.binds,
        least + _percent(one.utilisation_at_slo, one.utilisation_interval),
        least + _percent(one.headroom, one.headroom_interval) + most,
        f"{_each(one.seen.ttft_s)}{span(one.ttft_interval, 'p90')}",
        f"{_each(one.seen.e2e_s)}{span(one.e2e_interval, 'p90')}",
        *map(_replicas, one.longer, one.longer_intervals),
        between(one.watts) + span(one.watts_interval),
        between(one.kwh_day) + span(one.kwh_interval),
        between(one.cost_day) + span(one.cost_interval),
    )


def _doubt(one: Need) -> str:
    return "" if (doubt := _doubts(one)) is None else f" ({doubt})"


def _doubts(one: Need) -> str | None:
    if one.barred:
        return "may not serve"
    return "answers not judged" if one.unjudged else None


def _each(values: tuple[float, ...]) -> str:
    assert len(values) == len(PERCENTILES)
    return " / ".join(f"{value:.3g}" for value in values)


def span(ends: tuple[float, float] | None, what: str = "") -> str:
    if ends is None:
        return ""
    return f" {what} [{_number(ends[0])}, {_number(ends[1])}]".replace("  ", " ")


def _percent(share: float, ends: tuple[float, float] | None) -> str:
    inside = "" if ends is None else f" [{100 * ends[0]:,.0f}, {100 * ends[1]:,.0f}]"
    return f"{100 * share:,.0f} %{inside}"


def counts(ends: tuple[int, int | None] | None) -> str:
    if ends is None:
        return ""
    return f" [{ends[0]:,}, {'none' if ends[1] is None else f'{ends[1]:,}'}]"


def _replicas(number: int | None, ends: tuple[int, int | None] | None) -> str:
    return "none" if number is None else f"{number:,}{counts(ends)}"


def between(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "–"
    low, high = map(_number, ends)
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 999.5 else f"{value:,.0f}"
