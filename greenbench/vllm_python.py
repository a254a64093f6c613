"""Which Python has vLLM. The one place that resolves VLLM_PYTHON."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from greenbench.contract.config import ROOT

DEFAULT = ROOT / ".venv-vllm" / "bin" / "python"  # what `make setup` makes


def vllm_python(env: Mapping[str, str] = os.environ) -> Path:
    """$VLLM_PYTHON, a path or a command on PATH, unless it is unset or empty; else DEFAULT.

    Absolute, since children run in the checkout. Symlinks stay: a venv's python is one, and what it
    points at is another environment. Whether it is there is for the caller to say.
    """
    asked = env.get("VLLM_PYTHON", "").strip()
    if not asked:
        return DEFAULT
    path = Path(asked).expanduser()
    found = shutil.which(path, path=env.get("PATH"))
    return Path(found or path).absolute()
