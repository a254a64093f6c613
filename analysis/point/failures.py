"""Requests of the measured phase that failed."""

from analysis.runs.run import Run


def errors(run: Run) -> dict[str, int]:
    """Failed requests of the measured phase by error type."""
    frame = run.requests
    measured = frame[(frame["phase"] == "measure") & frame["error_type"].notna()]
    return {str(kind): int(count) for kind, count in measured["error_type"].value_counts().items()}


NOT_FAILURES = frozenset({"cut_at_drain", "not_sent"})  # the load generator's own doing


def failures(run: Run) -> tuple[int, int]:
    """Requests of the measured phase that failed, and all of them; those that were cut or not sent are
    neither."""
    measured = run.requests[run.requests["phase"] == "measure"]
    kinds = measured["error_type"]
    counted = ~kinds.isin(NOT_FAILURES)
    return int((kinds.notna() & counted).sum()), int(counted.sum())
