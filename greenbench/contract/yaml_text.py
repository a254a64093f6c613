"""YAML text as plain values, by libyaml where that is safe: it takes an eighth of the time.

libyaml's composer calls itself once a level without a limit, so a text of a hundred thousand brackets would
end the program. What nests deep, or is wrong, is left to the loader in Python, which raises for either.
"""

from typing import Any

import yaml

DEEPEST = 64  # levels; the project's own files have six
FAST: Any = getattr(yaml, "CSafeLoader", None)  # None: PyYAML was built without libyaml


def parse_yaml(text: str) -> object:
    """The one document of a text. Raises yaml.YAMLError, and RecursionError for hundreds of levels."""
    try:
        if FAST is not None and nests_little(text):
            return yaml.load(text, Loader=FAST)
    except yaml.YAMLError:
        pass  # the loader in Python says it in its own words
    return yaml.safe_load(text)


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
