"""One sweep by four runners that share a folder, as the Job and the Slurm array start them; two are ended.

Then a runner that a pause makes look dead, as a paused container or suspended machine is: another takes over,
and the first, when it goes on, writes nothing more.

The claims in the folder are all that they have in common. Whatever happens to a runner, in the end each point
is complete exactly once, and none was measured by two at a time.
"""

import collections
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from greenbench.contract.config import load_live_point
from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import RunDir, list_runs
from greenbench.sweep.claims import RUNNERS_DIR
from tests.fakes.openai_server import GoldenServer, well_behaved
from tests.fakes.waiting import HUNG_S, wait_until

pytestmark = pytest.mark.e2e
BLOCKS = range(4)
CONTEXTS = (256, 320)
KILLED, INTERRUPTED = 1, 3  # by the node's end, and by Slurm's time limit
TRIES = 4  # of an index: the first, and the Job's backoffLimitPerIndex
LIMIT_S = 5 * HUNG_S  # of a runner: it boots nothing, and four of them share two cores


@dataclass(frozen=True, slots=True)
class Cluster:
    """Starts the runner of a block as Kubernetes (blocks 0 and 1) or Slurm (2 and 3) would."""

    sweep: Path
    out: Path
    greenbench: Path

    def start(self, block: int, machine: str = "") -> "subprocess.Popen[bytes]":
        """``machine``: that it takes itself to be on, as each pod is on one of its own; else this one."""
        argv, variable = self._job() if block < 2 else self._array()
        argv = [part.replace("$(JOB_COMPLETION_INDEX)", str(block)) for part in argv]
        log = self._log(block).open("ab")
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GREENBENCH": str(self.greenbench),
            "MACHINE": machine,
        }
        return subprocess.Popen(
            argv, env={**env, variable: str(block)}, stdout=log, stderr=log, start_new_session=True
        )

    def log(self, block: int) -> str:
        return self._log(block).read_text()

    def _log(self, block: int) -> Path:
        return self.out.parent / f"runner-{block}.log"

    def _job(self) -> tuple[list[str], str]:
        job = yaml.safe_load((ROOT / "deploy/kubernetes/sweep/job.yaml").read_text())
        (container,) = job["spec"]["template"]["spec"]["containers"]
        here: dict[str, str] = {
            "/opt/greenbench/bin/greenbench": str(self.greenbench),
            "/etc/greenbench/sweep.yaml": str(self.sweep),
            "/runs/cluster": str(self.out),
        }
        words = [*container["command"], *container["args"]]
        assert here.keys() <= set(words)
        return [here.get(str(word), str(word)) for word in words], "JOB_COMPLETION_INDEX"

    def _array(self) -> tuple[list[str], str]:
        script = str(ROOT / "deploy/slurm/sweep.sbatch")
        return ["bash", script, str(self.sweep), str(self.out)], "SLURM_ARRAY_TASK_ID"


def block_of(run: RunDir) -> int:
    return load_live_point(run.path).point.repeat


def manifests(out: Path) -> list[tuple[RunDir, dict[str, Any]]]:
    return [(run, json.loads(run.manifest_path.read_text())) for run in list_runs(out)]


def measuring(out: Path, block: int) -> bool:
    return any(
        manifest["status"] == "running"
        and '"measure_start"' in (run.path / "events.jsonl").read_text()
        and block_of(run) == block
        for run, manifest in manifests(out)
        if (run.path / "events.jsonl").exists()
    )


