"""The server's cards over a window: joules between changes of their counters, and what each card did.

Times are CLOCK_MONOTONIC nanoseconds: the sampler's stamps and the client's are differences on one clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.energy.result import GpuEnergy
from analysis.energy.series import EnergyCurve, Readings, clean, energy_curve, integrate_average
from analysis.runs.gpus import untold_gpus, used_gpus
from analysis.statistics.rates import Floats, Ints
from greenbench.contract.forms import Sources

SW_POWER_CAP = 0x04  # NVML clocks-event bit
FEWEST_TEMPERATURES = 10  # for a slope


class Joules:
    """Energy of a point's cards between any two moments, by their counters."""

    def __init__(self, cards: Sequence[EnergyCurve]) -> None:
        self._cards = cards

    def between(self, start_ns: Ints, end_ns: Ints) -> Floats:
        """Joules of each interval; NaN where the counters' changes do not enclose it."""
        total = np.zeros(len(start_ns))
        for curve in self._cards:
            if not len(curve.at_ns):
                return np.full(len(start_ns), np.nan)
            start_j, end_j = (
                np.interp(at, curve.at_ns, curve.joules, left=np.nan, right=np.nan)
                for at in (start_ns, end_ns)
            )
            total += end_j - start_j
        return total


@dataclass(frozen=True)
class Card:
    """One GPU's readings, by UUID: an index can mean another card after a reboot or under a mask."""

    uuid: str
    curve: EnergyCurve
    average: Readings
    rows: pd.DataFrame

    def inside(self, start_ns: int, end_ns: int) -> pd.DataFrame:
        return self.rows[self.rows["mono_ns"].between(start_ns, end_ns)]


def cards_of(gpu: pd.DataFrame) -> dict[str, Card]:
    """UUID → readings of every card with a counter. ``gpu``: columns of GpuSample, rows in any order."""
    by_uuid = {
        str(uuid): (energy_curve(rows["mono_ns"], rows["energy_mj"]), rows)
        for uuid, rows in gpu.groupby("gpu_uuid", sort=True)
    }
    return {
        uuid: Card(uuid, curve, clean(rows["mono_ns"], rows["power_avg_w"]), rows)
        for uuid, (curve, rows) in by_uuid.items()
        if curve is not None
    }


@dataclass(frozen=True)
class CardWindow:
    """The server's cards between two changes of their counters that all of them cover.

    Where there are no such changes the edges are those that were asked for, and ``aligned`` is false.
    """

    asked_ns: tuple[int, int]
    start_ns: int
    end_ns: int
    aligned: bool
    wanted: list[str]  # UUIDs of the server's cards
    cards: list[Card]  # those of them that were read
    others: list[Card]  # of the host, not the server's
    per_gpu: list[GpuEnergy]
    complete: bool  # every card of the server was read: 7 of 8 never pass for 8
    untold: str | None  # why it is not known which cards are the server's

    @classmethod
    def of(
        cls,
        gpu: pd.DataFrame,
        sources: Sources,
        asked_ns: tuple[int, int],
        server_gpus: int | None = None,
    ) -> "CardWindow":
        """``server_gpus``: how many cards the server was given, where that is known."""
        cards = cards_of(gpu)
        wanted = used_gpus(gpu, sources)
        measured = [cards[uuid] for uuid in wanted if uuid in cards]
        edges = _common_edges(measured, *asked_ns)
        start_ns, end_ns = edges or asked_ns
        return cls(
            asked_ns=asked_ns,
            start_ns=start_ns,
            end_ns=end_ns,
            aligned=edges is not None,
            wanted=wanted,
            cards=measured,
            others=[card for uuid, card in cards.items() if uuid not in wanted],
            per_gpu=[_card_energy(card, start_ns, end_ns) for card in measured],
            complete=len(measured) == len(wanted) and server_gpus in (None, len(wanted)),
            untold=untold_gpus(sources, server_gpus),
        )

    @property
    def certain(self) -> bool:
        """Whether the cards that were read are the server's."""
        return self.complete and self.untold is None

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def asked_s(self) -> float:
        return (self.asked_ns[1] - self.asked_ns[0]) / 1e9

    @property
    def counter_j(self) -> float | None:
        return sum_of_all(gpu.counter_j for gpu in self.per_gpu) if self.certain else None

    @property
    def integral_j(self) -> float | None:
        return sum_of_all(gpu.integral_j for gpu in self.per_gpu) if self.certain else None

    @property
    def counter_over_integral(self) -> float | None:
        return _ratio(self.counter_j, self.integral_j)

    @property
    def joules(self) -> Joules:
        return Joules([card.curve for card in self.cards])


