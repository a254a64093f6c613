"""Issue "Claims", part 2: a window's edges are part of the error. Single sweeps.

How often it fails, and what it finds: scripts/claim_rates.py.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.outside.generator import Point, Power, write
from tests.outside.playing import Load, Pace, Phases
from tests.outside.reading import Reading, read
from tests.outside.sweeps import ALL_RIGHT, equal_pair, long_pair, split_pair, starts

# what two candidates of one throughput and power have in common, however they split their work
COMMON = (
    "output",
    "total",
    "requests",
    "goodput",
    "e2e",
    "energy",
    "energy_total",
    "energy_request",
)


def ratio_of(found: Reading, objective: str) -> float:
    """alpha's figure over beta's."""
    (difference,) = found.difference(objective, "alpha", "beta")
    ratio = difference["ratio"]
    ratio = ratio["ratio"] if isinstance(ratio, dict) else ratio
    return float(ratio if difference["a"].startswith("alpha") else 1 / ratio)


@pytest.mark.parametrize("start", ["in step", "staggered", "random"])
@pytest.mark.parametrize("schedule", ["alternating", "shared"])
@pytest.mark.parametrize("warmup_s", [5.0, 12.0])
def test_equal_throughput_other_split(
    tmp_path: Path, start: str, schedule: str, warmup_s: float
) -> None:
    """Equal throughput, another split of prefill and decode (8 users, 8k tokens, three starts): equal figures
    are not claimed to differ, and the lower TTFT is found.
    """
    pair = [replace(p, phases=Phases(warmup_s, 70.0)) for p in split_pair(start, schedule)]
    write(tmp_path, starts(pair, 3, sd=0.0005, seed=3))
    found = read(tmp_path)
    assert not found.claims(*COMMON), [c.words for c in found.claims(*COMMON)]
    assert not found.winners(*COMMON)
    told = {c.winner for c in found.claims("ttft")}
    # where users begin at random, who waits for whose prefill is another in each start
    assert told == {"alpha"} or (start == "random" and not told)


@pytest.mark.parametrize("measure_s", [60.0, 66.0, 75.0])
def test_ratios_of_equal_throughput_are_one(tmp_path: Path, measure_s: float) -> None:
    """Tokens/s and joules of the same sweep: within 1 % of equal, wherever the window's end cuts a cycle."""
    pair = [replace(p, phases=Phases(10.0, measure_s)) for p in split_pair("in step")]
    write(tmp_path, starts(pair, 3, sd=0.0005, seed=3))
    found = read(tmp_path)
    for objective in ("output", "total", "energy"):
        assert abs(math.log(ratio_of(found, objective))) < 0.01, objective


def test_unequal_throughput_is_still_found(tmp_path: Path) -> None:
    """The same pair with beta 6 % slower in everything: tokens/s and request time are claimed."""
    alpha, beta = split_pair("random")
    write(tmp_path, starts([alpha, replace(beta, factor=1.06)], 5, sd=0.002, seed=3))
    found = read(tmp_path)
    for objective in ("output", "e2e"):
        assert {c.winner for c in found.claims(objective)} == {"alpha"}, objective
        assert abs(math.log(ratio_of(found, objective))) == pytest.approx(math.log(1.06), abs=0.015)


@pytest.mark.parametrize("warmup_s", [7.0, 10.0, 11.0, 12.0, 15.0, 18.0])
def test_131k_two_users(tmp_path: Path, warmup_s: float) -> None:
    """131k tokens, 2 users evenly staggered, 70 s, equal cycles of 18 s: no equal figure is claimed to
    differ.
    """
    pair = [replace(p, phases=Phases(warmup_s, 70.0)) for p in long_pair()]
    write(tmp_path, starts(pair, 3, sd=0.001, seed=round(warmup_s)))
    found = read(tmp_path)
    assert not found.claims(*COMMON), [c.words for c in found.claims(*COMMON)]


@pytest.mark.parametrize("start", ["in step", "staggered", "random"])
def test_equal_candidates(tmp_path: Path, start: str) -> None:
    """Two names for one server, three starts at three contexts: nothing is claimed."""
    pair = [replace(p, load=Load(8, start)) for p in equal_pair(power=Power())]  # type: ignore[arg-type]
    points = [
        replace(p, context=c, pace=Pace(0.45 * c / 8192, 0.07))
        for p in pair
        for c in (4096, 8192, 16384)
    ]
    write(tmp_path, starts(points, 3, sd=0.01, seed=11))
    found = read(tmp_path)
    assert not found.claims(), [c.words for c in found.claims()]
    assert not found.winners()
    assert not found.recommended("alpha") and not found.recommended("beta"), found.headline


def test_slower_from_the_middle_on(tmp_path: Path) -> None:
    """Everything takes 30 % longer from the middle of the phase on (91.4 tok/s, then 70.3): the rate of the
    fast half is never shown without saying so.
    """
    users, tokens, step_s = 8, 64, 0.02
    cycle_s = users * tokens / 91.4
    pace = Pace((cycle_s - (tokens - 1) * step_s) / users, step_s, slower_from=(0.5, 1.3))
    point = Point(pace=pace, load=Load(users, "random"), output_tokens=tokens, right=ALL_RIGHT)
    write(tmp_path, [point])
    (measured,) = read(tmp_path).summary["points"]
    if measured["status"] == "ok":
        rate = measured["throughput"]["output_tokens_per_s"]
        said = " ".join(measured["notes"])
        whole = rate == pytest.approx((91.4 + 70.3) / 2, rel=0.03)
        assert whole or re.search("slow|drift|trend", said), (rate, said)
    else:
        assert measured["reasons"]
