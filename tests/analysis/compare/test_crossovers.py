"""Crossovers: the published break-even, known synthetic ones, and the answers that are not a length."""

from pathlib import Path

import numpy as np
import pytest

from analysis.compare.crossover_fit import (
    COURSES,
    Course,
    Curve,
    Fit,
    along,
    break_evens,
    crossover,
    fit,
    fit_many,
)
from analysis.study import study
from tests.fakes.rundirs import FakeRun, write_run

CONTEXTS = (512, 1024, 2048, 4096, 8192)


def curve(
    intercept: float, slope: float, noise: float, starts: int, seed: int, quadratic: float = 0
) -> Curve:
    """Starts × contexts of intercept + slope·L + quadratic·L² with relative noise."""
    rng = np.random.default_rng(seed)
    lengths = np.array(CONTEXTS, dtype=float)
    true = intercept + slope * lengths + quadratic * lengths**2
    values = true * np.exp(rng.normal(0, noise, (starts, len(CONTEXTS))))
    return Curve(CONTEXTS, values, [row * np.exp(rng.normal(0, noise, 40)) for row in values[0]])


def test_published_break_even_of_fp8_kv_on_h100() -> None:
    """vLLM's blog of 2026-04-22, Llama-3.1-8B on H100, ms: BF16 6.44 + 4.37e-5·L, FP8 6.58 + 2.37e-5·L.

    It states 7,010 tokens and prints its coefficients to three digits only. Those give 7,000; with all that
    rounds to them the break-even lies between 6,468 and 7,538.
    """
    bf16, fp8 = Fit((6.44, 4.37e-5)), Fit((6.58, 2.37e-5))
    assert break_evens(bf16, fp8, 256, 125_000) == [pytest.approx(0.14 / 2.00e-5)]
    half, slope_half = 0.005, 0.005e-5  # of the last printed digit
    allowed = [
        break_evens(Fit((6.44 + i, 4.37e-5 + s)), Fit((6.58 - i, 2.37e-5 - s)), 256, 125_000)[0]
        for i in (half, -half)
        for s in (slope_half, -slope_half)
    ]
    assert min(allowed) == pytest.approx(0.13 / 2.01e-5) and max(allowed) == pytest.approx(
        0.15 / 1.99e-5
    )
    assert min(allowed) < 7_010 < max(allowed)
    # coefficients with one digit more that round to the printed ones, and give the published length
    finer = Fit((6.4399, 4.370e-5)), Fit((6.5801, 2.370e-5))
    assert break_evens(*finer, 256, 125_000) == [pytest.approx(7_010)]


def test_measurements_on_the_published_lines_give_the_published_length() -> None:
    """Through the whole way of a report: times at each length, fits, break-even with its interval."""
    lengths = (256, 2048, 8192, 32_768, 125_000)
    x = np.array(lengths, dtype=float)
    rng = np.random.default_rng(11)

    def measured(intercept: float, slope: float) -> Curve:
        true = intercept + slope * x
        return Curve(lengths, true * np.exp(rng.normal(0, 0.0005, (5, len(lengths)))))

    found = crossover(
        ("bf16", "fp8"), (measured(6.4399, 4.370e-5), measured(6.5801, 2.370e-5)), "linear"
    )
    assert (found.verdict, found.short, found.long) == ("crossover", "bf16", "fp8")
    assert found.low is not None and found.high is not None
    assert found.low < 7_010 < found.high and found.high - found.low < 1_000


def test_published_law_is_recovered_from_measured_times() -> None:
    lengths = np.array([256, 1024, 4096, 16_384, 65_536, 125_000], dtype=float)
    found = fit(lengths.tolist(), (6.44 + 4.37e-5 * lengths).tolist(), "linear")
    assert found.coefficients == (pytest.approx(6.44), pytest.approx(4.37e-5))
    assert found.misfit < 1e-9


def test_quadratic_by_hand() -> None:
    # 1 + 2x + 3x² at 0, 1, 2 is 1, 6, 17
    assert fit([0, 1, 2], [1, 6, 17], "quadratic").coefficients == pytest.approx((1, 2, 3))
    # 10 + 0·L + L²/100 against 1 + L: L² − 100·L + 900 = 0 → 10 and 90
    assert break_evens(Fit((10, 0, 0.01)), Fit((1, 1)), 0, 100) == pytest.approx([10, 90])
    assert break_evens(Fit((10, 0, 0.01)), Fit((1, 1)), 20, 80) == []


def test_many_fits_at_once_equal_single_ones() -> None:
    # some of these draws have a shrinking part, which the batch must hand to the bounded fit
    costs = np.exp(np.random.default_rng(4).normal(0, 0.2, (50, 5)))
    for form in ("linear", "quadratic"):
        many = fit_many(CONTEXTS, costs, form)
        assert (many == 0).any() and (many >= 0).all()
        for row, each in zip(many, costs, strict=True):
            assert row == pytest.approx(np.array(fit(CONTEXTS, each.tolist(), form).coefficients))


def test_courses_agree_with_the_roots_of_each_pair() -> None:
    # second method: np.roots, one pair at a time
    refits = np.random.default_rng(8).uniform(0, 1, (300, 2, 3)) * np.array([1.0, 1e-3, 1e-6])
    numbers, lengths = along(refits, 100, 2000)
    courses = [COURSES[number] for number in numbers]
    assert {Course.A_THROUGHOUT, Course.A_THEN_B, Course.A_AT_BOTH_ENDS} <= set(courses)
    for (a, b), course, length in zip(refits, courses, lengths, strict=True):
        roots = break_evens(Fit(tuple(a)), Fit(tuple(b)), 100, 2000)
        assert len(roots) == (0 if course.throughout else 2 if course.twice else 1)
        if len(roots) == 1:
            assert length == pytest.approx(roots[0])


