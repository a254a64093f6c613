"""What is read out of a body: prompt, model and limits, without decoding what need not be."""

import json
from typing import Any

import pytest

from gateway.request import Kind, Malformed, read_request


def asked(kind: Kind = "completions", **body: Any):
    return read_request(kind, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [([], 0), ([7], 1), ([1, 2, 3], 3), ([[1, 2], [3, 4, 5]], 3), ([[]], 0), (None, 0)],
)
def test_token_ids_are_counted_and_of_several_prompts_the_longest(prompt: Any, tokens: int) -> None:
    assert asked(prompt=prompt).prompt.tokens == tokens


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_spaces_between_ids_do_not_count(separators: tuple[str, str]) -> None:
    body = json.dumps({"prompt": list(range(500))}, separators=separators, indent=1).encode()
    assert read_request("completions", body).prompt.tokens == 500


def test_text_is_as_long_as_its_json() -> None:
    for text in ("plain", "Zeilen\n\n", "日本語"):
        assert asked(prompt=text).prompt.text_bytes == len(json.dumps(text))
    longest = asked(prompt=["a", "bbb", "cc"]).prompt
    assert longest.raw == b'"bbb"'
    assert longest.tokens is None


def test_images_of_a_chat_are_not_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    parts = [{"type": "text", "text": "what is this?"}, image]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}]
    prompt = asked("chat", messages=messages).prompt
    assert prompt.text_bytes == len("what is this?") + len("a cat")
    assert not prompt.whole
    plain = asked("chat", messages=messages[1:]).prompt
    assert plain.whole
    assert plain.text_bytes == len(json.dumps(messages[1:]))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": 7, "max_tokens": 9}, 7),
        ({"max_tokens": None}, None),
        ({"max_tokens": True}, None),  # the pool refuses it
        ({"max_tokens": "9"}, None),
        ({"max_tokens": -1}, None),
    ],
)
def test_expected_output_is_the_requests_own_limit(limits: Any, expected: int | None) -> None:
    assert asked(prompt=[1], **limits).expected_output_tokens == expected


def test_the_model_is_text_or_not_there() -> None:
    assert asked(prompt=[1], model="m").model == "m"
    assert asked(prompt=[1], model=3).model is None
    assert asked(prompt=[1]).model is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b'{"prompt": [[1], "a"]}', b'{"user": "\xff"}', b"[" * 10**6]
)
def test_what_is_no_request_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_request("completions", body)
