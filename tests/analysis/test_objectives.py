"""The registry of objectives: what every entry must hold, and what those of one request say."""

import pytest

from analysis.objectives import BY_NAME, OBJECTIVES, Objective
from analysis.report import formats


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_every_objective_can_be_told(objective: Objective) -> None:
    """Guards against an entry that only a report with such a winner, or such a figure, would trip over."""
    assert BY_NAME[objective.name] is objective
    assert objective.worse.split(" ", 1)[1] == objective.better.split(" ", 1)[1]
    adjective = "higher" if objective.higher_is_better else "lower"
    assert objective.better.split(" ")[0] in (adjective, "fewer")
    assert formats.measured(None, objective.unit) == formats.DASH
    assert formats.measured(2.0, objective.unit).startswith("2")
    assert objective.latency is None or objective.quantity
