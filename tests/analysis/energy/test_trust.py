"""Oracles C-8, C-9, C-15, and every rule that refuses a window: it fires on its fault and nothing else."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.energy.cpu import WATTS_PER_THREAD, cpu_energy
from analysis.energy.idle import IdlePower, idle_power
from analysis.energy.quantities import Estimated, Measured, total
from analysis.energy.result import EnergyResult
from analysis.energy.trust import REASONS, THERMAL_OR_HW_SLOWDOWN, Rules
from analysis.energy.window import point_energy
from analysis.point.steady_window import steady_window
from analysis.runs.activity import activity
from analysis.runs.clocks import wall_clock
from greenbench.contract.forms import Sources
from greenbench.contract.schema import HostSample
from telemetry.sensors.gpu import visible_uuids
from telemetry.sensors.nvml import CLOCK_EVENTS
from tests.fakes.energy_frames import Work, frame, inputs, ns, recorded, sources
from tests.fakes.nvml import SECOND, FakeGpu, constant, record

START_S, END_S = 5.0, 70.0


def judged(card: FakeGpu, work: Work | None = None, **facts: Any) -> EnergyResult:
    gpu = recorded([card], END_S + 10)
    return point_energy(inputs(gpu, sources([card], **facts), START_S, END_S, work))


# C-8


def stepped(mono_ns: int) -> int:
    """A sampler whose wall clock is 250 ms ahead, drifts 50 ppm and is set back 2 s in mid-run."""
    unix_ns = mono_ns + 1_700_000_000 * SECOND + 250_000_000 + round(mono_ns * 50e-6)
    return unix_ns - (2 * SECOND if mono_ns > 40 * SECOND else 0)


def test_c8_wrong_wall_clocks_do_not_move_a_joule() -> None:
    cubic = replace(constant(0), power_w=lambda t: 3 * t * t, energy_j=lambda t: t**3)
    card = FakeGpu(cubic, sm_clock_mhz=lambda t: 1980)
    told_right = recorded([card], END_S + 10)
    told_wrong = frame(record([card], 0, END_S + 10, unix_ns=stepped))
    assert (told_right["unix_ns"] != told_wrong["unix_ns"]).all()
    right, wrong = (
        point_energy(inputs(gpu, sources([card]), START_S, END_S))
        for gpu in (told_right, told_wrong)
    )
    assert right.energy_j is not None and right.start_mono_ns and right.end_mono_ns
    assert wrong.energy_j == right.energy_j
    truth_j = (right.end_mono_ns / 1e9) ** 3 - (right.start_mono_ns / 1e9) ** 3
    assert right.energy_j == pytest.approx(truth_j, rel=1e-6)


def test_c8_a_join_on_wall_time_alone_is_found_and_refused() -> None:
    stamps = [(stepped(n * SECOND), n * SECOND) for n in range(0, 90, 10)]
    clock = wall_clock(stamps)
    assert clock.reason == "clock_stepped"
    assert clock.to_mono_ns(1_700_000_005 * SECOND) is None
    steady = wall_clock(
        [(unix_ns, mono_ns) for unix_ns, mono_ns in stamps if mono_ns <= 40 * SECOND]
    )
    assert steady.reason is None  # 50 ppm over 40 s are 2 ms
    mono_ns = steady.to_mono_ns(stepped(20 * SECOND))
    assert mono_ns == pytest.approx(20 * SECOND, abs=2_000_000)


# C-9


def requests(spans_s: list[tuple[float, float]]) -> pd.DataFrame:
    sent, end = np.array(spans_s).T
    return pd.DataFrame(
        {
            "sent_unix_ns": (sent * 1e9).astype(np.int64),
            "end_ns": ((end - sent) * 1e9).astype(np.int64),
        }
    )


def test_c9_the_steady_stretch_of_a_known_ramp_is_found_within_a_second() -> None:
    """Eight users start 2 s apart, each with 4 s requests back to back; all stop at 100 s."""
    spans = [
        (2.0 * user + 4.0 * n, 2.0 * user + 4.0 * (n + 1))
        for user in range(8)
        for n in range(int((100 - 2 * user) / 4))
    ]
    window = steady_window(activity(requests(spans)), (0, ns(110)), users=8)
    assert window.valid, window.reasons
    # all eight run from 14 s on; the first to stop is the user whose last request ends first
    last_s = min(
        max(end for sent, end in spans if sent % 4 == (2.0 * user) % 4) for user in range(2)
    )
    assert window.start_unix_ns / 1e9 == pytest.approx(14, abs=1)
    assert window.end_unix_ns / 1e9 == pytest.approx(last_s, abs=2.5)


def test_c9_load_that_never_stands_gives_no_window_rather_than_the_whole_run() -> None:
    spans = [
        (3.0 * user + 4.0 * n, 3.0 * user + 4.0 * (n + 1)) for user in range(8) for n in range(3)
    ]
    window = steady_window(activity(requests(spans)), (0, ns(60)), users=8)
    assert not window.valid and window.reasons


# C-15 and R24


def test_c15_units_are_named_where_numbers_become_energies() -> None:
    """The same 9 kJ by NVML and out of RAPL's µJ."""
    nvml = Measured(9_000.0, "gpu", "nvml_counter")
    rapl = Measured.from_microjoules(9_000_000_000, "cpu_package", "rapl")
    assert nvml.joules == rapl.joules == 9_000.0
    with pytest.raises(TypeError, match="do not add up"):
        nvml + rapl
    for wrong in (nvml, "9", True, None):
        with pytest.raises(TypeError, match="a number is wanted"):
            Measured.from_microjoules(wrong, "cpu_package", "rapl")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        nvml + 5.0  # type: ignore[operator]


