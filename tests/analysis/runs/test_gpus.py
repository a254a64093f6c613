"""Which cards a run is about, from what its recording says of them."""

from typing import Any

import pandas as pd
import pytest

from analysis.runs.gpus import certain_gpus, untold_gpus, used_gpus
from greenbench.contract.forms import Sources

ROWS = pd.DataFrame({"gpu_uuid": ["GPU-a", "GPU-b", "GPU-a"]})
NOTHING = Sources.model_validate({})
WHY = "CUDA's order cannot be told"


def told(a: dict[str, Any], b: dict[str, Any], why: str | None = None) -> Sources:
    gpus = [{"uuid": "GPU-a"} | a, {"uuid": "GPU-b"} | b]
    return Sources.model_validate({"facts": {"gpus": gpus, "which_gpus": why}})


@pytest.mark.parametrize(
    ("sources", "used", "of_one", "of_two"),
    [
        (told({"visible": True}, {"visible": False}), ["GPU-a"], True, False),
        # where its processes were seen counts before what it may use
        (told({"visible": True}, {"visible": True, "own_pids": [7]}), ["GPU-b"], True, True),
        (told({"visible": None}, {"visible": None}, WHY), ["GPU-a", "GPU-b"], False, True),
        (told({"visible": None}, {"visible": None, "own_pids": [7]}, WHY), ["GPU-b"], True, True),
        (told({"visible": False}, {"visible": False}, "elsewhere"), [], False, False),
        (NOTHING, ["GPU-a", "GPU-b"], False, True),
    ],
)
def test_cards_are_certain_when_seen_or_when_all_are_needed(
    sources: Sources, used: list[str], of_one: bool, of_two: bool
) -> None:
    assert used_gpus(ROWS, sources) == used
    for cards, certain in ((1, of_one), (2, of_two)):
        assert certain_gpus(ROWS, sources, cards) == (used if certain else None)


def test_the_reason_stands_until_the_cards_are_known() -> None:
    maybe = told({"visible": None}, {"visible": None}, WHY)
    assert (untold_gpus(maybe, 1), untold_gpus(maybe, 2), untold_gpus(maybe, None)) == (
        WHY,
        None,
        WHY,
    )
    assert untold_gpus(told({"visible": True}, {"visible": True}), 1) is None
    assert NOTHING.facts.possible_cards is None and untold_gpus(NOTHING, 1) is None


def test_processes_on_a_card_that_the_server_was_not_shown_are_another_s() -> None:
    """In a container a pid of the host may be that of a process here."""
    sources = told({"visible": True}, {"visible": False, "own_pids": [7]})
    assert "GPU-b" in (untold_gpus(sources, 1) or "")
    assert certain_gpus(ROWS, sources, 1) is None
