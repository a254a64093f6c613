"""Monitors and rules of the Prometheus operator on standard input, against the operator's own schema.

Runs in .venv-deploy (scripts/validate_deploy.sh): kubernetes-validate knows no custom resources.
"""

import sys

import yaml
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

MODELS = {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}


def main() -> int:
    seen = 0
    for document in yaml.safe_load_all(sys.stdin):
        if model := MODELS.get(document["kind"]):
            model.model_validate(document, extra="forbid")
            print(f"{document['kind']}/{document['metadata']['name']} is valid")
            seen += 1
    return 0 if seen else 1


if __name__ == "__main__":
    raise SystemExit(main())