def test_r24_an_estimate_never_enters_a_measured_sum() -> None:
    nvml = Measured(9_000.0, "gpu", "nvml_counter")
    modelled = Estimated(100, 400, "package power by thread count and load")
    with pytest.raises(TypeError, match="only measured energy adds to measured energy"):
        nvml + modelled  # type: ignore[operator]
    with pytest.raises(TypeError):
        modelled + nvml  # type: ignore[operator]
    for mixed in ([nvml, modelled], [modelled, nvml]):
        with pytest.raises(TypeError):
            total(mixed)  # type: ignore[arg-type]


# Rules


def test_a_clean_window_has_every_figure() -> None:
    card = FakeGpu(constant(300))
    before, after = IdlePower(100.0, 30.0), IdlePower(102.0, 30.0)
    gpu = recorded([card], END_S + 10)
    work = Work(output=10_000, input=90_000, completions=100)
    idle = {"idle_before": before, "idle_after": after}
    result = point_energy(inputs(gpu, sources([card]), START_S, END_S, work, **idle))
    assert result.status == "measured" and result.flags == []
    joules = 300 * 65.0
    assert result.gross is not None and result.above_idle is not None
    assert result.gross.j == pytest.approx(joules)
    assert result.gross.j_per_output_token == pytest.approx(joules / 10_000)
    assert result.gross.j_per_total_token == pytest.approx(joules / 100_000)
    assert result.gross.j_per_request == pytest.approx(joules / 100)
    above = (300 - 101) * 65.0
    assert result.above_idle.j == pytest.approx(above)
    assert result.above_idle.j_per_output_token == pytest.approx(above / 10_000)
    assert (result.idle_w, result.idle_drift) == (101.0, pytest.approx(0.02))
    assert (result.scope, result.source) == ("gpu", "nvml_counter")


