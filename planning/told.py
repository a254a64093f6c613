"""A policy and its replay in lines for people."""

from greenbench.contract.policy import Policy, Rule
from planning.playing import OTHERS
from planning.replay import Replay
from planning.requests import Traffic
from planning.routers import AHEAD
from planning.score import DRAWS


def told(policy: Policy) -> list[str]:
    """The policy for people: a line a rule, then its sentences."""
    lines = [rule_line(rule, policy) for rule in policy.rules]
    for restart in policy.restarts:
        if restart.break_even_requests is not None and restart.break_even_s is not None:
            lines.append(
                f"restart {restart.of} as {restart.to} ({restart.boot_s:g} s): pays after "
                f"{restart.break_even_requests:,} requests ({restart.break_even_s:,.0f} s) of {restart.rule}"
            )
        else:
            lines.append(
                f"restart {restart.of} as {restart.to}: not known when it pays, {restart.said}"
            )
    return [*lines, *policy.said]


def rule_line(rule: Rule, policy: Policy) -> str:
    """``17,693 to 65,536 tokens, load below 8 → beta: 1.55× [1.50, 1.60] better than alpha``."""
    words = {"uncached_prompt_tokens": "tokens", "expected_output_tokens": "tokens out"}
    parts: list[str] = []
    for key, span in rule.when:
        what = words.get(key, key.replace("_", " "))
        if span.at_least is not None and span.below is not None:
            last = span.below - 1 if isinstance(span.below, int) else span.below
            parts.append(f"{what} {span.at_least:,} to {last:,}")
        elif span.at_least is not None:
            parts.append(f"{what} at least {span.at_least:,}")
        elif span.below is not None:
            parts.append(f"{what} below {span.below:,}")
    gain = rule.gain
    if gain is None:
        return f"{', '.join(parts)} → {rule.pool}: {rule.why}"
    span = "" if gain.low is None or gain.high is None else f" [{gain.low:.2f}, {gain.high:.2f}]"
    return f"{', '.join(parts)} → {rule.pool}: {gain.ratio:.2f}×{span} better than {policy.default}"


def table(found: Replay, traffic: Traffic, policy: Policy) -> list[str]:
    """The regret table and what must be said beside it."""
    rows = [
        (
            "",
            f"mean {found.unit}",
            "regret",
            "best single over it",
            "as good in",
            "requests by pool",
        )
    ]
    for each in found.scores:
        rows.append(
            (
                each.who,
                f"{each.mean:.1%}" if found.higher_is_better else f"{each.mean:.4g}",
                "" if each.who == "oracle" else _percent(each.regret),
                "" if each.who == "best single" else _factor(each.over_single),
                "" if each.who == "best single" else f"{each.as_good:.1%}",
                ", ".join(f"{pool} {share:.0%}" for pool, share in each.shares.items()),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [
        f"{found.requests:,} requests, {traffic.words}.",
        f"{found.servers} servers each: the policy has one of each of its pools, best single has "
        f"{found.servers} of whichever does best alone ({' or '.join(found.score('best single').shares)})."
        if found.servers > 1
        else f"1 server each: there is no policy, so all are {policy.default}.",
        *(line.rstrip() for line in lines),
        "Regret: how much worse than the oracle, which knows the true curves and how far each open request "
        f"is (the best in hindsight of {len(OTHERS)} ways); foreseeing knows also the next {AHEAD} requests. "
        f"As good in: of {DRAWS:,} resampled traces, those in which it is at least as good as best single.",
        *found.said,
        *_unserved(found),
    ]


def _percent(value: tuple[float, float, float]) -> str:
    middle, low, high = (100 * each for each in value)
    return f"{middle:.1f} % [{low:.1f}, {high:.1f}]"


def _factor(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.3f}× [{value[1]:.3f}, {value[2]:.3f}]"


def _unserved(found: Replay) -> list[str]:
    return [
        f"{each.who} has no server that may take {each.unserved:,} of the requests; the figures are "
        "over those that all of them served."
        for each in found.scores
        if each.unserved
    ]
