"""The demo's sweep decides what it asks."""

from greenbench.contract.config import CONFIGS, load_sweep
from greenbench.sweep.order import quality_warnings


def test_every_gate_of_the_demo_can_be_decided() -> None:
    """Guards against "undecided" at every length of the first report that a person sees."""
    assert quality_warnings(load_sweep(CONFIGS / "sweeps" / "demo.yaml"), ["perplexity"]) == []
