"""Figures of vLLM's log that each worker says of its own card, as one of the whole server."""

import re

GIB = 1024**3
# "1.0 (Worker_TP0 pid=11) INFO …", "(EngineCore_DP1 pid=9) …", "(VllmWorker rank=0 pid=7) …"
_WORKER = re.compile(r"^(?:[\d.]+ )?\(([^)]*pid=\d+[^)]*)\)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def cards(log: str) -> tuple[int, int]:
    """(cards, pipeline stages among them) by the engine's own description; 1 and 1 where it has none."""

    def size(kind: str) -> int:
        said = re.findall(rf"\b{kind}_parallel_size=(\d+)", log)
        return int(said[-1]) if said else 1

    stages = size("pipeline")
    return size("tensor") * stages * size("data"), stages


def total_bytes(log: str, pattern: str) -> int | None:
    """Sum over the workers of a figure in GiB, group 1 of ``pattern``; of each the last it said.

    Newer versions let only the first worker of a host speak. Cards of one stage hold equal shares, so it then
    speaks for the others; of several pipeline stages it cannot, and the sum is not known.
    """
    said: dict[str, float] = {}
    for line in log.splitlines():
        if "GiB" not in line and "GB" not in line:  # as all of the steps' lines, the most by far
            continue
        text = ANSI.sub("", line)
        found = re.search(pattern, text)
        if found:
            worker = _WORKER.match(text)
            said[worker[1] if worker else ""] = float(found[1])
    if not said:
        return None
    all_cards, stages = cards(log)
    if stages > 1 and len(said) < all_cards:
        return None
    silent = max(1.0, all_cards / len(said))
    return round(sum(said.values()) * silent * GIB)
