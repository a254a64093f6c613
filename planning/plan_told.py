"""A capacity plan in lines for people."""

from planning.capacity import PERCENTILES, Need


def table(needs: list[Need], currency: str) -> list[str]:
    """A row a candidate, then what must be said of each."""
    head = (
        "candidate", "replicas", "binds", "busy at the SLO", "headroom", "TTFT p50/p90/p99, s",
        "E2E p50/p90/p99, s", "prompts +25 %", "outputs +25 %", "W", "kWh a day", f"{currency} a day",
    )  # fmt: skip
    rows = [head, *(row(each) for each in needs)]
    widths = [max(len(line[i]) for line in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in rows]
    said = [f"{each.label}: {sentence}." for each in needs for sentence in each.said]
    return [*(line.rstrip() for line in lines), *said]


def row(one: Need) -> tuple[str, ...]:
    mark = " (extrapolated)" if one.extrapolated else ""
    return (
        one.label + (" (may not serve)" if one.barred else ""),
        f"{one.replicas}{span(one.replicas_interval)}{mark}",
        one.binds,
        f"{one.utilisation_at_slo:.0%}",
        f"{one.headroom:.0%}",
        f"{_each(one.seen.ttft_s)}{span(one.ttft_interval, 'p90')}",
        f"{_each(one.seen.e2e_s)}{span(one.e2e_interval, 'p90')}",
        *(_replicas(n) for n in one.longer),
        between(one.watts),
        between(one.kwh_day),
        between(one.cost_day),
    )


def _each(values: tuple[float, ...]) -> str:
    assert len(values) == len(PERCENTILES)
    return " / ".join(f"{value:.3g}" for value in values)


def span(ends: tuple[float, float] | None, what: str = "") -> str:
    if ends is None:
        return ""
    return f" {what}[{ends[0]:.3g}, {ends[1]:.3g}]"


def _replicas(number: int | None) -> str:
    return "none" if number is None else str(number)


def between(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "–"
    low, high = (f"{end:,.3g}" if end < 1000 else f"{end:,.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"
