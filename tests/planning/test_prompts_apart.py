"""A policy compares answers to the same prompts: another set of them is left out, and said."""

from dataclasses import replace
from pathlib import Path

from planning.evidence import gather
from tests.outside.generator import write
from tests.outside.sweeps import starts
from tests.planning.sweeps import CROSSING, LONG, points


def test_candidates_that_were_given_other_prompts_are_left_out(tmp_path: Path) -> None:
    """alpha and beta had the prompts of seed 7; alpha and gamma, a day later, those of seed 8."""
    for seed, costs in ((7, CROSSING), (8, {"alpha": CROSSING["alpha"], "gamma": LONG})):
        later_s, n = (0, 3) if seed == 7 else (86_400, 1)
        made = starts(points(costs), n, sd=0.005, seed=seed)
        write(
            tmp_path,
            [
                replace(p, folder=f"of-{seed}", seed=seed, started_s=p.started_s + later_s)
                for p in made
            ],
        )
    found = gather(tmp_path, "e2e")
    assert {found.labels[each] for each in found.candidates} == {"alpha", "beta"}
    assert {point.scenario.workload.seed for point in found.points} == {7}
    assert all(found.costs(c, place) for c in found.candidates for place in found.places)
    (told,) = found.refused
    assert "prompts of seed 8" in told and "alpha, gamma there cannot be compared" in told
