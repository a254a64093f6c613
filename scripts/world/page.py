"""The tables of world.md, each out of what is published and what was measured."""

import re
from collections.abc import Callable

from greenbench.contract.errors import UserError
from scripts.results import PLACE, RESULTS
from scripts.world.energy import energy_table, our_energies, pair_table, their_energies
from scripts.world.kernels import kernel_section, kernels
from scripts.world.published import Card, World
from scripts.world.runs import DECODE_ALONE, Ours
from scripts.world.steps import matrix_rates, step_section, steps

PAGE = RESULTS / "world.md"


def filled(text: str, world: World, ours: Ours) -> str:
    """The page with its tables as the files have them. UserError for a table that is none of TABLES."""

    def one(place: re.Match[str]) -> str:
        if place["name"] not in TABLES:
            raise UserError(
                f"{PAGE.name}: no table '{place['name']}'; there are {', '.join(TABLES)}"
            )
        return f"{place[1]}{TABLES[place['name']](world, ours)}{place[3]}"

    return PLACE.sub(one, text)


def attention(card: Card) -> Callable[[World, Ours], str]:
    return lambda world, ours: kernel_section(kernels(world, card, ours.layers[card]))


def decode(world: World, ours: Ours) -> str:
    return step_section(steps(world, ours.runs, "decode"), "decode")


def prefill(world: World, ours: Ours) -> str:
    found = steps(world, ours.runs, "prefill")
    return step_section(found, "prefill") + matrix_rates(found)


def energy(world: World, ours: Ours) -> str:
    return energy_table(our_energies(ours.runs[DECODE_ALONE]), their_energies(world.ml_energy))


def pairs(world: World, ours: Ours) -> str:
    return pair_table(our_energies(ours.runs[DECODE_ALONE]), their_energies(world.ml_energy))


def sources(world: World, _: Ours) -> str:
    told = {
        "AIConfigurator": world.aiconfigurator.source,
        "ML.ENERGY": world.ml_energy.source,
    }
    return "".join(
        f"* **{name}**: [{each.repository.removeprefix('https://github.com/')}]({each.repository}), "
        f"commit `{each.commit[:12]}`; licence {each.licence}.\n"
        for name, each in told.items()
    )


TABLES: dict[str, Callable[[World, Ours], str]] = {
    "kernels-h200": attention("H200"),
    "kernels-h100": attention("H100"),
    "steps-decode": decode,
    "steps-prefill": prefill,
    "energy": energy,
    "pairs": pairs,
    "sources": sources,
}
