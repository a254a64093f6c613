"""What the cards' spec sheets say, and what such a card was measured to do."""

from analysis.bottleneck.peaks import Ceiling, gpu_ceilings
from scripts.world.published import Card

NAMES: dict[Card, str] = {"H200": "H200", "H100": "H100 80GB HBM3"}  # as configs/gpus.yaml has them


def spec(card: Card) -> Ceiling:
    return next(each for each in gpu_ceilings(NAMES[card]) if each.kind == "spec")


def sustained(card: Card) -> Ceiling:
    return next(each for each in gpu_ceilings(NAMES[card]) if each.kind == "measured")
