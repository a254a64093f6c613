"""telemetry/sources.json by its keys."""

from analysis.runs.run import Run
from greenbench.contract.forms import Sources


def recorded_sources(run: Run) -> Sources:
    """Which readings exist, and why not; of a run without telemetry it says nothing of any."""
    return Sources.model_validate(run.sources)
