"""What sampling costs, and what an hour of it weighs: prints four figures against their bounds.

    .venv/bin/python scripts/bench_telemetry.py [--seconds 30]

A recorder in a process of its own samples 8 fake GPUs at 100 ms; then an hour of 8 GPUs at 10 Hz is written
as the recorder writes it, read back, and integrated.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GPUS, RATE_HZ, HOUR_S = 8, 10, 3600
MIB = 2**20


def sampler(run_dir: Path, seconds: float) -> None:
    """Child process: the recorder over fake cards, for so long, printing its own CPU time and memory."""
    from telemetry.recorder import Recorder, RecordRequest
    from tests.fakes.nvml import FakeGpu, FakeReader, constant

    cards = [
        FakeGpu(constant(300 + n), n, f"GPU-{n:08d}-0000-0000-0000-000000000000")
        for n in range(GPUS)
    ]
    recorder = Recorder(
        RecordRequest(run_dir, pid=psutil.Process().pid, period_s=1 / RATE_HZ),
        lambda: FakeReader(cards, time.monotonic_ns),
        watch_s=0.1,
    )
    me = psutil.Process()

    def measure() -> None:
        time.sleep(2)  # past start-up
        before, at = me.cpu_times(), time.monotonic()
        time.sleep(seconds)
        after, spent_s = me.cpu_times(), time.monotonic() - at
        cpu_s = after.user + after.system - before.user - before.system
        print(f"{cpu_s / spent_s:.5f} {me.memory_info().rss}", flush=True)
        recorder.stop.set()

    threading.Thread(target=measure, daemon=True).start()
    recorder.run()


def sampler_cost(seconds: float) -> tuple[float, int]:
    """(share of one core, resident bytes) of the sampler."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--sampler", folder, "--seconds", str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    share, rss = done.stdout.split()
    return float(share), int(rss)


def write_hour(folder: Path) -> int:
    """An hour of 8 GPUs through the recorder's writer, with readings as busy as a server's; bytes on disk."""
    import random
    from dataclasses import replace

    from greenbench.contract.schema import GpuSample
    from greenbench.contract.segments import SegmentedJsonlWriter

    rng = random.Random(1)
    counters = [10**12 + n * 10**9 for n in range(GPUS)]
    uuids = [
        f"GPU-{rng.getrandbits(32):08x}-1b2c-3d4e-5f60-{rng.getrandbits(48):012x}"
        for _ in range(GPUS)
    ]
    base = GpuSample(0, 0, 0, "node-17.cluster", 0, "")
    with SegmentedJsonlWriter(folder / "telemetry" / "gpu.jsonl") as writer:
        for tick in range(HOUR_S * RATE_HZ):
            mono_ns = 10**14 + tick * 10**8 + rng.randrange(10**5)
            for index in range(GPUS):
                watts = 400 + 250 * rng.random()
                counters[index] += round(watts * 100)
                writer.write(
                    replace(
                        base,
                        unix_ns=mono_ns + 1_795_000_000 * 10**9,
                        mono_ns=mono_ns + index * 4_100_000,
                        read_ns=4_000_000 + rng.randrange(300_000),
                        gpu_index=index,
                        gpu_uuid=uuids[index],
                        power_w=round(watts, 3),
                        power_avg_w=round(400 + 250 * rng.random(), 3),
                        power_mem_w=round(90 + 20 * rng.random(), 3),
                        energy_mj=counters[index],
                        sm_clock_mhz=1980 - rng.randrange(20) * 15,
                        mem_clock_mhz=3201,
                        temp_c=60 + rng.randrange(5),
                        mem_used_bytes=120 * 2**30,
                        util_pct=100 - rng.randrange(5),
                        throttle_reasons=rng.choice([0, 4]),
                    )
                )
    return sum(path.stat().st_size for path in (folder / "telemetry").iterdir())


def load_and_integrate(folder: Path) -> tuple[float, float, float]:
    """(seconds to load, seconds to integrate, joules) of the hour: counter and average of every card."""
    from analysis.energy.cards import cards_of
    from analysis.energy.series import integrate_average
    from analysis.runs.gpu_rows import read_gpu_rows

    started = time.perf_counter()
    gpu = read_gpu_rows(folder)
    loaded = time.perf_counter()
    joules = 0.0
    for card in cards_of(gpu).values():
        start_ns, end_ns = int(card.curve.at_ns[0]), int(card.curve.at_ns[-1])
        joules += card.curve.energy_j(start_ns, end_ns) or 0.0
        assert integrate_average(card.average, start_ns, end_ns) is not None
    return loaded - started, time.perf_counter() - loaded, joules


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="how long the sampler is watched"
    )
    parser.add_argument("--sampler", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sampler:
        sampler(args.sampler, args.seconds)
        return 0
    share, rss = sampler_cost(args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        disk = write_hour(Path(folder))
        load_s, integrate_s, joules = load_and_integrate(Path(folder))
    rows = (
        ("sampler CPU, share of one core", f"{share * 100:.2f} %", share < 0.01, "< 1 %"),
        ("sampler memory", f"{rss / MIB:.1f} MiB", rss < 60 * MIB, "< 60 MiB"),
        ("one hour on disk", f"{disk / MIB:.1f} MiB", disk < 60 * MIB, "< 60 MiB"),
        (
            "load and integrate it",
            f"{load_s + integrate_s:.2f} s ({load_s:.2f} + {integrate_s:.2f})",
            load_s + integrate_s < 2,
            "< 2 s",
        ),
    )
    print(
        f"{GPUS} GPUs at {RATE_HZ} Hz; {GPUS * RATE_HZ * HOUR_S} samples an hour, {joules / 3.6e6:.2f} kWh"
    )
    for what, figure, held, bound in rows:
        print(f"{'ok ' if held else 'NO '} {what}: {figure}  (bound {bound})")
    return 0 if all(held for _, _, held, _ in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
