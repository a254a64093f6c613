"""Which cards a server used."""

from typing import Any

import pandas as pd


def used_gpus(gpu: pd.DataFrame, sources: dict[str, Any]) -> list[str]:
    """UUIDs of the server's cards: those with its processes, else the visible ones, else all with rows."""
    facts = sources.get("facts", {}).get("gpus", [])
    own = [card["uuid"] for card in facts if card.get("own_pids")]
    visible = [card["uuid"] for card in facts if card.get("visible", True)]
    return own or visible or sorted(str(uuid) for uuid in gpu["gpu_uuid"].unique())
