"""Recordings of fake cards as the frames that analysis reads, with the work of a made-up server."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.energy.cards import Joules
from analysis.energy.window import EnergyInputs
from analysis.statistics.rates import Ratio
from greenbench.contract.forms import Sources
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


def inputs(
    gpu: pd.DataFrame,
    told: dict[str, Any],
    start_s: float,
    end_s: float,
    work: Work | None = None,
    **given: Any,
) -> EnergyInputs:
    """A window of a recording in which the server did ``work``, wherever its edges come to lie.

    Joules per work are divisions here, so that expected values are.
    """
    done = work or Work()

    def per(own: Joules, idle_w: float, edges: tuple[int, int]) -> dict[str, Ratio]:
        start_ns, end_ns = (np.array([edge]) for edge in edges)
        joules = float(own.between(start_ns, end_ns)[0]) - idle_w * (edges[1] - edges[0]) / SECOND
        return {
            "j_per_output_token": Ratio(joules / done.output),
            "j_per_total_token": Ratio(joules / (done.output + done.input)),
            "j_per_request": Ratio(joules / done.completions),
        }

    values = {"host": NO_HOST, "count": lambda start_ns, end_ns: done, "per": per} | given
    return EnergyInputs(
        gpu=gpu,
        sources=Sources.model_validate(told),
        start_mono_ns=ns(start_s),
        end_mono_ns=ns(end_s),
        **values,
    )