def test_work_is_counted_over_exactly_the_aligned_interval() -> None:
    """Guards tokens of the asked window over joules of the aligned one."""
    asked: list[tuple[int, int]] = []

    def count(start_ns: int, end_ns: int) -> Work:
        asked.append((start_ns, end_ns))
        return Work()

    card = FakeGpu(constant(300), phase_s=0.03)
    gpu = recorded([card], END_S + 10)
    result = point_energy(inputs(gpu, sources([card]), 5.04, 70.04, count=count))
    assert asked == [(result.start_mono_ns, result.end_mono_ns)]
    assert asked == [(ns(5.1), ns(70.0))]  # the first and the last sample that saw a change


FAULTS: list[tuple[str, FakeGpu, dict[str, Any]]] = [
    ("mig", FakeGpu(constant(300), mig=True), {}),
    ("vgpu", FakeGpu(constant(300)), {"virtual": True}),
    ("foreign_process", FakeGpu(constant(300)), {"foreign_pids": [4711]}),
    ("throttled", FakeGpu(constant(300), throttle=lambda t: 0x40 if 30 < t < 30.5 else 0), {}),
    ("clock_changed", FakeGpu(constant(300), sm_clock_mhz=lambda t: 1980 if t < 40 else 1755), {}),
    ("counter_reset", FakeGpu(constant(300), reset_at_s=50.0), {}),
    ("counter_vs_integral", FakeGpu(constant(300), average_gain=1.03), {}),
]


@pytest.mark.parametrize(("reason", "card", "facts"), FAULTS, ids=[f[0] for f in FAULTS])
def test_each_fault_refuses_the_window_with_its_own_reason(
    reason: str, card: FakeGpu, facts: dict[str, Any]
) -> None:
    result = judged(card, **facts)
    assert result.status == "invalid"
    assert result.reasons == [reason]
    assert result.explain[0].startswith(REASONS[reason])
    for name in ("energy_j", "gross", "above_idle", "power_w", "requests"):
        assert getattr(result, name) is None


def test_the_bits_that_spoil_a_window_are_the_exporters_slowdowns() -> None:
    slow = [bit for reason, bit in CLOCK_EVENTS.items() if reason.endswith("slowdown")]
    assert sum(slow) == THERMAL_OR_HW_SLOWDOWN


def test_power_capping_is_allowed_and_said() -> None:
    result = judged(FakeGpu(constant(690), throttle=lambda t: 0x04 if t > 37.5 else 0))
    assert result.status == "measured" and "sw_power_cap" in result.flags
    assert result.per_gpu[0].sw_power_cap_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("rules", "work", "residence_s", "refused"),
    [
        (Rules(shortest_s=65.0), Work(), None, False),
        (Rules(shortest_s=65.1), Work(), None, True),
        (Rules(shortest_s=1, refreshes=650), Work(), None, False),  # 650 × 0.1 s
        (Rules(shortest_s=1, refreshes=651), Work(), None, True),
        (Rules(), Work(), 21.6, False),  # three residences
        (Rules(), Work(), 21.7, True),
        (Rules(), Work(completions=30), None, False),
        (Rules(), Work(completions=29), None, True),
    ],
)
def test_r9_windows_just_below_each_limit_are_too_short(
    rules: Rules, work: Work, residence_s: float | None, refused: bool
) -> None:
    card = FakeGpu(constant(300))
    gpu = recorded([card], END_S + 10)
    window = inputs(gpu, sources([card]), START_S, END_S, work, mean_residence_s=residence_s)
    result = point_energy(window, rules)
    assert (result.reasons == ["window_too_short"]) is refused


def test_no_counter_is_unavailable_with_the_reason_of_the_probe() -> None:
    card = FakeGpu(constant(300), lacks=("counter",))
    told = {"counter": {"status": "unavailable", "reason": "NotSupported"}}
    gpu = recorded([card], 80)
    result = point_energy(inputs(gpu, told, START_S, END_S))
    assert (result.status, result.explain) == (
        "unavailable",
        ["no GPU energy counter: NotSupported"],
    )
    assert result.energy_j is None
    nothing = point_energy(inputs(gpu.iloc[:0], {}, START_S, END_S))
    assert nothing.explain == ["no GPU energy was recorded"]


