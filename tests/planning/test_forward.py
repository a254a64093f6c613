"""Exact batches of ``vllm bench forward``: what the file says, what it adds to a fit, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greenbench.contract.errors import UserError
from planning.batches import Batch, Timed
from planning.forward import read_forward
from tests.planning.steps import KNOWN, SHAPE, candidate, closed_loop, fitted, took

FORWARD = replace(KNOWN, launch=0.0015, sequence=4e-6)  # without the host's 0.5 ms and sampling


def case(
    name: str, *requests: tuple[int, int], seconds: float, **more: object
) -> dict[str, object]:
    """As vLLM 0.33 writes it; requests: (query, tokens in the cache after the step)."""
    rows = [
        {"query_len": q, "kv_len": k, "num_draft_tokens": 0, "chunked": False} for q, k in requests
    ]
    rank = {
        "num_tokens": sum(q for q, _ in requests),
        "kv_blocks": 9,
        "routing": "real",
        "latency_us": {"median": 1e6 * seconds, "sample_spread_pct": 0.1},
    }
    return {"case": name, "requests": rows, "median_us": 1e6 * seconds, "ranks": [rank], **more}


def cases() -> list[dict[str, object]]:
    batches = {
        **{f"decode{n}@{k}": [(1, k)] * n for n in (1, 16, 64) for k in (1024, 16_384)},
        **{f"prefill{q}": [(q, q)] for q in (512, 2048)},
        **{f"chunk{k}": [(2048, k)] for k in (8192, 32_768)},
        "mix": [(1024, 1024), *[(1, 4096)] * 8],
    }
    return [case(name, *rows, seconds=seconds_of(rows)) for name, rows in batches.items()]


def seconds_of(rows: list[tuple[int, int]]) -> float:
    chunks = tuple((q, k - q) for q, k in rows if q > 1)
    return FORWARD.seconds(SHAPE.row(Batch(chunks, tuple(k for q, k in rows if q == 1))))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "f.json").write_text(json.dumps(cases()))
    return tmp_path / "f.json"


def test_a_case_is_its_chunks_and_its_contexts(path: Path) -> None:
    found = read_forward(path)
    assert found.batches[-1] == Batch(((1024, 0),), (4096,) * 8)
    assert found.batches[-2] == Batch(((2048, 30_720),), ())
    assert found.seconds[-1] == pytest.approx(seconds_of([(1024, 1024), *[(1, 4096)] * 8]))


def test_it_tells_apart_what_the_steps_leave_mixed(path: Path) -> None:
    """Prompts of one length: noise of 20 % hides what a query-key pair takes, the forwards do not."""
    runs = []
    for users in (1, 4):
        made, _, _ = closed_loop(users, 2048, 64, 2048, 300)
        runs.append(Timed(str(users), tuple(made), took(SHAPE, KNOWN, made, 0.2, users), 0))
    alone, both = fitted(runs).terms, fitted(runs, read_forward(path)).terms
    true = (KNOWN.linear, KNOWN.attention, KNOWN.kv)
    off = [np.array((each.linear, each.attention, each.kv)) / true - 1 for each in (alone, both)]
    assert np.ptp(off[1]) < 1e-6 and np.abs(off[1]).max() < 0.1 < np.abs(off[0]).max()
    assert both.launch == pytest.approx(KNOWN.launch, rel=0.05)


def test_forwards_of_another_model_are_refused(path: Path) -> None:
    """Their attention takes fifty times as long beside their linear layers: a run of long prompts says no."""
    own, exact = candidate(1), read_forward(path)
    told = own.told(exact).exact
    assert told is not None and len(told) == len(exact.batches)
    pairs = np.array([SHAPE.row(batch).attention for batch in exact.batches])
    other = replace(exact, seconds=exact.seconds + 49 * FORWARD.attention * pairs)
    with pytest.raises(UserError, match=r"f\.json: its batches are not of alpha"):
        own.told(other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ('{"cases": []}', "a list of cases"),
        ("", "not JSON"),
        ("[]", "at least 8 cases .* found 0, 0 of them with a prompt"),
        (json.dumps(cases()[:3]), "found 3, 0 of them with a prompt, and decodes of 2 numbers"),
        (json.dumps(cases()[6:10] * 2), "found 8, 8 of them with a prompt, and decodes of 0 numbers"),
        (json.dumps([*cases(), case("v", (1, 9), seconds=float("inf"))]), "11.median_us: .*finite"),
        (json.dumps([*cases(), case("v", (512, 100), seconds=1)]), "'v': .* 512 is wanted, found 100"),
        (json.dumps([{"case": "a"}]), "requests"),
        (json.dumps([*cases(), case("v", (4, 900), seconds=1, ranks=[{"num_tokens": 9}])]), "9 tokens"),
        (
            json.dumps([case("v", (4, 9), seconds=1, requests=[
                {"query_len": 4, "kv_len": 9, "num_draft_tokens": 3}])]),
            "verifies drafts",
        ),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_one_sentence(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "f.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_forward(path)
