"""Reading and writing YAML, as far as a configuration needs it: what JSON can say, each key once.

Numbers are read as YAML 1.2 does: ``1e-5`` is a number (PyYAML takes it for a word), ``010`` is ten and no
octal, ``1:30`` is no number of minutes, and a date is the text that stands there.
"""

import codecs
import re
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from greenbench.contract.errors import UserError

MOST_BYTES = 1 << 20  # PyYAML takes some ten seconds for so much
MOST_DEPTH = 50
MOST_VALUES = 100_000  # with everything that aliases stand for
BOMS = (  # UTF-32's little-endian one starts like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_TAG = "tag:yaml.org,2002:"
INT = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
KEPT = ("bool", "null", "merge")  # of YAML 1.1's words


def _resolvers() -> dict[Any, Any]:
    theirs = yaml.SafeLoader.yaml_implicit_resolvers
    kept = {
        first: [(tag, word) for tag, word in found if tag.removeprefix(_TAG) in KEPT]
        for first, found in theirs.items()
    }
    for first in "-+0123456789.":
        numbers = [(f"{_TAG}int", _whole(INT)), (f"{_TAG}float", _whole(FLOAT))]
        kept[first] = [*kept.get(first, []), *numbers]
    return kept


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern.pattern})\Z")


class Loader(yaml.SafeLoader):
    """A configuration's loader: no date, set, binary or omap; no key twice; bounded depth and size."""

    yaml_implicit_resolvers = _resolvers()
    yaml_constructors = {  # noqa: RUF012  (PyYAML's own kind of attribute)
        key: value
        for key, value in yaml.SafeLoader.yaml_constructors.items()
        if key is None or key.removeprefix(_TAG) in (*KEPT, "str", "seq", "map")
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            self._refuse(f"nested deeper than {MOST_DEPTH} levels", cast(Any, self).peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None:
            self._size(node, {}, set())
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = cast(Any, super()).compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and (key.tag, key.value) in seen:
                self._refuse(f"the key '{key.value}' stands there twice", key)
            if isinstance(key, ScalarNode):
                seen.add((key.tag, key.value))
        return node

    def _size(self, node: Node, known: dict[int, int], open_: set[int]) -> int:
        """Values below a node, each alias counted with all that it stands for."""
        if id(node) in known:
            return known[id(node)]
        if id(node) in open_:
            self._refuse("an alias stands for what it is part of", node)
        open_.add(id(node))
        children: list[Node] = []
        if isinstance(node, SequenceNode):
            children = list(node.value)
        elif isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        size = 1 + sum(self._size(child, known, open_) for child in children)
        if size > MOST_VALUES:
            self._refuse(f"it holds more than {MOST_VALUES:,} values", node)
        open_.discard(id(node))
        known[id(node)] = size
        return size

    def _refuse(self, problem: str, place: Any) -> None:
        raise ConstructorError(None, None, problem, place.start_mark)


def _int(loader: Loader, node: ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    base = {"0x": 16, "0o": 8}.get(text.lstrip("+-")[:2], 10)
    return int(text, base)


def _float(loader: Loader, node: ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return float(re.sub(r"\.(inf|nan)$", r"\1", text))


Loader.add_constructor(f"{_TAG}int", _int)
Loader.add_constructor(f"{_TAG}float", _float)


class Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()


def load_yaml(path: Path) -> Any:
    """The file's content; None of an empty one. What cannot be read is a UserError with file and line."""
    text = read_text(path)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}: not valid YAML{line} ({problem})") from error
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML ({error})") from error  # e.g. `!!int two`


def read_text(path: Path) -> str:
    """A text file of at most a mebibyte: UTF-8, or what its byte order mark says."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES >> 20} MiB, which is no configuration")
    encoding = next((name for bom, name in BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not {encoding.upper()} text (byte 0x{data[error.start]:02X} in line {line}); "
            "save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path}: holds zero bytes, as UTF-16 without a byte order mark does; save it as UTF-8"
        )
    return text


def dump_yaml(model: BaseModel) -> str:
    return yaml.dump(model.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=100)