def sum_of_all(parts: Iterable[float | None]) -> float | None:
    """Sum of numbers; None when there is none or one is missing."""
    values = list(parts)
    known = [value for value in values if value is not None]
    return float(sum(known)) if known and len(known) == len(values) else None


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def _common_edges(cards: list[Card], start_ns: int, end_ns: int) -> tuple[int, int] | None:
    """The interval between counter changes that every card covers; None when there is none."""
    pairs = [card.curve.aligned(start_ns, end_ns) for card in cards]
    known = [pair for pair in pairs if pair]
    if not known or len(known) < len(pairs):
        return None
    first, last = max(a for a, _ in known), min(b for _, b in known)
    return (first, last) if first < last else None


def _card_energy(card: Card, start_ns: int, end_ns: int) -> GpuEnergy:
    curve, inside = card.curve, card.inside(start_ns, end_ns)
    counter_j = curve.energy_j(start_ns, end_ns)
    integral = integrate_average(card.average, start_ns, end_ns)
    integral_j = integral.joules if integral and integral.whole else None
    return GpuEnergy(
        uuid=card.uuid,
        counter_j=counter_j,
        integral_j=integral_j,
        counter_over_integral=_ratio(counter_j, integral_j),
        edge_error_j=_edge_error_j(curve, counter_j, start_ns, end_ns),
        sm_clock_mhz=_median(inside["sm_clock_mhz"]),
        sw_power_cap_share=_share_of_bit(event_bits(inside), SW_POWER_CAP),
        longest_gap_s=integral.longest_gap_s if integral else None,
        gap_share=integral.gap_share if integral else None,
        power_drift=_power_drift(curve, start_ns, end_ns),
        temperature_c_per_min=_warming(inside),
    )


def _edge_error_j(
    curve: EnergyCurve, counter_j: float | None, start_ns: int, end_ns: int
) -> float | None:
    """Mean power for as long as the window's edges can be off."""
    if counter_j is None:
        return None
    return counter_j / ((end_ns - start_ns) / 1e9) * curve.edge_error_s(start_ns, end_ns)


def event_bits(rows: pd.DataFrame) -> pd.Series:
    """NVML's clocks-event bits of the rows that have them."""
    return pd.to_numeric(rows["throttle_reasons"]).dropna().astype("int64")


def _share_of_bit(bits: pd.Series, bit: int) -> float | None:
    return float(((bits & bit) > 0).mean()) if len(bits) else None


def _median(column: pd.Series) -> float | None:
    value = pd.to_numeric(column).median()
    return None if pd.isna(value) else float(value)


def _power_drift(curve: EnergyCurve, start_ns: int, end_ns: int) -> float | None:
    middle_ns = (start_ns + end_ns) // 2
    first_j, second_j = curve.energy_j(start_ns, middle_ns), curve.energy_j(middle_ns, end_ns)
    return second_j / first_j - 1 if first_j and second_j is not None else None


def _warming(rows: pd.DataFrame) -> float | None:
    """Slope of the temperature, °C a minute, by least squares; None with too few readings."""
    if "temp_c" not in rows:
        return None
    known = rows[pd.to_numeric(rows["temp_c"]).notna()]
    if len(known) < FEWEST_TEMPERATURES or known["mono_ns"].nunique() < 2:
        return None
    minutes = (known["mono_ns"] - known["mono_ns"].min()).to_numpy(dtype=float) / 60e9
    return float(np.polyfit(minutes, known["temp_c"].to_numpy(dtype=float), 1)[0])
