"""How many cores this process may use, as the system tells it."""

import os

import pytest

from greenbench.contract.cpu import usable_cores


def test_only_the_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert usable_cores() == 2


@pytest.mark.parametrize(("there", "cores"), [(6, 6), (None, 1)])
def test_where_the_system_does_not_say_all_cores_count(
    there: int | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no sched_getaffinity: `greenbench plan` ended with an AttributeError there."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: there)
    assert usable_cores() == cores
