"""Where a run's tables are kept as Parquet: in its ``derived/``, else in the person's cache.

An archive may be read-only, full, or another person's; a ``derived`` that is a link may lead anywhere and is
not written through. The cache's folder of a run is named by the run's path.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from greenbench.contract.installation import cache
from greenbench.contract.run_dir import RunDir


def places(run_path: Path) -> Iterator[Path]:
    """Folders for derived files, the nearest first; each may turn out not to be writable."""
    own = RunDir(run_path).derived_dir
    if not own.is_symlink():
        yield own
    key = hashlib.sha256(os.fsencode(run_path.resolve())).hexdigest()[:32]
    yield cache() / "derived" / key
