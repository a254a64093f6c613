"""What a person typed to reach a stage's command: its help and usage errors repeat that."""

import os

TYPED_AS = "GREENBENCH_TYPED_AS"


def typed_as(default: str) -> str:
    """e.g. ``greenbench report`` where that started the stage; else ``default``."""
    return os.environ.get(TYPED_AS, default)
