"""The comparison of two servers' answers: worked-out gaps, divergences and verdicts."""

import json

import pytest

from greenbench.config import BackendChoice, load_model
from greenbench.errors import UserError
from servers.__main__ import _comparison, _parser
from servers.choices import parse_choice, parse_choices, resolve
from servers.verify import (
    OUTPUT_TOKENS,
    Answer,
    Ask,
    Gaps,
    Tolerance,
    compare,
    faults,
    judge,
    requests,
    rounding_floor,
)
from servers.verify_run import Order, _window_to_judge, read_answer, summary

EXACT = Tolerance.flat(same_tokens=True, nats=1e-3)
ROUNDED = Tolerance.flat(same_tokens=False, nats=0.1)
ASK = Ask("one", "g", tuple(range(10)))


def answer(*steps: dict[int, float]) -> Answer:
    """Greedy: the likeliest token of each step."""
    return Answer(tuple(max(step, key=lambda t: step[t]) for step in steps), steps)


REFERENCE = answer({1: -0.5, 2: -2.0}, {3: -0.25, 4: -1.0}, {5: -0.75, 6: -0.80})


def test_equal_answers():
    row = compare(ASK, REFERENCE, REFERENCE)
    assert (row.agreeing_tokens, row.gaps, row.first_divergence) == (3, Gaps(0.0, 0.0), None)
    assert faults(row, EXACT) == []


def test_the_worst_gap_and_where_it_is():
    other = answer({1: -0.5625, 2: -2.0}, {3: -0.75, 4: -1.0}, {5: -0.75, 6: -0.8})
    row = compare(ASK, other, REFERENCE)
    assert (row.gaps.worst_nats, row.worst_gap_step) == (0.5, 1)
    [reason] = faults(row, ROUNDED)
    assert reason == "one: log-probabilities differ by 0.5 nats at position 11, allowed are 0.1"


def test_every_candidate_counts_and_not_only_the_chosen():
    other = answer({1: -0.5, 2: -2.0}, {3: -0.25, 4: -4.0}, {5: -0.75, 6: -0.8})
    row = compare(ASK, other, REFERENCE)
    assert (row.first_divergence, row.gaps.worst_nats, row.worst_gap_step) == (None, 3.0, 1)


def test_a_near_tie_may_fall_either_way_in_a_short_dtype_only():
    other = answer({1: -0.5, 2: -2.0}, {3: -0.25, 4: -1.0}, {5: -0.80, 6: -0.75})
    row = compare(ASK, other, REFERENCE)
    assert (row.agreeing_tokens, row.first_divergence) == (2, 2)
    assert row.margin_nats == pytest.approx(0.05)  # -0.75 against -0.80 in the reference
    assert faults(row, ROUNDED) == []
    [reason] = faults(row, Tolerance.flat(same_tokens=True, nats=0.1))
    assert (
        reason == "one: another token at position 12, the reference preferred its own by 0.05 nats"
    )


def test_a_clear_preference_that_flips_is_a_fault():
    """At the flip both still have one context, so its log-probabilities count: -2.0 against -0.5."""
    other = answer({2: -0.5, 1: -2.0}, {3: -0.25}, {5: -0.75})
    row = compare(ASK, other, REFERENCE)
    assert row.agreeing_tokens == 0 and row.margin_nats == 1.5
    assert (row.gaps.worst_nats, row.worst_gap_step) == (1.5, 0)
    worst, typical = faults(row, ROUNDED)
    assert "differ by 1.5 nats at position 10" in worst
    assert typical == "one: log-probabilities typically differ by 1.5 nats, allowed are 0.1"


def test_one_bad_step_is_the_worst_gap_and_a_bad_request_the_typical_one():
    """Root mean squares of two candidates off by d are d; the median of 0, 0.25, 2 is 0.25."""
    three = answer({1: -0.5, 2: -2.0}, {3: -0.5, 4: -4.0}, {5: -1.0, 6: -4.0})
    other = answer({1: -0.5, 2: -2.0}, {3: -0.75, 4: -3.75}, {5: -3.0, 6: -6.0})
    row = compare(ASK, other, three)
    assert row.gaps == Gaps(worst_nats=2.0, typical_nats=0.25)
    assert faults(row, Tolerance(False, worst_nats=2.0, typical_nats=0.25)) == []
    [reason] = faults(row, Tolerance(False, worst_nats=2.0, typical_nats=0.2))
    assert "typically differ by 0.25 nats, allowed are 0.2" in reason
    [reason] = faults(row, Tolerance(False, worst_nats=1.9, typical_nats=0.25))
    assert "differ by 2 nats at position 12, allowed are 1.9" in reason


