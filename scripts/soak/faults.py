"""What is broken on purpose, and when: a seeded schedule."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

QUIET_SHARE: Final = 0.1  # of the time, at each end: nothing is broken there
LONGEST_S: Final = 15.0  # of a fault that has a length
ROUND_S: Final = 1500.0  # so long a round of all faults takes; a shorter soak has one


class Kind(StrEnum):
    SERVER = "server killed"
    ENGINE = "engine killed"
    GATEWAY = "gateway killed"
    RECORDER = "recorder killed"
    CUT_CLIENT = "network cut before the gateway"
    CUT_SERVER = "network cut behind the gateway"
    DISK = "disk full"
    CLOCK = "clock stepped"
    STALL = "machine busy: the soak itself stood still"  # happens; nobody makes it


@dataclass(frozen=True, slots=True)
class Fault:
    """``at_s`` after the soak's start. ``for_s``: how long a cut or a full disk lasts; after a kill, until
    it is first looked whether all is back.
    """

    kind: Kind
    at_s: float
    for_s: float


def schedule(seed: int, length_s: float, kinds: Sequence[Kind]) -> list[Fault]:
    """Each kind once a round, in an order and at moments that the seed gives, evenly spread."""
    rng = random.Random(f"{seed}/faults")
    rounds = max(1, round(length_s / ROUND_S))
    order = [kind for _ in range(rounds) for kind in rng.sample(list(kinds), len(kinds))]
    if not order:
        return []
    slot_s = length_s * (1 - 2 * QUIET_SHARE) / len(order)
    first_s = length_s * QUIET_SHARE
    return [
        Fault(kind, first_s + slot_s * (index + rng.uniform(0, 0.2)), min(LONGEST_S, slot_s / 3))
        for index, kind in enumerate(order)
    ]
