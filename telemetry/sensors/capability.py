"""Whether a source of readings exists here, and if not why. Rows of telemetry/sources.json."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Capability:
    ok: bool
    reason: str | None = None
    detail: dict[str, Any] = field(default_factory=dict[str, Any])

    def as_dict(self) -> dict[str, Any]:
        status = "available" if self.ok else "unavailable"
        return {"status": status, "reason": self.reason, **self.detail}


def available(**detail: Any) -> Capability:
    return Capability(True, None, detail)


def unavailable(reason: str, **detail: Any) -> Capability:
    return Capability(False, reason, detail)
