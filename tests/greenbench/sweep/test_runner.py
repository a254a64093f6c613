"""A sweep's own guards, with real processes where a process is the subject and no vLLM."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from greenbench import cli
from greenbench.contract.config import PointConfig, SweepConfig, parse
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Clock
from greenbench.contract.run_dir import RunDir
from greenbench.sweep import child_processes, directory, plan, point_run, runner
from greenbench.sweep.child_processes import Child, ServerStage, StageError
from greenbench.sweep.orphans import stop_orphans
from greenbench.sweep.verdict import Faults
from tests.fakes.launch_plans import launch_plan
from tests.fakes.manifests import manifest
from tests.fakes.waiting import HUNG_S, wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]  # ended by the tests
KNOWN_TASKS = {"retrieve": {"output_tokens": 16, "params": {}}}
POINT = parse(
    PointConfig,
    {
        "sweep": "s", "seed": 1, "repeat": 0, "model": {"name": "m", "path": "/m", "max_model_len": 8},
        "backend": {"name": "a"}, "server": {}, "task": {"name": "t"}, "context_tokens": 4,
        "load": {"users": 1}, "phases": {"warmup_s": 0, "measure_s": 0.1, "drain_s": 0.1},
        "slo": {}, "telemetry": {}, "prompts_per_point": 1,
    },
    "test",
)  # fmt: skip


SWEEP = parse(
    SweepConfig,
    {
        "name": "s", "models": ["m"], "backends": ["a"], "contexts": [4], "tasks": ["t"],
        "loads": [{"users": 1}],
    },
    "test",
)  # fmt: skip


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    yield process
    process.kill()
    process.wait(HUNG_S)


def server_json(directory: Path, pid: int, created_s: float) -> None:
    directory.mkdir(parents=True)
    server = manifest().server.model_copy(update={"pid": pid, "pid_created_s": created_s})
    state = {"state": "ready", "error": None, "server": server.model_dump(mode="json")}
    (directory / "server.json").write_text(json.dumps(state))


def test_an_unwritable_place_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written there \(Not a directory\)"):
        directory.prepare_directory(tmp_path / "file" / "runs")


def test_a_full_disk_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda _: SimpleNamespace(free=90 * 2**20))
    with pytest.raises(UserError, match=r"90 MiB of disk are free, 500 MiB are wanted"):
        directory.prepare_directory(tmp_path)


def test_a_refused_sweep_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = SimpleNamespace(points=[POINT], candidate="m flashinfer")
    launch = launch_plan(label="m flashinfer", refusals=["it needs an NVIDIA GPU", "and more"])
    monkeypatch.setattr(runner, "plan_sweep", lambda *_: [plan.Plan(start, launch)])  # type: ignore[arg-type]
    said = r"m flashinfer cannot run on this host: it needs an NVIDIA GPU; and more\. Take it out"
    with pytest.raises(UserError, match=said):
        runner.run_sweep(SWEEP, tmp_path / "runs", SimpleNamespace())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_for_which_the_time_is_too_short_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own sweep.yaml took the place of the one that was measured, and with it the report's objective."""
    start = SimpleNamespace(points=[POINT], candidate="m a")
    monkeypatch.setattr(runner, "plan_sweep", lambda *_: [plan.Plan(start, launch_plan())])  # type: ignore[arg-type]
    for notes in ("dtype_notes", "unknown_shapes", "environment_notes"):
        monkeypatch.setattr(runner, notes, lambda _: [])

    def too_short(*_: object) -> None:
        raise UserError("about 8 min are needed")

    monkeypatch.setattr(runner, "fitting", too_short)
    kept = {"sweep.yaml": "name: measured\n", "refused.json": '{"m b": ["no GPU"]}\n'}
    for name, text in kept.items():
        (tmp_path / name).write_text(text)
    view = SimpleNamespace(note=print, start=print)
    with pytest.raises(UserError, match="about 8 min are needed"):
        runner.run_sweep(SWEEP, tmp_path, view, within_s=60)  # type: ignore[arg-type]
    assert {name: (tmp_path / name).read_text() for name in kept} == kept
    with pytest.raises(UserError, match="about 8 min are needed"):
        runner.run_sweep(SWEEP, tmp_path / "runs" / "new", view, within_s=60)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "chosen"), [("0", {0}), ("1-3", {1, 2, 3}), ("4,0-1", {0, 1, 4})])
def test_blocks_are_repeats(text: str, chosen: set[int]) -> None:
    assert cli.parse_blocks(text, 5) == chosen


@pytest.mark.parametrize("text", ["", "5", "-1", "1-", "two", "0-7", "2-1", "²", "0-99999999999"])
def test_blocks_that_the_sweep_lacks_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"--blocks wants repeats of the sweep.* it has 0 to 4$"):
        cli.parse_blocks(text, 5)


