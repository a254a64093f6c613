"""One vLLM server as a process group: started, watched, and stopped with nothing left behind."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from greenbench.contract.errors import UserError
from greenbench.contract.installation import plugin_folder
from servers.launch.boot_log import last_error

TERM_GRACE_S = 12.0
KILL_GRACE_S = 5.0
POLL_S = 0.2


class ServerDied(Exception):
    """The process ended when it should not have; the text holds its own last error line."""


class ServerProcess:
    """Owns the process group of one server. Whoever calls ``start`` calls ``stop``, however it ends."""

    def __init__(self, argv: list[str], env: Mapping[str, str], log_path: Path) -> None:
        self.log_path = log_path
        self._argv = argv
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                cwd=plugin_folder(),  # `-m` imports from there first
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def created_s(self) -> float | None:
        """Start time as psutil gives it, which tells this process from a later one with its pid."""
        try:
            return psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            return None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def check_alive(self, doing: str) -> None:
        """Raise ServerDied with the log's last error when the process has ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        cause = last_error(self.log()) or "its log is empty"
        raise ServerDied(f"The server ended with {how} {doing}: {cause}")

    def wait_healthy(
        self, base_url: str, deadline_s: float, waiting: Callable[[], None] = lambda: None
    ) -> None:
        """Return when /health answers 200. Dying or passing ``deadline_s`` (monotonic) raises ServerDied.

        ``waiting`` is called before each look.
        """
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline_s:
                waiting()
                self.check_alive("while booting")
                try:
                    if client.get(f"{base_url}/health").is_success:
                        return
                except httpx.HTTPError:
                    pass  # not listening yet
                time.sleep(POLL_S)
        raise ServerDied(
            "The server did not become healthy within the boot time limit; "
            f"the end of its log: {last_error(self.log()) or '(empty)'}"
        )

    def wait_ended(self) -> None:
        """Block while the server runs; raises ServerDied when it ends on its own."""
        while True:
            self.check_alive("while serving")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """TERM to the group, then KILL what is left of it and of its children. Safe to call again."""
        process = self._process
        if process is None:
            return
        members = _members(process.pid)
        _signal_group(process.pid, signal.SIGTERM)
        _wait_gone(process, members, TERM_GRACE_S)
        _signal_group(process.pid, signal.SIGKILL)
        for member in members:
            _kill(member)
        _wait_gone(process, members, KILL_GRACE_S)


def _members(group: int) -> list[psutil.Process]:
    """The processes of the group and all descendants of its leader (workers may change their group)."""
    members = {
        process.pid: process for process in psutil.process_iter() if _group(process.pid) == group
    }
    with suppress(psutil.NoSuchProcess):
        members |= {child.pid: child for child in psutil.Process(group).children(recursive=True)}
    return list(members.values())


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()  # psutil checks the start time first: a reused pid is not hit


def _wait_gone(
    leader: subprocess.Popen[bytes], members: list[psutil.Process], timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        leader.poll()  # reaps it
        if not any(_alive(member) for member in members):
            return
        time.sleep(0.05)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pick_port(wanted: int | None) -> int:
    """A free loopback port, or the wanted one; one that is taken raises UserError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise UserError(
                f"Port {wanted} is in use on 127.0.0.1; give another with port, or none for a free one"
            ) from error
        return probe.getsockname()[1]
