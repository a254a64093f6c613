"""Part 2's bars on 8 small sweeps a scenario; scripts/claim_rates.py takes 200 of all shapes.

Seeds are fixed. By the binomial, of 8 sweeps with a false claim in 5 % each more than 2 have one with 0.6 %
chance, of 40 more than 6 with 0.3 %. A truth found in 50 % is found in none of 8 with 0.4 %.
"""

import pytest
from scipy.stats import binom

from tests.outside.rates import SCENARIOS, SMALL, Outcome, judge

SWEEPS = 8
MOST_FALSE = 0.05
LEAST_FOUND = 0.5
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
BETTER = [name for name in BY_NAME if "output" in BY_NAME[name].finds]
EQUAL = [name for name in BY_NAME if name not in BETTER]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    return {
        name: [judge(scenario, number, SMALL) for number in range(SWEEPS)]
        for name, scenario in BY_NAME.items()
    }


@pytest.mark.parametrize("name", BY_NAME)
def test_false_claims_of_a_scenario(outcomes: dict[str, list[Outcome]], name: str) -> None:
    false = [o.false for o in outcomes[name] if o.false]
    assert len(false) <= binom.ppf(0.98, SWEEPS, MOST_FALSE), false


def test_false_claims_of_all(outcomes: dict[str, list[Outcome]]) -> None:
    false = [o.false for name in EQUAL for o in outcomes[name] if o.false]
    assert len(false) <= binom.ppf(0.99, SWEEPS * len(EQUAL), MOST_FALSE), false


def test_points_are_usable(outcomes: dict[str, list[Outcome]]) -> None:
    """Claims are not avoided by refusing to measure: at least 95 % of the points have figures."""
    everyone = [o for found in outcomes.values() for o in found]
    assert sum(o.unusable for o in everyone) <= 0.05 * sum(o.points for o in everyone)


@pytest.mark.parametrize("name", BETTER)
def test_a_true_difference_is_found(outcomes: dict[str, list[Outcome]], name: str) -> None:
    hits = sum(bool(o.found) for o in outcomes[name])
    assert hits >= binom.ppf(0.02, SWEEPS, LEAST_FOUND), hits
