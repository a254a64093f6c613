"""Issue "Claims", part 4: the answer gate protects."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from tests.outside.generator import Point, write
from tests.outside.playing import Load, Pace
from tests.outside.reading import Reading, read
from tests.outside.sweeps import faster, starts

FIRST = Point(pace=Pace(0.2, 0.01), load=Load(4, "random"))
WINDOW = {"window": 1024}


def right(n: int) -> frozenset[int]:
    return frozenset(range(n))


def pair(reference: str, its: int, of: int, other: int, speed: float = 0.7) -> list[Point]:
    """``reference`` and a sink_window that takes ``speed`` times as long, and how many each has right."""
    exact = replace(FIRST, backend=reference, prompts=of, right=right(its))
    return [exact, replace(faster(exact, "sink_window", speed), options=WINDOW, right=right(other))]


def reported(root: Path, points: Iterable[Point], n: int = 3) -> Reading:
    write(root, starts(list(points), n, sd=0.002, seed=5))
    return read(root)


def never_wins(found: Reading, name: str) -> None:
    assert not found.recommended(name), found.headline
    assert not [w for w in found.winners() if w.startswith(name)], found.winners()


EXACT = [
    "flash_attn",
    "flash_attn2",
    "flash_attn3",
    "flash_attn4",
    "sdpa_gather",
    "xformers",
    "triton",
]


@pytest.mark.parametrize("reference", EXACT)
def test_7_percent_right_against_all(tmp_path: Path, reference: str) -> None:
    """An exact backend 100 % right, sink_window 7 %: it never wins, however fast, and a sentence says why."""
    found = reported(tmp_path, pair(reference, 28, 28, 2))
    never_wins(found, "sink_window")
    assert found.said_of("sink_window", "2 of 28"), found.text


def test_the_best_answering_stands_in_where_none_is_exact(tmp_path: Path) -> None:
    """Two approximate candidates: the one with the most right answers becomes the reference."""
    good, bad = pair("sink_window", 28, 28, 2)
    good = replace(good, options={"window": 8192})
    found = reported(tmp_path, [good, bad])
    never_wins(found, "sink_window(window=1024)")


@pytest.mark.parametrize("seed", range(2))
def test_23_of_28_is_not_innocent(tmp_path: Path, seed: int) -> None:
    """p = 0.0625: too few prompts to show a loss, and no proof of equality either. It is shown, not
    recommended.
    """
    points = [replace(p, noise_seed=seed) for p in pair("flash_attn", 28, 28, 23)]
    found = reported(tmp_path, points)
    assert not found.recommended("sink_window"), found.headline
    cells = found.summary["cells"]
    assert any(cell["backend"].startswith("sink_window") and cell["run_ids"] for cell in cells)


def test_20_of_28_is_worse_whatever_else_was_tested(tmp_path: Path) -> None:
    """p = 0.0078 at one of three lengths, with two other candidates beside it: it does not win there."""
    points: list[Point] = []
    for context in (4096, 8192, 16384):
        exact, window = pair("flash_attn", 28, 28, 20 if context == 8192 else 28)
        others = [faster(exact, "triton", 0.95), faster(exact, "flex", 1.05)]
        points += [replace(p, context=context) for p in (exact, window, *others)]
    found = reported(tmp_path, points)
    at = found.decisions_at(8192)
    assert at, "no decision at 8,192 tokens"
    assert not [d["winner"] for d in at if d["winner"] and d["winner"].startswith("sink_window")]
    assert found.said_of("sink_window", "8,192", "20 of 28"), found.text


def test_20_of_28_alone(tmp_path: Path) -> None:
    """p = 0.0078 with nothing else tested: it does not win."""
    found = reported(tmp_path, pair("flash_attn", 28, 28, 20))
    never_wins(found, "sink_window")


def test_as_many_right_on_enough_prompts_wins(tmp_path: Path) -> None:
    """90 of 90 right against 90 of 90, and 30 % faster: it passes the gate and wins."""
    found = reported(tmp_path, pair("flash_attn3", 90, 90, 90))
    assert [c for c in found.claims("e2e") if c.winner.startswith("sink_window")]
    assert found.recommended("sink_window") or found.said_of("sink_window", "faster"), found.text


def test_no_arbitrary_reference(tmp_path: Path) -> None:
    """Neither of two backends is known, both answer 23 of 23 right, beta in 20 % less time: alpha, first by
    name only, is not recommended over it, and beta is at worst undecided.
    """
    alpha = replace(FIRST, backend="alpha", prompts=23, right=right(23))
    found = reported(tmp_path, [alpha, faster(alpha, "beta", 0.8)])
    never_wins(found, "alpha")
    assert not re.search("disqualified|failing|worse", found.text), found.text


def test_a_loss_of_5_points_is_shown_to_be_small_on_enough_prompts(tmp_path: Path) -> None:
    """190 of 200 against 200 of 200: a loss of 5 points, whose 95 % interval ends below 10 (Clopper and
    Pearson's upper bound of 10 in 200 is 8.3 %, one-sided). It is faster and may win.
    """
    points = pair("flash_attn", 200, 200, 190)
    pace = replace(FIRST.pace, prefill_s=0.05, step_s=0.002)
    found = reported(tmp_path, [replace(p, pace=pace) for p in points], n=2 + 2)
    assert [c for c in found.claims("e2e") if c.winner.startswith("sink_window")]
    assert not found.said_of("sink_window", "disqualified"), found.text
    assert [w for w in found.winners("e2e") if w.startswith("sink_window")], found.text


def test_undecided_is_not_taken_for_a_proven_one(tmp_path: Path) -> None:
    """flash_attn and triton 40 of 40, sink_window, the fastest, 36 of 40: the second fastest is recommended,
    never the undecided one.
    """
    exact, window = pair("flash_attn", 40, 40, 36)
    found = reported(tmp_path, [exact, faster(exact, "triton", 0.85), window])
    never_wins(found, "sink_window")
    assert found.recommended("triton") or found.recommended("flash_attn"), found.headline


def test_unproven_is_no_winner_without_a_word(tmp_path: Path) -> None:
    """triton is 30 % faster, but the class that ran is unproven: it does not win without a sentence that says
    so.
    """
    slow = replace(FIRST, backend="flash_attn3", prompts=90, right=right(90))
    found = reported(tmp_path, [slow, replace(faster(slow, "triton", 0.7), proof="unproven")])
    if found.recommended("triton") or found.winners():
        assert found.said_of("triton", "unproven") or found.said_of("triton", "not proven"), (
            found.text
        )


def test_half_of_the_requests_failed(tmp_path: Path) -> None:
    """triton refuses 55 % of the requests and is fast at the others: it does not win."""
    slow = replace(FIRST, backend="flash_attn3", prompts=90, right=right(90), pace=Pace(1.0, 0.02))
    quick = faster(slow, "triton", 0.7)
    found = reported(tmp_path, [slow, replace(quick, pace=replace(quick.pace, failed=0.55))])
    if found.recommended("triton") or [w for w in found.winners() if w == "triton"]:
        assert found.said_of("triton", "fail"), found.text
    assert not re.search(r"one start (per|each|of each)|started once", found.text, re.I), found.text


@pytest.mark.parametrize("side", [1, -1], ids=["above the margin", "below the margin"])
def test_few_prompts_of_log_probabilities(tmp_path: Path, side: int) -> None:
    """Drift over 5 prompts, 1.84 standard errors from the margin of 0.1 nats: nothing is claimed. (Student's
    t with 4 degrees of freedom: two-sided p is 0.14. A percentile bootstrap of 5 values is narrower, about
    1.96 · sqrt(4 / 5) = 1.75 standard errors, and would claim it.)
    """
    spread = np.array([-1.3, -0.5, 0.1, 0.4, 1.3])
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    drift = 0.1 + 0.02 * (spread + side * 1.84 / np.sqrt(5))
    assert ttest_1samp(drift, 0.1).pvalue == pytest.approx(0.14, abs=0.005)
    exact = Point(
        backend="flash_attn",
        task="perplexity",
        output_tokens=1,
        prompts=5,
        shifts=(0.0,) * 5,
        pace=Pace(1.0, 0.0, schedule="alone", request_sd=0.02),
        load=Load(1, "in step"),
    )
    window = replace(exact, backend="sink_window", options=WINDOW, shifts=tuple(drift.tolist()))
    gates = reported(tmp_path, [exact, window], n=1).summary["gates"]
    (verdict,) = [gate["verdict"] for gate in gates if gate["kind"] != "answers"]
    assert verdict not in ("equal", "worse", "proven", "disqualified"), verdict
