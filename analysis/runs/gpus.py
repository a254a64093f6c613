"""Which cards a server used."""

from typing import Any

import pandas as pd


def used_gpus(gpu: pd.DataFrame, sources: dict[str, Any]) -> list[str]:
    """UUIDs of the server's cards: those with its processes, else those that it can or may use.

    Where the recording does not say which cards there are, all with rows.
    """
    own, possible = own_gpus(sources), possible_gpus(sources)
    if own or possible is not None:
        return own or possible or []
    return sorted(str(uuid) for uuid in gpu["gpu_uuid"].unique())


def own_gpus(sources: dict[str, Any]) -> list[str]:
    """UUIDs of the cards that the server's processes were seen on."""
    return [card["uuid"] for card in gpu_facts(sources) if card.get("own_pids")]


def possible_gpus(sources: dict[str, Any]) -> list[str] | None:
    """UUIDs of the cards that the server was or may have been shown; None where no cards were recorded."""
    facts = gpu_facts(sources)
    shown = [card["uuid"] for card in facts if card.get("visible", True) is not False]
    return shown if facts else None


def untold_gpus(sources: dict[str, Any], cards: int | None) -> str | None:
    """Why it is not known which of the host's cards served, or why none did; None where it is known.

    ``cards``: how many the server has. Where it may use as many as it has, these are they.
    """
    own, possible = own_gpus(sources), possible_gpus(sources) or []
    if own:
        hidden = [uuid for uuid in own if uuid not in possible]
        # in a container, pids of the host may be those of other processes
        return (
            f"its processes seem to be on {hidden[0]}, which it was not shown" if hidden else None
        )
    maybe = any(card.get("visible", True) is None for card in gpu_facts(sources))
    if maybe and len(possible) == cards:
        return None
    facts = sources.get("facts")
    return facts.get("which_gpus") if isinstance(facts, dict) else None


def certain_gpus(gpu: pd.DataFrame, sources: dict[str, Any], cards: int) -> list[str] | None:
    """The server's cards where they are known: seen in use, or as many as its ``cards``; else None."""
    used = used_gpus(gpu, sources)
    known = own_gpus(sources) or len(used) == cards
    return used if known and untold_gpus(sources, cards) is None else None


def gpu_facts(sources: dict[str, Any]) -> list[dict[str, Any]]:
    """What the recorder found of each card."""
    facts = sources.get("facts")
    cards = facts.get("gpus", []) if isinstance(facts, dict) else []
    return [card for card in cards if isinstance(card, dict) and "uuid" in card]
