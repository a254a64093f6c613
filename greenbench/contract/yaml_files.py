"""Configuration files: their bytes as text, whatever the editor saved, and their YAML as plain values."""

import codecs
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from greenbench.contract.errors import UserError
from greenbench.contract.yaml_text import MISTAGGED, Dumper, parse_yaml

MOST_BYTES = 1 << 20  # the loader in Python takes some ten seconds for so much
BOMS = (  # UTF-32's little-endian one starts like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def load_yaml(path: Path) -> Any:
    """The file's content; None of an empty one. What cannot be read is a UserError with file and line."""
    text = read_text(path)
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, *MISTAGGED) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}: not valid YAML{line} ({problem})") from error


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
