"""The comparison of two servers' answers: worked-out gaps, divergences and verdicts."""

import json
from dataclasses import replace

import pytest

from greenbench.contract.config import BackendChoice
from greenbench.contract.errors import UserError
from greenbench.contract.forms import RoundingFloor, StepsOff, Tolerance
from servers.__main__ import _comparison, _parser
from servers.backends.choice import parse_choice, parse_choices, resolve
from servers.verify.compare import (
    OUTPUT_TOKENS,
    Answer,
    Ask,
    above_rounding,
    compare,
    doubts,
    faults,
    flat_tolerance,
    judge,
    requests,
    rounding,
    rounding_floor,
    steps_off,
    usual_tolerance,
)
from servers.verify.run import WrongAnswer, _window_to_judge, read_answer, summary

EXACT = flat_tolerance(1e-3)
ROUNDED = flat_tolerance(0.1)


def ask(name: str = "one", prompt_tokens: int = 10) -> Ask:
    return Ask(name, "g", (1,) * prompt_tokens, candidates=(1, 2), forced=1)


def answer(*steps: tuple[float, float]) -> Answer:
    """Log-probabilities of candidates 1 and 2, step by step."""
    return Answer(tuple({1: first, 2: second} for first, second in steps))


REFERENCE = answer((-0.5, -2.0), (-0.25, -1.0), (-0.75, -0.8125))


def test_equal_answers():
    row = compare(ask(), REFERENCE, REFERENCE)
    assert (row.gaps_nats, row.typical_nats, row.worst_nats, row.same_choice) == ((0,) * 3, 0, 0, 3)
    assert faults([row], EXACT) == []


def test_a_steps_gap_is_over_all_candidates_and_the_typical_one_its_median():
    """Off by 0.3 and 0.4: the root mean square is sqrt((0.09 + 0.16) / 2); the median of 0, 2, that."""
    other = answer((-0.5, -2.0), (-0.55, -1.4), (-2.75, -2.8125))
    row = compare(ask(), other, REFERENCE)
    assert row.gaps_nats == pytest.approx((0.0, 0.125**0.5, 2.0))
    assert row.typical_nats == pytest.approx(0.125**0.5)
    assert (row.worst_nats, row.worst_step, row.worst_position) == (2.0, 2, 12)


def test_a_near_tie_may_fall_either_way():
    """Guards against a fault where both say the same within what is allowed: -0.75 against -0.8125."""
    other = answer((-0.5, -2.0), (-0.25, -1.0), (-0.8125, -0.75))
    row = compare(ask(), other, REFERENCE)
    assert (row.same_choice, row.worst_nats) == (2, 0.0625)
    assert faults([row], ROUNDED) == []


def test_in_float32_every_candidate_of_every_step_counts():
    other = answer((-0.5, -2.0), (-0.25, -1.5), (-0.75, -0.8125))
    [reason] = faults([compare(ask(), other, REFERENCE)], EXACT)
    assert reason == "one: log-probabilities differ by 0.5 nats at position 11, allowed are 0.001"


def drifting(*gaps: float) -> Answer:
    """Off by these from steps of -1 and -1: a step's gap is the number itself."""
    return answer(*((-1.0 - gap, -1.0 + gap) for gap in gaps))


STILL = drifting(0.0, 0.0, 0.0, 0.0)


def test_a_request_that_is_off_throughout_is_a_fault_and_a_step_that_rounding_flips_is_none():
    tolerance = Tolerance(typical_nats=0.2, worst_nats=5.0, off=StepsOff(first=1, decode=1))
    flipped = compare(ask(), drifting(4.0, 0.1, 4.0, 0.1), STILL)  # median (0.1 + 4) / 2
    steady = compare(ask(), drifting(0.1, 0.1, 4.0, 0.1), STILL)
    assert faults([steady], tolerance) == []
    [reason] = faults([flipped], tolerance)
    assert reason == "one: log-probabilities typically differ by 2.05 nats, allowed are 0.2"
    [reason] = faults([steady], replace(tolerance, worst_nats=3.5))
    assert reason == "one: log-probabilities differ by 4 nats at position 12, allowed are 3.5"


def test_steps_that_are_off_are_counted_first_tokens_apart_from_decoded_ones():
    """Guards against a kernel that is wrong at a prompt's last row, or once in a block, in every request."""
    tolerance = Tolerance(typical_nats=0.2, worst_nats=3.0, off=StepsOff(first=1, decode=2))
    first = compare(ask(), drifting(3.0, 0.0, 0.1, 0.2), STILL)
    edge = compare(ask(), drifting(0.1, 0.0, 3.0, 0.1), STILL)
    assert steps_off([first, edge, edge], 0.2) == StepsOff(first=1, decode=2)
    assert faults([first, edge, edge], tolerance) == []
    assert faults([first, first], tolerance) == [
        "2 of 2 first tokens differ by more than 0.2 nats, allowed are 1"
    ]
    assert faults([edge, edge, edge], tolerance) == [
        "3 of 9 decoded tokens differ by more than 0.2 nats, allowed are 2"
    ]


