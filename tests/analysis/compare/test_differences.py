"""Differences between server starts: no claim without cause, and known effects are found."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.compare.claim_rates import simulate, t_power
from analysis.compare.decisions import Decision, Eligible, decisions
from analysis.compare.differences import Difference, differences, headlines, noise_floor
from analysis.objectives import BY_NAME, GOODPUT
from analysis.point.point import Point, analyse_all
from analysis.report.four_figures import noise_words
from analysis.runs.run import load_runs
from analysis.study import in_scenarios
from tests.fakes.rundirs import FakeRun, write_run


def points_of(
    tmp_path: Path,
    factors: dict[str, list[float]],
    contexts: tuple[int, ...] = (1024,),
    arm: int = 0,
    sweep: str = "fake",
) -> list[Point]:
    """One point a backend, block and context; a factor multiplies every time of that start."""
    for backend, starts in factors.items():
        for repeat, factor in enumerate(starts):
            for context in contexts:
                write_run(
                    tmp_path,
                    FakeRun(
                        backend=backend,
                        context_tokens=context,
                        repeat=repeat,
                        arm=arm,
                        sweep=sweep,
                        start_factor=factor,
                        measure_s=20,
                        started_s=repeat * 100 + arm,
                    ),
                )
    return read(tmp_path)


def read(root: Path) -> list[Point]:
    return in_scenarios(analyse_all(load_runs(root)), False)[0]


def compared(points: list[Point]) -> list[Difference]:
    return differences(points, headlines(points, GOODPUT, asked=False))


def by_pair(points: list[Point], objective: str) -> dict[tuple[str, str], Difference]:
    return {(d.a, d.b): d for d in compared(points) if d.objective.name == objective}


def decided(points: list[Point], objective: str, **unable: str) -> Decision:
    able = {
        (point.scenario, point.candidate): Eligible(False, unable[point.backend], "disqualified")
        for point in points
        if point.backend in unable
    }
    (made,) = [
        d for d in decisions(points, compared(points), able) if d.objective.name == objective
    ]
    return made


def test_twice_as_slow_is_found_and_equals_have_no_winner(tmp_path: Path) -> None:
    points = points_of(
        tmp_path,
        {
            "fast": [1.00, 1.02, 0.99, 1.01],
            "same": [1.01, 0.99, 1.00, 1.02],
            "slow": [2.02, 1.98, 2.03, 2.00],
        },
    )
    assert all(point.usable for point in points)
    found = by_pair(points, "ttft")
    assert found["fast", "same"].verdict == "no difference shown"
    assert found["fast", "slow"].verdict == "better"
    assert found["fast", "slow"].ratio.ratio == pytest.approx(0.5, rel=0.02)
    assert found["fast", "slow"].turned.verdict == "worse"
    made = decided(points, "ttft")
    assert (made.outcome, made.winner) == ("no clear winner", None)
    assert set(made.front) == {"fast", "same"}


def test_a_difference_that_means_nothing_is_no_winner(tmp_path: Path) -> None:
    """1 % apart in each of four blocks to the letter: beyond chance, below the 2 % that counts."""
    points = points_of(tmp_path, {"a": [1.0, 1.1, 0.9, 1.0], "b": [1.01, 1.111, 0.909, 1.01]})
    found = by_pair(points, "ttft")["a", "b"]
    assert found.ratio.ratio == pytest.approx(1 / 1.01, rel=1e-4)
    assert found.verdict == "equivalent"
    assert decided(points, "ttft").winner is None


def test_drift_from_block_to_block_does_not_hide_a_paired_difference(tmp_path: Path) -> None:
    """Both drift by 20 % together and b is 5 % slower throughout: successive starts are no noise floor."""
    drift = [1.0, 1.2, 1.0, 1.2, 1.0, 1.2]
    points = points_of(tmp_path, {"a": drift, "b": [1.05 * f for f in drift]})
    assert noise_floor(points, BY_NAME["ttft"]) is None
    assert by_pair(points, "ttft")["a", "b"].verdict == "better"


def test_an_effect_within_the_noise_of_equal_arms_is_not_claimed(tmp_path: Path) -> None:
    """Two arms of a differ by 10 % one way and the other; b stands 5 % from their middle, to the letter."""
    points_of(tmp_path, {"a": [1.0, 1.1, 1.0, 1.1]})
    points_of(tmp_path, {"a": [1.1, 1.0, 1.1, 1.0]}, arm=1)
    middle = math.sqrt(1.1)
    points = points_of(tmp_path, {"b": [1.05 * middle] * 4})
    floor = noise_floor(points, BY_NAME["ttft"])
    assert floor is not None and floor.sd == pytest.approx(math.log(1.1), rel=1e-3)
    found = by_pair(points, "ttft")["a", "b"]
    assert found.ratio.ratio == pytest.approx(1 / 1.05, rel=1e-3)
    assert (found.verdict, found.reason) == (
        "no difference shown",
        "within the noise between equal arms (A/A)",
    )


def test_one_pair_of_equal_arms_is_known_and_no_floor(tmp_path: Path) -> None:
    """8 % between two arms of a in the one block that has them; b has no copy, but shares the scenario."""
    points_of(tmp_path, {"a": [1.08]}, arm=1)
    points = points_of(tmp_path, {"a": [1.0], "b": [3.0]})
    found = by_pair(points, "ttft")["a", "b"]
    assert found.floor_ratio is None
    assert found.arms_ratio == pytest.approx(1.08, rel=1e-3)
    assert noise_words(found) == (
        "one pair of equal arms differs by 8.00 % (A/A), too few for a noise floor"
    )
    two = noise_words(replace(found, floor_ratio=1.12))
    assert two == "equal arms differ by 12.0 % (A/A)"


def test_without_equal_arms_their_noise_is_not_measured(tmp_path: Path) -> None:
    found = by_pair(points_of(tmp_path, {"a": [1.0, 1.1], "b": [3.0, 3.1]}), "ttft")["a", "b"]
    assert (found.floor_ratio, found.arms_ratio) == (None, None)
    assert noise_words(found) == "A/A noise not measured"


def test_one_start_each_claims_nothing(tmp_path: Path) -> None:
    points = points_of(tmp_path, {"a": [1.0], "b": [3.0]})
    found = compared(points)
    assert found and all(d.verdict == "indicative" and not d.tested for d in found)
    made = decisions(points, found, {})
    assert made and all(d.winner is None and not d.tested for d in made)
    assert {(d.outcome, d.front) for d in made if d.objective.name == "e2e"} == {
        ("indicative", ("a",))
    }


def test_who_may_not_win_does_not(tmp_path: Path) -> None:
    points = points_of(tmp_path, {"fast": [1.0, 1.01, 1.02], "exact": [2.0, 2.01, 2.02]})
    made = decided(points, "ttft", fast="worse answers")
    assert (made.outcome, made.front, made.winner) == ("alone", ("exact",), None)
    assert [(c.label, c.eligible.why_not) for c in made.out] == [("fast", "worse answers")]


def test_direction_is_that_of_the_shared_blocks(tmp_path: Path) -> None:
    """In the blocks that both have, b is faster; a's third start, alone in its block, is very fast."""
    points = points_of(tmp_path, {"a": [1.3, 1.31, 1.3, 1.29, 0.1], "b": [1.0, 1.01, 1.0, 0.99]})
    found = by_pair(points, "ttft")["a", "b"]
    assert len(found.blocks) == 4 and found.verdict == "worse"
    assert decided(points, "ttft").winner == "b"


