"""What a manifest says of the machine, with an nvidia-smi that plays a host."""

from pathlib import Path

import pytest

from greenbench.doctor import examine
from greenbench.sweep import provenance


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file whose text nvidia-smi prints; it ends with 15, as it does with a card lost."""
    said = tmp_path / "said"
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {said}\nexit 15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return said


def test_what_a_card_does_not_say_is_null_and_the_rest_stands(smi: Path) -> None:
    smi.write_text("0, GPU-1, NVIDIA GB10, [N/A], [N/A], 12.1, [N/A], 580.126.09\n")
    host = provenance.host()
    [card] = host.gpus
    assert (card.memory_bytes, card.power_limit_w, card.mig) == (None, None, None)
    assert (card.name, card.compute_capability, host.driver) == (
        "NVIDIA GB10",
        "12.1",
        "580.126.09",
    )


def test_the_doctor_names_the_card_that_cannot_be_read(smi: Path, tmp_path: Path) -> None:
    lost = "Unable to determine the device handle for GPU1: 0000:3B:00.0: GPU is lost."
    smi.write_text(f"0, GPU-1, NVIDIA H200, 143771, 700.00, 9.0, Disabled, 580.1\n{lost}\n")
    lines = [finding.line() for finding in examine(tmp_path / "none")]
    assert any(line.startswith("ok") and "0: NVIDIA H200, compute 9.0" in line for line in lines)
    assert any(line.startswith("missing") and lost in line for line in lines)
