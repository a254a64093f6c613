"""What ``python -m servers plan`` answers for each server that it is asked about."""

from greenbench.contract.config import StrictModel
from greenbench.contract.cpu import ServedDtype


class LaunchPlan(StrictModel):
    """How one server would be started. ``refusals``: why it cannot run here, a sentence each."""

    label: str  # of the backend
    argv: list[str]
    env: dict[str, str]  # what the launcher sets
    model_path: str
    dtype: ServedDtype
    refusals: list[str]
    max_model_len: int | None = None  # None: left to vLLM, the model's window is not known
    unknown: str | None = None  # why nothing is known of the model's shape
