"""Measured figures of a candidate between and about the points where it was measured.

log figure over log context and log load, straight between measured points: a power law there. Beyond the
measured contexts the last piece goes on, which is extrapolated. Below the least measured load a figure is
that of the least load; above the highest a server is taken to be busy: as many requests a second, so that
times grow as the load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.objectives import TPOT, Objective, objective
from analysis.runs.identity import Candidate
from planning.evidence import Evidence

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TTFT, E2E, JOULES = objective("ttft"), objective("e2e"), objective("energy_request")


@dataclass(frozen=True)
class Grid:
    """A figure by load, and there by context; all above 0."""

    loads: tuple[float, ...]
    contexts: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]

    def at(self, tokens: Ints) -> Floats:
        """loads × prompts."""
        x = np.log(tokens)
        rows = [
            np.exp(_line(np.log(contexts), np.log(values), x))
            for contexts, values in zip(self.contexts, self.values, strict=True)
        ]
        return np.stack(rows)


def _line(known: Floats, values: Floats, x: Floats) -> Floats:
    """Straight pieces; the outer ones go on. A single point is a constant."""
    if len(known) == 1:
        return np.full(len(x), values[0])
    piece = np.clip(np.searchsorted(known, x, side="right") - 1, 0, len(known) - 2)
    slope = np.diff(values) / np.diff(known)
    return values[piece] + slope[piece] * (x - known[piece])


@dataclass(frozen=True)
class Curves:
    """``watts``: joules of a request over its time, None where no energy was recorded."""

    ttft_s: Grid
    tpot_s: Grid
    watts: Grid | None


@dataclass(frozen=True)
class Paces:
    """Of one pool and each request of a traffic: seconds to the first token, seconds a token after it, and
    watts, while 1, 2, … requests share the server. Arrays prompts × open requests.
    """

    ttft_s: Floats
    tpot_s: Floats
    watts: Floats | None


def curves(evidence: Evidence, candidate: Candidate) -> Curves | None:
    """None where the candidate has no time to first token or no time per token at any place."""
    ttft, tpot = (_grid(evidence, candidate, of) for of in (TTFT, TPOT))
    if ttft is None or tpot is None:
        return None
    return Curves(ttft, tpot, _watts(evidence, candidate))


def _grid(evidence: Evidence, candidate: Candidate, of: Objective) -> Grid | None:
    return grid(_means(evidence, candidate, of))


def _watts(evidence: Evidence, candidate: Candidate) -> Grid | None:
    joules = _means(evidence, candidate, JOULES)
    seconds = _means(evidence, candidate, E2E)
    return grid({key: joules[key] / seconds[key] for key in joules if key in seconds})


def _means(
    evidence: Evidence, candidate: Candidate, of: Objective
) -> dict[tuple[float, int], float]:
    """(load, context) → geometric mean over blocks, tasks and output lengths."""
    figures = evidence.figures(of)
    logs: dict[tuple[float, int], list[float]] = {}
    for place in evidence.places:
        for scenario in place.scenarios:
            found = figures.get((scenario, candidate), {}).values()
            positive = [float(np.log(value)) for value in found if value > 0]
            logs.setdefault((place.load, place.context), []).extend(positive)
    return {key: float(np.exp(np.mean(each))) for key, each in logs.items() if each}


def grid(values: Mapping[tuple[float, int], float]) -> Grid | None:
    """Of (load, context) → figure; None of nothing."""
    if not values:
        return None
    loads = sorted({load for load, _ in values})
    contexts = [sorted(c for load, c in values if load == at) for at in loads]
    figures = [
        tuple(values[load, c] for c in each) for load, each in zip(loads, contexts, strict=True)
    ]
    return Grid(tuple(loads), tuple(map(tuple, contexts)), tuple(figures))


def paces(of: Curves, tokens: Ints, most_open: int) -> Paces:
    """For prompts of so many uncached tokens, and 1 to ``most_open`` requests at the server."""
    opens = np.arange(1, most_open + 1)
    return Paces(
        _over_loads(of.ttft_s, tokens, opens, 1.0),
        _over_loads(of.tpot_s, tokens, opens, 1.0),
        None if of.watts is None else _over_loads(of.watts, tokens, opens, -1.0),
    )


def _over_loads(of: Grid, tokens: Ints, opens: Ints, beyond: float) -> Floats:
    """prompts × open requests; above the highest load the figure goes as load ** ``beyond``."""
    loads = np.log(np.array(of.loads))
    x = np.log(opens)
    inside = np.clip(x, loads[0], loads[-1])
    logs = np.log(of.at(tokens))  # loads × prompts
    found = np.stack([np.interp(inside, loads, logs[:, i]) for i in range(logs.shape[1])])
    return np.exp(found + beyond * np.maximum(0.0, x - loads[-1]))


def hull(every: Sequence[Curves]) -> tuple[int, int]:
    """Shortest and longest context that all of them were measured at."""
    ends = [(min(map(min, c.ttft_s.contexts)), max(map(max, c.ttft_s.contexts))) for c in every]
    return max(low for low, _ in ends), min(high for _, high in ends)
