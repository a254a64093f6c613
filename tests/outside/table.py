"""The "after" column of docs/claims.md from a run of the cases.

python -m pytest tests/outside --junitxml=after.xml; python -m tests.outside.table after.xml

A case is a test function and its words the docstring; "before" stays as it is. New cases get a dash there.
"""

import ast
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "claims.md"
PARTS = {
    "test_identity": "1. Like with like",
    "test_edges": "2. Edges",
    "test_one_start": "3. One start",
    "test_gate": "4. The answer gate",
    "test_sentences": "5. Decisions and sentences",
    "test_generator": "The generator itself",
}
LAST = "## False claims and power"


def passed(report: Path) -> dict[tuple[str, str], list[bool]]:
    """(module, test) → whether each of its variants passed."""
    found: dict[tuple[str, str], list[bool]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        red = case.find("failure") is not None or case.find("error") is not None
        module = (case.get("classname") or "").split(".")[-1]
        found.setdefault((module, (case.get("name") or "").split("[")[0]), []).append(not red)
    return found


def cases(module: str) -> list[tuple[str, str]]:
    """(test, its words) in the order of the file."""
    tree = ast.parse((HERE / f"{module}.py").read_text())
    tests = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    return [
        (n.name, " ".join((ast.get_docstring(n) or n.name[5:].replace("_", " ")).split()))
        for n in tests
    ]


def cell(variants: list[bool]) -> str:
    """``green (5)``, ``**red** 2 of 5``."""
    many = f" ({len(variants)})" if len(variants) > 1 else ""
    if not variants:
        return "–"
    if all(variants):
        return f"green{many}"
    return (
        f"**red** {variants.count(False)} of {len(variants)}" if any(variants) else f"**red**{many}"
    )


def tables(after: dict[tuple[str, str], list[bool]], before: dict[str, str]) -> str:
    parts: list[str] = []
    for module, title in PARTS.items():
        rows = [
            f"| {words} | {before.get(words, '–')} | {cell(after.get((module, name), []))} |"
            for name, words in cases(module)
        ]
        head = (
            f"### {title} (`tests/outside/{module}.py`)\n\n| case | before | after |\n|---|---|---|"
        )
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def main() -> int:
    text = PAGE.read_text()
    start, end = text.index("### 1."), text.index(LAST)
    rows = [line.strip("| ").split(" | ") for line in text[start:end].splitlines() if "| " in line]
    before = {row[0]: row[1] for row in rows if len(row) == 3}
    made = tables(passed(Path(sys.argv[1])), before)
    PAGE.write_text(f"{text[:start]}{made}\n\n{text[end:]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
