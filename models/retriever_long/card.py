"""The tables of the model card, from ``results/``: ``python -m models.retriever_long.card`` rewrites them."""

import json
from pathlib import Path
from typing import Any

from greenbench.contract.run_dir import write_atomic
from models.retriever_long import verdicts
from models.retriever_long.cells import CELLS, RESULTS, SEED, by_tenth
from models.retriever_long.vocabulary import HERE

CARD = HERE / "README.md"
OPENING, CLOSING = "<!-- measured, by card.py -->", "<!-- end of measured -->"
MODELS = ("head64", "head128", "hybrid", "mamba2")
NEEDLE = "retrieve/{}/{{}}"
NEEDLE_LENGTHS = (2048, 8192, 16_384, 32_768)
GATE = (
    "The report's gate on real vLLM servers, 32 prompts a task; "
    "beside a standing, the task that was answered least right:"
)


def all_results() -> dict[tuple[str, str], dict[str, Any]]:
    """(model, how) → what was measured."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        model, _, how = path.stem.partition(".")
        found[model, how] = json.loads(path.read_text())
    return found


def share(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    return f"{100 * found['right'] / found['count']:.1f} % of {found['count']}"


def name_of(key: str) -> str:
    task, context, text = key.split("/", 2)
    params = json.loads(text)
    absent = ", key absent" if "absent_share" in params else ""
    depth = f" at depth {params['depth']}" if "depth" in params else ""
    return f"{task}{absent}{depth} | {context}"


def table(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """All figures, in Markdown."""
    rows = [f"| task | context | {' | '.join(MODELS)} |", "|---" * (len(MODELS) + 2) + "|"]
    for cell in CELLS:
        shares = [share(results[model, "torch"]["cells"].get(cell.key)) for model in MODELS]
        rows.append(f"| {name_of(cell.key)} | {' | '.join(shares)} |")
    where = {results[model, "torch"]["where"] for model in MODELS}
    rows += [
        "",
        f"Greedy decoding, {', '.join(sorted(where))}; prompt seed {SEED}; weights (sha256):",
    ]
    rows[-1] += " " + ", ".join(
        f"{model} `{results[model, 'torch']['weights'][:12]}`" for model in MODELS
    )
    rows[-1] += "."
    rows += ["", "The single needles of 32,768 tokens by depth:", ""]
    rows += [f"| depth | {' | '.join(MODELS)} |", "|---" * (len(MODELS) + 1) + "|"]
    columns = [
        by_tenth(results[model, "torch"]["cells"][NEEDLE.format(NEEDLE_LENGTHS[-1])])
        for model in MODELS
    ]
    for tenth, row in enumerate(zip(*columns, strict=True)):
        shown = [f"{right} of {asked}" for right, asked in row]
        rows.append(f"| {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} | {' | '.join(shown)} |")
    rows += [
        "",
        "On a real vLLM server, on a CPU; the last backends are wrong or partial on purpose:",
        "",
    ]
    rows += ["| model | backend | task | context | right |", "|---|---|---|---|---|"]
    for (model, how), found in results.items():
        if how == "torch":
            continue
        rows += [
            f"| {model} | {how} | {name_of(key)} | {cell['right']} of {cell['count']} |"
            for key, cell in found["cells"].items()
        ]
    return "\n".join(rows)


def gate_tables() -> str:
    """What the report's gate said, where it was asked, in Markdown."""
    found = [
        verdicts.table(verdicts.read(path)) for path in sorted(verdicts.VERDICTS.glob("*.json"))
    ]
    return "\n\n".join(found)


def rewritten(card: str, measured: str) -> str:
    before, _, rest = card.partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    return f"{before}{OPENING}\n{measured}\n{CLOSING}{after}"


def write_card(path: Path = CARD) -> None:
    measured = f"{table(all_results())}\n\n{GATE}\n\n{gate_tables()}"
    write_atomic(path, rewritten(path.read_text(), measured))


if __name__ == "__main__":
    write_card()
