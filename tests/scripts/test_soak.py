"""The soak's own judgement: what it must see is planted; and a quarter of a minute of it for real."""

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import read_jsonl
from scripts.soak.accounts import (
    MIB,
    Broken,
    Growth,
    Hole,
    Slope,
    explained,
    failures,
    gaps,
    growth,
    logged,
    none_missing,
    once,
    unbroken,
    unseen,
)
from scripts.soak.faults import Kind, schedule
from scripts.soak.judge import flat
from scripts.soak.rig import Rig, Wanted
from tests.fakes.pages import check_closed


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (once("", ["a", "b"]), True),
        (once("", ["a", "b", "a"]), False),
        (none_missing("", ["a", "b"], ["b", "a", "c"]), True),
        (none_missing("", ["a", "b"], ["a"]), False),
        (unbroken("", [2, 0, 1, 1]), True),
        (unbroken("", [0, 2]), False),
        (unbroken("", []), False),
    ],
)
def test_a_record_that_is_lost_or_doubled_is_seen(check: object, holds: bool) -> None:
    assert getattr(check, "holds") is holds  # noqa: B009


def test_a_line_of_the_access_log_is_an_answer_only_where_a_load_asked() -> None:
    """Two records, one good; a gateway that died before one line may have one line less."""

    def line(method: str, status: int = 200) -> dict[str, object]:
        return {"method": method, "ended": "complete", "status": status}

    records = [{"error_type": None}, {"error_type": "cut"}]
    probes = [line("GET")] * 9
    assert logged("", [*probes, line("POST")], records, kills=0).holds
    assert not logged("", [*probes, line("POST", 503)], records, kills=0).holds
    assert logged("", probes, records, kills=1).holds
    assert not logged("", [line("POST")] * 3, records, kills=0).holds


def test_failures_that_are_near_are_one_hole() -> None:
    rows = [(0.0, None), (10.0, "http_5xx"), (11.0, None), (14.0, "cut"), (30.0, "cut")]
    found = failures("open", rows)
    assert [(hole.from_s, hole.to_s) for hole in found] == [(10, 14), (30, 30)]
    assert found[0].what == "2 requests failed: http_5xx 1, cut 1"


def test_a_recording_has_a_hole_where_rows_are_late_or_it_began_anew() -> None:
    found = gaps("host samples", [0, 1, 2, 5, 6, 20], 1.0, starts=[4.5])
    assert [(hole.from_s, hole.to_s) for hole in found] == [(2, 5), (6, 20)]


def test_a_hole_has_the_fault_of_its_time_and_its_lane_as_cause() -> None:
    faults = [Broken(Kind.RECORDER, 100, 103), Broken(Kind.SERVER, 200, 260)]
    holes = [
        Hole("open", 100, 101, ""),
        Hole("open", 201, 259, ""),
        Hole("host samples", 99, 104, ""),
    ]
    causes = {(hole.lane, hole.from_s): hole.cause for hole in explained(holes, faults)}
    assert causes == {
        ("open", 100): None,  # a recorder's death costs no answer
        ("open", 201): Kind.SERVER,
        ("host samples", 99): Kind.RECORDER,
    }
    assert unseen(holes, faults) == []
    assert unseen(holes[:1], faults) == faults
    assert unseen([], [Broken(Kind.DISK, 0, 9)]) == []  # rows wait: it may leave nothing


def test_a_leak_is_a_slope_of_the_longest_life() -> None:
    """12 MiB an hour after a start that fills caches; the short life's own growth does not count."""
    leak = [(t, round((100 + 12 * t / 3600) * MIB)) for t in range(900, 3600, 5)]
    start = [(t, round((20 + t / 10) * MIB)) for t in range(0, 900, 5)]
    short = [(t, t * MIB) for t in range(0, 600, 5)]
    slope = growth("x", [short, start + leak]).slope
    assert slope is not None
    assert [slope.mib_per_h, slope.low, slope.high] == pytest.approx([12] * 3, abs=0.01)
    assert growth("x", [[(0, MIB), (200, 9 * MIB)]]).slope is None


