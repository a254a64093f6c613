"""The folder of runs that a plan or a policy is asked to rest on."""

from pathlib import Path

from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import MANIFEST


def holds_all(root: Path) -> None:
    """UserError, with the folders to choose from, where runs lie deeper below ``root`` than are read."""
    deeper = [*root.glob(f"*/*/*/{MANIFEST}")]
    if not deeper or (root / MANIFEST).is_file():
        return
    every = [*deeper, *root.glob(f"*/{MANIFEST}"), *root.glob(f"*/*/{MANIFEST}")]
    names = sorted({str(root / path.relative_to(root).parts[0]) for path in every})
    raise UserError(
        f"{root}: a sweep or a folder of sweeps is wanted, found folders of them; name one of "
        f"{', '.join(names)}"
    )
