"""What of a sweep fits into a time: by arithmetic on known seconds."""

from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.config import ModelConfig, SweepConfig, parse
from greenbench.contract.errors import UserError
from greenbench.sweep.order import ServerStart, expand
from greenbench.sweep.stopwatch import Stopwatch
from greenbench.sweep.time_budget import (
    AROUND_S,
    BOOT_S,
    JOULES_S,
    STEADY_S,
    STOP_S,
    Times,
    estimate,
    fitting,
    guess_s,
    minutes,
    total_s,
    trimmed,
    whole,
)

MODEL = ModelConfig(name="m", path="/m", max_model_len=65_536)
BOOT = 40.0
POINT = 60.0


def sweep(**changes: Any) -> SweepConfig:
    base = {
        "name": "s", "models": ["m"], "backends": ["a", "b"], "repeats": 3,
        "contexts": [2048, 8192, 32768], "tasks": ["retrieve"], "loads": [{"users": 1}, {"users": 8}],
        "phases": {"warmup_s": 5, "measure_s": 30},
    }  # fmt: skip
    return parse(SweepConfig, {**base, **changes}, "test")


def work(config: SweepConfig) -> list[tuple[ServerStart, tuple[Any, ...]]]:
    return [(start, start.points) for start in expand(config, [MODEL], config.contenders)]


def known(config: SweepConfig) -> Times:
    """Every boot takes 40 s, every point 60 s."""
    starts = expand(config, [MODEL], config.contenders)
    return Times(
        {start.server: BOOT for start in starts},
        {(start.server, point.workload): POINT for start in starts for point in start.points},
    )


def test_a_server_found_at_its_address_teaches_nothing_about_a_boot(tmp_path: Path) -> None:
    """Guards against `--within` that reckons a second for a boot, because another sweep attached."""
    (tmp_path / "attached").mkdir()
    (tmp_path / "started").mkdir()
    running = sweep(backends=["a"], server={"base_url": "http://127.0.0.1:1"})
    attached = Stopwatch(tmp_path / "attached", "host", [])
    attached.booted(work(running)[0][0], 0.5)
    start = work(sweep())[0][0]
    later = Stopwatch(tmp_path / "started", "host", [])
    assert later.times.boot(start.server) == BOOT_S + STOP_S
    later.booted(start, 30.0)
    assert later.times.boot(start.server) == 30.0 + STOP_S


def test_a_sweeps_time_is_that_of_its_boots_and_points() -> None:
    config = sweep()
    starts, points = 3 * 2, 3 * 2 * 3 * 2
    expected = starts * (BOOT + STOP_S) + points * POINT
    assert total_s(work(config), known(config)) == pytest.approx(expected)
    assert estimate(work(config), known(config)) == "about 40 min: 6 server starts, 36 points"
    one = work(config)[:1]
    assert (
        estimate([(one[0][0], one[0][1][:1])], known(config))
        == "about 2 min: 1 server start, 1 point"
    )
    # at a running server nothing is booted
    attached = work(sweep(backends=["a"], repeats=1, server={"base_url": "http://127.0.0.1:1"}))
    assert total_s(attached, known(config)) == 6 * POINT
    assert estimate(attached, known(config)) == "about 6 min: 0 server starts, 6 points"
    # nothing known: the phases as they are asked for
    guessed = starts * (BOOT_S + STOP_S) + points * (5 + 30 + AROUND_S)
    assert total_s(work(config), Times()) == pytest.approx(guessed)


def test_a_number_of_requests_is_guessed_by_its_tokens_up_to_the_phase() -> None:
    phases = {"warmup_s": 0, "measure_s": 30, "requests": 10}
    short = sweep(contexts=[6000], repeats=1, loads=[{"users": 1}], phases=phases)
    assert total_s(work(short), Times()) == pytest.approx(2 * (BOOT_S + STOP_S + 10 + AROUND_S))
    assert total_s(work(short), Times(gpus=True)) == pytest.approx(
        2 * (BOOT_S + STOP_S + 1.5 + AROUND_S)
    )


# of one repeat: 2 × (45 + 6 × 60) = 810 s; of one context 2 × (45 + 2 × 60) = 330 s; one load 210 s
@pytest.mark.parametrize(
    ("within_s", "repeats", "contexts", "loads"),
    [
        (3 * 810, 3, (2048, 8192, 32768), 2),
        (3 * 810 - 1, 2, (2048, 8192, 32768), 2),
        (810, 1, (2048, 8192, 32768), 2),
        (809, 1, (2048, 32768), 2),  # 2 × (45 + 4 × 60) = 570
        (569, 1, (32768,), 2),
        (329, 1, (32768,), 1),
        (210, 1, (32768,), 1),
    ],
)
def test_repeats_go_first_then_contexts_then_loads(
    within_s: float, repeats: int, contexts: tuple[int, ...], loads: int
) -> None:
    config = sweep()
    found = fitting(config, work(config), known(config), within_s)
    assert (found.repeats, found.contexts, len(found.loads)) == (repeats, contexts, loads)
    kept = [point for _, points in found.of(work(config)) for point in points]
    assert len(kept) == repeats * 2 * len(contexts) * loads
    assert {p.backend.name for p in kept} == {"a", "b"}  # evenly over the candidates
    assert total_s(found.of(work(config)), known(config)) <= within_s


def test_what_is_left_out_is_said_and_too_little_time_is_refused() -> None:
    config = sweep()
    found = fitting(config, work(config), known(config), 569)
    assert trimmed(whole(config), found) == (
        "to fit the time, for all candidates alike: 1 of 3 repeats; no context of 2,048, 8,192 tokens; "
        "run again to go on"
    )
    assert trimmed(whole(config), whole(config)) is None
    with pytest.raises(UserError, match=r"about 4 min are needed .*, and there are 3 min"):
        fitting(config, work(config), known(config), 209)


def test_a_part_that_is_measured_already_is_no_part_that_fits() -> None:
    """Of the longest context nothing is pending: what is left is too long, and said to be."""
    config = sweep(repeats=1, contexts=[2048, 32768], loads=[{"users": 1}])
    left = [(s, [p for p in own if p.context_tokens == 2048]) for s, own in work(config)]
    assert fitting(config, left, known(config), 2 * (45 + 60)).contexts == (2048, 32768)
    with pytest.raises(UserError, match="about 4 min are needed"):
        fitting(config, left, known(config), 100)


@pytest.mark.parametrize(
    ("seconds", "said"), [(45, "45 s"), (720, "12 min"), (11_400, "3 h 10 min")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert minutes(seconds) == said


@pytest.mark.parametrize(
    ("phases", "gpus", "seconds"),
    [
        ({"measure_s": 40}, True, 40),
        ({}, True, JOULES_S),
        ({}, False, STEADY_S),
        ({"cap_s": 20}, True, 20),
    ],
)
def test_a_point_that_ends_by_itself_is_guessed_by_what_it_waits_for(
    phases: dict[str, float], gpus: bool, seconds: float
) -> None:
    (start, *_) = expand(sweep(phases={"warmup_s": 5, **phases}), [MODEL], sweep().contenders)
    assert guess_s(start.points[0], gpus) == pytest.approx(5 + seconds + AROUND_S)