def test_memory_that_wanders_has_a_slope_whose_interval_holds_none() -> None:
    """40 paths of which none grows: each sample is the last one and a step. The interval of single
    samples would leave out 0 in nearly all of them."""
    kinds = random.Random(1)
    held = 0
    for _ in range(40):
        at, mib = [t for t in range(0, 3600, 5)], 0.0
        path: list[tuple[float, int]] = []
        for t in at:
            mib = 0.9 * mib + kinds.gauss(0, 0.5)
            path.append((t, round((100 + mib) * MIB)))
        slope = growth("x", [path]).slope
        assert slope is not None
        held += slope.low <= 0 <= slope.high
    assert held >= 35  # 95 % of 40 is 38


def test_what_may_grow_faster_than_the_limit_is_not_called_flat() -> None:
    steady = Growth("open", 3600, 80, 81, Slope(1, 0.5, 1.5))
    unsure = Growth("closed", 3600, 80, 90, Slope(12, 4, 20))
    server = Growth("server", 3600, 800, 999, Slope(200, 190, 210))
    young = Growth("gateway", 60, 40, 90, None)
    assert flat([steady, server, young]).holds
    check = flat([steady, unsure, server])
    assert not check.holds
    assert check.found == "most: closed, +12.0 (+4.0 to +20.0) MiB/h; limit 16"


def test_all_is_back_when_the_recorder_that_was_started_anew_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is there a second before: a soak whose loads end within it would not see the fault."""
    monkeypatch.setattr("scripts.soak.rig.answers", lambda url: True)
    rig = Rig(Wanted(tmp_path, length_s=15, seed=7, fake=True, mark="rows"))
    host = rig.run("open") / "telemetry" / "host.jsonl"
    host.parent.mkdir(parents=True)
    before = f'{{"mono_ns": {time.monotonic_ns()}}}\n'
    host.write_text(before)
    try:
        for kept in rig.services:
            kept.argv = [sys.executable, "-c", "import time; time.sleep(60)"]
            kept.start()
        assert all(kept.runs for kept in rig.services) and not rig.all_up()
        row = f'{{"mono_ns": {time.monotonic_ns()}}}\n'
        host.write_text(before + row[:9])  # half of it
        assert not rig.all_up()
        host.write_text(before + row)
        assert rig.all_up()
        rig.recorder.kill()
        assert not rig.recorder.runs
    finally:
        for kept in rig.services:
            kept.stop()


def test_each_fault_has_its_time_and_the_ends_are_quiet() -> None:
    made = [kind for kind in Kind if kind is not Kind.STALL]
    faults = schedule(7, 3600, made)
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(made, 2)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert faults[0].at_s >= 360 and faults[-1].at_s + faults[-1].for_s <= 3240
    assert schedule(7, 3600, made) == faults != schedule(8, 3600, made)


@pytest.mark.e2e
def test_a_quarter_of_a_minute_with_the_tests_server(tmp_path: Path) -> None:
    out = tmp_path / "soak"
    argv = ["--minutes", "0.25", "--fake", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.soak", *argv],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((out / "soak.json").read_text())
    assert said["holds"] and said["faults"]
    page = (out / "soak.html").read_text()
    check_closed(page)
    drawn = re.findall(r'points="([^"]*)"', page)
    assert drawn and all(re.fullmatch(r"([\d.]+,-?[\d.]+ )+", points) for points in drawn)
    assert all(f'<th scope="row">{fault["kind"]}</th>' in page for fault in said["faults"])
    runs = out / "runs" if (out / "runs").is_dir() else out / "disk"
    ids = [
        row["request_id"] for path in runs.glob("*/requests/*.jsonl") for row in read_jsonl(path)
    ]
    assert len(ids) == len(set(ids)) == sum(said["figures"]["requests"].values()) > 20
