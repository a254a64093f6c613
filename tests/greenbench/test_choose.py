"""What ``greenbench choose`` plans: from a person's words and the table of backends."""

from typing import Any

import pytest

from greenbench.choose import (
    best_of,
    common_execution,
    default_contexts,
    parse_backends,
    parse_contexts,
    parse_slo,
)
from greenbench.cli import parse_duration
from greenbench.contract.config import BackendChoice
from greenbench.contract.errors import UserError


def row(name: str, vllm_name: str, **changes: Any) -> dict[str, Any]:
    base = {
        "name": name, "vllm_name": vllm_name, "ours": False, "exact": True,
        "flash_attn_version": None, "executions": ["eager", "piecewise", "full"],
    }  # fmt: skip
    return {**base, **changes}


ROWS = [
    row("flash_attn", "FLASH_ATTN"),
    row("flash_attn2", "FLASH_ATTN", flash_attn_version=2),
    row("flash_attn3", "FLASH_ATTN", flash_attn_version=3),
    row("flashinfer", "FLASHINFER"),
    row("sdpa", "CUSTOM", ours=True, executions=["eager", "piecewise"]),
    row("gather", "CUSTOM", ours=True, executions=["eager"]),
    row("sink", "CUSTOM", ours=True, exact=False),
]


def choices(*names: str) -> list[BackendChoice]:
    return [BackendChoice(name=name) for name in names]


def names(found: list[BackendChoice]) -> list[str]:
    return [choice.name for choice in found]


def test_vllms_own_exact_backends_are_compared_each_version_once() -> None:
    everything = choices(*(each["name"] for each in ROWS))
    assert names(best_of(everything, ROWS)) == ["flash_attn2", "flash_attn3", "flashinfer"]


def test_without_a_version_of_its_own_the_row_that_leaves_it_to_vllm_stays() -> None:
    assert names(best_of(choices("flash_attn", "flashinfer"), ROWS)) == ["flash_attn", "flashinfer"]


def test_a_lone_backend_of_vllm_is_compared_with_one_of_ours() -> None:
    assert names(best_of(choices("flashinfer", "sdpa", "gather", "sink"), ROWS)) == [
        "flashinfer",
        "sdpa",
    ]
    assert best_of(choices("sink"), ROWS) == []


def test_the_execution_is_one_that_all_can_run() -> None:
    assert common_execution(choices("flash_attn3", "flashinfer"), ROWS, gpus=True) == "full"
    assert common_execution(choices("flash_attn3", "sdpa"), ROWS, gpus=True) == "piecewise"
    assert common_execution(choices("sdpa", "gather"), ROWS, gpus=True) == "eager"
    assert common_execution(choices("flash_attn3", "own.yaml"), ROWS, gpus=True) == "eager"
    assert common_execution(choices("flash_attn3"), ROWS, gpus=False) == "eager"


@pytest.mark.parametrize(
    ("window", "contexts"),
    [
        (None, (2048, 8192, 32768)),
        (131_072, (2048, 8192, 32768)),
        (32_768, (2048, 8192)),  # an answer has no room after 32,768 tokens
        (2048 + 512, (2048,)),
        (1024, (512,)),
    ],
)
def test_default_contexts_leave_room_for_the_answer(
    window: int | None, contexts: tuple[int, ...]
) -> None:
    assert default_contexts(window) == contexts


def test_lengths_bounds_and_times_are_read_as_people_write_them() -> None:
    assert parse_contexts("8k, 2k,2048,32768") == (2048, 8192, 32768)
    slo = parse_slo("ttft=2,tpot=50ms,e2e=1.5s")
    assert (slo.ttft_s, slo.tpot_s, slo.e2e_s) == (2.0, 0.05, 1.5)
    assert [parse_duration(text) for text in ("30m", "1h30m", "90s", "2H")] == [
        1800,
        5400,
        90,
        7200,
    ]
    assert names(list(parse_backends("a,own.yaml(tile=64)"))) == ["a", "own.yaml"]


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (parse_contexts, "2k,long", "found 'long'"),
        (parse_contexts, "0", "found '0'"),
        (parse_slo, "ttft", "found 'ttft'"),
        (parse_slo, "ttft=fast", "found 'ttft=fast'"),
        (parse_slo, "ttft=0", "ttft_s"),
        (parse_duration, "30", "found '30'"),
        (parse_duration, "0m", "found '0m'"),
        (parse_backends, "a(b", "'a(b' is no backend"),
    ],
)
def test_what_cannot_be_read_is_said(read: Any, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        read(text)
