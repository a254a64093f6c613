"""`python -m telemetry record`: samples into RUN/telemetry/*.jsonl until SIGTERM.

Everything raw is kept; nothing is averaged, joined or repaired here. What could not be read says why in
telemetry/sources.json, which is written once the probe is done and again at the end.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from greenbench.contract.access import Access
from greenbench.contract.clock import Anchor
from greenbench.contract.cpu import this_cpu
from greenbench.contract.run_dir import EVENTS, JsonlWriter, write_atomic
from greenbench.contract.schema import Event
from greenbench.contract.segments import SegmentedJsonlWriter
from telemetry.sampler import (
    OWNERS_EVERY_S,
    GpuLoop,
    HostLoop,
    OwnerWatch,
    ScrapeLoop,
)
from telemetry.sensors import rapl
from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import NoGpu, Reader
from telemetry.sensors.host import HostReader, ProcessTree
from telemetry.sensors.refresh_rate import WATCH_S
from telemetry.sensors.server_cards import (
    Cards,
    Found,
    Machine,
    ThisMachine,
    find_server,
    server_cards,
)
from telemetry.sensors.sources import GPU_SOURCES, merge_capabilities, watch_refresh

logger = logging.getLogger(__name__)

ANCHOR_EVERY_S = 10.0


@dataclass
class RecordRequest:
    """What to record. ``None`` leaves a source out and says so."""

    run_dir: Path
    pid: int | None = None
    server: Access | str | None = None
    period_s: float | None = None
    scrape_s: float = 0.5

    @property
    def address(self) -> str | None:
        """URL of the server, however it is reached."""
        return self.server.base_url if isinstance(self.server, Access) else self.server


@dataclass
class Recorder:
    """Owns the loops of one recording. ``open_reader`` raises NoGpu where there is no GPU to read."""

    request: RecordRequest
    open_reader: Callable[[], Reader]
    stop: threading.Event = field(default_factory=threading.Event)
    rapl_root: Path = rapl.POWERCAP
    watch_s: float = WATCH_S  # how long the sensors' refresh is watched at start
    machine: Machine = field(default_factory=ThisMachine)
    _sources: dict[str, Capability] = field(init=False, default_factory=dict[str, Capability])
    _gpu_facts: list[dict[str, Any]] = field(init=False, default_factory=list[dict[str, Any]])
    _unread: list[str] = field(init=False, default_factory=list[str])
    _found: Found = field(init=False, default=Found())
    _cards: Cards = field(init=False, default=Cards(frozenset()))
    _gpu: GpuLoop | None = field(init=False, default=None)
    _scrape: ScrapeLoop | None = field(init=False, default=None)
    _owners: OwnerWatch | None = field(init=False, default=None)
    _failure: BaseException | None = field(init=False, default=None)

    def run(self) -> None:
        """Probe, sample until ``stop`` is set, flush."""
        folder = self.request.run_dir / "telemetry"
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._events = stack.enter_context(JsonlWriter(self.request.run_dir / EVENTS))
            self._anchor = Anchor.now()
            self._sources_path = folder / "sources.json"
            self._tree = ProcessTree(self.request.pid) if self.request.pid else None
            self._found = find_server(self.request.pid, self.request.address, self.machine)
            self._cards = Cards(frozenset(), why=self._found.elsewhere)
            loops = [
                *self._gpu_loops(folder, stack),
                self._host_loop(folder, stack),
                *self._scrape_loops(folder, stack),
            ]
            self._write_sources()
            self._event("clock_anchor")
            self._event("recorder_started", pid=os.getpid())
            threads = [threading.Thread(target=self._guard, args=(loop,)) for loop in loops]
            for thread in threads:
                thread.start()
            self._wait()
            for thread in threads:
                thread.join()
            self._event("clock_anchor")
            self._event("recorder_stopped")
            self._write_sources()
        if self._failure:
            raise self._failure

    def _guard(self, loop: Callable[[], None]) -> None:
        """A loop that breaks (a full disk) ends the recording, and the process says so with its exit code."""
        try:
            loop()
        except BaseException as error:
            self._failure = error
            self.stop.set()

    def _gpu_loops(self, folder: Path, stack: contextlib.ExitStack) -> list[Callable[[], None]]:
        try:
            reader = self.open_reader()
        except NoGpu as error:
            self._sources = {name: unavailable(str(error)) for name in GPU_SOURCES}
            return []
        stack.callback(reader.close)
        identities = reader.gpus()
        refreshes = watch_refresh(reader, self.watch_s)
        self._gpu_facts = [asdict(gpu) for gpu in identities]
        self._unread = [f"GPU {index}: {code}" for index, code in reader.unread().items()]
        attached = self.request.pid is None and self.request.server is not None
        self._cards = server_cards(reader, self._found, attached)
        self._sources = merge_capabilities(reader, refreshes, self._cards.uuids)
        writer = stack.enter_context(SegmentedJsonlWriter(folder / "gpu.jsonl"))
        self._gpu = GpuLoop(
            reader=reader,
            anchor=self._anchor,
            asked_period_s=self.request.period_s,
            refreshes=refreshes,
            sink=writer.write_all,
            stop=self.stop,
        )
        self._owners = OwnerWatch(reader, self._own_pids, psutil.pid_exists)
        return [self._gpu.run]

    def _own_pids(self) -> set[int]:
        return ProcessTree(self._found.pid).pids() if self._found.pid else set()

    def _host_loop(self, folder: Path, stack: contextlib.ExitStack) -> Callable[[], None]:
        zones, capability = rapl.probe(self.rapl_root)
        self._sources["rapl"] = capability
        self._sources["process"] = _process_capability(self.request.pid)
        writer = stack.enter_context(SegmentedJsonlWriter(folder / "host.jsonl"))
        reader = HostReader(self._tree, zones, self._anchor)
        return HostLoop(reader, writer.write, self.stop).run

    def _scrape_loops(self, folder: Path, stack: contextlib.ExitStack) -> list[Callable[[], None]]:
        if self.request.server is None:
            self._sources["metrics"] = unavailable("no server address was given")
            return []
        writer = stack.enter_context(SegmentedJsonlWriter(folder / "server.jsonl"))
        self._scrape = ScrapeLoop(
            self.request.server, self._anchor, self.request.scrape_s, writer.write, self.stop
        )
        self._scrape.scrape()
        return [self._scrape.run]

    def _wait(self) -> None:
        """Clock anchors every 10 s and a look at who uses the cards every 5 s, until it is time to stop."""
        next_anchor_s = time.monotonic() + ANCHOR_EVERY_S
        if self._owners:
            self._owners.look()
        while not self.stop.wait(OWNERS_EVERY_S):
            if self._owners:
                self._owners.look()
            if time.monotonic() >= next_anchor_s:
                next_anchor_s += ANCHOR_EVERY_S
                self._event("clock_anchor")
        if self._owners:
            self._owners.look()

    def _event(self, name: str, **detail: Any) -> None:
        now = Anchor.now()
        self._events.write(Event(now.unix_ns, now.mono_ns, name, detail))

    def _write_sources(self) -> None:
        sources = {name: capability.as_dict() for name, capability in self._sources.items()}
        if self._scrape:
            sources["metrics"] = _metrics_status(self._scrape)
        owners = self._owners
        for gpu in self._gpu_facts:
            uuid = gpu["uuid"]
            possible = uuid in self._cards.uuids
            gpu["visible"] = possible if self._cards.certain or not possible else None
            if owners:
                gpu["own_pids"] = sorted(owners.own.get(uuid, ()))
                gpu["foreign_pids"] = sorted(owners.foreign.get(uuid, ()))
                gpu["unknown_pids"] = sorted(owners.unknown.get(uuid, ()))
                gpu["processes_listed"] = owners.listed.get(uuid)
        sampler = _sampler_facts(self._gpu) if self._gpu else None
        sources["facts"] = {
            "cpu": _cpu_facts(),
            "gpus": self._gpu_facts,
            "sampler": sampler,
            "which_gpus": self._cards.why,
            "unread": self._unread,
        }
        write_atomic(self._sources_path, json.dumps(sources, indent=1) + "\n")


def _process_capability(pid: int | None) -> Capability:
    if not pid:
        return unavailable("no server pid was given")
    if not psutil.pid_exists(pid):
        return unavailable(f"no process with pid {pid}")
    return available(pid=pid)


def _metrics_status(loop: ScrapeLoop) -> dict[str, Any]:
    counts = {"scrapes_good": loop.good, "scrapes_failed": loop.failed, "cost": loop.cost.summary()}
    if loop.good and not loop.vllm_seen:
        reason = "the page has none of vLLM's metrics: a router's, or another server's"
        return unavailable(reason, **counts).as_dict()
    if loop.good:
        return available(period_s=loop.period_s, last_error=loop.last_error, **counts).as_dict()
    return unavailable(loop.last_error or "not scraped", **counts).as_dict()


def _sampler_facts(loop: GpuLoop) -> dict[str, Any]:
    return {
        "asked_period_s": loop.asked_period_s,
        "period_s": loop.ticker.period_s,
        "missed_ticks": loop.ticker.missed,
        "lateness": loop.ticker.lateness.summary(),
        "cost": loop.cost.summary(),
        "skew": loop.skew.summary(),
        "errors": loop.errors,
    }


def _cpu_facts() -> dict[str, Any]:
    """What the power model of a CPU without counters needs."""
    return {
        "name": this_cpu().name,
        "threads": psutil.cpu_count(),
        "cores": psutil.cpu_count(logical=False),
        "ram_bytes": psutil.virtual_memory().total,
    }
