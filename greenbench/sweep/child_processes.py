"""Run the other stages as child processes, and wait for the files they write.

Every child gets a session of its own, so that Ctrl-C reaches this process alone, which then stops
the children in order.
"""

import ctypes
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
from pydantic import ValidationError

from greenbench.contract.access import Access
from greenbench.contract.config import LoadConfig, ServerRequest
from greenbench.contract.errors import USAGE_EXIT, UserError, sentence_of, signal_name
from greenbench.contract.forms import ServerFile
from greenbench.contract.installation import PACKAGES, bench_env
from greenbench.contract.manifest import Server
from greenbench.contract.run_dir import RunDir, read_json, write_atomic

STOP_GRACE_S = 30.0  # a launcher stops vLLM's group within this, or the group is killed
RECORDER_START_S = 30.0
POLL_S = 0.1
SENTENCE_CHARS = 500
EXCEPTION = re.compile(
    r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b(:|$)"
)  # the last line of a traceback
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LOOK_S = 5.0  # between two looks at whether an attached server still takes connections
CONNECT_S = 2.0
_LIBC = ctypes.CDLL(None)  # loaded before any fork


class StageError(Exception):
    """A stage failed through no fault of the input; its text is one sentence."""


def python_module(module: str, *args: str) -> list[str]:
    """In the caller's folder; ``-P``: no file there may stand in for a module of ours."""
    return [sys.executable, "-P", "-m", module, *args]


def load_argv(load: LoadConfig, run: Path) -> list[str]:
    if load.kind == "open":
        return python_module("loadgen.openloop", "--run-dir", str(run))
    locustfile = str(PACKAGES / "loadgen" / "longctx.py")
    return python_module("locust", "-f", locustfile, "--headless", "--run-dir", str(run))


def call(argv: list[str], stdin: object = None) -> str:
    """Run a stage command to its end and return its stdout; exit 2 becomes UserError."""
    text = None if stdin is None else json.dumps(stdin)
    done = subprocess.run(
        argv,
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=bench_env(),
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    said = sentence_of(done.stderr) or sentence_of(done.stdout)
    name = " ".join(["python", *argv[argv.index("-m") :][:3]]) if "-m" in argv else argv[0]
    ended = f"`{name}` {ended_with(done.returncode, done.stderr or done.stdout)}"
    if done.returncode == USAGE_EXIT:
        raise UserError(said or ended)
    raise StageError(said or ended)


def call_json(argv: list[str], stdin: object = None) -> Any:
    return json.loads(call(argv, stdin))


def passthrough(argv: list[str]) -> int:
    """Run a stage command on this terminal, in the caller's folder, and return its exit code."""
    return subprocess.run(argv, env=bench_env(), check=False).returncode


def ended_with(code: int, output: str) -> str:
    """Of a stage that left no sentence: ``ended with SIGKILL``, or its code and the last it printed."""
    if code < 0:
        return f"ended with {signal_name(-code)}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [
        line for line in lines if EXCEPTION.match(line) or " ERROR" in line or "/ERROR/" in line
    ]
    last = [*lines[-1:], *telling[-1:]]
    return (
        f"ended with exit code {code}: {last[-1][:SENTENCE_CHARS] if last else 'it said nothing'}"
    )


def end_with_parent() -> None:
    """TERM for this process when the one that started it dies, also by kill -9 (Linux only)."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A stage process with its output in a log file, stopped by TERM and then KILL.

    With ``ends_with_us`` it does not outlive this process: a recorder that a killed sweep left behind
    would sample for ever, and a load generator would drive the next measurement's machine.
    """

    def __init__(
        self, argv: list[str], log: Path, ends_with_us: bool = False, cwd: Path | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                argv,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env=bench_env(),
                start_new_session=True,
                preexec_fn=end_with_parent if ends_with_us else None,
            )

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def how_it_ended(self) -> str:
        """After ``the load generator``: ``ended with SIGKILL``, or ``failed:`` and its own sentence.

        Its log holds much beside that sentence, such as Locust's tables, which tell of no end.
        """
        code = self.process.poll() or 0
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        said = sentence_of(text)
        return f"failed: {said}" if said and code >= 0 else ended_with(code, text)

    def stop(self, grace_s: float) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def start_load(load: LoadConfig, run: RunDir) -> Child:
    """The load generator of one point; it ends with this process.

    An open loop runs in the caller's folder, from which a trace's path is meant. Locust runs in the
    run's own: it reads settings from a locust.conf or pyproject.toml of its working folder.
    """
    folder = None if load.kind == "open" else run.path
    return Child(
        load_argv(load, run.path), run.logs_dir / "load.log", ends_with_us=True, cwd=folder
    )


