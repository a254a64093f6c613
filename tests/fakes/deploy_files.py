"""What stands in deploy/: services of Compose, pods of Kubernetes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from greenbench.contract.installation import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.yaml")):
        if path.name not in ("kustomization.yaml", "sweep.yaml", "policy.yaml"):
            yield from yaml.safe_load_all(path.read_text())


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Name and spec of every pod template."""
    return [
        (each["metadata"]["name"], each["spec"]["template"]["spec"])
        for each in documents(KUBERNETES)
        if "template" in each.get("spec", {})
    ]
