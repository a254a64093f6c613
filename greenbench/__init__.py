"""The contract between the stages: what a run directory holds and how it is written and read.

Imports none of its siblings (servers, telemetry, loadgen, analysis). Measures and analyses nothing.
"""

__version__ = "0.1.0"
SCHEMA_VERSION = "1.3"  # major.minor; what a newer minor one adds is passed over
