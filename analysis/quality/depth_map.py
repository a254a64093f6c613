"""Right answers by where the needle stood: depth × context length, one map a backend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.quality.answers import PromptAnswer, answered, task_words
from analysis.quality.gate import Names, default_names
from analysis.runs.run import Run

FINE, COARSE = 10, 5  # stretches of depth
FINE_FROM = 50  # prompts a length from which tenths are told apart, about five a cell


@dataclass(frozen=True)
class HeatCell:
    """Prompts whose needle stood in one stretch of depth at one context length."""

    right: int
    n: int

    @property
    def share(self) -> float | None:
        return self.right / self.n if self.n else None


@dataclass(frozen=True)
class HeatMap:
    """``cells[i][j]``: depth stretch i (0 = the beginning of the prompt), context ``contexts[j]``."""

    model: str
    task: str
    backend: str
    contexts: list[int]
    stretches: int
    cells: list[list[HeatCell]]

    def depths(self, row: int) -> tuple[float, float]:
        return row / self.stretches, (row + 1) / self.stretches


def heat_maps(runs: Sequence[Run], names: Names | None = None) -> list[HeatMap]:
    """One a model, task and candidate whose grades say at which depth the needle stood.

    A prompt counts once, however often it was asked. The maps of one task share their stretches and
    contexts, so that candidates can be compared cell by cell. ``names``: of the candidates.
    """
    groups = answered(runs)
    called = default_names(groups) if names is None else names
    words = task_words(groups)
    tasks: dict[tuple[str, str], dict[str, dict[int, list[PromptAnswer]]]] = {}
    for question, by_candidate in groups.items():
        for who, told in by_candidate.items():
            placed = [each for each in told.by_prompt.values() if each.depth is not None]
            if placed:
                held = tasks.setdefault((question.model, words[question]), {})
                held.setdefault(called[who], {})[question.context_tokens] = placed
    return [
        each for (model, task), backends in tasks.items() for each in _maps(model, task, backends)
    ]


def _maps(
    model: str, task: str, backends: dict[str, dict[int, list[PromptAnswer]]]
) -> Iterable[HeatMap]:
    contexts = sorted({context for held in backends.values() for context in held})
    fewest = min(len(answers) for held in backends.values() for answers in held.values())
    stretches = FINE if fewest >= FINE_FROM else COARSE
    for backend in sorted(backends):
        columns = [tally(backends[backend].get(context, []), stretches) for context in contexts]
        cells = [[column[row] for column in columns] for row in range(stretches)]
        yield HeatMap(model, task, backend, contexts, stretches, cells)


def tally(answers: Iterable[PromptAnswer], stretches: int) -> list[HeatCell]:
    """Right answers and prompts by stretch; a depth of 1 falls into the last."""
    counts = [[0, 0] for _ in range(stretches)]
    for answer in answers:
        if answer.depth is not None:
            row = min(int(answer.depth * stretches), stretches - 1)
            counts[row][0] += answer.right
            counts[row][1] += 1
    return [HeatCell(right, n) for right, n in counts]
