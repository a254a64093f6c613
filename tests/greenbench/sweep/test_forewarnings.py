"""What a dry run can tell ahead of what the report will lack."""

from pathlib import Path

import pytest

from greenbench.contract.config import PointConfig, ServerRequest, SweepConfig, points_of
from greenbench.contract.manifest import Server
from greenbench.sweep.forewarnings import against, forewarnings, most_requests, of_running_server
from tests.fakes.manifests import manifest


def sweep(**changes: object) -> SweepConfig:
    return SweepConfig.model_validate({
        "name": "s", "models": ["tiny-llama"], "backends": ["sdpa"], "contexts": [256],
        "tasks": ["retrieve"], "loads": [{"users": 1}], "phases": {"measure_s": 120}, **changes,
    })  # fmt: skip


def request(**server: object) -> ServerRequest:
    return ServerRequest.model_validate({
        "model": {"name": "m", "path": "/m", "max_model_len": 8}, "backend": {"name": "sdpa"},
        "server": server,
    })  # fmt: skip


def points(of: SweepConfig) -> list[PointConfig]:
    return points_of(of, request().model, of.contenders[0])


def said(gpus: bool = True, **changes: object) -> list[str]:
    return forewarnings(sweep(**changes), points(sweep(**changes)), gpus)


OPEN = [{"kind": "open", "rate_per_s": 2.0}]


@pytest.mark.parametrize(
    ("changes", "requests"),
    [
        ({}, None),  # the server's pace bounds a closed loop
        ({"tasks": [{"name": "retrieve", "requests": 32}]}, 32),
        ({"loads": OPEN}, 240),  # 2 a second for 120 s
        ({"loads": OPEN, "phases": {"measure_s": 120, "requests": 100}}, 100),
        ({"loads": [{"kind": "open", "rate_per_s": 1, "ramp_to_per_s": 3, "ramp_s": 60}]}, 360),
    ],
)
def test_how_many_requests_a_plan_allows(changes: dict[str, object], requests: int | None) -> None:
    assert most_requests(points(sweep(**changes))[0]) == requests


def test_a_plan_that_can_have_everything_is_told_nothing() -> None:
    assert said(loads=[{"kind": "open", "rate_per_s": 10}]) == []  # 1,200 requests in 120 s


def test_a_window_too_short_for_joules_is_said_where_there_are_cards() -> None:
    assert said(gpus=False, phases={"measure_s": 59}) == []
    (sentence,) = said(phases={"measure_s": 59})
    assert sentence.startswith("'measure_s' is 59: no joules, which need a steady window of 60 s")
    (sentence,) = said(phases={"cap_s": 59})
    assert sentence.startswith("'cap_s' is 59: no joules")
    assert said(phases={}) == []


def test_of_a_point_that_ends_by_itself_only_the_percentile_it_waits_for_is_forewarned() -> None:
    """2 requests/s for 300 s at most: 600, enough for p95 and not for p99."""
    assert said(loads=OPEN, phases={"percentile": 95}) == []
    (sentence,) = said(loads=OPEN, phases={"percentile": 99})
    assert (
        sentence == "retrieve-256-open2: about 600 requests are measured, too few for p99 (1,000)"
    )


def test_percentiles_that_will_be_lacking_are_named_with_what_they_need() -> None:
    (sentence,) = said(loads=OPEN)
    assert (
        sentence == "retrieve-256-open2: about 240 requests are measured, too few for p99 (1,000)"
    )
    (sentence,) = said(tasks=[{"name": "retrieve", "requests": 50}])
    assert sentence.endswith("too few for p99 (1,000), p95 (200), p90 (100)")
    (sentence,) = said(tasks=[{"name": "retrieve", "requests": 5}])
    assert "has no steady window and is invalid" in sentence


def running(**detail: object) -> Server:
    return manifest().server.model_copy(update={"proof_detail": detail})


def test_prefix_caching_of_a_running_server_is_said() -> None:
    attached = request(base_url="http://h:1")
    (sentence,) = against(running(prefix_caching=True), attached)
    assert "has prefix caching on" in sentence and "--no-enable-prefix-caching" in sentence
    wanted = request(base_url="http://h:1", prefix_caching=True)
    for server, asked in (
        (running(prefix_caching=False), attached),
        (running(prefix_caching=None), attached),
        (running(prefix_caching=True), wanted),
        (running(prefix_caching=True), request()),
    ):
        assert against(server, asked) == []


def test_repeats_of_a_running_server_are_one_start() -> None:
    (sentence,) = said(server={"base_url": "http://h:1"}, repeats=3)
    assert sentence.startswith("repeats: 3 at a running server are 3 times the same start")


def test_a_running_server_that_does_not_answer_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (sentence,) = of_running_server(request(base_url="http://127.0.0.1:9"))
    assert "http://127.0.0.1:9" in sentence and "Connection refused" in sentence
    assert list(tmp_path.iterdir()) == []
