"""The vLLM releases that this project is tested with, and the two seams where the launcher tells them apart.

Everything else that we use of vLLM is the same in all of them: ``tests/vllm/data`` has its names and
parameters from each release's sources, and ``tests/vllm/test_vllm_interfaces.py`` holds our code to them.
"""

import re
from dataclasses import dataclass

PLACEHOLDER = "CUSTOM"  # vLLM's one name for a backend that is not its own
_LAUNCHER = "vllm.entrypoints.launchers.api_server.entry"
_OLD_LAUNCHER = "vllm.entrypoints.openai.api_server"  # deprecated where _LAUNCHER exists
Series = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Release:
    """``torch``: the version that vLLM pins."""

    series: Series
    torch: str
    entry_point: str = _LAUNCHER  # a module: the CPU build's package lacks the command `vllm`
    names_backends: bool = (
        True  # register_backend() takes a new name, so that PLACEHOLDER need not be shared
    )

    @property
    def name(self) -> str:
        return f"{self.series[0]}.{self.series[1]}"

    def backend_name(self, ours: str) -> str:
        """What ``--attention-backend`` calls a backend of ours, or a person's own."""
        return f"GREENBENCH_{ours.upper()}" if self.names_backends else PLACEHOLDER


SUPPORTED = (
    Release((0, 31), torch="2.13", names_backends=False),
    Release((0, 32), torch="2.13"),
    Release((0, 33), torch="2.14"),
)
OLDEST, NEWEST = SUPPORTED[0], SUPPORTED[-1]
_OLDER = Release((0, 0), torch="", entry_point=_OLD_LAUNCHER, names_backends=False)


def series_of(version: str | None) -> Series | None:
    """None where the version is not said or is no number (a build from sources may be called 'dev')."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else None


def release_of(version: str | None) -> Release:
    """How to treat that vLLM; one that is newer than all of the table, or unknown, as the newest."""
    series = series_of(version)
    if series is None or series > NEWEST.series:
        return NEWEST
    return next((each for each in SUPPORTED if each.series == series), _OLDER)


def warning(version: str | None) -> str | None:
    """One sentence about a vLLM that is not in the table; it is served all the same."""
    if version is None or series_of(version) in [each.series for each in SUPPORTED]:
        return None
    tested = f"this project is tested with vLLM {OLDEST.name} to {NEWEST.name}"
    treated = release_of(version)
    how = f"treated as {treated.name}" if treated is NEWEST else f"older than {OLDEST.name}"
    return f"vLLM {version} is {how}: {tested}"
