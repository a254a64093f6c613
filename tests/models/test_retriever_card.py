"""The retriever's model card says what was measured, of the weights that are shipped, and the bars hold."""

import json

import pytest

from greenbench.contract.run_dir import file_sha256
from models.retriever import measure as card

MEASURED = json.loads(card.MEASURED.read_text())


def test_measured_are_the_shipped_weights():
    assert MEASURED["weights"] == file_sha256(card.FOLDER / "model.safetensors")


def test_card_holds_the_measured_tables():
    assert card.table(MEASURED) in card.CARD.read_text()


def rate(cell: card.Cell) -> float:
    found = MEASURED["cells"][cell.key]
    assert found["count"] >= 25
    assert found["count"] - found["right"] == len(found["wrong"])
    return found["right"] / found["count"]


@pytest.mark.parametrize(
    ("cell", "bar"),
    [
        *((cell, 0.99) for cell in card.SPREAD),
        *((cell, 0.95) for cell in card.MULTI),
        *((cell, 0.90) for cell in card.ABSENT),
    ],
)
def test_each_cell_meets_its_bar(cell, bar):
    assert rate(cell) >= bar


@pytest.mark.parametrize("cell", [*card.SPREAD, *card.MULTI, *card.ABSENT])
def test_every_cell_with_a_bar_stands_on_all_prompts(cell):
    assert MEASURED["cells"][cell.key]["count"] == 200


def test_needles_of_every_tenth_of_depth_are_found():
    columns = [card.by_tenth(MEASURED["cells"][cell.key]) for cell in card.SPREAD]
    for tenth in zip(*columns, strict=True):
        for right, asked in tenth:
            assert asked >= 19
            assert right / asked >= 0.99


def test_a_wrong_answer_counts_in_its_own_tenth():
    # index 1 stands at depth 0.618, index 3 at 0.854
    found = {"right": 2, "count": 4, "wrong": [1, 3]}
    rows = card.by_tenth(found)
    assert (rows[6], rows[8]) == ((0, 1), (0, 1))
    assert sum(asked for _, asked in rows) == 4


def test_parts_go_on_where_measuring_stopped():
    a, b, c = (card.Cell(task, 512, count=n) for task, n in (("a", 75), ("b", 50), ("c", 25)))
    assert [(cell.task, until) for cell, until in card.parts([[a, b], [c]])] == [
        *(("a", 25), ("b", 25), ("a", 50), ("b", 50), ("a", 75)),
        ("c", 25),
    ]


def test_a_cell_not_measured_is_said_and_not_left_out():
    empty = MEASURED | {"cells": {}}
    assert card.table(empty).count("not measured") == len(card.CELLS)
