"""Whether a point counts: faults of its rows, of the client and of the server."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract import run_dir
from greenbench.contract.explain import parse
from greenbench.contract.manifest import ClientAudit, Counts, Status
from greenbench.contract.run_dir import RunDir

SHOWN_KINDS = 3
SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True)
class Faults:
    """What went wrong: ``failure`` (one sentence) fails the point, ``reasons`` make it invalid."""

    failure: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        if self.failure:
            return "failed"
        return "invalid" if self.reasons else "complete"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(run_dir.read_jsonl(path))


def count(rows: list[dict[str, Any]]) -> Counts:
    ok = sum(row.get("error_type") is None for row in rows)
    return Counts(
        scheduled=sum(row.get("scheduled_unix_ns") is not None for row in rows),
        sent=sum(row.get("sent_unix_ns") is not None for row in rows),
        ok=ok,
        failed=len(rows) - ok,
        rows=len(rows),
    )


def judge(
    rows: list[dict[str, Any]],
    audits: dict[str, ClientAudit],
    phases: dict[str, tuple[int, int]],
    faults: Faults,
) -> Faults:
    """Add to ``faults`` what the rows, the marks and the client's own audit say against the point."""
    if faults.failure:
        return faults
    measured = [row for row in rows if row.get("phase") == "measure"]
    if not any(row.get("error_type") is None for row in measured):
        sentence = f"no request of the measured phase succeeded ({what_failed(measured)})"
        return Faults(sentence, (*faults.reasons, "no_good_requests"))
    if "measure" not in phases:
        sentence = "the load generator ended before the measured phase was over"
        return Faults(sentence, (*faults.reasons, "load_failed"))
    reasons = list(faults.reasons)
    if any(row.get("error_type") == "length_mismatch" for row in measured):
        reasons.append("prompt_length_mismatch")
    reasons += sorted({reason for audit in audits.values() for reason in audit.invalid})
    return Faults(None, tuple(reasons))


def what_failed(measured: list[dict[str, Any]]) -> str:
    """How requests failed, and the server's own words of the most frequent kind."""
    if not measured:
        return "none was sent"
    kinds = Counter(str(row.get("error_type")) for row in measured).most_common(SHOWN_KINDS)
    first = kinds[0][0]
    words = Counter(
        str(row["error_message"])
        for row in measured
        if row.get("error_type") == first and row.get("error_message")
    ).most_common(1)
    said = f"; the first of them: {words[0][0][:SHOWN_CHARS]}" if words and len(kinds) > 1 else ""
    if words and len(kinds) == 1:
        said = f": {words[0][0][:SHOWN_CHARS]}"
    return ", ".join(f"{n} × {kind}" for kind, n in kinds) + said


def client_audit(run: RunDir) -> dict[str, Any]:
    """Each client process's self-check, by client id (client_audit/<client>.json)."""
    audits: dict[str, Any] = {}
    for path in sorted((run.path / "client_audit").glob("*.json")):
        report = run_dir.read_json(path)
        audit = parse(ClientAudit, report, str(path))
        invalid = ["client_bound"] if audit.over_budget else []
        invalid += ["clock_stepped"] if audit.clock_stepped else []
        audits[path.stem] = {**report, "invalid": invalid}
    return audits
