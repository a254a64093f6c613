"""A sweep of two candidates whose curves cross once, and the policy that is made of it."""

import pytest

from greenbench.contract.policy import Policy
from planning.evidence import Evidence, gather
from planning.fit import policy_of
from tests.planning.sweeps import CROSSING, points, written


@pytest.fixture(scope="session")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return gather(written(tmp_path_factory.mktemp("crossed"), points(CROSSING)), "e2e")


@pytest.fixture(scope="session")
def policy(evidence: Evidence) -> Policy:
    found = policy_of(evidence, on_fresh=False)
    assert found is not None and found.decided
    return found
