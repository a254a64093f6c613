"""One sweep under chaos: recorder, load generator, the sweep itself and its server are killed, each while
a point is measured. Started again until it is whole: each point once, each request once, no process left.
"""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenbench.contract.config import load_live_point
from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import RunDir, list_runs, read_jsonl
from scripts.soak.accounts import sequence_of, unbroken
from scripts.soak.kept import MARK, marked
from tests.fakes.openai_server import GoldenServer, Seen, well_behaved
from tests.fakes.waiting import HUNG_S, wait_until

pytestmark = pytest.mark.e2e
CONTEXTS, USERS, MEASURE_S = (256, 288, 320, 352), 2, 8.0
GREENBENCH = [sys.executable, "-c", "from greenbench.cli import main; main()"]
LIMIT_S = 4 * HUNG_S  # of a sweep: it boots nothing
TRIES = 4  # what a busy machine makes invalid is measured again
LOADER, RECORDER = "locust", "telemetry"
UNWRITTEN = 2 * USERS  # of a killed load generator: on the way, and over since its last tick


class Sweep:
    """A sweep against the golden server; all that it starts bears ``mark``."""

    def __init__(self, folder: Path) -> None:
        self.out, self.mark = folder / "out", uuid.uuid4().hex
        self._file = folder / "chaos.yaml"

    def begin(self, url: str) -> "subprocess.Popen[str]":
        self._file.write_text(json.dumps({
            "name": "chaos", "models": ["retriever"], "backends": ["sdpa"], "contexts": CONTEXTS,
            "tasks": [{"name": "retrieve", "output_tokens": 8}], "loads": [{"users": USERS}],
            "prompts_per_point": 4, "server": {"base_url": url},
            "phases": {"warmup_s": 0, "measure_s": MEASURE_S, "drain_s": 5},
        }))  # fmt: skip
        return subprocess.Popen(
            [*GREENBENCH, "run", str(self._file), "--out", str(self.out)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: self.mark},
        )  # fmt: skip

    def until_measuring(self, process: "subprocess.Popen[str]", known: set[str]) -> set[str]:
        """Wait for a point beyond ``known`` that has answers; all runs that have some then."""

        def answered() -> set[str]:
            assert process.poll() is None, process.communicate()[0]
            return {run.path.name for run in list_runs(self.out) if rows_of(run)} - known

        return known | wait_until(answered, "a further point that is measured", every_s=0.2)


def rows_of(run: RunDir) -> list[dict[str, Any]]:
    return [row for path in run.requests_dir.glob("*.jsonl") for row in read_jsonl(path)]


def kill_child(process: "subprocess.Popen[str]", stage: str) -> None:
    (victim,) = [
        child
        for child in psutil.Process(process.pid).children()
        if stage in " ".join(child.cmdline()[:5])
    ]
    victim.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Sweep, list[Seen], list[str]]]:
    """The sweep when it is whole, all requests that came to a server, and what the tries said."""
    sweep = Sweep(tmp_path_factory.mktemp("chaos"))
    try:
        yield sweep, *through_all(sweep)
    finally:
        for left in marked(sweep.mark):
            with suppress(psutil.Error):
                left.kill()


def through_all(sweep: Sweep) -> tuple[list[Seen], list[str]]:
    answer = well_behaved(0.2, 0.03)
    first = GoldenServer(answer)
    with first:
        process = sweep.begin(first.url)
        known = sweep.until_measuring(process, set())
        kill_child(process, RECORDER)
        known = sweep.until_measuring(process, known)
        kill_child(process, LOADER)
        known = sweep.until_measuring(process, known)
        process.kill()
        said = [process.communicate()[0]]
        process = sweep.begin(first.url)
        sweep.until_measuring(process, known)
    said.append(process.communicate(timeout=LIMIT_S)[0])  # its server is gone
    second = GoldenServer(answer, port=int(first.url.rpartition(":")[2]))
    with second:
        for _ in range(TRIES):
            process = sweep.begin(second.url)
            said.append(process.communicate(timeout=LIMIT_S)[0])
            if process.returncode == 0:
                break
    return [*first.seen, *second.seen], said


def test_each_fault_is_a_sentence_and_its_point_no_result(
    place: tuple[Sweep, list[Seen], list[str]],
) -> None:
    sweep, _, said = place
    found = Counter(
        run.manifest().failure for run in list_runs(sweep.out) if run.manifest().status == "failed"
    )
    for words in (
        "the recorder ended with SIGKILL",
        "the load generator ended with SIGKILL",
        "the server died during the point",
    ):
        assert found[words] == 1, (found, said)
    assert sum(found.values()) == 4  # and the one that the killed sweep left
    assert "left unfinished by a killed sweep" in said[1]


def test_each_point_is_complete_exactly_once(place: tuple[Sweep, list[Seen], list[str]]) -> None:
    sweep, _, said = place
    complete = Counter(
        load_live_point(run.path).point.context_tokens
        for run in list_runs(sweep.out)
        if run.manifest().status == "complete"
    )
    assert complete == dict.fromkeys(CONTEXTS, 1), said[-1]


def test_no_request_is_lost_or_doubled(place: tuple[Sweep, list[Seen], list[str]]) -> None:
    """Against what the server saw: of a killed load generator only what was on the way has no row."""
    sweep, seen, _ = place
    of_a_point = Counter(each.request_id for each in seen if each.request_id)
    every: list[str] = []
    for run in list_runs(sweep.out):
        rows, manifest = rows_of(run), run.manifest()
        ids = [row["request_id"] for row in rows]
        every += ids
        assert unbroken("", map(sequence_of, rows)).holds, run.path.name
        assert not [
            row for row in rows if row["error_type"] is None and not of_a_point[row["request_id"]]
        ]
        if manifest.status == "complete":
            assert manifest.counts.rows == len(ids)
    assert len(every) == len(set(every))
    begun = {each.rsplit("-", 1)[0] for each in every}
    unwritten = [
        each for each in of_a_point if each.rsplit("-", 1)[0] in begun and each not in set(every)
    ]
    assert len(unwritten) <= 2 * UNWRITTEN  # two load generators were killed, one with its sweep


def test_no_process_is_left_and_nothing_holds_the_folder(
    place: tuple[Sweep, list[Seen], list[str]],
) -> None:
    sweep, _, _ = place
    wait_until(lambda: not marked(sweep.mark), "the end of all that the sweeps started")
    assert not (sweep.out / "runners").exists()
    assert not list(sweep.out.rglob("*.tmp"))


def test_check_and_report_take_the_sweep_and_count_what_was_measured_again(
    place: tuple[Sweep, list[Seen], list[str]],
) -> None:
    sweep, _, _ = place
    again = sum(run.manifest().status != "complete" for run in list_runs(sweep.out))
    checked, report = (
        subprocess.run(
            [*GREENBENCH, command, str(sweep.out)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for command in ("check", "report")
    )
    assert checked.returncode == 0, checked.stdout
    assert f"{again} of them measured again" in checked.stdout
    assert report.returncode == 0, report.stderr
    page = (sweep.out / "report.html").read_text()
    assert "the recorder ended with SIGKILL" in page