def small_sweep(**other: object) -> SweepConfig:
    return SweepConfig.model_validate({
        "name": "s", "models": ["tiny-llama"], "backends": ["cpu_attn", "sdpa"], "contexts": [256],
        "tasks": ["retrieve"], "loads": [{"users": 1}], "repeats": 3, **other,
    })  # fmt: skip


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    """Guards against two hub ids that end alike, whose points would be pooled as one model's."""
    for owner in ("one", "other"):
        (tmp_path / owner / "m").mkdir(parents=True)
        (tmp_path / owner / "m" / "config.json").write_text("{}")
    models = [str(tmp_path / owner / "m") for owner in ("one", "other")]
    with pytest.raises(UserError, match="sweep 's': 'models' has two that are called 'm'"):
        plan.plan_sweep(small_sweep(models=models))


def test_two_cards_share_a_sweep_without_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a block that both cards measure, or none, and against another order within one."""
    anywhere = launch_plan().model_dump(mode="json")
    monkeypatch.setattr(
        plan,
        "call_json",
        lambda argv, stdin=None: [anywhere] * len(stdin) if stdin else KNOWN_TASKS,
    )
    sweep = small_sweep()

    def names(blocks: frozenset[int] | None) -> list[str]:
        return [one.start.label for one in plan.plan_sweep(sweep, blocks)]

    first, second = names(frozenset({0, 2})), names(frozenset({1}))
    whole = names(None)
    assert sorted(first + second) == sorted(whole) and len(set(whole)) == 6
    assert first == [name for name in whole if name in first]


def test_an_orphan_server_is_named_and_stopped(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    created_s = psutil.Process(sleeper.pid).create_time()
    server_json(tmp_path / "servers" / "tiny-sdpa-r0", sleeper.pid, created_s)
    said = list(stop_orphans(tmp_path))
    assert said == [f"stopped orphan server process {sleeper.pid} of tiny-sdpa-r0"]
    assert not psutil.pid_exists(sleeper.pid)


def test_a_process_that_only_got_the_same_pid_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    created_s = psutil.Process(sleeper.pid).create_time()
    server_json(tmp_path / "servers" / "old", sleeper.pid, created_s - 3600)
    assert list(stop_orphans(tmp_path)) == []
    assert sleeper.poll() is None


@pytest.mark.parametrize(
    "damage",
    [b"", b"[]", b"\xff\xfe{", b"[" * 100_000, b'{"state": "ready", "server": [1]}', b"null"],
)
def test_a_damaged_server_json_does_not_stop_a_resume(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "servers" / "tiny-sdpa-r0").mkdir(parents=True)
    (tmp_path / "servers" / "tiny-sdpa-r0" / "server.json").write_bytes(damage)
    assert list(stop_orphans(tmp_path)) == []


def test_a_run_left_by_a_killed_sweep_is_closed_as_interrupted(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait(HUNG_S)
    run = RunDir.create(tmp_path / "r0", manifest(sweep_pid=dead.pid), "")
    assert list(stop_orphans(tmp_path)) == ["closed r0, left unfinished by a killed sweep"]
    assert (run.manifest().status, run.manifest().invalid_reasons) == ("failed", ["interrupted"])


def test_an_older_sweep_without_a_claim_is_still_refused(tmp_path: Path) -> None:
    later = int((psutil.Process(os.getpid()).create_time() + 5) * 1e9)
    here = Clock(unix_ns=later, mono_ns=1, host=socket.gethostname())
    RunDir.create(
        tmp_path / "r0", manifest(sweep_pid=os.getpid(), created_unix_ns=later, clock=here), ""
    )
    with pytest.raises(UserError, match=f"process id {os.getpid()} is still running here"):
        list(stop_orphans(tmp_path))


class FakeStage(ServerStage):
    """A server whose life is a flag."""

    def __init__(self, lives: Callable[[], bool]) -> None:
        self.lives = lives

    @property
    def alive(self) -> bool:
        return self.lives()

    def look(self) -> None:
        pass


def watched(load: Child, stage: ServerStage, recorder: Child) -> Faults:
    faults = point_run._watch(load, recorder, stage, POINT, lambda: None)
    recorder.stop(0.1)
    return faults


def test_a_stalled_load_fails_the_point_at_its_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_run, "LOAD_SLACK_S", 0.1)
    load, recorder = Child(SLEEPER, tmp_path / "log"), Child(SLEEPER, tmp_path / "recorder")
    faults = watched(load, FakeStage(lambda: True), recorder)
    load.stop(0.1)
    assert faults.status == "failed" and faults.reasons == ("server_stalled",)


def test_a_server_that_dies_fails_the_point_without_waiting_for_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_run, "DEATH_GRACE_S", 0.1)
    load = Child(SLEEPER, tmp_path / "log")
    faults = watched(load, FakeStage(lambda: False), Child(SLEEPER, tmp_path / "recorder"))
    load.stop(0.1)
    assert faults.reasons == ("server_died",)


def test_a_recorder_that_dies_fails_the_point_at_once(tmp_path: Path) -> None:
    """Guards against an hour of load beside which nothing is recorded."""
    load, recorder = Child(SLEEPER, tmp_path / "log"), Child(SLEEPER, tmp_path / "recorder")
    recorder.process.kill()
    faults = watched(load, FakeStage(lambda: True), recorder)
    load.stop(0.1)
    assert faults.reasons == ("recorder_failed",)
    assert faults.failure == "the recorder ended with SIGKILL"


LOCUST = """\
Type     Name  # reqs      # fails |    Avg     Min     Max    Med
--------||-------|-------------|-------
         Aggregated       0     0(0.00%) |      0       0       0      0
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('noise'); sys.exit('error: prompts are gone')", "failed: prompts are gone"),
        (f"print({LOCUST!r}); os.kill(os.getpid(), signal.SIGKILL)", "ended with SIGKILL"),
        (f"print({LOCUST!r}); os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
        (
            f"sys.stderr.write('OSError: no room\\n'); print({LOCUST!r}); sys.exit(1)",
            "ended with exit code 1: OSError: no room",
        ),
        (
            "print('[2026-11-29 15:00:00,1] h/ERROR/load: lost workers: w1'); print('table'); sys.exit(1)",
            "ended with exit code 1: [2026-11-29 15:00:00,1] h/ERROR/load: lost workers: w1",
        ),
        ("sys.exit(3)", "ended with exit code 3: it said nothing"),
    ],
)
def test_how_a_load_generator_ended_is_a_sentence(tmp_path: Path, code: str, said: str) -> None:
    load = Child([sys.executable, "-c", f"import os, signal, sys; {code}"], tmp_path / "log")
    load.process.wait(HUNG_S)
    faults = watched(load, FakeStage(lambda: True), Child(SLEEPER, tmp_path / "recorder"))
    assert faults.failure == f"the load generator {said}"
    assert faults.reasons == ("load_failed",)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("sys.exit('error: no such thing')", StageError, "no such thing"),
        ("print('error: bad key', file=sys.stderr); sys.exit(2)", UserError, "bad key"),
        (  # a stage may say it on stdout, beside what a library prints on stderr
            "print('failed: nobody listens'); print('UserWarning: x', file=sys.stderr); sys.exit(1)",
            StageError,
            "nobody listens",
        ),
        ("sys.exit(1)", StageError, "ended with exit code 1: it said nothing"),
        ("sys.stderr.buffer.write(b'error: \\xff\\n'); sys.exit(2)", UserError, "\N{REPLACEMENT CHARACTER}"),
        ("os.kill(os.getpid(), 9)", StageError, "ended with SIGKILL"),
        ("raise ValueError('odd')", StageError, "ended with exit code 1: ValueError: odd"),
    ],
)  # fmt: skip
def test_a_stages_sentence_reaches_the_person(code: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as raised:
        child_processes.call([sys.executable, "-c", f"import os, sys; {code}"])
    assert str(raised.value).endswith(said)


def test_a_child_that_ignores_term_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(600)"
    )
    child = Child([sys.executable, "-c", code], tmp_path / "log")
    wait_until(lambda: "up" in child.log.read_text(), "a child that is up")
    assert child.stop(0.2) == -9


@pytest.mark.parametrize("ends_with_us", [True, False])
def test_what_a_killed_sweep_leaves_behind(tmp_path: Path, ends_with_us: bool) -> None:
    """Guards against recorders that sample for ever; a server stays, to be found and named."""
    told = tmp_path / "pid"
    program = (
        "import sys, time; from pathlib import Path; from greenbench.sweep.child_processes import Child;"
        f"child = Child({SLEEPER!r}, Path({str(tmp_path / 'log')!r}), ends_with_us={ends_with_us});"
        f"Path({str(told)!r}).write_text(str(child.process.pid)); time.sleep(600)"
    )
    sweep = subprocess.Popen([sys.executable, "-c", program])
    try:
        pid = wait_until(lambda: told.exists() and told.read_text(), "a child that is started")
        child = psutil.Process(int(pid))
    finally:
        sweep.kill()
        sweep.wait(HUNG_S)
    gone, alive = psutil.wait_procs([child], timeout=HUNG_S if ends_with_us else 0.2)
    for process in alive:
        process.kill()
    assert bool(gone) is ends_with_us