def test_rounding_widens_the_tolerance_and_never_narrows_it():
    """Typical gaps 0.125 and 0.25, at worst 3: 0.5 and 6 are allowed; a first step and two others exceed 0.5.

    Of two first steps (1 + 1) and twice, of 206 decoded ones 2 + 2 and a hundredth or two are allowed.
    """
    asks = [ask("sharp"), ask("flat")]
    still = drifting(*104 * [0.0])
    sharp = drifting(3.0, *101 * [0.125], 2.0, 2.0)
    flat = drifting(0.5, *103 * [0.25])
    answers = {"sharp": sharp, "flat": flat}
    floor, tolerance = rounding(asks, answers, dict.fromkeys(answers, still), ROUNDED)
    assert floor == RoundingFloor(
        typical_nats=0.25, worst_nats=3.0, off=StepsOff(first=1, decode=2)
    )
    assert tolerance == Tolerance(0.5, 6.0, StepsOff(first=2 + 2, decode=4 + 2))
    # of 1,000 decoded steps a hundredth is more than two
    assert above_rounding(ROUNDED, floor, 28, 1000).off == StepsOff(first=4, decode=14)
    assert above_rounding(ROUNDED, RoundingFloor(0.01, 0.01, StepsOff(0, 0)), 28, 100) == Tolerance(
        0.1, 0.1, StepsOff(2, 2)
    )
    # off is what a typical gap may not be, 0.1 however little rounding does
    few = rounding_floor([compare(ask(), drifting(0.09, 0.01, 0.01, 0.11), STILL)], least_nats=0.1)
    assert (few.typical_nats, few.off) == (pytest.approx(0.05), StepsOff(first=0, decode=1))


def test_backends_that_agree_against_the_reference_cast_doubt_on_it():
    """Guards against nine right kernels told wrong by a reference that is wrong at one length of prompt."""
    tolerance = Tolerance(typical_nats=0.2, worst_nats=1.0, off=StepsOff(2, 2))
    asks = [ask("short"), ask("long")]
    right = {"short": STILL, "long": drifting(4.0, 0.0, 0.0, 0.0)}
    near = {"short": STILL, "long": drifting(4.1, 0.0, 0.0, 0.0)}
    wrong = {"short": STILL, "long": drifting(-4.0, 0.0, 0.0, 0.0)}
    reference = {"short": STILL, "long": STILL}
    [found] = doubts(asks, {"a": right, "b": near, "c": reference}, reference, tolerance)
    labels, line = found
    assert labels == ["a", "b"] and line.startswith(
        "long: a, b differ from the reference and agree with each other"
    )
    # one alone, two that differ from each other too, or a minority say nothing
    assert doubts(asks, {"a": right}, reference, tolerance) == []
    assert doubts(asks, {"a": right, "b": wrong}, reference, tolerance) == []
    rest = dict.fromkeys("cde", reference)
    assert doubts(asks, {"a": right, "b": near, **rest}, reference, tolerance) == []


def long_answer(gap: float = 0.0) -> Answer:
    return Answer(OUTPUT_TOKENS * ({1: -0.5 - gap, 2: -1.5},), cached_tokens=7)


def test_a_windowed_backend_is_judged_inside_its_window_only():
    asks = [ask("short", 52), ask("long", 53)]
    answers = {"short": long_answer(), "long": long_answer(gap=5.0)}
    reference = {"short": long_answer(), "long": long_answer()}
    inside = judge(asks, answers, reference, EXACT, window=52 + OUTPUT_TOKENS)
    assert (inside.verdict, inside.compared, inside.not_comparable) == ("pass", 1, 1)
    exact = judge(asks, answers, reference, EXACT)
    assert (exact.verdict, exact.worst_gap_nats) == ("fail", 5.0)
    assert exact.worst_gap_position == 53 and exact.cached_tokens == 14
    assert (exact.steps, exact.same_choice) == (2 * OUTPUT_TOKENS, OUTPUT_TOKENS)
    assert exact.off == StepsOff(first=1, decode=OUTPUT_TOKENS - 1)
    nothing = judge(asks, answers, reference, EXACT, window=10)
    assert nothing.verdict == "not_comparable" and "window of 10" in nothing.reasons[0]
    assert "beyond its window" in summary("x", inside)
    assert "1 of 2 first tokens and 47 of 94 decoded ones are off" in summary("x", exact)
    assert summary("x", nothing).startswith("x: not_comparable; 2 requests reach")


def test_rounding_is_that_of_the_requests_inside_the_window():
    """Guards against a windowed backend that is allowed the rounding of requests it is not judged by."""
    asks = [ask("short", 52), ask("long", 53)]
    still = {"short": long_answer(), "long": long_answer()}
    rounded = {"short": long_answer(gap=0.25), "long": long_answer(gap=8.0)}
    inside = judge(asks, still, still, ROUNDED, rounded, window=52 + OUTPUT_TOKENS)
    # one candidate of two is off by 0.25
    assert inside.rounding_floor and inside.tolerance
    assert inside.rounding_floor.typical_nats == pytest.approx(0.25 / 2**0.5)
    assert inside.tolerance.typical_nats == pytest.approx(2 * 0.25 / 2**0.5)
    assert judge(asks, still, still, ROUNDED).rounding_floor is None


