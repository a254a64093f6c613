"""YAML text as plain values: what JSON can say, each key once, within a depth and a size.

Numbers are those of YAML 1.2: ``1e-5`` is a number (PyYAML takes it for a word), ``010`` is ten and no octal,
``1:30`` is no number of minutes, and a date is the text that stands there.

By libyaml where that is safe: it takes a fraction of the time. Its composer calls itself once a level without
a limit, so a text of a hundred thousand brackets would end the program. What nests deep, or is wrong, is left
to the loader in Python, which says it.
"""

import re
from typing import Any, cast

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST = 64  # levels; the project's own files have six
MOST_VALUES = 100_000  # with everything that aliases stand for
_TAG = "tag:yaml.org,2002:"
INT = r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)"
FLOAT = (
    r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
MISTAGGED = (ValueError, TypeError, AttributeError, KeyError)  # e.g. of `!!int two`
KEPT = ("bool", "null", "merge")  # of YAML 1.1's words


def _resolvers() -> dict[Any, Any]:
    """First character → (tag, pattern) of the plain words that are no text."""
    theirs = yaml.SafeLoader.yaml_implicit_resolvers
    kept = {
        first: [(tag, word) for tag, word in found if tag.removeprefix(_TAG) in KEPT]
        for first, found in theirs.items()
    }
    numbers = [
        (f"{_TAG}{kind}", re.compile(rf"(?:{pattern})\Z"))
        for kind, pattern in (("int", INT), ("float", FLOAT))
    ]
    for first in "-+0123456789.":
        kept[first] = [*kept.get(first, []), *numbers]
    return kept


def _constructors() -> dict[Any, Any]:
    theirs = yaml.SafeLoader.yaml_constructors.items()
    kept = (*KEPT, "str", "seq", "map")
    return {
        **{key: make for key, make in theirs if key is None or key.removeprefix(_TAG) in kept},
        f"{_TAG}int": _int,
        f"{_TAG}float": _float,
    }


def _int(loader: Any, node: ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    base = {"0x": 16, "0o": 8}.get(text.lstrip("+-")[:2], 10)
    return int(text, base)


def _float(loader: Any, node: ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return float(re.sub(r"\.(inf|nan)$", r"\1", text))


RESOLVERS, CONSTRUCTORS = _resolvers(), _constructors()


class Loader(yaml.SafeLoader):
    """In Python. Says where what nests too deep, stands twice, or grows without end does so."""

    yaml_implicit_resolvers = RESOLVERS
    yaml_constructors = CONSTRUCTORS
    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST + 1:  # a value lies one below the list that holds it
            raise _refused(f"nested deeper than {DEEPEST} levels", cast(Any, self).peek_event())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Node | None:
        return checked(super().get_single_node())


def _fast_loader() -> Any:
    theirs: Any = getattr(yaml, "CSafeLoader", None)
    if theirs is None:
        return None  # PyYAML was built without libyaml

    class FastLoader(theirs):
        yaml_implicit_resolvers = RESOLVERS
        yaml_constructors = CONSTRUCTORS

        def get_single_node(self) -> Node | None:
            return checked(super().get_single_node())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

    return FastLoader


FAST = _fast_loader()


class Dumper(yaml.SafeDumper):
    """Quotes the words that the loaders would take for numbers, and no others."""

    yaml_implicit_resolvers = RESOLVERS


def parse_yaml(text: str) -> Any:
    """The one document of a text; None of an empty one. Raises yaml.YAMLError.

    And ValueError, TypeError, KeyError and their like where a tag is given to a text that is no such thing.
    """
    try:
        if FAST is not None and nests_little(text):
            return yaml.load(text, Loader=FAST)  # noqa: S506  a SafeLoader
    except yaml.YAMLError:
        pass  # the loader in Python says it in its own words
    return yaml.load(text, Loader=Loader)  # noqa: S506  a SafeLoader


def nests_little(text: str) -> bool:
    """Whether no part of the text lies more than DEEPEST levels down. Raises yaml.YAMLError."""
    depth, parser = 0, FAST(text)
    while parser.check_event():  # one after the other: a level costs no stack
        event = parser.get_event()
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            return False
    return True


def checked(node: Node | None) -> Node | None:
    """The document's node, when no key stands twice in it and it is not too large. ConstructorError."""
    if node is not None:
        _size(node, {}, set())
    return node


def _size(node: Node, known: dict[int, int], above: set[int]) -> int:
    """Values below a node, each alias counted with all that it stands for."""
    if isinstance(node, ScalarNode):
        return 1
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise _refused("an alias stands for what it is part of", node)
    above.add(id(node))
    size = 1 + sum(_size(child, known, above) for child in _children(node))
    if size > MOST_VALUES:
        raise _refused(f"it holds more than {MOST_VALUES:,} values", node)
    above.discard(id(node))
    known[id(node)] = size
    return size


def _children(node: Node) -> list[Node]:
    if isinstance(node, SequenceNode):
        return node.value
    if not isinstance(node, MappingNode):
        return []
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode):
            if (key.tag, key.value) in seen:
                raise _refused(f"the key '{key.value}' stands there twice", key)
            seen.add((key.tag, key.value))
    return [part for pair in node.value for part in pair]


def _refused(problem: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, place.start_mark)
