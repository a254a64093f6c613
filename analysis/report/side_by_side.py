"""Two sweeps side by side: days, cards, versions. Nothing between them is tested.

Their servers were not started in one block, so no difference between the two is attributed to anything.
Each sweep's own answer stands beside the other's, and of each cell that both measured both figures and their
plain quotient. What differs in the circumstances is listed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from analysis.compare.cells import Cell
from analysis.objectives import BY_NAME, MEMORY, Objective, shown
from analysis.report import document, formats
from analysis.report.answer import answer
from analysis.report.page import environment
from analysis.report.tables import Entry, entry_of, provenance
from analysis.runs.identity import Candidate, Workload
from analysis.study import Study
from greenbench.contract.run_dir import write_atomic

NS = 1_000_000_000


@dataclass(frozen=True)
class Circumstance:
    name: str
    a: str
    b: str

    @property
    def differs(self) -> bool:
        return self.a != self.b


@dataclass(frozen=True)
class Compared:
    """One figure of one cell in both sweeps. ``quotient``: of b over a, with no claim."""

    objective: Objective
    a: Entry
    b: Entry
    quotient: str


@dataclass(frozen=True)
class Row:
    """A cell that both measured: one candidate at one workload. ``label_b``: its other name in b."""

    task: str
    load: str
    context_tokens: int
    label: str
    label_b: str | None
    figures: tuple[Compared, ...]


@dataclass(frozen=True)
class SideBySide:
    names: tuple[str, str]
    answers: tuple[str, str]
    circumstances: list[Circumstance]
    columns: list[Objective]
    rows: list[Row]
    alone: tuple[list[str], list[str]]  # cells that only one of the two has

    @property
    def warning(self) -> str:
        differing = [each.name for each in self.circumstances if each.differs]
        why = f" They differ in: {', '.join(differing)}." if differing else ""
        return (
            "Nothing between the two sweeps is tested, for their servers were not started in turns: a "
            f"quotient here is no claim.{why} To test a difference, measure both sides as candidates of one "
            "sweep."
        )


def side_by_side(a: Study, b: Study) -> SideBySide:
    left, right = _cells(a), _cells(b)
    shared = [key for key in left if key in right]
    columns = [o for o in (*shown("numbers"), BY_NAME["energy_request"]) if o is not MEMORY]
    rows = [_row(left[key], right[key], columns) for key in shared]
    columns = [o for o in columns if any(_known(row, o) for row in rows)]
    return SideBySide(
        names=_names(a.root, b.root),
        answers=(answer(a), answer(b)),
        circumstances=_circumstances(a, b),
        columns=columns,
        rows=[
            replace(r, figures=tuple(f for f in r.figures if f.objective in columns)) for r in rows
        ],
        alone=(_words(left, right), _words(right, left)),
    )


Key = tuple[Candidate, Workload]


def _cells(whole: Study) -> dict[Key, Cell]:
    """By what was asked of whom, whatever the vLLM's version, the card and the folder of the model."""
    return {
        (replace(cell.candidate, vllm_version=None, model_source=""), cell.scenario.workload): cell
        for cell in whole.cells
        if cell.starts
    }


def _row(a: Cell, b: Cell, columns: Iterable[Objective]) -> Row:
    return Row(
        task=a.task,
        load=a.load,
        context_tokens=a.context_tokens,
        label=a.backend,
        label_b=b.backend if b.backend != a.backend else None,
        figures=tuple(
            Compared(o, entry_of(o)(a), entry_of(o)(b), _quotient(_value(a, o), _value(b, o)))
            for o in columns
        ),
    )


def _value(cell: Cell, objective: Objective) -> float | None:
    """The figure of the entry: over the pooled requests for latencies, else the mean over starts."""
    if objective.latency is not None:
        return cell.latency.of(objective.latency).p50
    return cell.mean(objective)


def _quotient(a: float | None, b: float | None) -> str:
    return formats.DASH if not a or b is None else f"{formats.significant(b / a)} ×"


def _known(row: Row, objective: Objective) -> bool:
    return any(f.objective is objective and (f.a.main or f.b.main) for f in row.figures)


def _words(of: dict[Key, Cell], other: dict[Key, Cell]) -> list[str]:
    return [
        f"{cell.backend}: {cell.task}, {cell.load}, {formats.count(cell.context_tokens)} tokens"
        for key, cell in of.items()
        if key not in other
    ]


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The folders' names, with that above where they are alike."""
    if a.resolve().name != b.resolve().name:
        return a.resolve().name, b.resolve().name
    one, two = ("/".join(path.resolve().parts[-2:]) for path in (a, b))
    return (one, two) if one != two else (f"{one} (first)", f"{two} (second)")


def _circumstances(a: Study, b: Study) -> list[Circumstance]:
    facts = [dict(provenance(whole.runs)) for whole in (a, b)]
    for whole, held in zip((a, b), facts, strict=True):
        held["Days"] = _joined(
            whole, lambda run_ns: datetime.fromtimestamp(run_ns / NS, UTC).date().isoformat()
        )
        held["Cards"] = "; ".join(
            sorted({uuid for p in whole.points for uuid in p.identity.device.uuids})
        )
        held["Driver"] = "; ".join(
            sorted({p.identity.device.kind.driver or "none" for p in whole.points})
        )
        held["Server starts"] = formats.count(len({(p.server_id, p.repeat) for p in whole.points}))
    names = dict.fromkeys(name for held in facts for name in held)
    return [Circumstance(n, *(held.get(n) or formats.DASH for held in facts)) for n in names]


def _joined(whole: Study, words: Callable[[int], str]) -> str:
    return "; ".join(sorted({words(run.manifest.created_unix_ns) for run in whole.runs}))


def write_side_by_side(a: Study, b: Study, path: Path) -> None:
    """The page and beside it the same in Markdown, each replaced atomically."""
    found = side_by_side(a, b)
    title = f"{found.names[0]} and {found.names[1]}"
    pages = environment()
    page = pages.get_template("side_by_side.html.j2")
    write_atomic(path, page.render(**document.frame(None, document.TEXT), title=title, found=found))
    text = document.markdown(pages).get_template("side_by_side.md.j2")
    write_atomic(path.with_suffix(".md"), text.render(title=title, found=found))