def test_cards_that_the_server_does_not_use_are_apart() -> None:
    """Guards charging a server on one card for the seven that idle beside it."""
    cards = [FakeGpu(constant(300), 0, "GPU-used"), FakeGpu(constant(80), 1, "GPU-idle")]
    told = sources(cards)
    told["facts"]["gpus"][0]["own_pids"] = [17]
    gpu = recorded(cards, 80)
    result = point_energy(inputs(gpu, told, START_S, END_S))
    assert result.energy_j == pytest.approx(300 * 65)
    assert result.idle_gpus_j == pytest.approx(80 * 65)
    assert result.gpus_wanted == 1


def test_cards_that_nobody_can_tell_apart_are_not_all_charged() -> None:
    """A server on one card of two, and no process list to say on which."""
    cards = [FakeGpu(constant(300), n, f"GPU-{n}") for n in range(2)]
    gpu = recorded(cards, 80)

    def of_server(server_gpus: int) -> EnergyResult:
        return point_energy(inputs(gpu, sources(cards), START_S, END_S, server_gpus=server_gpus))

    assert of_server(1).reasons == ["gpu_count_mismatch"]
    assert of_server(2).status == "measured"


def test_idle_power_and_its_drift() -> None:
    card = FakeGpu(constant(124))
    idle = idle_power(recorded([card], 31), Sources.model_validate(sources([card])))
    assert idle.reasons == [] and idle.power_w == pytest.approx(124)
    short = idle_power(recorded([card], 10), Sources.model_validate(sources([card])))
    assert (short.power_w, short.reasons) == (None, ["window_too_short"])
    work = FakeGpu(constant(300))
    gpu = recorded([work], 80)
    idles = {"idle_before": IdlePower(100, 30), "idle_after": IdlePower(104, 30)}
    drifted = point_energy(inputs(gpu, sources([work]), START_S, END_S, **idles))
    assert drifted.flags == ["idle_drift"] and drifted.idle_drift == pytest.approx(0.04)
    none = point_energy(inputs(gpu, sources([work]), START_S, END_S))
    assert none.flags == ["idle_not_measured"] and none.above_idle is None
    assert none.gross is not None


# CPU


def host(seconds: int, busy: float, zones: dict[str, list[int]] | None = None) -> pd.DataFrame:
    rows = [
        HostSample(
            n * SECOND,
            n * SECOND,
            1,
            "h",
            cpu_busy_share=busy,
            cpu_energy_uj={z: v[n] for z, v in zones.items()} if zones else None,
        )
        for n in range(seconds)
    ]
    return pd.DataFrame([asdict(row) for row in rows])


def test_rapl_packages_add_up_and_cores_inside_them_do_not() -> None:
    span = 100_000_000
    told = {"rapl": {"status": "available", "zones": {}}}
    told["rapl"]["zones"] = {
        "a:0 package-0": span,
        "a:1 package-1": span,
        "a:0:0 core": span,
        "a:0:1 dram": span,
    }
    zones = {
        "a:0 package-0": [(90_000_000 + n * 5_000_000) % span for n in range(40)],  # wraps twice
        "a:1 package-1": [n * 1_000_000 for n in range(40)],
        "a:0:0 core": [n * 3_000_000 for n in range(40)],
        "a:0:1 dram": [n * 500_000 for n in range(40)],
    }
    found = cpu_energy(host(40, 0.5, zones), Sources.model_validate(told), ns(2), ns(32))
    assert found.package == Measured(180.0, "cpu_package", "rapl")  # (5 + 1) J/s · 30 s
    assert found.dram == Measured(15.0, "dram", "rapl")
    assert found.estimate is None
    flat = host(40, 0.5).assign(
        **{f"cpu_energy_uj.{zone}": values for zone, values in zones.items()}
    )
    assert cpu_energy(flat, Sources.model_validate(told), ns(2), ns(32)).package == found.package


