"""Whether the report would use a run, without its figures: what the sweep asks as soon as a point ends."""

from analysis.point.point import choose_window, window_faults
from analysis.runs.boundary import of_one_run
from analysis.runs.fault import Fault
from analysis.runs.run import Run
from analysis.runs.validity import faults


def verdict(run: Run) -> list[Fault]:
    """Every reason for which the report gives no figures of this run; empty when it is usable.

    The same rules as ``analysis.point.point.analyse``: validity first, then the steady window.
    """
    return faults(run) or of_one_run(
        run.path,
        lambda: window_faults(choose_window(run)),
        lambda why: [Fault("unreadable", why)],
    )
