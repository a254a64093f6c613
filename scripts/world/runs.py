"""What this project measured: each card's layers.json and runs of ``flash_attn3`` that are archived."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.bottleneck.classify import gather
from analysis.bottleneck.peaks import run_ceilings
from analysis.bottleneck.roofline import phase_uses
from analysis.point.point import Point, analyse_all
from analysis.runs.run import Run, load_run
from greenbench.contract.run_dir import read_json
from scripts.results import RESULTS
from scripts.results_rows import USUAL, USUAL_VLLM, Row
from scripts.world.published import Card

LAYERS: dict[Card, Path] = {
    "H200": RESULTS / "layers.json",
    "H100": RESULTS.parent / "h100" / "layers.json",
}
DECODE_ALONE = "llama-3.2-1b-decode/kv-full-1"


@dataclass(frozen=True)
class Ours:
    """``layers``: by card, of its file. ``runs``: by piece."""

    layers: dict[Card, dict[str, Any]]
    runs: dict[str, tuple[Row, ...]]


def read_ours(pieces: Iterable[str]) -> Ours:
    return Ours(
        {card: read_json(path) for card, path in LAYERS.items()},
        {piece: rows_of(piece) for piece in pieces},
    )


def rows_of(piece: str) -> tuple[Row, ...]:
    """First copies of ``flash_attn3`` with a plain cache, by context and users."""
    manifests = sorted((RESULTS / piece).glob(f"*-{USUAL}-*/manifest.json"))
    runs = [load_run(path.parent) for path in manifests if usual(path)]
    found = [
        row
        for run, point in zip(runs, analyse_all(runs), strict=True)
        if (row := row_of(run, point))
    ]
    return tuple(sorted(found, key=lambda row: (row.point.context_tokens, row.users, row.link)))


def usual(manifest: Path) -> bool:
    body = read_json(manifest)
    server = body["server"]
    plain = (server["kv_cache_dtype"], server["vllm_version"]) == ("auto", USUAL_VLLM)
    return plain and load_run(manifest.parent).identity.replicate.arm == 0


def row_of(run: Run, point: Point) -> Row | None:
    """A run as the H200 page has it; None where it is not usable."""
    if point.window is None or not point.usable:
        return None
    uses = phase_uses(run, point.window, run_ceilings(run, None))
    return Row(
        piece=run.path.parent.relative_to(RESULTS).as_posix(),
        link=run.path.relative_to(RESULTS).as_posix(),
        point=point,
        run=run,
        uses={use.phase: use for use in uses},
        bounds={},
        kernel_share=gather(run, point.window, point).kernel_share,
    )
