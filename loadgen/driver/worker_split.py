"""One run by several processes: which part each sends, and whether all of them finished.

A worker gets the path of the run directory and reads config and prompts there; the
prompt file's hash must be the planned one. Each worker writes its own files, so nothing is merged.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from greenbench.contract.clock import Anchor
from greenbench.contract.config import LivePoint
from greenbench.contract.run_dir import write_atomic
from loadgen.driver.session import Session

START_IN_S: Final = 1.0  # from the order to the first send: every worker is ready by then
START: Final = "greenbench_start"  # master → worker: a Part
DONE: Final = "greenbench_done"  # worker → master: its report


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker is told. ``start_unix_ns``: the run's common first moment."""

    run_path: str
    place: int
    count: int
    start_unix_ns: int

    def to_message(self) -> dict[str, Any]:
        return asdict(self)

    def open(self, live: LivePoint, breathe: Any) -> Session:
        """This worker's session, its phases set on the common start."""
        session = Session(
            Path(self.run_path), live, f"locust{self.place}", (self.place, self.count), breathe
        )
        session.phases.begin(Anchor.now().to_mono_ns(self.start_unix_ns))
        return session


def parts(run_path: Path, count: int) -> list[Part]:
    start = Anchor.now().unix_ns + round(START_IN_S * 1e9)
    return [Part(str(run_path.resolve()), place, count, start) for place in range(count)]


class WorkerReports:
    """The master's list: which workers have a part, which have reported, which are lost."""

    def __init__(self, run_path: Path, worker_ids: list[str]) -> None:
        self.run_path = run_path
        self.expected = worker_ids
        self.reports: dict[str, dict[str, Any]] = {}

    def report(self, worker_id: str, report: dict[str, Any]) -> None:
        if worker_id in self.expected:
            self.reports[worker_id] = report

    def over(self, alive: set[str]) -> bool:
        """Every worker has reported or is gone."""
        return all(worker in self.reports or worker not in alive for worker in self.expected)

    @property
    def lost(self) -> list[str]:
        return [worker for worker in self.expected if worker not in self.reports]

    def write(self) -> None:
        """client_audit/master.json: a lost worker's part of the load was not sent."""
        lost = self.lost
        reasons = (
            [f"{len(lost)} of {len(self.expected)} workers were lost in mid-run"] if lost else []
        )
        text = {
            "client": "master",
            "over_budget": bool(lost),
            "reasons": reasons,
            "lost_workers": lost,
            "workers": self.reports,
        }
        path = self.run_path / "client_audit" / "master.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(text, indent=1) + "\n")