PROGRAM = """
import os, socket
machine = os.environ.get("MACHINE")
if machine:
    socket.gethostname = lambda: machine
from greenbench.sweep import claims
from greenbench.cli import main
if machine:
    claims.this_machine = lambda: machine
    claims.RENEW_S, claims.SILENCE_S = 0.5, 3.0
main()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    greenbench = tmp_path / "greenbench"
    greenbench.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c '{PROGRAM}' \"$@\"\n")
    greenbench.chmod(0o755)
    with GoldenServer(well_behaved(0.2, 0.03)) as server:
        whole = {
            "name": "cluster", "models": ["retriever"], "backends": ["sdpa"],
            "contexts": CONTEXTS, "tasks": [{"name": "retrieve", "output_tokens": 8}],
            "loads": [{"users": 2}], "prompts_per_point": 4, "repeats": len(BLOCKS),
            "server": {"base_url": server.url},
            "phases": {"warmup_s": 0, "measure_s": 8, "drain_s": 5},
        }  # fmt: skip
        sweep = tmp_path / "sweep.yaml"
        sweep.write_text(json.dumps(whole))
        yield Cluster(sweep, tmp_path / "out", greenbench)


def test_each_point_is_complete_exactly_once(cluster: Cluster) -> None:
    running = {block: cluster.start(block) for block in BLOCKS}
    tries = dict.fromkeys(BLOCKS, 1)
    try:
        for block in (KILLED, INTERRUPTED):

            def at_work(block: int = block) -> bool:
                assert running[block].poll() is None, cluster.log(block)
                return measuring(cluster.out, block)

            wait_until(at_work, f"a point of block {block} that is measured", LIMIT_S, 0.2)
        os.killpg(running[KILLED].pid, signal.SIGKILL)  # a container's end takes all its processes
        running[INTERRUPTED].send_signal(signal.SIGTERM)
        assert running[INTERRUPTED].wait(LIMIT_S) not in (0, 2)
        while running:  # the Job's controller: an index that failed gets another pod
            for block, runner in list(running.items()):
                if runner.wait(LIMIT_S) == 0:
                    del running[block]
                else:
                    assert tries[block] < TRIES, cluster.log(block)
                    tries[block] += 1
                    running[block] = cluster.start(block)
    finally:
        for runner in running.values():
            os.killpg(runner.pid, signal.SIGKILL)
            runner.wait(HUNG_S)
    states = collections.Counter(
        (block_of(run), manifest["status"]) for run, manifest in manifests(cluster.out)
    )
    complete = collections.Counter(
        (block_of(run), load_live_point(run.path).point.context_tokens)
        for run, manifest in manifests(cluster.out)
        if manifest["status"] == "complete"
    )
    print(
        f"tries by block {tries}; run directories by block and status {dict(sorted(states.items()))}"
    )
    assert complete == {(block, context): 1 for block in BLOCKS for context in CONTEXTS}
    assert (
        states[(KILLED, "failed")] + states[(INTERRUPTED, "failed")] >= 2
    )  # those that were cut off
    assert tries[KILLED] > 1 and tries[INTERRUPTED] > 1
    assert not (cluster.out / RUNNERS_DIR).exists()  # every claim is given back or taken over
    assert apart(cluster.out)


def stop_or_go_on(runner: "subprocess.Popen[bytes]", sign: signal.Signals) -> None:
    """The runner and all that it started, as a paused container's processes are."""
    children = psutil.Process(runner.pid).children(recursive=True)
    for pid in [runner.pid, *(child.pid for child in children)]:
        os.kill(pid, sign)


def test_a_runner_that_was_stopped_for_long_has_lost_its_block(cluster: Cluster) -> None:
    short = {"contexts": CONTEXTS[:1], "phases": {"warmup_s": 0, "measure_s": 4, "drain_s": 5}}
    cluster.sweep.write_text(json.dumps(json.loads(cluster.sweep.read_text()) | short))
    first = cluster.start(0, "one")
    second = None
    try:
        wait_until(lambda: measuring(cluster.out, 0), "a point that is measured", LIMIT_S, 0.2)
        stop_or_go_on(first, signal.SIGSTOP)
        of_first = {run.path.name for run, _ in manifests(cluster.out)}
        second = cluster.start(0, "two")

        def at_work() -> bool:
            assert second is not None and second.poll() is None, cluster.log(0)
            return len(manifests(cluster.out)) > len(of_first) and measuring(cluster.out, 0)

        wait_until(at_work, "a second runner at work", LIMIT_S, 0.2)
        left = {run.path.name: manifest for run, manifest in manifests(cluster.out)}
        stop_or_go_on(first, signal.SIGCONT)
        assert first.wait(LIMIT_S) == 1
        assert second.wait(LIMIT_S) == 0, cluster.log(0)
    finally:
        for runner in filter(None, (first, second)):
            with suppress(ProcessLookupError):
                os.killpg(runner.pid, signal.SIGKILL)
            runner.wait(HUNG_S)
    assert "another took it for dead and measures here now" in cluster.log(0)
    found = manifests(cluster.out)
    ours = {run.path.name: manifest for run, manifest in found if run.path.name in of_first}
    assert ours == {name: left[name] for name in of_first}  # not a word was changed by the first
    assert [each["invalid_reasons"] for each in ours.values()] == [["interrupted"]]
    complete = [
        load_live_point(run.path).point.context_tokens
        for run, manifest in found
        if manifest["status"] == "complete"
    ]
    assert complete == [CONTEXTS[0]]
    assert not (cluster.out / RUNNERS_DIR).exists()


def apart(out: Path) -> bool:
    """No two points of one block overlap in time: nobody worked on a block beside its runner."""
    spans: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for run, _ in manifests(out):
        rows = [
            json.loads(line)["unix_ns"]
            for line in (run.path / "events.jsonl").read_text().splitlines()
        ]
        spans[block_of(run)].append((min(rows), max(rows)))
    return all(
        end <= start
        for each in spans.values()
        for (_, end), (start, _) in zip(sorted(each), sorted(each)[1:], strict=False)
    )
