"""The texts of the code, as a person reads them: what is filled in is `…`."""

import ast
from collections.abc import Iterator
from pathlib import Path


def texts(path: Path) -> Iterator[str]:
    """Each string of a Python file; of an f-string the whole."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)}
            yield _filled(node)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.value


def _filled(text: ast.JoinedStr) -> str:
    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in text.values)
    return "".join(map(str, parts))
