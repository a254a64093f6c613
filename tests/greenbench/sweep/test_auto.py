"""Points that end by themselves: whole sweeps, as processes, against the golden server in place of vLLM."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.config import PhaseConfig
from greenbench.contract.enough import Question
from greenbench.contract.installation import ROOT
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import RunDir, list_runs
from greenbench.sweep.enough import JOULES_S, Judge, Wanted, joules_to_measure, left_undone
from greenbench.sweep.runner import worth_another_try
from tests.fakes.manifests import manifest
from tests.fakes.openai_server import GoldenServer, Script, Seen, well_behaved
from tests.fakes.rundirs import FakeRun, point_config, write_run
from tests.fakes.waiting import HUNG_S

COMMAND = [sys.executable, "-c", "from greenbench.cli import main; main()", "run"]
FAST = well_behaved(0.1, 0.02)  # 8 tokens in 0.24 s


def run(
    folder: Path, script: Callable[[Seen], Script], phases: dict[str, object]
) -> tuple[subprocess.CompletedProcess[str], list[RunDir]]:
    with GoldenServer(script) as server:
        sweep = {
            "name": "auto", "models": ["retriever"], "backends": ["sdpa"], "contexts": [256],
            "tasks": [{"name": "retrieve", "output_tokens": 8}], "loads": [{"users": 4}],
            "prompts_per_point": 4, "server": {"base_url": server.url},
            "phases": {"warmup_s": 0, "drain_s": 5, **phases},
        }  # fmt: skip
        (folder / "auto.yaml").write_text(json.dumps(sweep))
        done = subprocess.run(
            [*COMMAND, str(folder / "auto.yaml"), "--out", str(folder / "out")],
            capture_output=True, text=True, timeout=2 * HUNG_S, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    return done, list_runs(folder / "out")


def length_s(of: Manifest) -> float:
    start, end = of.phases["measure"]
    return (end - start) / 1e9


def event(of: RunDir, name: str) -> dict[str, Any]:
    events = [json.loads(line) for line in of.events_path.open()]
    (found,) = [e for e in events if e["name"] == name]
    return found["detail"]


def test_a_point_ends_when_its_rules_hold_and_says_that_it_lives(tmp_path: Path) -> None:
    """4 users, 0.24 s a request: 100 whole cycles take 6 s at least, and the cap is far."""
    done, (point,) = run(tmp_path, FAST, {})
    assert done.returncode == 0, done.stdout + done.stderr
    found = point.manifest()
    assert found.status == "complete" and 6 <= length_s(found) < 200
    told = event(point, "measured_enough")
    assert told["completions"] >= 100 and told["steady_s"] <= length_s(found)
    rows = [json.loads(r) for path in point.requests_dir.glob("*") for r in path.open()]
    assert {row["error_type"] for row in rows} == {None}  # what was open had its drain
    assert re.search(r"s left at most, \d+ open, \d+ done, last TTFT \d+ ms\n", done.stdout)
    assert "cap" not in done.stdout


def test_a_point_that_hits_its_cap_stays_and_says_what_it_lacks(tmp_path: Path) -> None:
    done, (point,) = run(tmp_path, FAST, {"cap_s": 20, "percentile": 99})
    assert done.returncode == 0, done.stdout + done.stderr
    found = point.manifest()
    assert found.status == "complete" and length_s(found) == pytest.approx(20, abs=1e-3)
    said = left_undone(point)
    assert said is not None and said.startswith("the cap of 20 s came first: ")
    assert said.endswith(" requests counted in it, 1,000 are wanted")
    (line,) = [line for line in done.stdout.splitlines() if ": complete, " in line]
    assert line.endswith(f" ({said})")


def test_a_point_without_a_steady_state_is_measured_once_more_with_twice_the_cap(
    tmp_path: Path,
) -> None:
    """A server that takes twice as long from the fourth second on, and then stays so: before, some 64 of
    the 100 requests have ended.
    """
    slow, began_s = well_behaved(0.25, 0.04), [0.0]

    def script(seen: Seen) -> Script:
        if "-locust-" not in seen.request_id:  # the probe
            return FAST(seen)
        began_s[0] = began_s[0] or time.monotonic()
        return (FAST if time.monotonic() - began_s[0] < 4 else slow)(seen)

    done, points = run(tmp_path, script, {"cap_s": 8})
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (point.manifest() for point in points)
    assert (first.status, second.status) == ("invalid", "complete")
    assert first.config_hash == second.config_hash and 8 < length_s(second) < 16.01
    (note,) = [line for line in done.stdout.splitlines() if "measured once more" in line]
    assert note.startswith(f"note: {first.run_id}: invalid (")
    assert "the mean request time drifted" in note
    assert note.endswith("measured once more, for 16 s at most")
    assert "1 point measured, 0 already complete, 0 failures" in done.stdout


@pytest.mark.parametrize(
    ("phases", "joules", "wanted"),
    [
        ({}, False, Wanted(0.0, 100)),
        ({"percentile": 50}, False, Wanted(0.0, 6)),
        ({"percentile": 50}, True, Wanted(JOULES_S + 2, 30)),
        ({"percentile": 99}, True, Wanted(JOULES_S + 2, 1000)),
        ({"requests": 32}, False, Wanted(0.0, 32)),  # more are never sent
    ],
)
def test_what_a_window_must_hold(phases: dict[str, Any], joules: bool, wanted: Wanted) -> None:
    assert Wanted.of(PhaseConfig.model_validate(phases), joules) == wanted


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        ({}, False),
        ({"facts": {"gpus": []}, "counter": {"status": "unavailable"}}, False),
        ({"facts": {"gpus": [{"uuid": "a"}]}, "counter": {"status": "available"}}, True),
        ({"facts": {"gpus": [{"uuid": "a"}]}, "counter": {"status": "unavailable"}}, False),
        (
            {"facts": {"gpus": [{"uuid": "a", "visible": False}]}, "counter": {"status": "available"}},
            False,
        ),
    ],
)  # fmt: skip
def test_joules_are_wanted_of_a_card_that_the_server_may_use(
    tmp_path: Path, sources: dict[str, Any], wanted: bool
) -> None:
    of = write_run(tmp_path, FakeRun(measure_s=2))
    (of.telemetry_dir / "sources.json").write_text(json.dumps(sources))
    assert joules_to_measure(of) == wanted


def auto_point(**phases: Any) -> Any:
    point = point_config(FakeRun())
    return point.model_copy(update={"phases": PhaseConfig.model_validate(phases)})


@pytest.mark.parametrize(
    ("status", "reasons", "again"),
    [
        ("invalid", ["no_steady_state"], True),
        ("invalid", ["no_steady_state", "clock_stepped"], True),
        ("invalid", ["backend_mismatch"], False),
        ("invalid", ["no_steady_state", "prefix_cache_hits"], False),
        ("failed", ["server_died"], False),
        ("complete", [], False),
    ],
)
def test_only_a_fault_of_times_is_worth_another_try(
    status: str, reasons: list[str], again: bool
) -> None:
    ended = manifest().model_copy(update={"status": status, "invalid_reasons": reasons})
    longer = worth_another_try(auto_point(cap_s=100), ended)
    assert (longer is not None) == again
    assert longer is None or longer.phases.cap_s == 200
    assert worth_another_try(auto_point(measure_s=100), ended) is None


def test_a_judge_that_is_gone_gives_no_answer(tmp_path: Path) -> None:
    question = Question(path=str(tmp_path), seconds=0, completions=0)
    with Judge() as judge:
        judge.start()
        assert judge._process is not None
        judge._process.kill()
        judge._process.wait()
        assert judge.last_answer(question, lambda: None) is None
