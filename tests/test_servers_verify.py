"""The comparison of two servers' answers: worked-out gaps, divergences and verdicts."""

import json

import pytest

from greenbench.config import BackendChoice, load_model
from greenbench.errors import UserError
from servers.choices import parse_choice, parse_choices, resolve
from servers.verify import (
    OUTPUT_TOKENS,
    Answer,
    Ask,
    Tolerance,
    compare,
    faults,
    judge,
    requests,
    rounding_floor,
)
from servers.verify_run import Order, _window_to_judge, read_answer, summary

EXACT = Tolerance(same_tokens=True, logprob_nats=1e-3)
ROUNDED = Tolerance(same_tokens=False, logprob_nats=0.1)
ASK = Ask("one", "g", tuple(range(10)))


def answer(*steps: dict[int, float]) -> Answer:
    """Greedy: the likeliest token of each step."""
    return Answer(tuple(max(step, key=lambda t: step[t]) for step in steps), steps)


REFERENCE = answer({1: -0.5, 2: -2.0}, {3: -0.25, 4: -1.0}, {5: -0.75, 6: -0.80})


def test_equal_answers():
    row = compare(ASK, REFERENCE, REFERENCE)
    assert (row.agreeing_tokens, row.worst_gap_nats, row.first_divergence) == (3, 0.0, None)
    assert faults(row, EXACT) == []


def test_the_worst_gap_and_where_it_is():
    other = answer({1: -0.5625, 2: -2.0}, {3: -0.75, 4: -1.0}, {5: -0.75, 6: -0.8})
    row = compare(ASK, other, REFERENCE)
    assert (row.worst_gap_nats, row.worst_gap_step) == (0.5, 1)
    [reason] = faults(row, ROUNDED)
    assert reason == "one: log-probabilities differ by 0.5 nats at position 11, allowed are 0.1"


def test_a_near_tie_may_fall_either_way_in_a_short_dtype_only():
    other = answer({1: -0.5, 2: -2.0}, {3: -0.25, 4: -1.0}, {5: -0.80, 6: -0.75})
    row = compare(ASK, other, REFERENCE)
    assert (row.agreeing_tokens, row.first_divergence) == (2, 2)
    assert row.margin_nats == pytest.approx(0.05)  # -0.75 against -0.80 in the reference
    assert faults(row, ROUNDED) == []
    [reason] = faults(row, EXACT)
    assert (
        reason == "one: another token at position 12, the reference preferred its own by 0.05 nats"
    )


def test_a_clear_preference_that_flips_is_a_fault():
    other = answer({2: -0.5, 1: -2.0}, {3: -0.25}, {5: -0.75})
    row = compare(ASK, other, REFERENCE)
    assert row.agreeing_tokens == 0 and row.margin_nats == 1.5
    assert "by 1.5 nats; a near-tie of 0.1 is allowed" in faults(row, ROUNDED)[0]
    stranger = answer({99: -0.1}, {3: -0.25}, {5: -0.75})
    assert "not among the reference's" in faults(compare(ASK, stranger, REFERENCE), ROUNDED)[0]


def test_what_comes_after_a_divergence_is_not_compared():
    other = answer({1: -0.5}, {4: -0.1}, {7: -9.0})
    row = compare(ASK, other, REFERENCE)
    assert row.first_divergence == 1 and row.worst_gap_nats == 0.0


def test_a_shorter_answer_is_a_difference():
    short = Answer(REFERENCE.tokens[:2], REFERENCE.top[:2])
    assert compare(ASK, short, REFERENCE).first_divergence == 2


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
    """A gap of 0.25 nats and a flip of 0.05: 0.25 is the floor, twice that is allowed."""
    rounded = answer({1: -0.75, 2: -2.0}, {3: -0.25, 4: -1.0}, {5: -0.80, 6: -0.75})
    floor = rounding_floor([ASK], {"one": rounded}, {"one": REFERENCE})
    assert floor == 0.25
    assert ROUNDED.above(floor) == Tolerance(same_tokens=False, logprob_nats=0.5)
    assert ROUNDED.above(0.01) == ROUNDED
    flipped = answer({2: -0.5, 1: -2.0}, {3: -0.25}, {5: -0.75})
    assert rounding_floor([ASK], {"one": flipped}, {"one": REFERENCE}) == 1.5


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
    assert found.logprob(1) == -0.2 and found.top[0][9] == -3


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
