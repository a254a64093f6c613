"""A policy is of one kind of machine: the same card in two hosts is two kinds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from greenbench.contract.errors import UserError
from planning.evidence import gather
from tests.outside.generator import write
from tests.outside.sweeps import starts
from tests.planning.sweeps import CROSSING, points


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two starts on a host of the generator's 16 cores, two on one of 3."""
    root = tmp_path_factory.mktemp("hosts")
    for folder, later_s in (("one", 0), ("other", 86_400)):
        made = starts(points(CROSSING), 2, sd=0.005, seed=11)
        write(root, [replace(p, folder=folder, started_s=p.started_s + later_s) for p in made])
    for manifest in (root / "other").rglob("manifest.json"):
        told = json.loads(manifest.read_text())
        told["host"]["cores"] = 3
        manifest.write_text(json.dumps(told))
    return root


def test_several_kinds_of_machine_are_told_and_one_is_asked_for(two_hosts: Path) -> None:
    with pytest.raises(UserError, match=r"several kinds of machine .*3 cores.*a policy is for one"):
        gather(two_hosts, "e2e")
    with pytest.raises(UserError, match=r"--hardware wants what was measured .*found 'B200'"):
        gather(two_hosts, "e2e", hardware="B200")


def test_the_named_one_is_the_only_one_that_counts(two_hosts: Path) -> None:
    found = gather(two_hosts, "e2e", hardware="(3 cores)")
    assert {point.identity.device.kind.cores for point in found.points} == {3}
    assert len(found.blocks) == 2
    assert all(found.costs(c, place) for c in found.candidates for place in found.places)
