"""The recorder: what lands in a run directory, from fakes and as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.schema import Event, GpuSample, HostSample
from greenbench.contract.segments import SegmentedJsonlWriter, read_bytes, segments
from telemetry.recorder import Recorder, RecordRequest
from telemetry.sensors.gpu import NoGpu, Reader
from telemetry.sensors.refresh_rate import change_period_s, measure_refresh
from tests.fakes.nvml import FakeClock, FakeGpu, FakeReader, constant, ramp
from tests.fakes.waiting import HUNG_S, wait_until

ROOT = Path(__file__).resolve().parents[2]


def no_gpu() -> Reader:
    raise NoGpu("NVML does not start: no driver")


def two_cards() -> FakeReader:
    """Second card lacks the counter; a stranger's process sits on the first."""
    cards = [
        FakeGpu(constant(300), 0, "GPU-a", pids=[1, os.getpid()]),
        FakeGpu(constant(400), 1, "GPU-b", lacks=("counter",), pids=[2**22 + 5]),
    ]
    return FakeReader(cards, time.monotonic_ns)


def run_for(recorder: Recorder, seconds: float) -> None:
    timer = threading.Timer(seconds, recorder.stop.set)
    timer.start()
    recorder.run()
    timer.join()


def sources_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "telemetry/sources.json").read_text())


def test_gpu_rows_sources_and_events(tmp_path: Path) -> None:
    request = RecordRequest(tmp_path, pid=os.getpid(), period_s=0.05)
    run_for(Recorder(request, two_cards, rapl_root=tmp_path, watch_s=0.05), 0.6)
    rows = [GpuSample.from_dict(row) for row in read_jsonl(tmp_path / "telemetry/gpu.jsonl")]
    by_uuid = {u: [r for r in rows if r.gpu_uuid == u] for u in ("GPU-a", "GPU-b")}
    assert len(by_uuid["GPU-a"]) == len(by_uuid["GPU-b"]) >= 8
    first, last = by_uuid["GPU-a"][0], by_uuid["GPU-a"][-1]
    assert first.power_avg_w == pytest.approx(300)
    # constant 300 W: the counter moved by 300 W times the time, to one refresh of 100 ms
    assert first.energy_mj is not None and last.energy_mj is not None
    elapsed_s = (last.mono_ns - first.mono_ns) / 1e9
    assert (last.energy_mj - first.energy_mj) / 1e3 == pytest.approx(300 * elapsed_s, abs=30)
    assert {row.energy_mj for row in by_uuid["GPU-b"]} == {None}
    sources = sources_of(tmp_path)
    assert sources["average"]["status"] == "available"
    assert sources["counter"]["status"] == "unavailable"
    assert sources["counter"]["without"] == ["GPU-b"]
    cards = {card["uuid"]: card for card in sources["facts"]["gpus"]}
    assert cards["GPU-a"]["foreign_pids"] == [1]
    assert cards["GPU-a"]["own_pids"] == [os.getpid()]  # known from the first look on
    assert (cards["GPU-b"]["foreign_pids"], cards["GPU-b"]["unknown_pids"]) == ([], [2**22 + 5])
    assert sources["facts"]["sampler"]["period_s"] == 0.05
    assert sources["facts"]["sampler"]["cost"]["count"] == len(by_uuid["GPU-a"])
    events = [Event.from_dict(row) for row in read_jsonl(tmp_path / "events.jsonl")]
    names = ["clock_anchor", "recorder_started", "clock_anchor", "recorder_stopped"]
    assert [event.name for event in events] == names
    assert events[1].mono_ns <= rows[0].mono_ns and rows[-1].mono_ns <= events[2].mono_ns


def test_a_lost_card_is_named_and_a_hidden_one_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    reader = two_cards()
    reader.lost = {2: "GpuIsLost"}
    recorder = Recorder(RecordRequest(tmp_path), lambda: reader, rapl_root=tmp_path, watch_s=0)
    run_for(recorder, 0.3)
    sources = sources_of(tmp_path)
    assert sources["facts"]["unread"] == ["GPU 2: GpuIsLost"]
    assert [card["visible"] for card in sources["facts"]["gpus"]] == [True, False]
    assert sources["counter"]["status"] == "available"  # GPU-b lacks it, and nobody asked for GPU-b


def page(text: str) -> HTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("vllm:num_requests_running 0\n", "available"),
        ("process_cpu_seconds_total 12.5\nrouter_queue 0\n", "unavailable"),
        ("# nothing\n", "unavailable"),
    ],
)
def test_a_page_without_a_name_of_vllms_is_no_source(
    text: str, status: str, tmp_path: Path
) -> None:
    with page(text) as server:
        request = RecordRequest(tmp_path, server=f"http://127.0.0.1:{server.server_port}")
        run_for(Recorder(request, two_cards, rapl_root=tmp_path, watch_s=0), 0.2)
        server.shutdown()
    sources = sources_of(tmp_path)
    assert sources["metrics"]["status"] == status
    assert (sources["metrics"]["reason"] is None) == (status == "available")
    # this process listens there, so the cards are looked for in its processes
    cards = {card["uuid"]: card for card in sources["facts"]["gpus"]}
    assert cards["GPU-a"]["own_pids"] == [os.getpid()]