def test_zero_is_a_value(tmp_path: Path) -> None:
    """Goodput under a TTFT of 0.7 s: every request of a (0.5 s) is good, none of b's (1 s)."""
    for repeat in range(3):
        for backend, factor in (("a", 1.0), ("b", 2.0)):
            write_run(
                tmp_path,
                FakeRun(
                    backend=backend,
                    repeat=repeat,
                    start_factor=factor * (1 + 0.01 * repeat),
                    slo_ttft_s=0.7,
                    measure_s=30,
                    started_s=repeat * 100,
                ),
            )
    points = read(tmp_path)
    found = by_pair(points, "goodput")["a", "b"]
    assert found.values[1] == 0 and found.ratio.ratio is None
    assert found.verdict == "better"
    assert decided(points, "goodput").winner == "a"


def test_folders_of_one_sweep_are_replicates(tmp_path: Path) -> None:
    """Blocks of two folders are pooled, each paired within its own."""
    factors = {"a": [1.0, 1.02], "b": [1.5, 1.52]}
    for name, shift in (("monday", 1.0), ("tuesday", 1.3)):
        points_of(tmp_path, {k: [f * shift for f in v] for k, v in factors.items()}, sweep=name)
    points = read(tmp_path)
    assert {point.status for point in points} == {"ok"}
    found = by_pair(points, "ttft")["a", "b"]
    assert len(found.blocks) == 4 and found.verdict == "better"


