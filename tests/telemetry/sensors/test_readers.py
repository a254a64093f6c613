"""Readers of other people's sensors: DCGM exporter, zeus, nvidia-smi's CSV."""

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.schema import GpuSample
from telemetry.__main__ import reader_opener
from telemetry.exporter.collectors import Latest
from telemetry.exporter.dcgm_names import DcgmCollector
from telemetry.sensors.dcgm import DcgmReader
from telemetry.sensors.gpu import NoGpu, shown_gpus
from telemetry.sensors.nvidia_smi import SmiReader, import_smi
from telemetry.sensors.nvml import NvmlReader
from telemetry.sensors.zeus import ZeusReader
from tests.fakes.nvml import FakeGpu, constant, record

ROOT = Path(__file__).resolve().parents[3]


# DCGM


def page_of(cards: list[FakeGpu]) -> str:
    latest = Latest()
    for row in record(cards, 0.0, 5.0):
        latest.take_gpu([row])
    registry = CollectorRegistry()
    registry.register(DcgmCollector(latest, [card.identity() for card in cards]))
    return generate_latest(registry).decode()


def test_a_dcgm_page_reads_back_in_our_units() -> None:
    cards = [FakeGpu(constant(300), 0, "GPU-a"), FakeGpu(constant(400), 1, "GPU-b")]
    reader = DcgmReader("http://dcgm:9400", fetch=lambda url: page_of(cards))
    assert [(gpu.index, gpu.uuid) for gpu in reader.gpus()] == [(0, "GPU-a"), (1, "GPU-b")]
    reading = reader.read(1)
    assert reading.power_avg_w == pytest.approx(400)
    assert reading.energy_mj == 5_000_000 + 400 * 5 * 1000
    assert (reading.mem_used_bytes, reading.temp_c, reading.util_pct) == (100 * 2**30, 45, 99)
    probed = reader.capabilities(0)
    assert probed["counter"].ok and probed["average"].ok and not probed["instant"].ok


REAL = """\
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA H100",Hostname="n"} 71.4
# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",device="nvidia0",modelName="H100"} 0
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a",device="nvidia0",GPU_I_ID="3",modelName="NVIDIA H100"} 1024
"""


def test_a_page_as_dcgm_exporter_writes_it() -> None:
    """Its counter has no _total; a counter of 0 is no reading; a MIG instance is known by its label."""
    reader = DcgmReader("http://dcgm:9400", fetch=lambda url: REAL)
    reading = reader.read(0)
    assert (reading.power_avg_w, reading.energy_mj) == (71.4, None)
    assert reading.mem_used_bytes == 2**30
    assert not reader.capabilities(0)["counter"].ok
    mig = DcgmReader("u", fetch=lambda url: REAL.splitlines()[-1] + "\n")
    assert mig.gpus()[0].mig is True


def test_an_exporter_that_goes_away_is_an_error_and_no_zero() -> None:
    pages = [REAL]

    def fetch(url: str) -> str:
        if not pages:
            raise ConnectionRefusedError
        return pages.pop()

    reader = DcgmReader("u", fetch=fetch)
    reader._read_ns = 0  # the page is old by now
    reading = reader.read(0)
    assert reading.power_avg_w is None and reading.error == "page:ConnectionRefusedError"
    with pytest.raises(NoGpu, match="ConnectionRefusedError"):
        DcgmReader("u", fetch=fetch)


def test_what_dcgm_writes_for_no_reading_is_none() -> None:
    """Blanks of its integer and float fields, and a line that names no card."""
    name = 'DCGM_FI_DEV_{}{{gpu="0",UUID="GPU-a",modelName="NVIDIA H100"}} {}\n'
    page = (
        name.format("POWER_USAGE", 140737488355328.0)
        + name.format("TOTAL_ENERGY_CONSUMPTION", 9223372036854775794)
        + name.format("GPU_TEMP", 41)
        + 'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-b"} 50\nDCGM_FI_DEV_GPU_TEMP{gpu="x",UUID="GPU-c"} 50\n'
    )
    reader = DcgmReader("http://dcgm:9400", fetch=lambda url: page)
    reading = reader.read(0)
    assert (reading.power_avg_w, reading.energy_mj, reading.temp_c) == (None, None, 41)
    assert [gpu.uuid for gpu in reader.gpus()] == ["GPU-a"] and reader.host == "dcgm"


# zeus


class ZeusError(Exception):
    pass


class ZeusGPUNotSupportedError(ZeusError):
    pass


