"""The host's CPU and memory, and the server's process tree, at one tick."""

import socket
import time
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from greenbench.contract.clock import Anchor
from greenbench.contract.schema import HostSample
from telemetry.sensors import rapl

TREE_EVERY_NS = 5_000_000_000  # walking all processes costs milliseconds; new children can wait


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's tree: resident bytes (shared pages count once a process), cumulative CPU seconds."""

    rss_bytes: int
    cpu_s: float
    processes: int


class Tree(Protocol):
    def usage(self, mono_ns: int) -> Usage | None: ...


@dataclass
class ProcessTree:
    """A process and its descendants. CPU time of a child that ended stays in the sum, so it never falls."""

    pid: int
    _members: dict[int, psutil.Process] = field(default_factory=dict[int, psutil.Process])
    _cpu_s: dict[tuple[int, float], float] = field(default_factory=dict[tuple[int, float], float])
    _walked_ns: int | None = None

    def pids(self) -> set[int]:
        """The tree as it is now; from any thread."""
        try:
            root = psutil.Process(self.pid)
            return {root.pid, *(child.pid for child in root.children(recursive=True))}
        except psutil.Error:
            return set()

    def usage(self, mono_ns: int) -> Usage | None:
        """None when the process is gone."""
        if self._walked_ns is None or mono_ns - self._walked_ns >= TREE_EVERY_NS:
            self._walk()
            self._walked_ns = mono_ns
        rss_bytes, alive = 0, 0
        for process in list(self._members.values()):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    rss_bytes += process.memory_info().rss
                    key = (process.pid, process.create_time())
            except psutil.Error:
                self._members.pop(process.pid, None)
                continue
            self._cpu_s[key] = times.user + times.system
            alive += 1
        return Usage(rss_bytes, sum(self._cpu_s.values()), alive) if alive else None

    def _walk(self) -> None:
        try:
            root = self._members.get(self.pid) or psutil.Process(self.pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return  # the children that are known are still counted
        self._members = {p.pid: self._members.get(p.pid, p) for p in tree}


class HostReader:
    """Makes one HostSample a call. The first has no ``cpu_busy_share``: a share needs two readings."""

    def __init__(self, tree: Tree | None, zones: list[rapl.Zone], anchor: Anchor) -> None:
        self._tree = tree
        self._zones = zones
        self._anchor = anchor
        self._host = socket.gethostname()
        self._busy: tuple[float, float] | None = None

    def sample(self) -> HostSample:
        mono_ns = time.monotonic_ns()
        usage = self._tree.usage(mono_ns) if self._tree else None
        gone = self._tree is not None and usage is None
        return HostSample(
            unix_ns=self._anchor.to_unix_ns(mono_ns),
            mono_ns=mono_ns,
            host=self._host,
            cpu_busy_share=self._busy_share(),
            mem_used_bytes=psutil.virtual_memory().used,
            server_rss_bytes=usage.rss_bytes if usage else None,
            server_cpu_s=round(usage.cpu_s, 3) if usage else None,
            server_processes=usage.processes if usage else None,
            cpu_energy_uj=rapl.read(self._zones),
            error="process:gone" if gone else None,
            read_ns=time.monotonic_ns() - mono_ns,
        )

    def _busy_share(self) -> float | None:
        """Share of all cores' time since the last call that was neither idle nor waiting for I/O."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is already inside user time
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        before, self._busy = self._busy, (idle, total)
        if before is None or total <= before[1]:
            return None
        share = 1 - (idle - before[0]) / (total - before[1])
        return round(min(max(share, 0.0), 1.0), 4)
