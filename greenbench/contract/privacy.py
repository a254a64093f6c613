"""GREENBENCH_PRIVATE=1: what is written, prompts and answers among it, is its owner's alone."""

import os
from collections.abc import Mapping
from typing import Final

PRIVATE_ENV: Final = "GREENBENCH_PRIVATE"
OWNER_ALONE: Final = 0o077  # files 0600, folders 0700
NO: Final = ("", "0", "false", "no")


def keep_private(env: Mapping[str, str] = os.environ) -> None:
    """Of this process and the ones it starts. Files that are there already keep their mode."""
    if env.get(PRIVATE_ENV, "").lower() not in NO:
        os.umask(OWNER_ALONE)
