"""Checks what `python -m telemetry selftest` recorded, and the joules of a served model."""
