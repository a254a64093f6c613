"""The table: what follows from it for a device, and that no other code names a backend."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.backends.host_facts import Device, HostFacts
from servers.backends.registry import BACKENDS, common_dtype, default_backend, default_reference
from servers.backends.requirements import Case, refusals

ROOT = Path(__file__).resolve().parents[3]
HOSTS: dict[Device, HostFacts] = {
    "cpu": HostFacts(vllm_build="cpu"),
    "cuda": HostFacts(gpu_name="H100", capability=(9, 0), vllm_build="cuda"),
}


@pytest.mark.parametrize(
    ("device", "served", "reference", "dtype"),
    [
        ("cpu", "cpu_attn", "cpu_attn", "float32"),
        ("cuda", "flash_attn", "sdpa_gather", "bfloat16"),
    ],
)
def test_defaults_of_a_device_follow_from_the_rows(
    device: Device, served: str, reference: str, dtype: str
) -> None:
    """Guards against a default that its own device refuses."""
    assert default_backend(device).name == served
    assert default_reference(device).name == reference
    assert common_dtype(device) == dtype
    on_device = [row for row in BACKENDS.values() if device in row.devices]
    assert len(on_device) >= 4
    for row in on_device:
        said = refusals(Case(row, HOSTS[device], dtype=dtype))
        assert not [sentence for sentence in said if "computes in" in sentence], said
    for name in (served, reference):
        assert refusals(Case(BACKENDS[name], HOSTS[device], dtype=dtype)) == []


def literals(path: Path) -> Iterator[str]:
    """Every text of the code but docstrings."""
    tree = ast.parse(path.read_text())
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def test_no_other_code_names_a_backend() -> None:
    """Guards against a second list of backends, which a new row would not be in."""
    table = ROOT / "servers" / "backends" / "registry.py"
    named = re.compile(rf"(?<![\w.-])({'|'.join(BACKENDS)})(?![\w.-])")
    ours = [ROOT / "servers" / "plugins", ROOT / "servers" / "bench"]  # they are the backends
    seen = 0
    for package in ("greenbench", "servers", "telemetry", "loadgen", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            if path != table and not any(folder in path.parents for folder in ours):
                seen += 1
                found = [text for text in literals(path) if named.search(text)]
                assert not found, f"{path.relative_to(ROOT)} names a backend: {found}"
    assert seen > 100
    assert named.search("default cpu_attn, or sdpa") and not named.search("flash_attn_version")
