"""docs/schema as a page to read: every file of a run, key by key. The JSON Schemas come from the models."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
}
INTRODUCTION = """# Files, key by key

Generated from the models that read and write them ([JSON Schemas](schema/sweep.json)). What a column means,
with its unit, is in [the contract](contract.md).
"""


def page(folder: Path) -> str:
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "sweep", path.stem))
    return "\n".join([INTRODUCTION, *(line for path in paths for line in _file(path))])


def _file(path: Path) -> Iterator[str]:
    schema: Schema = json.loads(path.read_text())
    yield f"## {path.stem}\n"
    yield from _model(schema, path.stem)
    for name, model in schema.get("$defs", {}).items():
        yield f'### {name} {{ id="{anchor(path.stem, name)}" }}\n'
        yield from _model(model, path.stem)


def anchor(file: str, name: str) -> str:
    return f"{file}-{name}".lower()


def _model(model: Schema, file: str) -> Iterator[str]:
    if said := model.get("description"):
        yield f"{_plain(said)}\n"
    keys: dict[str, Schema] = model.get("properties", {})
    if not keys:
        return
    required = model.get("required", [])
    yield "| key | value | default |\n|---|---|---|"
    for key, value in keys.items():
        default = "must be given" if key in required else _default(value)
        yield f"| `{key}` | {kind(value, file)} | {default} |"
    yield ""


def _plain(text: str) -> str:
    """A docstring as Markdown: one paragraph; `<` outside code is no tag."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.replace("``", "`").split()))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _default(value: Schema) -> str:
    default = value.get("default")
    if default is None or "$ref" in value:  # a model's defaults are in its own table
        return ""
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def kind(value: Schema, file: str) -> str:
    """The type of a value in words, with its bounds; another model is linked."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{anchor(file, name)})"
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(kind(each, file) for each in value[several])
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    match value.get("type"):
        case "array":
            inner = kind(value["items"], file) if isinstance(value.get("items"), dict) else "value"
            return f"list of {inner}"
        case "object":
            inner = value.get("additionalProperties")
            return f"name → {kind(inner, file)}" if isinstance(inner, dict) and inner else "mapping"
        case list() as kinds:
            return " or ".join(kinds)
        case None:
            return "any"
        case one:
            bounds = [text.format(value[key]) for key, text in BOUNDS.items() if key in value]
            return " ".join([one, *bounds])


if __name__ == "__main__":
    print(page(Path(sys.argv[1])))
