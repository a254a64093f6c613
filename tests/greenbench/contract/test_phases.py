"""Phases of a fixed length stay as they were, and those that end by themselves are told from them."""

from typing import Any

import pytest

from greenbench.contract.config import PhaseConfig, PointConfig, parse
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import config_hash

BEFORE = {  # keys and defaults of a point from before there was `measure`
    "warmup_s": 5.0, "measure_s": 30.0, "drain_s": 60.0, "requests": None, "request_timeout_s": 300.0,
}  # fmt: skip


def point(**phases: Any) -> PointConfig:
    return parse(
        PointConfig,
        {
            "sweep": "s", "seed": 1, "repeat": 0, "model": {"name": "m", "path": "/m"},
            "backend": {"name": "a"}, "server": {}, "task": {"name": "t"}, "context_tokens": 4,
            "load": {"users": 1}, "phases": phases, "slo": {}, "telemetry": {}, "prompts_per_point": 1,
        },
        "test",
    )  # fmt: skip


def hashed(of: PointConfig) -> str:
    return config_hash(of.identity())


def test_a_fixed_length_is_written_and_hashed_as_before() -> None:
    assert point(measure_s=30).identity()["phases"] == BEFORE
    assert point(measure_s=30, measure="fixed") == point(measure_s=30)
    assert PhaseConfig.model_validate(BEFORE).measure == "fixed"


def test_without_a_length_a_point_is_measured_until_it_is_enough() -> None:
    phases = point().phases
    assert (phases.auto, phases.longest_s, phases.percentile) == (True, 300, 90)
    assert phases == PhaseConfig.model_validate(phases.model_dump())
    assert set(phases.model_dump()) == {*BEFORE, "measure", "cap_s", "percentile"} - {"measure_s"}


def test_the_cap_is_a_limit_of_time_and_no_other_measurement() -> None:
    assert hashed(point(cap_s=600)) == hashed(point()) != hashed(point(percentile=99))
    assert hashed(point()) != hashed(point(measure_s=300))
    assert point(cap_s=600).phases.longest_s == 600


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ({"measure": "auto", "measure_s": 9}, "the longest of 'measure: auto' is 'cap_s'"),
        ({"measure": "fixed"}, "'measure: fixed' needs 'measure_s'"),
        ({"measure_s": 9, "cap_s": 9}, "'cap_s' belongs to 'measure: auto'"),
        ({"measure_s": 9, "percentile": 50}, "'percentile' belongs to 'measure: auto'"),
        ({"percentile": 80}, "phases.percentile"),
        ({"cap_s": 0}, "phases.cap_s"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(phases: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        point(**phases)
    assert said in str(raised.value) and "\n" not in str(raised.value)
