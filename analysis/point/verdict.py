"""Whether the report would use a run, without its figures: what the sweep asks as soon as a point ends."""

from analysis.point.point import choose_window
from analysis.runs.fault import Fault
from analysis.runs.run import Run
from analysis.runs.validity import faults


def verdict(run: Run) -> list[Fault]:
    """Every reason for which the report gives no figures of this run; empty when it is usable.

    The same rules as ``analysis.point.point.analyse``: validity first, then the steady window.
    """
    found = faults(run)
    if found:
        return found
    window = choose_window(run)
    if window is None:
        return [Fault("no_steady_state", "it has no measure phase")]
    return [Fault("no_steady_state", f"no steady state: {reason}") for reason in window.reasons]
