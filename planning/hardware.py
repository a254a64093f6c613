"""The kind of machine that a plan or a policy is for: what was measured on another says nothing of it."""

from collections.abc import Iterable
from pathlib import Path

from analysis.point.point import Point
from analysis.runs.identity import DeviceKind
from greenbench.contract.errors import UserError


def the_hardware(
    root: Path, points: Iterable[Point], hardware: str | None, what: str
) -> DeviceKind:
    """The only kind of machine of ``points``, or the one whose name holds ``hardware``.

    UserError where that is none or several; ``what``: what is for one kind, such as "a plan".
    """
    kinds = list(dict.fromkeys(point.identity.device.kind for point in points))
    named = [k for k in kinds if hardware is None or hardware.lower() in k.whole_words.lower()]
    words = "; ".join(kind.whole_words for kind in kinds)
    if not named:
        raise UserError(f"--hardware wants what was measured ({words}), found '{hardware}'")
    if len(named) > 1:
        raise UserError(
            f"{root}: runs of several kinds of machine ({words}); {what} is for one, choose it with a part "
            "of its name, as --hardware H100 or --hardware '16 cores'"
        )
    return named[0]
