"""Equal candidates that split their work differently, by the window's own counts and by whole cycles.

python scripts/edge_table.py [--sweeps 200]

Prints the table of docs/method.md, section 2. The loops and their truth are in tests/fakes/closed_loops.py.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.statistics.rates import ratio, users_of, whole_cycles
from tests.fakes.closed_loops import CASES, NS, T0_NS, Loop, Played, pair, play

NOISE = 0.01  # relative sd of each request's work
STARTS = 3
FIGURES = ("output tokens/s", "total tokens/s", "J per output token")


def by_window(loop: Loop, played: Played, start_s: float, end_s: float) -> list[float]:
    """Output tokens as they were decoded in the window, prompts whose first token came in it."""
    rows = played.requests
    sent_s = (rows["sent_unix_ns"].to_numpy() - T0_NS) / NS
    first_s = sent_s + rows["first_token_ns"].to_numpy(dtype=float) / NS
    last_s = sent_s + rows["end_ns"].to_numpy() / NS
    at = np.array(played.at_s)
    runs = np.diff(at) * (np.array(played.watts[:-1]) == loop.decode_w)
    decoded = np.concatenate(([0.0], np.cumsum(runs)))

    def clock(moment_s: np.ndarray) -> np.ndarray:
        """Seconds of decode until then: tokens come only while the server decodes."""
        return np.interp(moment_s, at, decoded)

    inside = clock(np.clip(last_s, start_s, end_s)) - clock(np.clip(first_s, start_s, end_s))
    output = loop.output_tokens * float(np.sum(inside / (clock(last_s) - clock(first_s))))
    prompts = loop.prompt_tokens * float(np.sum((first_s >= start_s) & (first_s < end_s)))
    joules = float(played.energy_j(np.array([start_s]), np.array([end_s]))[0])
    length_s = end_s - start_s
    return [output / length_s, (output + prompts) / length_s, joules / output]


def by_cycles(
    loop: Loop, played: Played, start_s: float, end_s: float
) -> list[tuple[float, float]]:
    """(value, edge error) of each figure."""
    rows = played.requests
    window = T0_NS + round(start_s * NS), T0_NS + round(end_s * NS)
    cycles = whole_cycles(rows, users_of(rows), window, loop.users)
    output = rows["output_tokens"].to_numpy()[cycles.request]
    total = output + rows["prompt_tokens"].to_numpy()[cycles.request]
    joules = played.energy_j((cycles.start_ns - T0_NS) / NS, (cycles.end_ns - T0_NS) / NS)
    ratios = (
        ratio(cycles, output * loop.users, cycles.seconds),
        ratio(cycles, total * loop.users, cycles.seconds),
        ratio(cycles, joules, output * loop.users),
    )
    return [(each.value or math.nan, each.edge_error or 0.0) for each in ratios]


def sweep(loops: list[Loop], warmup_s: float, measure_s: float, seed: int) -> np.ndarray:
    """By start and figure: log ratio by the window, by whole cycles, and the edge error of the latter."""
    logs = np.zeros((STARTS, len(FIGURES), 3))
    for start in range(STARTS):
        sides = []
        for number, loop in enumerate(loops):
            played = play(loop, warmup_s + measure_s, seed * 100 + start * 2 + number)
            span = warmup_s, warmup_s + measure_s
            sides.append((by_window(loop, played, *span), by_cycles(loop, played, *span)))
        for figure in range(len(FIGURES)):
            (window_a, cycles_a), (window_b, cycles_b) = sides
            logs[start, figure] = (
                math.log(window_b[figure] / window_a[figure]),
                math.log(cycles_b[figure][0] / cycles_a[figure][0]),
                math.hypot(cycles_a[figure][1], cycles_b[figure][1]),
            )
    return logs


def claimed(logs: np.ndarray, edges: np.ndarray) -> bool:
    """95 % interval of the starts' mean, the edge error beside the spread, excludes equality."""
    error = math.sqrt(float(np.var(logs, ddof=1)) / STARTS + float(np.mean(edges**2)))
    return abs(float(np.mean(logs))) > float(student.ppf(0.975, STARTS - 1)) * error


def table(sweeps: int) -> str:
    lines = [
        "| equal candidates | figure | window: ratio, worst sweep | false | cycles: ratio, worst | sd | edge "
        "error | false |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        loops = pair(case, NOISE)
        every = np.array(
            [
                sweep(loops, 10 + number % 24 * 0.75, case.measure_s, number)
                for number in range(sweeps)
            ]
        )
        for figure, title in enumerate(FIGURES):
            window, cycles, edges = (every[:, :, figure, kind] for kind in range(3))
            words = []
            for logs, edge in ((window, edges * 0), (cycles, edges)):
                kept = ~np.isnan(logs).any(axis=1)
                means = logs[kept].mean(axis=1)
                worst = means[np.argmax(np.abs(means))]
                false = np.mean(
                    [claimed(*pair) for pair in zip(logs[kept], edge[kept], strict=True)]
                )
                words.append(
                    (f"{math.exp(means.mean()):.4f}, {math.exp(worst):.4f}", f"{false:.1%}")
                )
            sd, edge = float(np.nanstd(cycles)), float(np.nanmean(edges))
            lines.append(
                f"| {name} | {title} | {words[0][0]} | {words[0][1]} | {words[1][0]} | {sd:.4f} | {edge:.4f} "
                f"| {words[1][1]} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=200, help="of each case")
    print(table(parser.parse_args().sweeps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
