"""archive.json of a run directory that was made small: which file stands for which, and what is gone.

The manifest stays as it was measured, with the hashes of the raw files; this says what became of each.
"""

from pathlib import Path

from pydantic import Field, ValidationError

from greenbench import SCHEMA_VERSION
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Part
from greenbench.contract.run_dir import read_json

ARCHIVE = "archive.json"
STEPS = "steps.parquet"  # in logs/: the engine's steps, read out of server.log


class ArchivedFile(Part):
    """A file of the archive. ``of``: the raw files that it stands for, each with its sha256."""

    sha256: str
    of: dict[str, str]


class Archive(Part):
    """``chunk_unit_ns``: to what the times of chunks between the first and the last were rounded.

    ``left_out``: raw files that are not kept, each with its sha256. ``texts_left_out``: answers of random
    weights, of which the text's sha256 and length stand for the text. ``prompt_lines_sha256``: as in
    config.yaml, for a run whose config.yaml is older than that field.
    """

    schema_version: str = SCHEMA_VERSION
    chunk_unit_ns: int = Field(ge=1)
    files: dict[str, ArchivedFile] = Field(default_factory=dict[str, ArchivedFile])
    left_out: dict[str, str] = Field(default_factory=dict[str, str])
    texts_left_out: int = Field(default=0, ge=0)
    prompt_lines_sha256: str | None = None

    @property
    def raw(self) -> dict[str, str]:
        """sha256 of every raw file that another one stands for, or that is left out, by its path."""
        kept = {name: sha for file in self.files.values() for name, sha in file.of.items()}
        return kept | self.left_out


def read_archive(folder: Path) -> Archive | None:
    """Of a run directory; None where it is not archived. A file that is none raises UserError."""
    path = folder / ARCHIVE
    if not path.is_file():
        return None
    try:
        return Archive.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error
