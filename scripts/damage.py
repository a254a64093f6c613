"""Faults in sound files, drawn by a seed: in their bytes, or in a value of what they hold."""

import json
import random
from collections.abc import Iterator
from typing import Any, Final

import yaml

DEEP: Final = b"[" * 100_000
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 16.5, 1e300, -1e300, 2**31, 2**63, 2**70, -(2**70), "", " ", "x", "16",
    "\ud83d", "\x00", "\x1b[2J", "a\nb", "é漢🚀", [], {}, [None], [[]], [{}], {"": None}, [0] * 300,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
PIECES: Final = (
    b"\n", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b'"', b"\\", b"{}\n", b"[]\n",
    b"null\n", b"NaN", b"-Infinity", b"1e999", b"\\ud800", b",", b":", b"- ", b"&a [*a]", b"!!python/none",
)  # fmt: skip


def damaged(rng: random.Random, name: str, content: bytes) -> bytes | None:
    """The file with one to three faults; None: there is none."""
    if rng.random() < 0.02:
        return None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        values = rng.random() < 0.65
        content = _odd_values(rng, name, content) if values else _odd_bytes(rng, content)
    return content


def _odd_bytes(rng: random.Random, content: bytes) -> bytes:
    where = rng.randrange(len(content) + 1)
    kind = rng.randrange(9)
    if kind == 0:
        return content[:where]
    if kind == 1:
        return content[:where] + rng.choice(PIECES) + content[where:]
    if kind == 2 and content:
        where = min(where, len(content) - 1)
        return content[:where] + bytes([rng.randrange(256)]) + content[where + 1 :]
    if kind == 3:
        return rng.choice((b"", b"\n", b"{}", b"[]", b"null", b"\xff\xfe", b"\x1f\x8b\x08", DEEP))
    if kind == 4:
        return content + rng.choice((content, DEEP, b"\xff\n", b"{}\n", b"\n\n", b"null\n"))
    if kind == 5:
        return content.replace(b'"1.1"', rng.choice((b'"2.0"', b'"1.9"', b'""', b"1", b'"x.y"')))
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    at = rng.randrange(len(lines))
    if kind == 6:
        del lines[at]
    elif kind == 7:
        lines.insert(at, lines[rng.randrange(len(lines))])
    else:
        lines[at] = rng.choice(
            (b"\n", b"{}\n", b"[]\n", b"nothing\n", b"\xff\n", b"\0" * 40 + b"\n")
        )
    return b"".join(lines)


def _odd_values(rng: random.Random, name: str, content: bytes) -> bytes:
    """A value or a few of the parsed file in another form; of rows: in one line or in all."""
    try:
        if name.endswith(".jsonl"):
            rows = [json.loads(line) for line in content.splitlines()]
            _change_rows(rng, rows)
            return b"".join(_json(row) + b"\n" for row in rows)
        if name.endswith(".json"):
            whole = json.loads(content)
            return _json(_changed(rng, whole))
        if name.endswith(".yaml"):
            return yaml.safe_dump(_changed(rng, yaml.safe_load(content))).encode("utf-8", "replace")
    except (ValueError, RecursionError, yaml.YAMLError):
        pass  # an earlier fault took its form
    return _odd_bytes(rng, content)


def _change_rows(rng: random.Random, rows: list[Any]) -> None:
    if not rows:
        return
    if rng.random() < 0.5:
        at = rng.randrange(len(rows))
        rows[at] = _changed(rng, rows[at])
        return
    keys = sorted({key for row in rows if isinstance(row, dict) for key in row})
    if not keys:
        return
    key, gone, value = rng.choice(keys), rng.random() < 0.3, rng.choice(ODD)
    for row in rows:
        if isinstance(row, dict) and gone:
            row.pop(key, None)
        elif isinstance(row, dict):
            row[key] = value


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _changed(rng: random.Random, whole: Any) -> Any:
    """One place of a tree: another value, left out, renamed, or beside it one more."""
    places = [*_places(whole, limit=4000)]
    if not places:
        return rng.choice(ODD)
    owner, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        owner[key] = rng.choice(ODD)
    elif kind < 0.7:
        owner[key] = _number_like(rng, owner[key])
    elif kind < 0.85:
        del owner[key]
    elif isinstance(owner, dict):
        owner[f"{key}_"] = owner[key] if kind < 0.92 else owner.pop(key)
    else:
        owner.append(rng.choice(ODD))
    return whole


def _number_like(rng: random.Random, value: Any) -> Any:
    """The number as another program might write it, or a little off."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [value]
    return rng.choice((str(value), float(value), -value, value * 10**9, value + 1, 0, value // 2))


def _places(node: Any, limit: int) -> Iterator[tuple[Any, Any]]:
    """(owner, key) of every value below a node, the nearest first."""
    queue, found = [node] if isinstance(node, dict | list) else [], 0
    for part in queue:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            yield part, key
            found += 1
            if isinstance(part[key], dict | list):
                queue.append(part[key])
        if found > limit:
            return
