"""The long retrievers' card says what was measured, of the weights that are shipped, and the bars hold."""

from pathlib import Path

import pytest

from greenbench.contract.run_dir import file_sha256
from models.retriever_long import card
from models.retriever_long.cells import (
    CELLS,
    FAULT_CELLS,
    LENGTHS,
    Cell,
    by_tenth,
    holds,
    load_results,
)

RESULTS = card.all_results()
SINK_WINDOW = "sink_window-window-1024"
ATTENDING = ("head128", "head64", "hybrid")


def cell_of(model: str, key: str) -> dict[str, object]:
    return RESULTS[model, "torch"]["cells"][key]


def rate(model: str, task: str, context: int) -> float:
    found = RESULTS[model, "torch"]["cells"][f"{task}/{context}/{{}}"]
    assert found["count"] == 200
    assert found["count"] - found["right"] == len(found["wrong"])
    return found["right"] / found["count"]


@pytest.mark.parametrize("model", card.MODELS)
def test_measured_are_the_shipped_weights(model: str) -> None:
    digest = file_sha256(card.HERE / model / "model.safetensors")
    assert {found["weights"] for (name, _), found in RESULTS.items() if name == model} == {digest}


def test_card_holds_the_measured_tables() -> None:
    assert card.table(RESULTS) in card.CARD.read_text()


@pytest.mark.parametrize("model", card.MODELS)
@pytest.mark.parametrize("context", card.NEEDLE_LENGTHS)
def test_needles_of_every_tenth_of_depth_are_found(model: str, context: int) -> None:
    found = cell_of(model, card.NEEDLE.format(context))
    assert found["count"] == 200
    for right, asked in by_tenth(found):
        assert asked >= 19
        assert right / asked >= 0.97


@pytest.mark.parametrize("model", card.MODELS)
def test_several_keys_and_counting_meet_their_bars(model: str) -> None:
    assert rate(model, "multi_key", 8192) >= 0.90
    assert rate(model, "multi_key", 32_768) >= 0.80
    assert rate(model, "frequent_word", 8192) >= 0.60


@pytest.mark.parametrize("model", ATTENDING)
@pytest.mark.parametrize("context", LENGTHS)
def test_models_with_attention_follow_variables(model: str, context: int) -> None:
    assert rate(model, "variables", context) >= 0.90


def test_the_state_space_cannot_follow_variables_and_the_card_says_so() -> None:
    assert rate("mamba2", "variables", 8192) < 0.60
    assert "**`mamba2` cannot follow `variables`**" in card.CARD.read_text()


def right(how: str, task: str, context: int) -> tuple[int, int]:
    found = RESULTS["head64", how]["cells"][f"{task}/{context}/{{}}"]
    return found["right"], found["count"]


@pytest.mark.parametrize("model", card.MODELS)
@pytest.mark.parametrize("task", ["retrieve", "multi_key"])
@pytest.mark.parametrize("context", [2048, 8192])
def test_a_real_server_gave_the_same_right_answers(model: str, task: str, context: int) -> None:
    found = RESULTS[model, "cpu_attn"]["cells"][f"{task}/{context}/{{}}"]
    assert found["right"] == found["count"] >= 6


def test_faults_lose_answers_where_they_should_and_exact_backends_do_not() -> None:
    for task in ("retrieve", "multi_key"):
        for context in (2048, 8192):
            for exact in ("cpu_attn", "sdpa"):
                count, of = right(exact, task, context)
                assert count == of >= 6
        count, of = right("stuck_positions", task, 2048)  # before the positions end
        assert count == of
        assert right("stuck_positions", task, 8192)[0] == 0
        for context in (2048, 8192):
            count, of = right(SINK_WINDOW, task, context)
            assert of - count >= 4
    assert right("drops_a_block", "multi_key", 2048)[0] <= 10
    in_the_block = FAULT_CELLS[-1].key
    assert RESULTS["head64", "cpu_attn"]["cells"][in_the_block]["right"] == 12
    assert RESULTS["head64", "drops_a_block"]["cells"][in_the_block]["right"] == 0


def test_a_cell_not_measured_is_said_and_not_left_out() -> None:
    needle = card.NEEDLE.format(card.NEEDLE_LENGTHS[-1])
    one = {"cells": {needle: {"right": 1, "count": 1, "wrong": []}}}
    few = {key: found | one for key, found in RESULTS.items()}
    assert card.table(few).count("not measured") == (len(CELLS) - 1) * len(card.MODELS)
    assert card.table(few).count("100.0 % of 1 ") == len(card.MODELS)


def test_results_of_other_weights_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.torch.json"
    path.write_text('{"weights": "a", "where": "", "cells": {"retrieve/512/{}": {"count": 9}}}')
    cell = Cell("retrieve", 512, count=9)
    assert holds(load_results(path, "a"), cell)
    assert not holds(load_results(path, "b"), cell)
    assert not holds(load_results(path, "a"), Cell("retrieve", 512, count=10))
