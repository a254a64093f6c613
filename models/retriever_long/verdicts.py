"""What the report's gate said of a long retriever under each backend, kept small.

``python -m models.retriever_long.verdicts SUMMARY… --out results/verdicts/h200.json`` reduces one or several
``summary.json`` of ``greenbench report`` to a row a candidate and length. ``card`` makes a table of it.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from greenbench.contract.run_dir import write_atomic
from models.retriever_long.cells import RESULTS

VERDICTS = RESULTS / "verdicts"
Asked = tuple[str, int, int]  # task, right answers, prompts


@dataclass(frozen=True, slots=True, order=True)
class Verdict:
    """Where a candidate's answers stand at one length (tokens), and what it answered there.

    ``standing``: proven, undecided, disqualified or reference (``analysis.quality.standings.Standing``).
    """

    model: str
    backend: str
    kv_cache: str
    context_tokens: int
    standing: str
    right: tuple[Asked, ...]

    @classmethod
    def of_json(cls, row: dict[str, Any]) -> Self:
        given: dict[str, Any] = row | {"right": tuple(tuple(each) for each in row["right"])}
        return cls(**given)

    @property
    def worst(self) -> Asked:
        """The task with the smallest share of right answers."""
        return min(self.right, key=lambda each: each[1] / each[2])


@dataclass(frozen=True, slots=True)
class Verdicts:
    """``where``: the server's version and the processor."""

    where: str
    rows: tuple[Verdict, ...]


def reduced(summaries: Iterable[dict[str, Any]]) -> Verdicts:
    """One ``Verdicts`` of all standings in these ``summary.json``."""
    where: set[str] = set()
    rows: list[Verdict] = []
    for summary in summaries:
        for standing in summary["standings"]:
            points = [
                point
                for point in summary["points"]
                if (point["compared_as"], point["context_tokens"])
                == (standing["backend"], standing["context_tokens"])
                and point["answers"] is not None
                and point["answers"]["prompts"]
            ]
            candidate = points[0]["candidate"]
            kind = points[0]["device"]["kind"]
            where.add(f"vLLM {candidate['vllm_version']}, {', '.join(kind['gpus']) or 'CPU'}")
            rows.append(
                Verdict(
                    model=candidate["model"],
                    backend=backend_name(candidate),
                    kv_cache=candidate["kv_cache_dtype"],
                    context_tokens=standing["context_tokens"],
                    standing=standing["kind"],
                    right=tuple(sorted(answered(point) for point in points)),
                )
            )
    return Verdicts("; ".join(sorted(where)), tuple(sorted(rows)))


def backend_name(candidate: dict[str, Any]) -> str:
    """``sink_window(window=4096)``, with the server flags that one sweep added."""
    options = ",".join(f"{name}={value}" for name, value in sorted(candidate["options"].items()))
    named = f"{candidate['backend']}({options})" if options else candidate["backend"]
    return " ".join([named, *candidate["settings"]["extra_args"]])


def answered(point: dict[str, Any]) -> Asked:
    """Of a point, with the depth of its needle where it asks for one."""
    depth = point["workload"]["params"].get("depth")
    task = point["workload"]["task"] + ("" if depth is None else f" at depth {depth}")
    answers = point["answers"]
    return task, answers["correct"], answers["prompts"]


def read(path: Path) -> Verdicts:
    raw = json.loads(path.read_text())
    return Verdicts(raw["where"], tuple(Verdict.of_json(row) for row in raw["rows"]))


def write(path: Path, found: Verdicts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join("  " + json.dumps(asdict(row)) for row in found.rows)
    write_atomic(path, f'{{"where": {json.dumps(found.where)}, "rows": [\n{rows}\n]}}\n')


def table(found: Verdicts) -> str:
    """Markdown: a candidate a row, a length a column; of what is barred, the task that lost most."""
    lengths = sorted({row.context_tokens for row in found.rows})
    lines = [f"{found.where}:", ""]
    lines.append(f"| model | backend | KV cache | {' | '.join(f'{n:,}' for n in lengths)} |")
    lines.append("|---" * (3 + len(lengths)) + "|")
    cells: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in found.rows:
        who = row.model, row.backend, row.kv_cache
        cells.setdefault(who, {})[row.context_tokens] = said(row)
    for who, by_length in cells.items():
        shown = [by_length.get(length, "not asked") for length in lengths]
        lines.append(f"| {' | '.join([*who, *shown])} |")
    return "\n".join(lines)


def said(row: Verdict) -> str:
    task, right, count = row.worst
    if row.standing == "disqualified":
        return f"**disqualified**, {task} {right} of {count}"
    return row.standing if right == count else f"{row.standing}, {task} {right} of {count}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("summaries", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.out, reduced(json.loads(path.read_text()) for path in args.summaries))


if __name__ == "__main__":
    main()
