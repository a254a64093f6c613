"""Where this project's own files lie, in a checkout as after ``pip install``, and where a person's go.

A checkout has ``configs/`` and ``models/`` beside the packages; a wheel carries both inside ``greenbench/``.
``configs/`` of the working folder comes before the shipped one. What is written goes below the working
folder, or into the cache.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path

NAME = "green-attention-bench"
_PACKAGE = Path(str(resources.files("greenbench"))).resolve()
PACKAGES = _PACKAGE.parent  # the folder that holds our packages
CHECKOUT = None if (_PACKAGE / "configs").is_dir() else PACKAGES  # None: installed from a wheel
ROOT = CHECKOUT or _PACKAGE  # holds configs/ and models/
CONFIGS = ROOT / "configs"
INSTALL_VLLM = (  # what a person without a vLLM is told
    "run `make setup` or set VLLM_PYTHON"
    if CHECKOUT
    else "install it into an environment of its own (`python3 -m venv .venv-vllm && "
    ".venv-vllm/bin/pip install vllm`, in the folder where you run greenbench) or set VLLM_PYTHON "
    "to a Python that has it"
)


def config_file(name: str) -> Path:
    """``configs/<name>`` of the working folder where it is, else the shipped one, which may be absent."""
    own = Path.cwd() / "configs" / name
    return own if own.is_file() else CONFIGS / name


def config_names(kind: str) -> list[str]:
    """Names of all YAML files of ``configs/<kind>``, a person's own and the shipped ones."""
    folders = (Path.cwd() / "configs" / kind, CONFIGS / kind)
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def results() -> Path:
    """Where runs go unless told: ``runs/`` of the working folder."""
    return Path.cwd() / "runs"


def cache(env: Mapping[str, str] = os.environ) -> Path:
    """Where built models lie: $GREENBENCH_CACHE, else the checkout's .cache, else the person's cache."""
    if given := env.get("GREENBENCH_CACHE"):
        return Path(given).resolve()
    if CHECKOUT:
        return CHECKOUT / ".cache"
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greenbench"


def bench_env(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a child in the bench's own Python: it finds these packages wherever it runs.

    After ``pip install`` that Python has them, and the path of all that is installed there must not be
    handed on: vLLM's Python would import the bench's libraries in place of its own.
    """
    if CHECKOUT is None:
        return dict(env)
    return {
        **env,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), env.get("PYTHONPATH")])),
    }


def plugin_folder() -> Path:
    """The working folder of a process in vLLM's Python: it holds our packages and nothing else to import.

    A checkout is one. Of an installed wheel it is a folder of links in the cache, made here, with the
    wheel's metadata: by its entry points vLLM finds our plugins, and nothing is installed beside vLLM.
    """
    if CHECKOUT:
        return CHECKOUT
    wheel = metadata.distribution(NAME)
    place = hashlib.sha256(str(PACKAGES).encode()).hexdigest()[:8]
    folder = cache() / "plugins" / f"{wheel.version}-{place}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in {file.parts[0] for file in wheel.files or () if file.parts[0] != ".."}:
        with suppress(FileExistsError):
            (folder / name).symlink_to(PACKAGES / name)
    return folder