def test_without_rapl_there_is_an_interval_and_the_reason() -> None:
    told = {
        "rapl": {"status": "unavailable", "reason": "no /sys/class/powercap"},
        "facts": {"cpu": {"threads": 2}},
    }
    found = cpu_energy(host(40, 0.5), Sources.model_validate(told), ns(2), ns(32))
    assert (found.package, found.reason) == (None, "no /sys/class/powercap")
    assert found.estimate is not None
    low, high = WATTS_PER_THREAD
    assert found.estimate.low_j == pytest.approx(2 * low * (0.1 + 0.9 * 0.125) * 30)
    assert found.estimate.high_j == pytest.approx(2 * high * 0.75 * 30)


def test_a_cpu_host_is_unavailable_with_its_estimate_beside_it() -> None:
    told = {
        "counter": {"status": "unavailable", "reason": "NVML does not start: no driver"},
        "rapl": {"status": "unavailable", "reason": "hidden"},
        "facts": {"cpu": {"threads": 2}, "gpus": []},
    }
    result = point_energy(inputs(pd.DataFrame(), told, START_S, END_S, host=host(80, 1.0)))
    assert result.status == "unavailable" and result.energy_j is None and result.gross is None
    assert result.cpu is not None and result.cpu.estimate is not None
    assert 0 < result.cpu.estimate.low_j < result.cpu.estimate.high_j
    assert asdict(result)["cpu"]["estimate"]["model"]


UNEQUAL = [
    FakeGpu(constant(60), 0, "GPU-aaaaaaaa", "Tesla T4"),
    FakeGpu(constant(400), 1, "GPU-bbbbbbbb", "NVIDIA H100 80GB HBM3"),
]


@pytest.mark.parametrize(
    ("environ", "watts"),
    [
        ({}, 400),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, 400),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 60),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, 60),
    ],
)
def test_joules_are_those_of_the_card_that_cuda_calls_0(
    environ: dict[str, str], watts: float
) -> None:
    """In a container without the host's pids nothing else says which card of two it is."""
    identities = [card.identity() for card in UNEQUAL]
    chosen = visible_uuids(identities, {"CUDA_VISIBLE_DEVICES": "0"} | environ)
    told = sources(UNEQUAL)
    for card in told["facts"]["gpus"]:
        card["visible"] = card["uuid"] in chosen
    gpu = recorded(UNEQUAL, END_S + 10)
    found = point_energy(inputs(gpu, told, START_S, END_S, server_gpus=1))
    assert found.status == "measured"
    assert found.power_w == pytest.approx(watts, rel=1e-3)


def test_no_joules_where_the_cards_are_not_known() -> None:
    gpu, why = recorded(UNEQUAL, END_S + 10), "CUDA's order cannot be told"
    told = sources(UNEQUAL, visible=None)
    told["facts"]["which_gpus"] = why
    found = point_energy(inputs(gpu, told, START_S, END_S, server_gpus=1))
    assert found.status == "invalid" and "cards_not_told" in found.reasons
    assert found.energy_j is None and found.counter_j is None
    assert any(why in sentence for sentence in found.explain)
    # a server of both cards uses both, whatever their order
    both = point_energy(inputs(gpu, told, START_S, END_S, server_gpus=2))
    assert both.status == "measured" and both.power_w == pytest.approx(460, rel=1e-3)
    assert idle_power(gpu, Sources.model_validate(told)).reasons == ["cards_not_told"]
    assert idle_power(gpu, Sources.model_validate(told), server_gpus=2).power_w == pytest.approx(
        460, rel=1e-3
    )


def test_a_server_on_no_card_of_this_host_has_no_energy_here() -> None:
    told = sources(UNEQUAL, visible=False)
    told["facts"]["which_gpus"] = "the server runs at gpu-box, not on this machine"
    gpu = recorded(UNEQUAL, END_S + 10)
    found = point_energy(inputs(gpu, told, START_S, END_S, server_gpus=1))
    assert found.status == "unavailable" and "gpu-box" in found.explain[0]