def test_starts_without_a_common_block_are_compared_unpaired_or_not_at_all(tmp_path: Path) -> None:
    for folder, backend, factors in (("x", "a", [1.0, 1.01, 0.99]), ("y", "b", [2.0, 2.02, 1.98])):
        points_of(tmp_path, {backend: factors}, sweep=folder)
    points = read(tmp_path)
    found = by_pair(points, "ttft")["a", "b"]
    assert found.blocks == () and "without a common block" in found.ratio.method
    assert found.verdict == "better"
    single = [p for p in points if p.repeat == 0]
    found = by_pair(single, "ttft")["a", "b"]
    assert (found.verdict, found.tested) == ("indicative", False)
    assert decided(single, "ttft").winner is None


@pytest.mark.parametrize("blocks", [3, 5, 8])
def test_equal_arms_give_about_5_percent_false_exclusions(blocks: int) -> None:
    found = simulate("normal", blocks, 1.0, trials=2000)
    # binomial sd at 5 % and 2000 trials is 0.5 %
    assert found.interval_excludes == pytest.approx(0.05, abs=0.016)
    assert found.claimed <= 0.05


def test_known_effects_are_found_at_the_promised_rate() -> None:
    found = simulate("normal", 5, 1.05, trials=2000)
    assert found.promised == t_power(1.05, 0.03, 5)
    assert found.interval_excludes == pytest.approx(found.promised, abs=0.035)
    assert simulate("normal", 5, 1.30, trials=200).claimed > 0.99


def test_both_ways_round_say_the_same(tmp_path: Path) -> None:
    points = points_of(tmp_path, {"a": [1.0, 1.01, 0.99], "b": [2.0, 2.0, 2.01]})
    for each in compared(points):
        assert replace(each.turned.turned, ratio=each.ratio) == each
        assert (each.gain is None) or each.gain * (each.turned.gain or 0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("others", "outcome", "front"),
    [
        ((1.5, 1.55), "indicative", ("a",)),  # nearest starts 50 % apart, equal arms 3 %
        ((1.1, 1.3), "no clear winner", ("a", "b")),  # 10 % apart, but equal arms 18 %
        ((0.9, 1.3), "no clear winner", ("a", "b")),  # b's better start beats a
        ((1.005, 1.006), "no clear winner", ("a", "b")),  # less than would mean anything
    ],
)
def test_ahead_of_too_few_starts_only_beyond_each_of_the_others(
    tmp_path: Path, others: tuple[float, float], outcome: str, front: tuple[str, ...]
) -> None:
    """One start of a, two arms of b, and c far behind both by the same rule."""
    points_of(tmp_path, {"a": [1.0], "b": [others[0]], "c": [3.0]})
    points = points_of(tmp_path, {"b": [others[1]]}, arm=1)
    made = decided(points, "ttft")
    assert (made.outcome, made.front, made.tested) == (outcome, front, False)


def test_no_block_and_no_card_in_common_has_no_noise_floor(tmp_path: Path) -> None:
    """Two pairs of equal arms on one card, and a candidate that ran on another host alone."""
    points_of(tmp_path, {"a": [1.0, 1.1]})
    points_of(tmp_path, {"a": [1.1, 1.0]}, arm=1)
    elsewhere = write_run(tmp_path, FakeRun(backend="b", measure_s=20, started_s=900)).path
    manifest = elsewhere / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"host": "fake"', '"host": "other"'))
    points = read(tmp_path)
    assert noise_floor(points, BY_NAME["ttft"]) is not None
    found = by_pair(points, "ttft")["a", "b"]
    assert (found.verdict, found.ratio.blocks, found.floor_ratio) == ("not comparable", 0, None)
