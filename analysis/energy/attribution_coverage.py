"""How often the true price lies within two standard errors, by simulation:

    python -m analysis.energy.attribution_coverage

A server whose steps cost known prices, a card whose counter is read late, and the attribution of the product.
docs/energy.md holds the table.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.energy.attribution import WORK, Attribution, attribute
from greenbench.contract.forms import Sources

Floats = npt.NDArray[np.float64]
TRUE = {  # J a unit: about an 8B model on an H200
    "prefill_tokens": 0.02,
    "prefill_pairs": 2e-6,
    "decode_tokens": 0.25,
    "decode_context": 2e-5,
}
IDLE_W = 124.0
FORGETS_S = 10.0
START_S = 10.0
NS = 1_000_000_000
UUID = "GPU-a"


@dataclass(frozen=True)
class Sensor:
    """A counter that changes every ``refresh_s`` to the energy of ``lag_s`` ago, read every ``period_s``."""

    period_s: float = 0.1
    refresh_s: float = 0.1
    lag_s: float = 0.05
    jitter_s: float = 0.002  # of a reading


@dataclass(frozen=True)
class Served:
    """``length_s`` of steps in episodes of about ``episode_s``, each of one mix, as requests come and go.

    ``noise``: relative sd of an episode's joules; ``drift``: of a walk of the power that forgets in 10 s.
    """

    length_s: float = 240.0
    episode_s: float = 3.0
    by_turns: bool = False  # prefill and decode episodes of equal length, as of users in step
    noise: float = 0.02
    drift: float = 0.01


def steps(served: Served, rng: np.random.Generator) -> tuple[pd.DataFrame, Floats]:
    """The table of ``step_work`` and each step's joules. Prefill steps take longer than decode steps."""
    rows: list[tuple[float, ...]] = []
    joules: list[float] = []
    at = START_S
    wander = 0.0
    prefills = False
    while at < START_S + served.length_s:
        length_s = served.episode_s if served.by_turns else rng.exponential(served.episode_s) + 0.2
        ends = at + length_s
        users = int(rng.integers(2, 48))
        context = rng.uniform(1_000, 30_000)
        prefills = not prefills if served.by_turns else rng.random() < 0.5
        reach = rng.uniform(500, 16_000)
        kept = np.exp(-served.episode_s / FORGETS_S)
        wander = kept * wander + rng.normal(0, served.drift * np.sqrt(1 - kept**2))
        factor = 1 + wander + rng.normal(0, served.noise)
        while at < ends:
            chunk = int(rng.integers(1024, 2048)) if prefills else 0
            length = 0.02 + chunk * 4e-5 + users * 2e-4
            amounts = (chunk, chunk * reach, users, users * context)
            cost = float(np.dot(amounts, list(TRUE.values()))) * factor
            rows.append((at, at + length, *amounts))
            joules.append(cost + IDLE_W * length)
            at += length
    table = np.array(rows)
    work = pd.DataFrame(table[:, 2:], columns=list(WORK))
    work["start_ns"] = (table[:, 0] * NS).round().astype(np.int64)
    work["end_ns"] = (table[:, 1] * NS).round().astype(np.int64)
    return work, np.array(joules)


def readings(
    work: pd.DataFrame, joules: Floats, sensor: Sensor, rng: np.random.Generator
) -> pd.DataFrame:
    """Rows of gpu.jsonl as this sensor gives them."""
    start_s, end_s = work["start_ns"].iloc[0] / NS, work["end_ns"].iloc[-1] / NS
    knots = np.concatenate(([0.0, start_s], work["end_ns"].to_numpy() / NS, [end_s + 10]))
    total = np.concatenate(([0.0, IDLE_W * start_s], IDLE_W * start_s + joules.cumsum()))
    total = np.append(total, total[-1] + IDLE_W * 10)
    read_s = np.arange(0.5, end_s + 8, sensor.period_s) + rng.uniform(0, sensor.period_s)
    read_s += rng.normal(0, sensor.jitter_s, len(read_s))
    phase = rng.uniform(0, sensor.refresh_s)
    changed_s = np.floor((read_s - phase) / sensor.refresh_s) * sensor.refresh_s + phase
    energy_j = np.interp(changed_s - sensor.lag_s, knots, total)
    return pd.DataFrame(
        {
            "mono_ns": (read_s * NS).round().astype(np.int64),
            "gpu_uuid": UUID,
            "energy_mj": (energy_j * 1e3).round() + 1,
            "power_avg_w": 300.0,
        }
    )


def simulate(served: Served, sensor: Sensor, seed: int) -> Attribution:
    rng = np.random.default_rng(seed)
    work, joules = steps(served, rng)
    gpu = readings(work, joules, sensor, rng)
    sources = Sources.model_validate({"facts": {"gpus": [{"uuid": UUID}]}})
    first = int((START_S + 1) * NS)
    last = int((START_S + served.length_s - 1) * NS)
    return attribute(gpu, sources, work, first, last, IDLE_W)


@dataclass(frozen=True)
class Coverage:
    """Of prices with a standard error: how many, the share within two of them, and their median, relative."""

    prices: int
    inside: float
    median_error: float
    runs: int


def coverage(served: Served, sensor: Sensor, runs: int) -> Coverage:
    held: list[bool] = []
    sizes: list[float] = []
    attributed = 0
    for seed in range(runs):
        attribution = simulate(served, sensor, seed)
        attributed += attribution.status == "attributed"
        for price in attribution.prices[1:]:
            if price.standard_error is not None:
                true = TRUE[price.work]
                held.append(abs(price.j_per_unit - true) <= 2 * price.standard_error)
                sizes.append(price.standard_error / true)
    return Coverage(len(held), float(np.mean(held)), float(np.median(sizes)), attributed)


CASES: tuple[tuple[str, Served, Sensor], ...] = (
    ("sampled at 50 ms, no lag", Served(), Sensor(period_s=0.05, lag_s=0.0)),
    ("sampled at 100 ms, no lag", Served(), Sensor(lag_s=0.0)),
    ("sampled at 100 ms, 50 ms of lag", Served(), Sensor()),
    ("sampled at 100 ms, 100 ms of lag", Served(), Sensor(lag_s=0.1)),
    ("sampled at 200 ms, 50 ms of lag", Served(), Sensor(period_s=0.2)),
    ("episodes of 1 s", Served(episode_s=1.0), Sensor()),
    ("episodes of 10 s", Served(episode_s=10.0), Sensor()),
    ("no noise but the sensor's", Served(noise=0.0, drift=0.0), Sensor()),
    ("prefill and decode by turns of 5 s", Served(episode_s=5.0, by_turns=True), Sensor(lag_s=0.1)),
    (
        "the same without noise",
        Served(episode_s=5.0, by_turns=True, noise=0.0, drift=0.0),
        Sensor(lag_s=0.1),
    ),
    ("90 s", Served(length_s=90.0), Sensor()),
)


def table(runs: int = 200) -> str:
    """Markdown, a row a case."""
    lines = ["| case | prices | within ±2 SE | median SE |", "|---|---|---|---|"]
    for name, served, sensor in CASES:
        case = coverage(served, sensor, runs)
        lines.append(f"| {name} | {case.prices} | {case.inside:.1%} | {case.median_error:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
