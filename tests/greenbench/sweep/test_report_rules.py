"""A point is complete only when the report would use it; the report's own rules say so, as a process."""

from dataclasses import replace
from pathlib import Path

import pytest

from greenbench.contract.new_run import file_entries
from greenbench.contract.run_dir import JsonlWriter
from greenbench.contract.schema import Event
from greenbench.sweep import report_rules
from greenbench.sweep.child_processes import StageError
from greenbench.sweep.report_rules import hold_to_rules, usable_hashes
from tests.fakes.rundirs import MONO_OFFSET_NS, FakeRun, write_run

SOUND = FakeRun()
SHORT = replace(SOUND, measure_s=1.5, repeat=1)  # no steady state in so short a window


def test_a_point_is_held_to_the_reports_rules_as_it_ends(tmp_path: Path) -> None:
    sound, short = write_run(tmp_path, SOUND), write_run(tmp_path, SHORT)
    assert hold_to_rules(sound, sound.manifest()).status == "complete"
    judged = hold_to_rules(short, short.manifest())
    assert (judged.status, judged.invalid_reasons) == ("invalid", ["no_steady_state"])
    assert judged.failure is not None and judged.failure.startswith("no steady state: ")
    assert short.manifest() == judged


def test_a_resumed_sweep_measures_again_what_was_complete_and_is_not_usable(
    tmp_path: Path,
) -> None:
    """16 of 16 were complete, 11 of them invalid in the report, and skipped."""
    sound, short = (write_run(tmp_path, fake).manifest() for fake in (SOUND, SHORT))
    wanted = {sound.config_hash, short.config_hash}
    found, notes = usable_hashes(tmp_path, wanted)
    assert found == {sound.config_hash}
    assert len(notes) == 1
    assert notes[0].startswith(f"{short.run_id} is measured again: no steady state: ")
    assert usable_hashes(tmp_path, {sound.config_hash}) == ({sound.config_hash}, [])


def test_a_point_that_ended_at_its_cap_is_measured_again_under_a_longer_one(tmp_path: Path) -> None:
    """One lacked something at its cap of 40 s, the other had all that was wanted after 40 s."""
    capped, content = (
        write_run(tmp_path, replace(SOUND, cap_s=40.0, repeat=repeat)) for repeat in (0, 1)
    )
    lacking = "the cap of 40 s came first: 99 requests counted in it, 100 are wanted"
    ended_ns = capped.manifest().phases["measure"][1]
    with JsonlWriter(capped.events_path) as events:
        events.write(
            Event(ended_ns, ended_ns - MONO_OFFSET_NS, "cap_reached", {"lacking": lacking})
        )
    files = file_entries(capped, sorted(capped.path.rglob("*.jsonl")))
    capped.write_manifest(capped.manifest().model_copy(update={"files": files}))
    lacks, has = capped.manifest(), content.manifest()
    for cap_s, usable in ((40.0, {lacks.config_hash, has.config_hash}), (80.0, {has.config_hash})):
        caps = {lacks.config_hash: cap_s, has.config_hash: cap_s}
        found, notes = usable_hashes(tmp_path, set(caps), caps)
        assert found == usable
    assert notes == [f"{lacks.run_id} is measured again: {lacking}"]


def test_only_complete_points_are_skipped_and_a_broken_one_costs_itself(tmp_path: Path) -> None:
    complete = write_run(tmp_path, SOUND).manifest()
    runs = [
        write_run(tmp_path, replace(SOUND, repeat=n, status=status))
        for n, status in enumerate(("failed", "invalid", "running"), start=1)
    ]
    others = [run.manifest() for run in runs]
    runs[0].manifest_path.write_text("{")
    found, notes = usable_hashes(tmp_path, {m.config_hash for m in (complete, *others)})
    assert found == {complete.config_hash}
    assert len(notes) == 1 and "its point counts as not measured" in notes[0]


def test_without_an_answer_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, SOUND)

    def fails(*_: object) -> None:
        raise StageError("it broke")

    monkeypatch.setattr(report_rules, "call_json", fails)
    assert hold_to_rules(run, run.manifest()) == run.manifest()
    found, notes = usable_hashes(tmp_path, {run.manifest().config_hash})
    assert found == {run.manifest().config_hash}
    assert notes == [
        "the report's rules could not be asked (it broke); complete points are taken as usable"
    ]
