"""The page of a soak: soak.html, self-contained, and soak.json."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from analysis.report import document
from scripts.soak.accounts import MIB
from scripts.soak.judge import Log, Verdict
from scripts.soak.kept import Kept
from scripts.soak.rig import Rig, Wanted

WIDTH, LANE, CHART = 900, 26, 90  # SVG units
LANES: Final = ("faults", "open", "closed", "host samples", "server metrics")


def write(out: Path, wanted: Wanted, rig: Rig, log: Log, verdict: Verdict) -> None:
    data = content(wanted, rig, log, verdict)
    (out / "soak.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "soak.html").write_text(page(data))


def keep(rig: Rig, log: Log) -> None:
    """raw.json: what only this process knows, before it is judged."""
    known = {
        "log": asdict(log),
        "lives": {kept.name: [asdict(life) for life in kept.lives] for kept in rig.processes},
        "seen_before_gateway": rig.before.seen,
        "seen_behind_gateway": rig.behind.seen,
    }
    (rig.wanted.out / "raw.json").write_text(json.dumps(known) + "\n")


def content(wanted: Wanted, rig: Rig, log: Log, verdict: Verdict) -> dict[str, Any]:
    """All that the page says. Seconds count from the soak's start."""

    def since(at_s: float) -> float:
        return round(at_s - log.began_s, 1)

    return {
        "minutes": wanted.length_s / 60,
        "length_s": since(log.ended_s),
        "seed": wanted.seed,
        "server": "the tests' server" if wanted.fake else "vLLM",
        "holds": verdict.holds,
        "checks": [asdict(check) for check in verdict.checks],
        "faults": [
            {"kind": each.kind, "began_s": since(each.began_s), "mended_s": since(each.mended_s)}
            for each in log.broken
        ],
        "stalls": len(log.stalls),
        "skipped": rig.skipped,
        "holes": [
            asdict(hole) | {"from_s": since(hole.from_s), "to_s": since(hole.to_s)}
            for hole in verdict.holes
        ],
        "memory": [asdict(each) for each in verdict.growths],
        "rss_mib": {kept.name: _held(kept, log.began_s) for kept in rig.processes},
        "lives": {kept.name: len(kept.lives) for kept in rig.processes},
        "figures": verdict.figures,
    }


def _held(kept: Kept, began_s: float) -> list[list[tuple[float, float]]]:
    """A line a life."""
    return [
        [(round(at - began_s, 1), round(held / MIB, 2)) for at, held in life.rss]
        for life in kept.lives
        if life.rss
    ]


def page(data: dict[str, Any]) -> str:
    scale = WIDTH / max(data["length_s"], 1)
    template = document.environment(Path(__file__).parent).get_template("soak.html.j2")
    return template.render(
        data,
        **document.frame(None, document.TEXT),
        title=f"Soak of {data['minutes']:g} minutes",
        lanes=[{"name": lane, "bars": _bars(lane, data, scale)} for lane in LANES],
        charts=[
            {"name": name, "top": top, "lines": _lines(lives, scale, top)}
            for name in (each["process"] for each in data["memory"])
            for lives in [data["rss_mib"][name]]
            for top in [1.2 * max((held for life in lives for _, held in life), default=1.0)]
        ],
        ticks=[(round(scale * s), s // 60) for s in _ticks(data["length_s"])],
        size={"width": WIDTH, "lane": LANE, "chart": CHART},
    )


def _ticks(length_s: float) -> range:
    step = next((s for s in (60, 120, 300, 600) if length_s / s <= 12), 1800)
    return range(0, int(length_s) + 1, step)


def _bars(lane: str, data: dict[str, Any], scale: float) -> list[dict[str, Any]]:
    if lane == "faults":
        rows = [(each["began_s"], each["mended_s"], each["kind"]) for each in data["faults"]]
    else:
        rows = [
            (hole["from_s"], hole["to_s"], f"{hole['what']}; {hole['cause'] or 'unexplained'}")
            for hole in data["holes"]
            if hole["lane"] == lane
        ]
    return [
        {"x": round(scale * a, 1), "width": round(max(scale * (b - a), 2), 1), "words": words}
        for a, b, words in rows
    ]


def _lines(lives: list[list[tuple[float, float]]], scale: float, top: float) -> list[list[str]]:
    """A point a text: of a long text a page shows the ends alone."""
    return [
        [f"{scale * at:.1f},{CHART * (1 - held / top):.1f}" for at, held in life] for life in lives
    ]
