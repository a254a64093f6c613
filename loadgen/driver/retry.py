"""How long a user waits after a failed request."""

from typing import Final

from greenbench.contract.schema import RequestRecord

FAILURE_PAUSE_S: Final = 0.1  # a closed loop would otherwise hammer a failing server
RETRY_AFTER_MAX_S: Final = 5.0


def pause_after(record: RequestRecord) -> float:
    """Seconds a closed-loop user waits before its next request: 0 after a success."""
    if record.error_type is None:
        return 0.0
    _, hint, rest = (record.error_message or "").partition("retry-after: ")
    seconds = rest.partition(";")[0]
    if hint and seconds.isdigit():
        return min(float(seconds), RETRY_AFTER_MAX_S)
    return FAILURE_PAUSE_S