def test_a_candidate_that_one_server_does_not_tell_is_a_fault():
    stranger = answer({99: -0.1}, {3: -0.25}, {5: -0.75})
    assert "differ by inf nats" in faults(compare(ASK, stranger, REFERENCE), ROUNDED)[0]


def test_what_comes_after_a_divergence_is_not_compared():
    other = answer({1: -0.5, 2: -2.0}, {4: -0.25, 3: -1.0}, {7: -9.0})
    row = compare(ASK, other, REFERENCE)
    assert row.first_divergence == 1 and row.gaps.worst_nats == 0.75


def test_a_shorter_answer_is_a_difference():
    short = Answer(REFERENCE.tokens[:2], REFERENCE.logprobs[:2])
    row = compare(ASK, short, REFERENCE)
    assert row.first_divergence == 2
    assert faults(row, ROUNDED) == ["one: one answer ends at position 12, the other goes on"]


def long_answer(gap: float = 0.0) -> Answer:
    return Answer((1,) * OUTPUT_TOKENS, ({1: -0.5 - gap},) * OUTPUT_TOKENS, cached_tokens=7)


def test_a_windowed_backend_is_judged_inside_its_window_only():
    asks = [Ask("short", "g", (1,) * 52), Ask("long", "g", (1,) * 53)]
    answers = {"short": long_answer(), "long": long_answer(gap=5.0)}
    reference = {"short": long_answer(), "long": long_answer()}
    inside = judge(asks, answers, reference, EXACT, window=52 + OUTPUT_TOKENS)
    assert (inside["verdict"], inside["compared"], inside["not_comparable"]) == ("pass", 1, 1)
    exact = judge(asks, answers, reference, EXACT)
    assert (exact["verdict"], exact["worst_gap_nats"]) == ("fail", 5.0)
    assert exact["worst_gap_position"] == 53 and exact["cached_tokens"] == 14
    nothing = judge(asks, answers, reference, EXACT, window=10)
    assert nothing["verdict"] == "not_comparable" and "window of 10" in nothing["reasons"][0]
    assert "beyond its window" in summary({"label": "x", **inside})


def test_tolerances_go_by_both_dtypes():
    assert Tolerance.of("float32", "float32") == EXACT
    assert Tolerance.of("bfloat16", "float32") == ROUNDED
    assert Tolerance.of("bfloat16", "bfloat16") == ROUNDED


def test_rounding_widens_the_tolerance_and_never_narrows_it():
    """Of two requests the larger of each gap is the floor, and twice that is allowed."""
    asks = [Ask(name, "g", (1,)) for name in ("sharp", "flat")]
    still = answer(*3 * [{1: -0.5, 2: -2.0}])
    sharp = answer({1: -0.5, 2: -2.0}, {1: -0.5, 2: -2.0}, {1: -3.5, 2: -5.0})
    flat = answer(*3 * [{1: -0.625, 2: -2.125}])
    floor = rounding_floor(asks, {"sharp": sharp, "flat": flat}, {"sharp": still, "flat": still})
    assert floor == Gaps(worst_nats=3.0, typical_nats=0.125)
    assert ROUNDED.above(floor) == Tolerance(False, worst_nats=6.0, typical_nats=0.25)
    assert ROUNDED.above(Gaps(0.01, 0.01)) == ROUNDED


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


@pytest.mark.parametrize(
    ("written", "reference_model", "window"),
    [
        ("sink_window(sink=0,window=256)", "tiny-mistral", None),  # that model's own window is 256
        ("sink_window(sink=4,window=256)", "tiny-mistral", 256),
        ("sink_window(sink=0,window=256)", "tiny-llama", 256),
    ],
)
def test_where_a_windowed_backend_must_agree(
    written: str, reference_model: str, window: int | None
):
    order = Order(
        model=load_model("tiny-llama"),
        backends=[parse_choice(written)],
        reference=parse_choice("cpu_attn"),
        reference_model=load_model(reference_model),
        dtype="float32",
        reference_dtype="float32",
    )
    assert _window_to_judge(order, resolve(order.backends[0])[1]) == window


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
    order = _comparison(args, device)
    assert order.reference == BackendChoice(name=reference)
    assert (order.dtype, order.reference_dtype) == dtypes
    assert order.measures_rounding == measures_rounding


def test_a_response_is_read():
    body = {
        "choices": [
            {
                "token_ids": [5, 6],
                "logprobs": {
                    "top_logprobs": [{"token_id:5": -0.1, "token_id:9": -3}, {"token_id:6": -0.2}]
                },
            }
        ],
        "usage": {"prompt_tokens_details": {"cached_tokens": 128}},
    }
    found = read_answer(json.loads(json.dumps(body)))
    assert found.tokens == (5, 6) and found.cached_tokens == 128
    assert found.logprobs == ({5: -0.1, 9: -3}, {6: -0.2})


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
