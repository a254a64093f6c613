"""The gate bars each fault where it is wrong and no exact backend, as the long retrievers' card tells."""

import json
from pathlib import Path

import pytest

from models.retriever_long import card, verdicts
from models.retriever_long.verdicts import Verdict, Verdicts

H200 = verdicts.read(verdicts.VERDICTS / "h200.json")
CPU = verdicts.read(verdicts.VERDICTS / "cpu.json")
LONG = (2048, 8192, 32_768)
FREE = {"proven", "reference"}


def standings(found: Verdicts, model: str, backend: str, kv_cache: str = "auto") -> list[str]:
    """By length, the shortest first."""
    return [
        row.standing
        for row in found.rows
        if (row.model, row.backend, row.kv_cache) == (model, backend, kv_cache)
    ]


def barred(found: Verdicts, *who: str) -> list[bool]:
    told = standings(found, *who)
    assert set(told) <= FREE | {"disqualified"}  # nothing is left open
    return [each == "disqualified" for each in told]


@pytest.mark.parametrize("model", ["retriever-32k", "retriever-32k-head128"])
@pytest.mark.parametrize("backend", ["sdpa_gather", "flash_attn3", "triton"])
def test_exact_backends_stand_at_every_length(model: str, backend: str) -> None:
    assert barred(H200, model, backend) == [False] * len(LONG)


def test_flashinfer_stands_at_every_length() -> None:
    assert barred(H200, "retriever-32k", "flashinfer") == [False] * len(LONG)


@pytest.mark.parametrize(
    ("model", "backend"),
    [
        ("retriever-32k", "flash_attn3"),
        ("retriever-32k", "triton"),
        ("retriever-32k-head128", "flash_attn3"),
    ],
)
def test_fp8_keys_and_values_stand_as_they_are(model: str, backend: str) -> None:
    assert standings(H200, model, backend, "fp8") == ["proven"] * len(LONG)


@pytest.mark.parametrize(
    ("model", "fault", "wrong"),
    [
        ("retriever-32k", "sink_window(window=4096)", [False, True, True]),
        ("retriever-32k-head128", "sink_window(window=4096)", [False, True, True]),
        ("retriever-32k", "stuck_positions(last=4096)", [False, True, True]),
        ("retriever-32k", "stuck_positions(last=8448)", [False, False, True]),
        ("retriever-32k-head128", "stuck_positions(last=8448)", [False, False, True]),
        ("retriever-32k", "drops_a_block", [True, True, True]),
    ],
)
def test_faults_are_barred_on_a_gpu_from_the_length_on_at_which_they_are_wrong(
    model: str, fault: str, wrong: list[bool]
) -> None:
    assert barred(H200, model, fault) == wrong


@pytest.mark.parametrize("backend", ["flash_attn3", "triton"])
def test_bad_scales_are_barred_and_the_same_weights_unquantised_are_not(backend: str) -> None:
    model = "retriever-32k-bad-scales"
    assert barred(H200, model, backend, "fp8") == [True] * len(LONG)
    assert barred(H200, model, "sdpa_gather", "bfloat16") == [False] * len(LONG)


@pytest.mark.parametrize(
    ("model", "backend", "kv_cache", "wrong"),
    [
        ("retriever-32k", "cpu_attn", "auto", [False, False]),
        ("retriever-32k", "cpu_attn", "fp8", [False, False]),
        ("retriever-32k", "sink_window(window=4096)", "auto", [False, True]),
        ("retriever-32k", "stuck_positions(last=4096)", "auto", [False, True]),
        ("retriever-32k", "drops_a_block", "auto", [True, True]),
        ("retriever-32k-bad-scales", "cpu_attn", "bfloat16", [False, False]),
        ("retriever-32k-bad-scales", "cpu_attn", "fp8", [True, True]),
    ],
)
def test_the_gate_says_the_same_on_a_cpu_up_to_8k(
    model: str, backend: str, kv_cache: str, wrong: list[bool]
) -> None:
    assert barred(CPU, model, backend, kv_cache) == wrong


def test_card_holds_what_the_gate_said() -> None:
    assert card.gate_tables() in card.CARD.read_text()


def point(compared_as: str, task: str, right: int, **given: object) -> dict[str, object]:
    settings = {"extra_args": given.pop("flags", [])}
    return {
        "compared_as": compared_as,
        "context_tokens": 2048,
        "answers": {"prompts": 30, "correct": right},
        "workload": {"task": task, "params": given.pop("params", {})},
        "device": {"kind": {"gpus": ["Card"]}},
        "candidate": {
            "model": "m",
            "backend": "mine",
            "options": given.pop("options", {}),
            "kv_cache_dtype": "auto",
            "settings": settings,
            "vllm_version": "9.9",
        },
    }


def test_a_summary_is_reduced_to_what_was_answered_and_where_it_stands(tmp_path: Path) -> None:
    spoiled = point("a", "variables", 0) | {"answers": None}  # the gate was not given it either
    summary = {
        "standings": [
            {"backend": "a", "context_tokens": 2048, "kind": "disqualified"},
            {"backend": "b", "context_tokens": 2048, "kind": "proven"},
        ],
        "points": [
            point("a", "retrieve", 12, options={"window": 64, "sink": 4}),
            point("a", "retrieve", 3, params={"depth": 0.5}, options={"window": 64, "sink": 4}),
            spoiled,
            point("b", "retrieve", 30, flags=["--flag"]),
        ],
    }
    path = tmp_path / "verdicts" / "x.json"
    verdicts.write(path, verdicts.reduced([summary]))
    found = verdicts.read(path)
    assert found.where == "vLLM 9.9, Card"
    assert found.rows == (
        Verdict("m", "mine --flag", "auto", 2048, "proven", (("retrieve", 30, 30),)),
        Verdict(
            "m",
            "mine(sink=4,window=64)",
            "auto",
            2048,
            "disqualified",
            (("retrieve", 12, 30), ("retrieve at depth 0.5", 3, 30)),
        ),
    )
    assert verdicts.table(found).splitlines()[-2:] == [
        "| m | mine --flag | auto | proven |",
        "| m | mine(sink=4,window=64) | auto | **disqualified**, retrieve at depth 0.5 3 of 30 |",
    ]
    assert json.loads(path.read_text())["rows"][0]["standing"] == "proven"
