"""The tools that read deploy/ accept it: hadolint, Compose, kubectl and schemas, shellcheck, Grafana."""

import shutil
import subprocess

import pytest

from greenbench.contract.installation import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (ROOT / ".venv-deploy" / ".installed").is_file(),
        reason="no validators; install them with: scripts/validate_deploy.sh install",
    ),
]
NEEDS = {"prometheus": "promtool", "dashboards": "npm"}


@pytest.mark.parametrize(
    "check", ["dockerfile", "compose", "kubernetes", "shell", "prometheus", "dashboards"]
)
def test_it_is_accepted(check: str) -> None:
    program = NEEDS.get(check)
    if program and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [ROOT / "scripts" / "validate_deploy.sh", check],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["ok", check]