def test_touching_curves_do_not_cross() -> None:
    # (L − 50)² touches zero: nobody overtakes anybody
    assert break_evens(Fit((2500, 0, 1)), Fit((0, 100)), 0, 100) == []


def test_a_known_crossover_is_found_with_its_interval() -> None:
    # 1 + 2e-3·L against 3 + 1e-3·L: equal at 2,000
    found = crossover(
        ("flat", "steep"), (curve(3, 1e-3, 0.01, 5, 1), curve(1, 2e-3, 0.01, 5, 2)), "linear"
    )
    assert found.verdict == "crossover"
    assert (found.short, found.long) == ("steep", "flat")
    assert found.context == pytest.approx(2000, rel=0.05)
    assert found.low is not None and found.high is not None
    assert found.low < 2000 < found.high and found.high - found.low < 600


def test_the_interval_covers_the_true_length_at_the_stated_rate() -> None:
    hits = wide = 0
    for seed in range(60):
        pair = (curve(3, 1e-3, 0.02, 4, 2 * seed), curve(1, 2e-3, 0.02, 4, 2 * seed + 1))
        found = crossover(("flat", "steep"), pair, "linear", seed=seed)
        if found.low is not None and found.high is not None:
            hits += found.low <= 2000 <= found.high
            wide += 1
    assert wide >= 55
    assert hits / wide >= 0.90  # 95 % promised; sd of 60 trials is 2.8 %


def test_no_crossover_in_range_is_an_answer() -> None:
    found = crossover(
        ("a", "b"), (curve(1, 1e-3, 0.01, 5, 1), curve(2, 2e-3, 0.01, 5, 2)), "linear"
    )
    assert (found.verdict, found.short, found.context) == ("none", "a", None)
    assert found.sentence == "no crossover between 512 and 8,192 tokens: a below b throughout"


def test_equal_backends_are_within_noise() -> None:
    found = crossover(
        ("a", "b"), (curve(1, 1e-3, 0.02, 4, 1), curve(1, 1e-3, 0.02, 4, 2)), "linear"
    )
    assert found.verdict == "within noise"
    assert found.context is None


def test_a_form_that_misses_its_points_states_no_length() -> None:
    bent = Curve(CONTEXTS, np.tile([1.0, 1.0, 1.0, 1.0, 9.0], (3, 1)))
    found = crossover(("a", "b"), (bent, curve(2, 0, 0.01, 3, 1)), "linear")
    assert found.verdict == "form does not fit"
    assert found.context is None


def test_too_few_contexts_are_refused() -> None:
    two = Curve((512, 1024), np.ones((3, 2)))
    assert crossover(("a", "b"), (two, two), "quadratic").verdict == "too few contexts"


def test_one_start_redraws_requests_and_says_so() -> None:
    pair = (curve(3, 1e-3, 0.01, 1, 1), curve(1, 2e-3, 0.01, 1, 2))
    found = crossover(("flat", "steep"), pair, "linear")
    assert found.verdict == "crossover"
    assert found.unit == "requests"


def test_bands_enclose_the_fit() -> None:
    found = crossover(
        ("a", "b"), (curve(3, 1e-3, 0.02, 5, 1), curve(1, 2e-3, 0.02, 5, 2)), "linear"
    )
    band = found.bands["a"]
    assert len(band.contexts) == len(band.middle) > 10
    assert all(
        low <= middle <= high
        for low, middle, high in zip(band.low, band.middle, band.high, strict=True)
    )


def test_only_answers_to_the_same_prompts_cross(tmp_path: Path) -> None:
    """alpha answered two sets of prompts, one beside beta and twice as slowly one beside gamma."""
    asked = {7: ("alpha", "beta"), 8: ("alpha", "gamma")}
    for number, (seed, backends) in enumerate(asked.items()):
        for place, backend in enumerate(backends):
            for context in (1024, 4096):
                fake = FakeRun(
                    backend=backend,
                    seed=seed,
                    prompts_sha256=str(seed) * 64,
                    context_tokens=context,
                    ttft_s=0.5 * (number + 1),
                    started_s=1000 * number + 100 * place + context / 100,
                )
                write_run(tmp_path, fake)
    whole = study(tmp_path)
    crossed = [c for c in whole.crossings if c.objective.name == "ttft"]
    assert [(c.a, c.b) for c in crossed] == [("alpha", "beta"), ("alpha", "gamma")]
    assert [c.measured["alpha"] for c in crossed] == [[0.5, 0.5], [1.0, 1.0]]


def test_curves_of_one_start_that_cross_twice_claim_nothing(tmp_path: Path) -> None:
    """alpha is better at both ends and beta between 2,000 and 6,000 tokens, by 1e-8 (L - 2000) (L - 6000)."""
    for context in (1024, 2048, 4096, 8192):
        alpha_s = 0.5 + 1e-4 * context
        beta_s = alpha_s + 1e-8 * (context - 2000) * (context - 6000)
        for place, (backend, ttft_s) in enumerate({"alpha": alpha_s, "beta": beta_s}.items()):
            fake = FakeRun(
                backend=backend,
                context_tokens=context,
                ttft_s=ttft_s,
                users=1,
                measure_s=60,
                started_s=1000 * place + context / 10,
            )
            write_run(tmp_path, fake)
    (found,) = [c.found for c in study(tmp_path).crossings if c.objective.name == "ttft"]
    assert max(found.shares, key=found.shares.__getitem__).twice, found.shares
    assert found.verdict == "indicative" and "both ends" not in found.sentence
