"""Recordings of fake cards as the frames that analysis reads, with the work of a made-up server."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from greenbench.contract.schema import GpuSample
from tests.fakes.nvml import SECOND, FakeGpu, record

NO_HOST = pd.DataFrame()


@dataclass(frozen=True)
class Work:
    """Enough for every rule: 100 requests of 900 in and 100 out."""

    output: int = 10_000
    input: int = 90_000
    completions: int = 100


def frame(rows: list[GpuSample]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows])


def recorded(cards: list[FakeGpu], end_s: float, **how: Any) -> pd.DataFrame:
    return frame(record(cards, 0.0, end_s, **how))


def sources(cards: list[FakeGpu], **facts: Any) -> dict[str, Any]:
    """sources.json of these cards; ``facts`` go into every card's entry."""
    gpus = [
        {"uuid": card.uuid, "visible": True, "scope": "gpu", "mig": card.mig, **facts}
        for card in cards
    ]
    refresh = {card.uuid: card.refresh_s for card in cards}
    return {
        "counter": {"status": "available", "reason": None, "refresh_s": refresh},
        "facts": {"gpus": gpus, "cpu": {"threads": 2}},
    }


def ns(seconds: float) -> int:
    return round(seconds * SECOND)