def test_without_a_gpu_every_gpu_source_has_the_reason_and_there_is_no_file(tmp_path: Path) -> None:
    run_for(Recorder(RecordRequest(tmp_path), no_gpu, rapl_root=tmp_path / "none"), 0.5)
    sources = sources_of(tmp_path)
    for source in ("counter", "average", "instant", "memory_scope", "gpm"):
        assert sources[source] == {
            "status": "unavailable",
            "reason": "NVML does not start: no driver",
        }
    assert sources["rapl"]["status"] == "unavailable"
    assert not (tmp_path / "telemetry/gpu.jsonl").exists()
    assert list(read_jsonl(tmp_path / "telemetry/host.jsonl"))


@pytest.mark.parametrize("refresh_s", [0.02, 0.1, 1.0])
def test_r4_refresh_period_is_recovered_within_a_tenth(refresh_s: float) -> None:
    clock = FakeClock()
    card = FakeGpu(ramp(200, 10), refresh_s=refresh_s, phase_s=0.0137)
    reader = FakeReader([card], clock.now, clock.spend, read_ns=1_000_000)
    refresh = measure_refresh(reader, 0, watch_s=5.0, clock=clock.now, sleep=clock.sleep)
    for source in ("counter", "average", "instant"):
        assert refresh.period_s[source] == pytest.approx(refresh_s, rel=0.1)
    assert refresh.period_s["memory_scope"] is None  # a constant value tells no period
    assert refresh.read_s == pytest.approx(0.001)


def test_missing_readings_are_no_changes() -> None:
    stamps = [n * 10_000_000 for n in range(9)]
    assert change_period_s(stamps, [1, 1, None, 1, 2, None, 2, 2, 3]) is None  # two changes only
    assert change_period_s(stamps, [1, 2, 2, 3, 3, 4, 4, None, 5]) == pytest.approx(0.02)


def test_period_adapts_to_what_a_sample_costs(tmp_path: Path) -> None:
    """Guards a sampler that spends all its time in NVML calls: 20 ms a sample at 50 ms is too much."""
    reader = FakeReader(
        [FakeGpu(constant(300))], time.monotonic_ns, lambda ns: time.sleep(ns / 1e9), 20_000_000
    )
    request = RecordRequest(tmp_path, period_s=0.05)
    run_for(Recorder(request, lambda: reader, rapl_root=tmp_path, watch_s=0.05), 0.3)
    facts = sources_of(tmp_path)["facts"]["sampler"]
    assert facts["asked_period_s"] == 0.05
    assert facts["period_s"] >= 0.08
    assert reader.closed


def test_a_full_disk_ends_the_recording_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a recorder that goes on for hours on a full disk and ends with 0."""

    def full(self: SegmentedJsonlWriter, rows: list[GpuSample]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentedJsonlWriter, "write_all", full)
    recorder = Recorder(RecordRequest(tmp_path), two_cards, rapl_root=tmp_path, watch_s=0)
    with pytest.raises(OSError, match="No space left"):
        recorder.run()


def test_the_command_flushes_and_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "telemetry", "record", "--run-dir", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--pid", "1", "--base-url", "http://127.0.0.1:1"], cwd=ROOT
    ) as it:
        host = tmp_path / "telemetry/host.jsonl"
        wait_until(lambda: host.exists() and host.stat().st_size, "a first row")
        it.send_signal(signal.SIGTERM)
        assert it.wait(HUNG_S) == 0
    rows = [HostSample.from_dict(row) for row in read_jsonl(host)]
    assert rows[0].server_rss_bytes
    sources = sources_of(tmp_path)
    assert sources["metrics"]["status"] == "unavailable"
    assert "refused" in sources["metrics"]["reason"]
    assert [row["name"] for row in read_jsonl(tmp_path / "events.jsonl")][-1] == "recorder_stopped"


def test_a_folder_that_is_not_there_is_one_sentence_and_exit_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "record", "--run-dir", "/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no such folder" in done.stderr and len(done.stderr.splitlines()) == 1


def test_long_files_are_packed_in_parts_and_read_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    rows = [GpuSample(n, n, 1, "h", 0, "GPU-a", power_avg_w=300.5) for n in range(300)]
    with SegmentedJsonlWriter(path, part_bytes=20_000) as writer:
        for row in rows:
            writer.write(row)
    names = [part.name for part in segments(path)]
    assert names[0] == "gpu.0000.jsonl.gz" and names[-1] == "gpu.jsonl" and len(names) >= 4
    read = [GpuSample.from_dict(json.loads(line)) for line in read_bytes(path).splitlines()]
    assert read == rows


def test_a_part_cut_off_while_it_was_packed_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "gpu.0000.jsonl").write_bytes(b'{"n":1}\n')
    (tmp_path / "gpu.0000.jsonl.gz").write_bytes(b"torn")
    (tmp_path / "gpu.jsonl").write_bytes(b'{"n":2}\n')
    assert read_bytes(tmp_path / "gpu.jsonl") == b'{"n":1}\n{"n":2}\n'
