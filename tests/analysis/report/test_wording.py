"""Small clauses of the report, each against arithmetic or what it was given."""

import pytest

from analysis.bottleneck.classify import Bottleneck, Evidence, PhaseBound, PhaseVerdict, PointBound
from analysis.report.formats import factor
from analysis.report.sentences import bound_words, by_bound


@pytest.mark.parametrize(
    ("gain", "interval", "said"),
    [
        (1.2512, (1.2249, 1.2781), "1.25× [1.22, 1.28]"),
        (1.0812, (1.058, 1.104), "8.1 % [5.8 %, 10.4 %]"),
        (12.345, (9.87, 15.21), "12.3× [9.9, 15.2]"),
        (1234.5, (987.2, 1500.0), "1,234× [987, 1,500]"),
        (2.0, None, "2.00×"),
    ],
)
def test_a_ratio_and_its_interval_have_the_same_decimals(
    gain: float, interval: tuple[float, float] | None, said: str
) -> None:
    assert factor(gain, interval) == said


def bound(prefill: PhaseBound, decode: PhaseBound, of: PointBound = "engine") -> Bottleneck:
    phases = [PhaseVerdict("prefill", prefill, ""), PhaseVerdict("decode", decode, "")]
    return Bottleneck(of, "", phases, Evidence())


def test_all_are_bound_alike_only_where_each_is() -> None:
    known, unknown = bound("compute", "bandwidth"), bound("undetermined", "undetermined")
    alike = "compute-bound in prefill and bandwidth-bound in decode"
    assert bound_words([known, known]) == alike
    assert bound_words([known, unknown]) == "undetermined"  # its starts disagree
    assert bound_words([bound("compute", "undetermined")]) == (
        "compute-bound in prefill and undetermined in decode"
    )
    assert bound_words([bound("compute", "compute", "client")]) == "limited by the load generator"
    assert by_bound({"a": alike, "b": alike}) == f"all are {alike}"
    assert by_bound({"d": "undetermined", "a": alike, "b": alike, "c": "undetermined"}) == (
        f"`a` and `b` are {alike}; `c` and `d` are undetermined"
    )
