"""How long a user waits after a failed request."""

from typing import Final

from greenbench.contract.schema import RequestRecord
from loadgen.wire.retry_after import retry_seconds

FAILURE_PAUSE_S: Final = 0.1  # a closed loop would otherwise hammer a failing server
RETRY_AFTER_MAX_S: Final = 5.0


def pause_after(record: RequestRecord) -> float:
    """Seconds a closed-loop user waits before its next request: 0 after a success."""
    if record.error_type is None:
        return 0.0
    seconds = retry_seconds(record.error_message or "")
    if seconds is None:
        return FAILURE_PAUSE_S
    return min(max(seconds, FAILURE_PAUSE_S), RETRY_AFTER_MAX_S)
