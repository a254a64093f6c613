"""The exporter's page: oracle C-13, promtool, dcgm names, and what is missing staying missing."""

import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.errors import UserError
from greenbench.contract.schema import HostSample
from telemetry.exporter.collectors import GreenbenchCollector, Latest, Monotone, lateness_histogram
from telemetry.exporter.dcgm_names import DcgmCollector
from telemetry.exporter.exporter import Exporter
from telemetry.sensors.capability import available, unavailable
from telemetry.sensors.gpu import NoGpu, Reader
from tests.fakes.nvml import FakeGpu, FakeReader, constant, record
from tests.fakes.waiting import HUNG_S, wait_until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
CARD = FakeGpu(constant(300), uuid="GPU-a", counter_start_mj=5_000_000, reset_at_s=20.0)


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def page(latest: Latest, dcgm: bool = False) -> str:
    registry = CollectorRegistry()
    sources = {"counter": available(), "rapl": unavailable("no tree")}
    registry.register(GreenbenchCollector(latest, [CARD.identity()], sources, {"average:zero": 2}))
    if dcgm:
        registry.register(DcgmCollector(latest, [CARD.identity()]))
    lateness_histogram(registry).observe(0.002)
    return generate_latest(registry).decode()


def latest_at(end_s: float) -> Latest:
    latest = Latest({"intel-rapl:0 package-0": 1000})
    for row in record([CARD], 0.0, end_s):
        latest.take_gpu([row])
    return latest


def test_c13_counters_are_joules_end_in_total_and_never_fall_over_a_reset() -> None:
    """The NVML counter restarts from 0 at 20 s; the page goes on from where it was."""
    latest = Latest()
    key = (
        "greenbench_gpu_energy_joules_total",
        (("scope", "gpu"), ("source", "nvml_counter"), ("uuid", "GPU-a")),
    )
    seen: list[float] = []
    for row in record([CARD], 0.0, 40.0):
        latest.take_gpu([row])
        seen.append(parsed(page(latest))[key])
    assert all(b >= a for a, b in pairwise(seen))
    assert seen[0] == pytest.approx(5_000.0)  # joules: the raw counter is 5 000 000 mJ
    # 20 s and 20 s of 300 W, less the one refresh (100 ms) that nobody saw at the reset
    assert seen[-1] == pytest.approx(5_000 + 300 * 40, abs=300 * 0.2)
    resets = ("greenbench_gpu_energy_resets_total", (("uuid", "GPU-a"),))
    assert parsed(page(latest))[resets] == 1.0


def test_base_units_and_every_counter_has_the_total_suffix() -> None:
    text = page(latest_at(5.0))
    found = parsed(text)
    assert found[("greenbench_gpu_sm_clock_hertz", (("uuid", "GPU-a"),))] == 1.98e9
    assert found[("greenbench_gpu_utilization_ratio", (("uuid", "GPU-a"),))] == 0.99
    window = (("scope", "memory"), ("uuid", "GPU-a"), ("window", "average"))
    assert found[("greenbench_gpu_power_watts", window)] == 47.9
    counters = [f for f in text_string_to_metric_families(text) if f.type == "counter"]
    assert len(counters) >= 5
    for family in counters:
        assert all(sample.name.endswith("_total") for sample in family.samples)


def test_a_card_without_a_counter_has_no_energy_sample_rather_than_zero() -> None:
    latest = Latest()
    silent = FakeGpu(constant(300), uuid="GPU-a", lacks=("counter", "average"))
    for row in record([silent], 0.0, 1.0):
        latest.take_gpu([row])
    names = {name for name, _ in parsed(page(latest))}
    assert "greenbench_gpu_energy_joules_total" not in names
    assert "greenbench_gpu_temperature_celsius" in names


def test_rapl_wraps_are_added_up_and_a_reset_is_not() -> None:
    wrapping = Monotone(span=1000)
    for raw in (900, 990, 10, 500, 20):  # +90, wrap +20, +490, wrap +520
        wrapping.add(raw)
    assert wrapping.total == 900 + 90 + 20 + 490 + 520
    resetting = Monotone()
    for raw in (900, 990, 10, 60):
        resetting.add(raw)
    assert (resetting.total, resetting.resets) == (900 + 90 + 50, 1)


def test_cpu_energy_is_joules() -> None:
    latest = Latest({"intel-rapl:0 package-0": 1000})
    latest.take_host(HostSample(1, 1, 1, "h", cpu_energy_uj={"intel-rapl:0 package-0": 2_500_000}))
    key = (("source", "rapl"), ("zone", "intel-rapl:0 package-0"))
    assert parsed(page(latest))[("greenbench_cpu_energy_joules_total", key)] == 2.5


def test_dcgm_names_carry_dcgm_units_and_labels() -> None:
    found = {name: (labels, v) for (name, labels), v in parsed(page(latest_at(5.0), True)).items()}
    labels, energy_mj = found["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]
    assert energy_mj == pytest.approx(5_000_000 + 300 * 5 * 1e3)
    assert dict(labels)["UUID"] == "GPU-a" and dict(labels)["gpu"] == "0"
    assert found["DCGM_FI_DEV_FB_USED"][1] == 100 * 1024
    assert "DCGM_FI_DEV_POWER_USAGE" not in {n for n, _ in parsed(page(latest_at(5.0)))}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    latest = latest_at(5.0)
    sample = HostSample(1, 1, 1, "h", 0.5, 10**9, 10**8, 3.2, 4, {"intel-rapl:0 package-0": 5})
    latest.take_host(sample)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page(latest), text=True, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def serving() -> Iterator[int]:
    """A whole exporter over a fake card, on a free port."""
    ports: list[int] = []
    exporter = Exporter(
        lambda: FakeReader([FakeGpu(constant(300), uuid="GPU-a")], time.monotonic_ns),
        port=0,
        period_s=0.05,
        ready=ports.append,
        watch_s=0.0,
    )
    thread = threading.Thread(target=exporter.run)
    thread.start()
    wait_until(lambda: ports, "a port")
    yield ports[0]
    exporter.stop.set()
    thread.join(HUNG_S)
    assert not thread.is_alive()


def test_a_served_page_holds_the_samplers_readings(serving: int) -> None:
    def page() -> Samples:
        url = f"http://127.0.0.1:{serving}/metrics"
        with urllib.request.urlopen(url, timeout=HUNG_S) as response:
            return parsed(response.read().decode())

    def samples() -> float:
        return page().get(("greenbench_sampler_lateness_seconds_count", ()), 0)

    then_s, seen = time.monotonic(), samples()
    wait_until(lambda: samples() > seen + 1, "a sample after that")  # counted before it is stored
    found = page()
    assert found[("greenbench_gpu_temperature_celsius", (("uuid", "GPU-a"),))] == 45
    age_s = found[("greenbench_gpu_sample_age_seconds", (("uuid", "GPU-a"),))]
    assert 0 <= age_s <= time.monotonic() - then_s  # it was taken in between


def test_a_port_in_use_is_said(serving: int) -> None:
    def no_gpu() -> Reader:
        raise NoGpu("none")

    with pytest.raises(UserError, match="cannot be listened on"):
        Exporter(no_gpu, port=serving).run()
