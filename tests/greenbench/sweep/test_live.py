"""A sign of life from the tails of a run's files; expected figures come from what is written here."""

import json
import time
from pathlib import Path

from greenbench.contract.config import PhaseConfig
from greenbench.contract.run_dir import RunDir
from greenbench.sweep.live import Lines, Live
from tests.fakes.rundirs import FakeRun, point_config

POINT = point_config(FakeRun()).model_copy(
    update={"phases": PhaseConfig.model_validate({"warmup_s": 1, "cap_s": 100})}
)


def append(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def mark(run: RunDir, name: str, ago_s: float) -> None:
    append(run.events_path, {"name": name, "mono_ns": time.monotonic_ns() - round(ago_s * 1e9)})


def test_a_run_that_has_written_nothing_says_so(tmp_path: Path) -> None:
    assert Live(RunDir(tmp_path), POINT).sign().words == "starting the load, 0 done"


def test_what_is_open_done_and_drawn_is_of_the_newest_rows(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    mark(run, "warmup_start", 21)
    mark(run, "measure_start", 20)
    append(run.requests_dir / "a.jsonl", {"first_token_ns": 1}, {"first_token_ns": 250_000_000})
    for moment, running in ((1, 9.0), (2, 3.0)):
        append(
            run.telemetry_dir / "server.jsonl",
            {"unix_ns": moment, "metric": "vllm:num_requests_running", "value": running},
            {"unix_ns": moment, "metric": "vllm:num_requests_waiting", "value": 1.0},
            {"unix_ns": moment, "metric": "vllm:other", "value": 77.0},
        )
    for watts in (100.0, 300.0):
        append(
            run.telemetry_dir / "gpu.jsonl",
            {"gpu_uuid": "a", "power_avg_w": watts}, {"gpu_uuid": "b", "power_avg_w": watts + 50},
        )  # fmt: skip
    live = Live(run, POINT)
    sign = live.sign()
    assert (sign.open, sign.done, sign.ttft_s, sign.power_w) == (4, 2, 0.25, 650.0)
    assert sign.left_s is not None and 79 < sign.left_s <= 80
    assert sign.words == "measuring, 80 s left at most, 4 open, 2 done, last TTFT 250 ms, 650 W"
    append(
        run.telemetry_dir / "sources.json",
        {"facts": {"gpus": [{"uuid": "a", "visible": False}, {"uuid": "b", "own_pids": [7]}]}},
    )
    assert live.sign().power_w == 350.0  # the server's card alone, not its neighbour's
    mark(run, "measure_end", 0)
    assert live.sign().phase == "draining" and live.measured_s is None
    assert live.length_s is not None and abs(live.length_s - 20) < 1


def test_a_torn_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    path, lines = tmp_path / "a", Lines()
    path.write_bytes(b"one\ntw")
    lines.look(path)
    assert (lines.count, lines.last) == (1, b"one\n")
    path.write_bytes(b"one\ntwo\nthree\n")
    lines.look(path)
    assert (lines.count, lines.last) == (3, b"three\n")
