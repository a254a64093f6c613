"""Waiting for what another process or thread is about to do."""

import time
from collections.abc import Callable
from typing import Any

HUNG_S = 120.0  # a start of Python takes some seconds on a busy machine, and half a minute on a very busy one


def wait_until(
    true: Callable[[], Any], what: str, limit_s: float = HUNG_S, every_s: float = 0.02
) -> Any:
    """What ``true`` gives once it is true. The limit is for what hangs, not for what is slow."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:.0f} s"
        time.sleep(every_s)
    return found