def test_tolerances_go_by_both_dtypes():
    assert usual_tolerance("float32", "float32") == EXACT
    assert usual_tolerance("bfloat16", "float32") == ROUNDED
    assert usual_tolerance("bfloat16", "bfloat16") == ROUNDED


def test_the_requests_cover_what_breaks_backends():
    asks = requests(vocab_size=4096)
    assert len(asks) >= 20 and len({ask.name for ask in asks}) == len(asks)
    assert asks == requests(vocab_size=4096) != requests(vocab_size=4096, seed=2)
    groups = [ask.group for ask in asks]
    assert groups.count("together") > 4 and groups.count("staggered") > 4
    lengths = {len(ask.prompt) for ask in asks}
    assert 1 in lengths and {127, 128, 129} < lengths and max(lengths) == 2000
    first, again = (
        [a.prompt for a in asks if a.group == f"prefix-{t}"] for t in ("first", "again")
    )
    assert first == again and len({prompt[:640] for prompt in first}) == 1
    assert len({prompt for prompt in first}) == 3
    assert all(3 <= token < 600 for ask in requests(600) for token in ask.prompt)
    [chosen] = {ask.candidates for ask in requests(600)}
    assert len(set(chosen)) == 20 and all(3 <= token < 600 for token in chosen)
    assert {ask.forced for ask in requests(600)} == set(chosen)  # each is forced once at least


@pytest.mark.parametrize(
    ("written", "reference_window", "window"),
    [
        ("sink_window(sink=0,window=256)", 256, None),  # the reference model's own
        ("sink_window(sink=4,window=256)", 256, 256),
        ("sink_window(sink=0,window=256)", None, 256),
    ],
)
def test_where_a_windowed_backend_must_agree(
    written: str, reference_window: int | None, window: int | None
):
    assert _window_to_judge(reference_window, resolve(parse_choice(written))[1]) == window


@pytest.mark.parametrize(
    ("device", "flags", "reference", "dtypes", "measures_rounding"),
    [
        ("cpu", [], "cpu_attn", ("float32", "float32"), False),
        ("cuda", [], "sdpa_gather", ("bfloat16", "float32"), True),  # most kernels have no float32
        ("cpu", ["--dtype", "bfloat16"], "cpu_attn", ("bfloat16", "float32"), True),
        ("cuda", ["--reference", "triton"], "triton", ("bfloat16", "float32"), True),
        ("cuda", ["--tolerance", "0.3"], "sdpa_gather", ("bfloat16", "float32"), False),
    ],
)
def test_what_is_compared_with_what_unless_told(
    device, flags, reference, dtypes, measures_rounding
):
    """Guards against a GPU on which the README's command is refused for want of cpu_attn."""
    args = _parser().parse_args(["verify", "--backends", "sdpa", *flags])
    comparison = _comparison(args, device)
    assert comparison.reference == BackendChoice(name=reference)
    assert (comparison.dtype, comparison.reference_dtype) == dtypes
    assert comparison.measures_rounding == measures_rounding


def response(forced: int, told: dict[int, float]) -> dict:
    top = {f"token_id:{token}": value for token, value in told.items()}
    choice = {"token_ids": 48 * [forced], "logprobs": {"top_logprobs": 48 * [top]}}
    body = {
        "choices": [choice],
        "usage": {"prompt_tokens_details": {"cached_tokens": 128}},
    }
    return json.loads(json.dumps(body))


def test_a_response_is_read():
    found = read_answer(response(1, {1: -0.1, 2: -3}), ask())
    assert found == Answer(48 * ({1: -0.1, 2: -3},), cached_tokens=128)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (response(2, {1: -0.1, 2: -3}), "tokens 2, 2, 2, 2, 2, ... and not 48 times with token 1"),
        (response(1, {1: -0.1, 9: -3}), "without the log-probabilities of tokens 2 at step 0"),
    ],
)
def test_an_answer_to_something_else_is_refused(body: dict, words: str):
    """Guards against a server that takes no bias, or tells other tokens: nothing of it may be compared."""
    with pytest.raises(WrongAnswer, match=words):
        read_answer(body, ask())


def test_backends_as_a_person_writes_them():
    assert parse_choice(" sdpa ") == BackendChoice(name="sdpa")
    written = "cpu_attn,sink_window(sink=4,window=2048,free_blocks=true),sdpa"
    found = parse_choices(written)
    assert [choice.name for choice in found] == ["cpu_attn", "sink_window", "sdpa"]
    assert found[1].options == {"sink": 4, "window": 2048, "free_blocks": True}
    assert parse_choice(found[1].label) == found[1]
    with pytest.raises(UserError, match="is no backend"):
        parse_choice("sdpa(window")
    with pytest.raises(UserError, match="wants name=value"):
        parse_choice("sdpa(window)")