class ZeusGpus:
    """The calls of zeus 0.16's GPUs object that the reader makes; mJ and mW as zeus gives them."""

    average_mw = 300_000

    def __len__(self) -> int:
        return 1

    def get_name(self, index: int) -> str:
        return "Fake MI300X"

    def get_total_energy_consumption(self, index: int) -> int:
        return 9_000_000

    def get_average_power_usage(self, index: int) -> int:
        return self.average_mw

    def get_instant_power_usage(self, index: int) -> int:
        return 310_000

    def get_average_memory_power_usage(self, index: int) -> int:
        raise ZeusGPUNotSupportedError

    def get_gpu_temperature(self, index: int) -> int:
        return 50


def test_zeus_readings_are_in_base_units_and_what_it_refuses_is_unavailable() -> None:
    gpus = ZeusGpus()
    reader = ZeusReader(gpus, ZeusError)
    reading = reader.read(0)
    assert (reading.energy_mj, reading.power_avg_w, reading.power_w) == (9_000_000, 300.0, 310.0)
    assert (reading.power_mem_w, reading.temp_c, reading.error) == (None, 50, None)
    assert reader.capabilities(0)["memory_scope"].reason == "NotSupported"
    gpus.average_mw = 0
    assert reader.read(0).power_avg_w is None
    assert reader.read(0).error == "average:zero"


def test_zeus_numbers_cards_by_the_bus_and_hides_the_others() -> None:
    """So after a choice its first card is CUDA's first only where CUDA counts by the bus too."""
    reader = ZeusReader(ZeusGpus(), ZeusError)
    assert shown_gpus(reader, {}).uuids == ("zeus:0",)
    assert shown_gpus(reader, {"CUDA_VISIBLE_DEVICES": "1"}).uuids is None
    by_bus = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert shown_gpus(reader, by_bus).uuids == ("zeus:0",)


def test_zeus_that_is_not_installed_is_a_reason() -> None:
    try:
        import zeus  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(NoGpu, match="not installed"):
            ZeusReader()


@pytest.mark.gpu
def test_zeus_and_our_own_reader_count_the_same_energy() -> None:
    pytest.importorskip("zeus")
    ours, theirs = NvmlReader(), ZeusReader()
    before = ours.read(0).energy_mj, theirs.read(0).energy_mj
    time.sleep(5)
    after = ours.read(0).energy_mj, theirs.read(0).energy_mj
    spent = [(b or 0) - (a or 0) for a, b in zip(before, after, strict=True)]
    assert spent[0] > 0 and spent[1] == pytest.approx(spent[0], rel=0.05)


# nvidia-smi

CSV = """\
timestamp, index, uuid, name, power.draw.average [W], power.draw.instant [W], clocks.current.sm [MHz], \
temperature.gpu, memory.used [MiB], utilization.gpu [%], clocks_event_reasons.active
2026/11/23 19:48:01.123, 0, GPU-a, NVIDIA H200, 691.20 W, 702.11 W, 1755 MHz, 61, 1024 MiB, 100 %, 0x00000004
2026/11/23 19:48:01.123, 1, GPU-b, NVIDIA H200, 0.00 W, [N/A], 345 MHz, 30, 1 MiB, 0 %, 0x00000001
2026/11/23 19:48:01.223, 0, GPU-a, NVIDIA H200, 690.80 W, 688.00 W, 1755 MHz, 61, 1024 MiB, 100 %, 0x00000000
2026/11/23 19:4
"""


def csv_file(tmp_path: Path, text: str = CSV) -> Path:
    path = tmp_path / "smi.csv"
    path.write_text(text)
    return path


def test_rows_of_nvidia_smi_in_base_units(tmp_path: Path) -> None:
    reader = SmiReader(csv_file(tmp_path), UTC)
    assert [gpu.uuid for gpu in reader.gpus()] == ["GPU-a", "GPU-b"]
    assert len(reader.rows) == 3  # the torn last line is left out
    first, second = reader.read(0), reader.read(0)
    assert (first.power_avg_w, first.power_w, first.sm_clock_mhz) == (691.2, 702.11, 1755)
    assert (first.mem_used_bytes, first.throttle_reasons, first.temp_c) == (2**30, 4, 61)
    assert second.power_avg_w == 690.8
    assert reader.read(0).error == "file:end"
    other = reader.read(1)
    assert (other.power_avg_w, other.power_w, other.util_pct) == (None, None, 0)
    assert other.error == "power_w:unreadable power_avg_w:zero"
    assert not reader.capabilities(0)["counter"].ok and reader.capabilities(0)["average"].ok


def test_power_draw_of_an_a100_is_no_average(tmp_path: Path) -> None:
    text = "timestamp, uuid, name, power.draw [W]\n2026/11/23 19:48:01.123, GPU-a, {}, 300.00 W\n"
    a100 = SmiReader(csv_file(tmp_path, text.format("NVIDIA A100-SXM4-80GB")), UTC).read(0)
    assert (a100.power_w, a100.power_avg_w) == (300.0, None)
    h100 = SmiReader(csv_file(tmp_path, text.format("NVIDIA H100 PCIe")), UTC).read(0)
    assert (h100.power_w, h100.power_avg_w) == (None, 300.0)


