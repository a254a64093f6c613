"""Which cards a server used."""

import pandas as pd

from greenbench.contract.forms import Sources


def used_gpus(gpu: pd.DataFrame, sources: Sources) -> list[str]:
    """UUIDs of the server's cards: those with its processes, else those that it can or may use.

    Where the recording does not say which cards there are, all with rows.
    """
    own, possible = sources.facts.own_cards, sources.facts.possible_cards
    if own or possible is not None:
        return own or possible or []
    return sorted(str(uuid) for uuid in gpu["gpu_uuid"].unique())


def untold_gpus(sources: Sources, cards: int | None) -> str | None:
    """Why it is not known which of the host's cards served, or why none did; None where it is known.

    ``cards``: how many the server has. Where it may use as many as it has, these are they.
    """
    own, possible = sources.facts.own_cards, sources.facts.possible_cards or []
    if own:
        hidden = [uuid for uuid in own if uuid not in possible]
        # in a container, pids of the host may be those of other processes
        return (
            f"its processes seem to be on {hidden[0]}, which it was not shown" if hidden else None
        )
    maybe = any(card.visible is None for card in sources.facts.gpus)
    if maybe and len(possible) == cards:
        return None
    return sources.facts.which_gpus


def certain_gpus(gpu: pd.DataFrame, sources: Sources, cards: int) -> list[str] | None:
    """The server's cards where they are known: seen in use, or as many as its ``cards``; else None."""
    used = used_gpus(gpu, sources)
    known = sources.facts.own_cards or len(used) == cards
    return used if known and untold_gpus(sources, cards) is None else None
