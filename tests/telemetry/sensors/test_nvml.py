"""The NVML adapter: codes become nulls with a word, zeros are no readings, the right call is the average."""

from types import SimpleNamespace

import pytest

from telemetry.sensors.gpu import GpuIdentity, NoGpu, visible_uuids
from telemetry.sensors.nvml import NvmlReader
from tests.fakes.nvml import NOT_SUPPORTED, FakeNvml, FakeNvmlError


class NVMLError_FunctionNotFound(FakeNvmlError):
    pass


COUNTER, AVERAGE, INSTANT, MEMORY = (83, 0), (185, 0), (186, 0), (185, 2)
ALL = {COUNTER: 12_345, AVERAGE: 691_200, INSTANT: 690_500, MEMORY: 47_900}


def test_a_whole_reading_in_base_units() -> None:
    reading = NvmlReader(FakeNvml(dict(ALL))).read(0)
    assert (reading.energy_mj, reading.power_avg_w, reading.power_w) == (12_345, 691.2, 690.5)
    assert reading.power_mem_w == 47.9
    assert reading.error is None  # what the card never had is no error of this read


def test_probe_says_which_sources_answer_and_why_not() -> None:
    """Guards R3: not supported and zero are both 'unavailable', each with its own word."""
    fields = {COUNTER: FakeNvmlError(NOT_SUPPORTED), AVERAGE: 300_000, INSTANT: 0}
    probed = NvmlReader(FakeNvml(fields)).capabilities(0)
    assert probed["average"].ok
    assert (probed["counter"].ok, probed["counter"].reason) == (False, "NotSupported")
    assert (probed["instant"].ok, probed["instant"].reason) == (False, "zero")
    assert not probed["memory_scope"].ok


@pytest.mark.parametrize("bad", [0, FakeNvmlError(15)])
def test_a_source_that_fails_later_is_null_with_a_code_and_never_zero(
    bad: int | FakeNvmlError,
) -> None:
    nvml = FakeNvml(dict(ALL))
    reader = NvmlReader(nvml)
    nvml.fields[AVERAGE] = bad
    reading = reader.read(0)
    assert reading.power_avg_w is None
    assert reading.error == ("average:zero" if bad == 0 else "average:code15")
    assert reading.energy_mj == 12_345  # the others still stand


@pytest.mark.parametrize(
    ("capability", "is_average"), [((9, 0), True), ((8, 6), True), ((8, 0), False), ((7, 0), False)]
)
def test_power_usage_is_an_average_only_from_ampere_on(
    capability: tuple[int, int], is_average: bool
) -> None:
    """Guards against integrating A100's instantaneous power as if it were the 1 s average."""
    nvml = FakeNvml({COUNTER: 1}, usage_mw=300_000, compute_capability=capability)
    reader = NvmlReader(nvml)
    assert reader.capabilities(0)["average"].ok is is_average
    assert reader.read(0).power_avg_w == (300.0 if is_average else None)


def test_grace_hopper_falls_back_to_the_module_scope_and_says_so() -> None:
    nvml = FakeNvml({COUNTER: 1, (185, 1): 480_000})
    reader = NvmlReader(nvml)
    assert reader.gpus()[0].scope == "module"
    assert reader.read(0).power_avg_w == 480.0


def test_no_driver_and_no_card_are_reasons() -> None:
    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            raise FakeNvmlError(12)

    with pytest.raises(NoGpu, match="NVML does not start: code 12"):
        NvmlReader(NoDriver({}))
    with pytest.raises(NoGpu, match="lists no GPU"):
        NvmlReader(FakeNvml({}, count=0))


def test_a_lost_card_costs_itself_alone() -> None:
    nvml = FakeNvml(dict(ALL), count=3, lost={1: 15})
    reader = NvmlReader(nvml)
    assert [gpu.index for gpu in reader.gpus()] == [0, 2]
    assert reader.unread() == {1: "code15"}
    assert reader.read(2).energy_mj == 12_345
    with pytest.raises(NoGpu, match=r"cannot read any GPU .GPU 0: code15, GPU 1: code999"):
        NvmlReader(FakeNvml(dict(ALL), count=2, lost={0: 15, 1: 999}))


def test_the_older_calls_stand_in_where_no_field_answers() -> None:
    older = {"nvmlDeviceGetTotalEnergyConsumption": 5_000_000}
    nvml = FakeNvml({}, usage_mw=300_000, older=older)
    reader = NvmlReader(nvml)
    assert reader.capabilities(0)["counter"].ok and reader.capabilities(0)["average"].ok
    reading = reader.read(0)
    assert (reading.energy_mj, reading.power_avg_w, reading.error) == (5_000_000, 300.0, None)
    older["nvmlDeviceGetTotalEnergyConsumption"] = 0
    reading = reader.read(0)
    assert (reading.energy_mj, reading.error) == (None, "counter:zero")


def test_power_usage_of_an_older_card_is_its_instant_power() -> None:
    reader = NvmlReader(FakeNvml({COUNTER: 1}, usage_mw=60_000, compute_capability=(7, 5)))
    assert (reader.read(0).power_w, reader.read(0).power_avg_w) == (60.0, None)


def test_a_binding_or_driver_without_the_newer_names_is_read_by_the_older() -> None:
    class OldBinding(FakeNvml):
        """Its fields take no scope, and it knows neither the constants nor the calls of today."""

        NVML_FI_DEV_POWER_AVERAGE = property()
        NVML_FI_DEV_POWER_INSTANT = property()

        def nvmlDeviceGetFieldValues(self, handle: int, wanted: list[tuple[int, int]]) -> list[int]:
            return [field + 0 for field in wanted]  # type: ignore[operator]

        def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:
            raise NVMLError_FunctionNotFound(13)

        def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: int) -> list[SimpleNamespace]:
            return [SimpleNamespace(pid=7)]

    older = {
        "nvmlDeviceGetTotalEnergyConsumption": 9,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
    }
    reader = NvmlReader(OldBinding({}, older=older))
    assert reader.capabilities(0)["memory_scope"].reason == "NotInBinding"
    assert (reader.read(0).energy_mj, reader.read(0).throttle_reasons) == (9, 4)
    assert reader.pids(0) == [7]


def test_visible_devices_are_joined_by_uuid() -> None:
    cards = [GpuIdentity(0, "GPU-aaa", "x"), GpuIdentity(1, "GPU-bbb", "x")]
    assert visible_uuids(cards, {}) == ["GPU-aaa", "GPU-bbb"]
    assert visible_uuids(cards, {"CUDA_VISIBLE_DEVICES": "1"}) == ["GPU-bbb"]
    assert visible_uuids(cards, {"CUDA_VISIBLE_DEVICES": "GPU-b, GPU-aaa"}) == [
        "GPU-bbb",
        "GPU-aaa",
    ]
    assert visible_uuids(cards, {"CUDA_VISIBLE_DEVICES": ""}) == []
