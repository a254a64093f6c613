"""Who measures in a sweep's folder: one file a runner in ``runners/``, there from before its first change of
the folder until its end.

Two runners share a folder only when their ``--blocks`` have no repeat in common. A runner of this machine is
alive while its process is; of another machine (or container) while its file's time moves, which its sweep
renews. The file of a dead one is taken away, and that is said.

A runner that was stopped (a suspended machine, a paused container) for so long that another took over finds
its file gone, and writes nothing more: it asks before each manifest. After a silence it first shows that it
lives, and asks again once a runner that was about to take over has done so.
"""

import fcntl
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil
from pydantic import ValidationError

from greenbench.contract.config import StrictModel
from greenbench.contract.errors import UserError, system_sentence
from greenbench.contract.run_dir import write_atomic
from greenbench.sweep.directory import make_directory, unwritable

RUNNERS_DIR = "runners"
ROOM = ".room"
RENEW_S = 3.0
ROOM_BYTES = (
    512 * 1024
)  # kept beside the claim, given up when the disk is full: a last manifest fits
SILENCE_S = 15.0  # a file whose time did not move for so long is that of a dead sweep
LOOK_S = 0.2  # between two looks at another's file
SETTLE_S = 1.0  # from another's last look at a file to its taking away is less


class Runner(StrictModel):
    """A process that measures here. ``machine`` tells two apart that have one name, and two boots of one."""

    pid: int
    started: str  # of the process, as its machine counts
    host: str
    machine: str
    since_unix_ns: int
    blocks: tuple[int, ...] | None = None  # repeats; None: all

    @classmethod
    def this(cls, blocks: Iterable[int] | None = None) -> Self:
        return cls(
            pid=os.getpid(),
            started=process_start(os.getpid()) or "",
            host=socket.gethostname(),
            machine=this_machine(),
            since_unix_ns=time.time_ns(),
            blocks=None if blocks is None else tuple(sorted(blocks)),
        )

    @property
    def is_here(self) -> bool:
        """Whether its process id means anything on this machine."""
        return self.machine == this_machine()

    @property
    def lives_here(self) -> bool:
        return self.is_here and process_start(self.pid) == self.started

    def excludes(self, blocks: frozenset[int] | None) -> bool:
        return self.blocks is None or blocks is None or not blocks.isdisjoint(self.blocks)

    @property
    def tag(self) -> str:
        """Tells its file from that of another machine with the same name and process id."""
        return hashlib.sha256(f"{self.machine}/{self.started}".encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        where = "" if self.is_here else f" on {self.host}"
        return f"the sweep with process id {self.pid}{where}"


def this_machine() -> str:
    """Of this boot, and of the namespace in which process ids count: two containers are two machines."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def process_start(pid: int) -> str | None:
    """When a living process started, in a form that no other process of this boot has; None: it is dead.

    Ticks since boot (proc(5), field 22), which a step of the wall clock does not move.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        return None
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


class ClaimLost(Exception):
    """Another runner took this one for dead and measures in its place; the text is one sentence."""


class Claim:
    """This process's hold on a sweep's folder, or on some repeats of it, while the ``with`` lasts.

    Entering raises UserError, and leaves the folder as it was, where a living runner has a repeat in common.
    A folder that was not there goes again where nothing was written into it (a sweep that is refused).
    ``notes``: a sentence for each dead runner whose file was taken away.
    """

    def __init__(self, out: Path, blocks: frozenset[int] | None = None) -> None:
        self.out = out
        self.blocks = blocks
        self.runner = Runner.this(blocks)
        self.notes: list[str] = []
        self._file = (
            out / RUNNERS_DIR / f"{self.runner.host}-{self.runner.pid}-{self.runner.tag}.json"
        )
        self._over = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._renewed_s = _boot_s()
        self._lost = False
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        self._made = make_directory(self.out)
        try:
            with _one_at_a_time(self.out):
                self._refuse_beside_others()
                self._file.parent.mkdir(exist_ok=True)
                write_atomic(self._file, self.runner.model_dump_json() + "\n")
                self._room.write_bytes(os.urandom(ROOM_BYTES))  # a file system may pack zeros
                with (
                    self._withdrawn_on_error()
                ):  # where locks of files do nothing: both are seen now
                    self._refuse_beside_others()
        except OSError as error:
            raise unwritable(self.out, error) from error
        self._renewed_s = _boot_s()
        threading.Thread(target=self._keep_up, daemon=True, name="claim").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._withdraw()

    def give_up_room(self) -> None:
        """On a full disk: free what was kept for the last words of a point."""
        self._room.unlink(missing_ok=True)

    def look(self) -> None:
        """As `check`, and asks the disk only after a silence."""
        if self._lost or self._is_late():
            self.check()

    def check(self) -> None:
        """ClaimLost when another runner took this one for dead and took over. Renews the claim."""
        try:
            self._renew()
        except OSError as error:
            why = system_sentence(error)
            raise ClaimLost(
                f"this sweep cannot read whether the folder is still its own: {why}"
            ) from error
        if self._lost:
            raise ClaimLost(
                f"{self.out}: this sweep was silent for so long that another took it for dead and "
                "measures here now; nothing more is measured by this one"
            )

    @property
    def _room(self) -> Path:
        return self._file.with_suffix(ROOM)

    def _refuse_beside_others(self) -> None:
        for path in sorted(self._file.parent.glob("*.json")):
            if path == self._file:
                continue
            other = read_runner(path)
            if other is not None and not other.excludes(self.blocks):
                continue
            if _lives(path, other):
                raise UserError(_sentence(self.out, other, path))
            path.unlink(missing_ok=True)
            path.with_suffix(ROOM).unlink(missing_ok=True)
            if other is not None:
                self.notes.append(f"{other.name} was killed here; this one takes over")

    @contextmanager
    def _withdrawn_on_error(self) -> Generator[None]:
        try:
            yield
        except UserError:
            self._withdraw()
            raise

    def _withdraw(self) -> None:
        with suppress(OSError):
            if read_runner(self._file) == self.runner:
                self.give_up_room()
                self._file.unlink()
            for folder in (self._file.parent, *self._made):
                folder.rmdir()  # fails, and the loop ends, where another runner is, or a result

    def _keep_up(self) -> None:
        while not self._over.wait(RENEW_S) and not self._lost:
            with suppress(OSError):
                self._renew()

    def _renew(self) -> None:
        """Show that this one lives; note where another has taken over. OSError: nobody knows."""
        with self._one_at_a_time:
            late = self._is_late()
            if not self._lost and not self._over.is_set():
                self._lost = not self._show_life()
            if late and not self._lost:
                time.sleep(SETTLE_S)
                self._lost = not self._show_life()
            self._renewed_s = _boot_s()

    def _is_late(self) -> bool:
        return _boot_s() - self._renewed_s > SILENCE_S / 2

    def _show_life(self) -> bool:
        """Move the file's time; False where the file is no longer ours."""
        try:
            if Runner.model_validate_json(self._file.read_bytes()) != self.runner:
                return False
            os.utime(self._file)
        except (FileNotFoundError, ValidationError):
            return False
        return True


def _boot_s() -> float:
    """Seconds that go on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def read_runner(path: Path) -> Runner | None:
    """None where there is none, or no runner can be read there."""
    try:
        return Runner.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _lives(path: Path, runner: Runner | None) -> bool:
    if runner is not None and runner.is_here:
        return runner.lives_here
    return _moves(lambda: _changed_ns(path), SILENCE_S)


def _moves(look: Callable[[], int | None], seconds: float) -> bool:
    """Whether what ``look`` sees changes, to another value than None, within so many seconds."""
    first, deadline = look(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(LOOK_S)
        now = look()
        if now != first:
            return now is not None
    return False


def _changed_ns(path: Path) -> int | None:
    try:
        with path.open("rb") as file:  # opening asks a network file system anew
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _sentence(out: Path, other: Runner | None, path: Path) -> str:
    if other is None:
        return f"{out}: another sweep is at work here ({path.name}); give another --out"
    share = "" if other.blocks is None else f" (repeats {', '.join(map(str, other.blocks))})"
    return f"{out}: {other.name} is still at work here{share}; wait for it, stop it, or give another --out"


@contextmanager
def _one_at_a_time(folder: Path) -> Generator[None]:
    """Between runners of one machine, and of several where the file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
