"""The terms of a step's time, recovered from a server that has known ones; and batches out of a log."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from planning.batches import Batch, Lengths, Line, Timed, batches
from planning.step_time import NotEnough, StepTime, shape_of
from tests.planning.steps import KNOWN, closed_loop, fitted, model, took

SHAPE = shape_of(model())


def runs(sd: float, seed: int = 3) -> list[Timed]:
    found: list[Timed] = []
    for number, (users, prompt) in enumerate([(1, 2000), (8, 2000), (4, 32_000), (16, 8000)]):
        made, _, _ = closed_loop(users, prompt, 64, 2048, 1000)
        times = took(SHAPE, KNOWN, made, sd, seed + number)
        found.append(Timed(f"run{number}", tuple(made), times, 0))
    return found


@pytest.fixture(scope="module")
def noisy() -> StepTime:
    return fitted(runs(0.2))


def test_the_log_gives_each_chunk_and_each_context() -> None:
    truth, log, served = closed_loop(3, 5000, 7, 2048, 200)
    assert batches(log, served) == truth[: len(log)]


def test_a_step_of_other_numbers_is_left_out_and_the_rest_stands() -> None:
    truth, log, served = closed_loop(2, 3000, 9, 2048, 60)
    log[10] = log[10]._replace(decode_requests=log[10].decode_requests + 5)
    found = batches(log, served)
    assert found[10] is None and found[11:] == truth[11:]


def test_cached_tokens_are_past_and_not_new() -> None:
    found = batches([Line(400, 0), Line(0, 1)], [Lengths(1000, 600, 3)])
    assert found == [Batch(((400, 600),), ()), Batch((), (1001,))]


def test_known_terms_are_recovered_exactly_without_noise() -> None:
    found = fitted(runs(0.0)).terms
    assert astuple(found) == pytest.approx(astuple(KNOWN), rel=1e-6)


def test_known_terms_are_recovered_from_noisy_steps(noisy: StepTime) -> None:
    """4,000 steps with 20 %: the error of a term stays below 0.2 / √4,000 × the condition, here 6 %; that of
    a sequence, a hundredth of a step, is left to its sign.
    """
    for name in ("launch", "linear", "attention", "kv"):
        print(f"{name}: {getattr(noisy.terms, name) / getattr(KNOWN, name) - 1:+.1%} off")
        assert getattr(noisy.terms, name) == pytest.approx(getattr(KNOWN, name), rel=0.06), name
    assert noisy.terms.sequence >= 0


def test_its_residuals_are_the_noise_that_was_put_in(noisy: StepTime) -> None:
    """Median of |exp(−N(−s²/2, s)) − 1| for s = 0.2 by a second draw; totals have no bias."""
    draw = np.exp(-np.random.default_rng(1).normal(-0.02, 0.2, 200_000)) - 1
    found = noisy.residuals()
    assert found.steps == 4000
    assert found.median == pytest.approx(np.median(np.abs(draw)), rel=0.05)
    assert found.p90 == pytest.approx(np.percentile(np.abs(draw), 90), rel=0.05)
    assert found.prefill_time is not None and abs(found.prefill_time) < 0.02
    assert found.decode_time is not None and abs(found.decode_time) < 0.02


def test_more_work_never_takes_less_time(noisy: StepTime) -> None:
    """Also where the noise is as large as the steps."""
    for model_of_time in (noisy, fitted(runs(1.0))):
        base = Batch(((512, 4096),), (2048, 4096))
        time = model_of_time.seconds(base)
        assert model_of_time.seconds(replace(base, chunks=((513, 4096),))) >= time
        assert model_of_time.seconds(replace(base, chunks=((512, 4097),))) >= time
        assert model_of_time.seconds(replace(base, contexts=(2048, 4097))) >= time
        assert model_of_time.seconds(replace(base, contexts=(2048, 4096, 1))) >= time


def test_attention_and_cache_are_those_of_the_models_shape() -> None:
    """By ``ModelWork``, which adds layer by layer: with a window in every second layer."""
    slid = model(
        model_type="gemma3_text",
        sliding_window=1024,
        layer_types=["sliding_attention", "full_attention"] * 8,
    )
    shape = shape_of(slid)
    assert {mix.window for mix in shape.mixes} == {None, 1024}
    prefill = shape.row(Batch(((700, 900),), ()))
    whole = slid.prefill(700, 900) + slid.logits(1) * -1
    assert prefill.attention + prefill.linear == pytest.approx(whole.flops)
    assert shape.row(Batch((), (5000,))).kv == pytest.approx(slid.decode_token(5000).bytes)


def test_only_experts_read_other_weights_with_more_tokens() -> None:
    routed = model(
        model_type="mixtral", num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    )
    shape = shape_of(routed)
    few, many = (shape.row(Batch((), (100,) * n)).weights for n in (1, 64))
    expert = 3 * 2048 * 8192 * 2 * 16  # bytes of one expert in all layers
    assert many - few == pytest.approx((8 * (1 - 0.75**64) - 2) * expert)
    assert SHAPE.row(Batch((), (100,))).weights == 0


def test_steps_of_one_load_are_refused() -> None:
    made, _, _ = closed_loop(1, 2000, 64, 2048, 400)
    with pytest.raises(NotEnough, match="one load only"):
        fitted([Timed("one", tuple(made), took(SHAPE, KNOWN, made, 0.1, 1), 0)])


def test_few_steps_are_refused() -> None:
    made, _, _ = closed_loop(2, 2000, 4, 2048, 12)
    with pytest.raises(NotEnough, match="12 engine steps"):
        fitted([Timed("one", tuple(made), took(SHAPE, KNOWN, made, 0.1, 1), 0)])
