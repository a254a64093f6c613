"""Puts sampler, collectors and HTTP together for `python -m telemetry serve`."""

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from greenbench.contract.address import opened_warning
from greenbench.contract.clock import Anchor
from greenbench.contract.errors import UserError
from telemetry.exporter.collectors import GreenbenchCollector, Latest, lateness_histogram
from telemetry.exporter.dcgm_names import DcgmCollector
from telemetry.sampler import GpuLoop, HostLoop
from telemetry.sensors import rapl
from telemetry.sensors.capability import Capability, unavailable
from telemetry.sensors.gpu import GpuIdentity, NoGpu, Reader
from telemetry.sensors.host import HostReader, ProcessTree
from telemetry.sensors.refresh_rate import WATCH_S
from telemetry.sensors.sources import GPU_SOURCES, merge_capabilities, watch_refresh

log = logging.getLogger("exporter")


@dataclass
class Exporter:
    """Serves until ``stop`` is set. ``port`` 0 takes a free one; ``ready`` is called with the one taken."""

    open_reader: Callable[[], Reader]
    host: str = "127.0.0.1"
    port: int = 9400
    pid: int | None = None
    period_s: float | None = None
    dcgm_names: bool = False
    ready: Callable[[int], None] = lambda port: None
    stop: threading.Event = field(default_factory=threading.Event)
    rapl_root: Path = rapl.POWERCAP
    watch_s: float = WATCH_S

    def run(self) -> None:
        registry = CollectorRegistry()
        anchor = Anchor.now()
        zones, rapl_found = rapl.probe(self.rapl_root)
        latest = Latest({zone.name: zone.max_uj for zone in zones})
        tree = ProcessTree(self.pid) if self.pid else None
        host_reader = HostReader(tree, zones, anchor)
        loops = [HostLoop(host_reader, latest.take_host, self.stop).run]
        gpus: list[GpuIdentity] = []
        errors: dict[str, int] = {}
        sources: dict[str, Capability]
        with contextlib.ExitStack() as stack:
            try:
                reader = self.open_reader()
            except NoGpu as error:
                sources = {name: unavailable(str(error)) for name in GPU_SOURCES}
            else:
                stack.callback(reader.close)
                gpus = reader.gpus()
                refreshes = watch_refresh(reader, self.watch_s)
                sources = merge_capabilities(reader, refreshes)
                loop = GpuLoop(reader, anchor, self.period_s, refreshes, latest.take_gpu, self.stop)
                loop.ticker.observe = lateness_histogram(registry).observe
                errors = loop.errors
                loops.append(loop.run)
            sources["rapl"] = rapl_found
            registry.register(GreenbenchCollector(latest, gpus, sources, errors))
            if self.dcgm_names:
                registry.register(DcgmCollector(latest, gpus))
            self._serve(registry, loops)

    def _serve(self, registry: CollectorRegistry, loops: list[Callable[[], None]]) -> None:
        if warning := opened_warning(self.host, "the exporter"):
            log.warning("%s", warning)
        try:
            server, thread = start_http_server(self.port, self.host, registry)
        except OSError as error:
            raise UserError(
                f"{self.host}:{self.port} cannot be listened on ({error.strerror}); "
                "choose another --port, or --port 0 for a free one"
            ) from error
        threads = [threading.Thread(target=loop) for loop in loops]
        for loop_thread in threads:
            loop_thread.start()
        self.ready(server.server_port)
        self.stop.wait()
        for loop_thread in threads:
            loop_thread.join()
        server.shutdown()
        thread.join()
        server.server_close()
