"""Processes that are kept running, as a supervisor of services keeps them; and who is left over."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

MARK: Final = (
    "GREENBENCH_SOAK"  # in the environment of all that a soak starts, and of their children
)
STOP_S: Final = 60.0
AGAIN_S: Final = 1.0  # between an end and the next start


@dataclass(slots=True)
class Life:
    """One process. Seconds of the monotonic clock; ``code``: as subprocess gives it. ``rss``: (s, bytes)."""

    pid: int
    began_s: float
    ended_s: float | None = None
    code: int | None = None
    rss: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])


@dataclass(slots=True)
class Kept:
    """``again``: it is started anew when it has ended. ``settings``: added to its environment."""

    name: str
    argv: list[str]
    folder: Path
    mark: str
    again: bool = True
    settings: dict[str, str] = field(default_factory=dict[str, str])
    lives: list[Life] = field(default_factory=list[Life])
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {MARK: self.mark} | self.settings, start_new_session=True,
            )  # fmt: skip
        self.lives.append(Life(self._process.pid, time.monotonic()))

    @property
    def pid(self) -> int:
        return self.lives[-1].pid

    @property
    def runs(self) -> bool:
        self.look()
        return bool(self.lives) and self.lives[-1].ended_s is None

    def look(self) -> None:
        """Note its end; start it again when it is time."""
        if self._process is None:
            return
        life, now = self.lives[-1], time.monotonic()
        if life.ended_s is None and (code := self._process.poll()) is not None:
            life.ended_s, life.code = now, code
        if self.again and life.ended_s is not None and now > life.ended_s + AGAIN_S:
            self.start()

    def weigh(self) -> None:
        """Note how much memory it holds, its children's with it."""
        life = self.lives[-1]
        with suppress(psutil.Error):
            if life.ended_s is None:
                process = psutil.Process(life.pid)
                each = [process, *process.children(recursive=True)]
                life.rss.append((time.monotonic(), sum(p.memory_info().rss for p in each)))

    def kill(self) -> None:
        """And see its end, so that it is not taken for running while it dies."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.look()

    def stop(self) -> None:
        """End it in order, for good; what does not end in a minute is killed with all of its session."""
        self.again = False
        if not self.runs or self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self.look()


def marked(mark: str) -> list[psutil.Process]:
    """All living processes that this soak started, itself or through others, whoever is their parent now."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found