def test_an_import_lands_as_a_recording_on_the_runs_clock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    wall_ns = 1_795_463_281_000_000_000  # 2026-11-23 19:48:01 UTC
    event = {"unix_ns": wall_ns, "mono_ns": 5_000, "name": "measure_start", "detail": {}}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert import_smi(csv_file(tmp_path), run, UTC) == 3
    rows = [GpuSample.from_dict(row) for row in read_jsonl(run / "telemetry/gpu.jsonl")]
    assert rows[0].unix_ns == wall_ns + 123_000_000
    assert rows[0].mono_ns == 5_000 + 123_000_000
    sources = json.loads((run / "telemetry/sources.json").read_text())
    assert sources["counter"]["status"] == "unavailable"
    assert sources["average"]["status"] == "available" or "GPU-b" in sources["average"]["reason"]
    with pytest.raises(UserError, match="has GPU samples already"):
        import_smi(csv_file(tmp_path), run, UTC)


HEAD = "timestamp, index, uuid, name, power.draw.average [W], memory.used [MiB]\n"
ROW = "2026/03/01 10:00:0{}.100, 0, GPU-a, NVIDIA H100, {}, 1000 MiB\n"
LOST = "2026/03/01 10:00:01.100, " + ", ".join(["[GPU is lost]"] * 5) + "\n"


@pytest.mark.parametrize(
    ("text", "watts", "said"),
    [
        (HEAD + ROW.format(0, "400.10 W") + LOST, [400.1], ["smi.csv:3: no card is named"]),
        (HEAD + ROW.format(0, "400.10 W") + HEAD + ROW.format(1, "410.10 W"), [400.1, 410.1], []),
        (HEAD + ROW.format(0, '"400,10 W"'), [400.1], []),
        (HEAD + ROW.format(0, "400,10 W"), [400.1], []),  # not even quoted
        (HEAD + ROW.format(0, "ERR!") + ROW.format(1, "[N/A]"), [None, None], []),
        (HEAD + ROW.format(0, "400.10.5 W"), [None], []),
        (
            HEAD + "Unable to determine the device handle\n" + ROW.format(0, "1.00 W"),
            [1.0],
            ["smi.csv:2: 1 cells, 6 are wanted"],
        ),
        (
            HEAD + ROW.format(0, "1.00 W").replace("2026/03/01", "01.03.2026") + ROW.format(1, "2.00 W"),
            [2.0],
            ["smi.csv:2: timestamp '01.03.2026 10:00:00.100' is not like"],
        ),
        # started again with other columns
        (
            HEAD + ROW.format(0, "1.00 W") + "timestamp, uuid, power.draw.average [W]\n"
            "2026/03/01 10:00:02.100, GPU-a, 3.00 W\n",
            [1.0, 3.0],
            [],
        ),
    ],
)  # fmt: skip
def test_a_poor_line_costs_itself_and_is_said(
    text: str, watts: list[float | None], said: list[str], tmp_path: Path
) -> None:
    reader = SmiReader(csv_file(tmp_path, text), UTC)
    assert [row.reading.power_avg_w for row in reader.rows] == watts
    assert len(reader.left_out) == len(said)
    for sentence, expected in zip(reader.left_out, said, strict=True):
        assert expected in sentence
    (tmp_path / "smi.csv").write_bytes(text.encode("utf-16"))  # as PowerShell's > writes it
    assert [row.reading.power_avg_w for row in SmiReader(tmp_path / "smi.csv", UTC).rows] == watts


def test_what_an_import_leaves_out_is_kept_beside_it(tmp_path: Path) -> None:
    said: list[str] = []
    text = HEAD + ROW.format(0, "400.10 W") + LOST
    assert import_smi(csv_file(tmp_path, text), tmp_path, UTC, said.append) == 1
    sources = json.loads((tmp_path / "telemetry/sources.json").read_text())
    assert sources["facts"]["unread"] == said and len(said) == 1


def test_bad_files_are_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'uuid'"):
        SmiReader(csv_file(tmp_path, "timestamp, power.draw [W]\n"))
    with pytest.raises(UserError, match="cannot be read"):
        SmiReader(tmp_path / "none.csv")
    bad = "timestamp, uuid\n23.11.2026, GPU-a\n"
    with pytest.raises(UserError, match=r"smi.csv:2: timestamp '23.11.2026'"):
        SmiReader(csv_file(tmp_path, bad))
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "import-smi", "none.csv", "--run-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["nvlm", "dcgm", "zeus=x"])
def test_an_unknown_source_names_the_known_ones(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give nvml, zeus or dcgm=http"):
        reader_opener(text)
