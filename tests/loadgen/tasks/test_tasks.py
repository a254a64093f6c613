"""Grading of the first three tasks, and where their facts stand. Expected values are worked out by hand."""

import math
from collections import Counter

import pytest

from loadgen.prompts.build import spread_depth
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply


def prompt_of(task: str, answer: dict, token_ids: list[int] | None = None) -> Prompt:
    ids = token_ids or [1, 2, 3]
    return Prompt(4, task, len(ids), ids, "sha", 16, answer)


def graded(task: str, answer: dict, text: str):
    return grade_reply(prompt_of(task, answer), "r1", text, None)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" 482133.", True),
        (" 482133. The code of owl is 999999.", True),  # decoding runs on past the answer
        (" surely 482133", True),
        (" 4821330.", False),  # longer number
        (" 48213", False),  # cut short
        (" 999999, no, 482133", False),  # the first number counts
        ("\n482133", False),  # the first line counts
        (" none", False),
        ("", False),
    ],
)
def test_retrieve_takes_the_first_number_of_the_first_line(text, right):
    row = graded("retrieve", {"expected": "482133", "depth": 0.5}, text)
    assert (row.correct, row.score) == (right, float(right))


@pytest.mark.parametrize(
    ("text", "right"), [(" none.", True), (" None", True), (" 482133", False), (" nonesuch", False)]
)
def test_retrieve_of_an_absent_subject_wants_none(text, right):
    assert graded("retrieve", {"expected": "none", "depth": None}, text).correct is right


FACTS = {"expected": ["111111", "222222", "333333"]}


@pytest.mark.parametrize(
    ("text", "right", "score", "invented", "in_order"),
    [
        (" 111111 tons.\nFinding 2: 222222\nFinding 3: 333333.", True, 1, [], True),
        (" 111111\n222222\n333333\n444444", True, 1, [], True),  # run on after the last
        (" 222222\n111111\n333333", False, 1, [], False),
        (" 111111\n999999\n333333", False, 2 / 3, ["999999"], True),
        (" 111111\n\n222222 333333", False, 1 / 3, [], True),  # stops at the blank line
        (" 111111 111111 222222", False, 2 / 3, [], False),  # one said twice
        (" nothing", False, 0, [], True),
    ],
)
def test_summary_counts_found_order_and_invented(text, right, score, invented, in_order):
    row = graded("summarize", FACTS, text)
    assert row.correct is right
    assert row.score == pytest.approx(score)
    assert (row.grade["invented"], row.grade["in_order"]) == (invented, in_order)


def scored_body(token_ids: list[int], logprobs: list[float]) -> dict:
    entries = [
        {str(token): {"logprob": value, "rank": 1, "decoded_token": "x"}}
        for token, value in zip(token_ids[1:], logprobs, strict=True)
    ]
    return {"choices": [{"text": "", "prompt_logprobs": [None, *entries]}]}


def test_perplexity_sums_by_position():
    ids = [5, 6, 7, 8, 9, 10]
    prompt = prompt_of("perplexity", {"buckets": 2}, ids)
    row = grade_reply(prompt, "r1", None, scored_body(ids, [-1.0, -2.0, -4.0, -8.0, -16.0]))
    assert (row.correct, row.score) == (None, None)
    assert (row.nll_sum, row.nll_tokens) == (31.0, 5)
    assert row.nll_buckets == [
        {"start": 1, "end": 3, "nll_sum": 3.0, "tokens": 2},
        {"start": 3, "end": 6, "nll_sum": 28.0, "tokens": 3},
    ]
    assert row.grade["logprobs"] == [-1.0, -2.0, -4.0, -8.0, -16.0]


def test_more_buckets_than_tokens_leaves_none_empty():
    ids = [5, 6, 7]
    prompt = prompt_of("perplexity", {"buckets": 8}, ids)
    row = grade_reply(prompt, "r1", None, scored_body(ids, [-1.0, -2.0]))
    assert [bucket["tokens"] for bucket in row.nll_buckets] == [1, 1]
    assert math.fsum(bucket["nll_sum"] for bucket in row.nll_buckets) == row.nll_sum


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": [{"prompt_logprobs": None}]},
        {"choices": [{"prompt_logprobs": [None, {"2": {"logprob": -1}}]}]},  # a token short
        {"choices": [{"prompt_logprobs": [None, {"2": {"logprob": -1}}, {"9": {"logprob": -1}}]}]},
    ],
)
def test_unusable_logprobs_give_null_and_a_reason(body):
    row = grade_reply(prompt_of("perplexity", {"buckets": 2}), "r1", None, body)
    assert (row.nll_sum, row.nll_tokens, row.nll_buckets) == (None, None, None)
    assert "prompt_logprobs" in row.grade["fault"]


@pytest.mark.parametrize("task", TASKS)
def test_a_failed_request_has_no_verdict(task):
    row = grade_reply(prompt_of(task, {}), "r1", None, None)
    assert (row.correct, row.score, row.nll_sum) == (None, None, None)
    assert (row.request_id, row.prompt_index) == ("r1", 4)


def test_depths_fill_every_tenth():
    tenths = Counter(int(spread_depth(index) * 10) for index in range(200))
    assert sorted(tenths) == list(range(10))
    assert max(tenths.values()) - min(tenths.values()) <= 2


def test_bodies_make_all_arms_do_equal_work():
    prompt = prompt_of("retrieve", {})
    body = TASKS["retrieve"].body("m", prompt)
    assert body["prompt"] == prompt.token_ids
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (16, True, 0)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    scored = TASKS["perplexity"].body("m", prompt)
    assert (scored["stream"], scored["max_tokens"], scored["prompt_logprobs"]) == (False, 1, 0)