class ServerStage:
    """One vLLM server, started by the launcher or found at a base_url, described by server.json."""

    def __init__(self, request: ServerRequest, directory: Path) -> None:
        self.request = request
        self.directory = directory
        self.child: Child | None = None
        self.server: Server | None = None
        self._looked_s = time.monotonic()
        self._refuses = False

    def start(self, waiting: Callable[[], None]) -> Server:
        """Start and wait until ready; ``waiting`` is called while it boots. StageError when it fails."""
        self.directory.mkdir(parents=True, exist_ok=True)
        request_file = self.directory / "request.json"
        write_atomic(request_file, self.request.model_dump_json(indent=1))
        args = ("--request", str(request_file), "--out", str(self.directory))
        if self.request.server.base_url:
            call(python_module("servers", "probe", *args))
        else:
            self.child = Child(
                python_module("servers", "start", *args), self.directory / "launcher.log"
            )
            while self._state() not in ("ready", "failed") and self.child.code is None:
                waiting()
                time.sleep(POLL_S)
        self.server = self._ready_server()
        return self.server

    def _ready_server(self) -> Server:
        state, error, server = read_server_json(self.directory)
        if state == "ready" and server is not None:
            return server
        code = self.child.code if self.child else None
        message = error or "server.json says that it is not ready"
        if error is None and self.child is not None:
            message = f"the launcher {self.child.how_it_ended()}"
        if code == USAGE_EXIT:
            raise UserError(message)
        raise StageError(message)

    def _state(self) -> str | None:
        return read_server_json(self.directory)[0]

    @property
    def alive(self) -> bool:
        """False once the launcher has ended, or nothing takes connections at the address any more."""
        if self.child is not None and self.child.code is not None:
            return False
        if time.monotonic() - self._looked_s >= LOOK_S:
            self.look()
        return not self._refuses

    def look(self) -> None:
        """Try the address now: twice, for a server that is started anew refuses for a moment."""
        self._looked_s = time.monotonic()
        url = self.server.base_url if self.server else None
        self._refuses = url is not None and refuses(url) and refuses(url)

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    def log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop(STOP_GRACE_S)
            kill_server_group(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def read_server_json(directory: Path) -> tuple[str | None, str | None, Server | None]:
    """(state, error, server) of a server directory; Nones where none can be read, as before it is written."""
    try:
        file = ServerFile.model_validate(read_json(directory / "server.json"))
    except (UserError, ValidationError):
        return None, None, None
    return file.state, file.error, file.server


def refuses(base_url: str) -> bool:
    """True where the host itself says that nothing listens there. Silence and other faults prove nothing."""
    address = Access(base_url)
    try:
        socket.create_connection((address.host, address.port), CONNECT_S).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
    return False


def living_server(directory: Path) -> psutil.Process | None:
    """The process that server.json names, if it still runs and is that one and no reuse of its pid."""
    server = read_server_json(directory)[2]
    if server is None or server.pid is None or server.pid_created_s is None:
        return None
    try:
        process = psutil.Process(server.pid)
        same = abs(process.create_time() - server.pid_created_s) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def kill_server_group(directory: Path) -> None:
    """Last resort after the launcher ended: kill what is left of the server's process tree."""
    process = living_server(directory)
    if process is None:
        return
    tree = [*process.children(recursive=True), process]
    for member in tree:
        member.kill()
    psutil.wait_procs(tree, timeout=10)


class RecorderStage:
    """The telemetry recorder of one directory, from its first sample to its last."""

    def __init__(self, run: RunDir, server: Server, period_s: float, scrape_s: float) -> None:
        args = ["--run-dir", str(run.path), "--base-url", server.base_url]
        args += ["--period-s", str(period_s), "--scrape-s", str(scrape_s)]
        if server.pid is not None:
            args += ["--pid", str(server.pid)]
        run.logs_dir.mkdir(exist_ok=True)
        self.run = run
        self.child = Child(
            python_module("telemetry", "record", *args),
            run.logs_dir / "telemetry.log",
            ends_with_us=True,
        )

    def wait_started(self) -> None:
        deadline = time.monotonic() + RECORDER_START_S
        while time.monotonic() < deadline and self.child.code is None:
            events = self.run.events_path
            if events.exists() and '"recorder_started"' in events.read_text():
                return
            time.sleep(POLL_S)
        if self.child.code is None:
            raise StageError(f"the recorder took no sample within {RECORDER_START_S:.0f} s")
        raise StageError(f"the recorder {self.child.how_it_ended()}")

    def stop(self) -> int:
        return self.child.stop(STOP_GRACE_S)
