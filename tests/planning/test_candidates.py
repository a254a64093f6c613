"""How often the runs of a plan are read."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.config import SloConfig
from planning import batches
from planning.candidates import measured

RUNS = Path(__file__).resolve().parents[2] / "results" / "h200" / "heldout-3"


def test_the_log_and_the_requests_of_a_run_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step times, the way to the engine and what was cached all go by the same lines and requests."""
    asked: Counter[tuple[str, ...]] = Counter()
    columns: Any = batches._columns  # pyright: ignore[reportPrivateUsage]

    def counted(frame: Any, *names: str) -> Any:
        asked[names] += 1
        return columns(frame, *names)

    monkeypatch.setattr(batches, "_columns", counted)
    found, _, _ = measured(RUNS, SloConfig(ttft_s=2), None)
    runs = sum(len(one.timed) for one in found)
    assert runs == 10 and {*asked.values()} == {runs} and len(asked) == 2
    assert {one.hull.cached for one in found} == {(0.0, 0.0)}
