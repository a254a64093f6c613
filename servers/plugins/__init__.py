"""The two entry points through which vLLM finds our attention backends. Nothing heavy is imported here.

The launcher names one backend class a server in the environment, and the name under which vLLM is asked for
it (``--attention-backend``): one of its own, or CUSTOM where vLLM knows no other. Without the class both
functions do nothing, so a stock server is left as it is.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping

from greenbench.contract.errors import UserError, nearest
from greenbench.contract.vllm_versions import PLACEHOLDER

CLASS_ENV = "GREENBENCH_ATTENTION_CLASS"  # dotted path of the backend class
NAME_ENV = "GREENBENCH_ATTENTION_NAME"  # what vLLM calls it
FOLDER_ENV = "GREENBENCH_ATTENTION_FOLDER"  # of a person's own class: where its file lies
OPTIONS_ENV = "GREENBENCH_ATTENTION_OPTIONS"  # JSON object

Option = int | float | str | bool


def register() -> None:
    """``vllm.general_plugins``: tell vLLM the class named in the environment by its name, or raise."""
    path = os.environ.get(CLASS_ENV)
    if not path:
        return
    _check_class(path, os.environ.get(FOLDER_ENV))
    read_options()
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if current_platform.is_cpu() and not type(current_platform).__module__.startswith("servers."):
        # vLLM's own CPU platform would log a line and serve CPU_ATTN under our name
        raise UserError(
            f"{CLASS_ENV} is set but the platform plugin greenbench_cpu is not active; "
            "add it to VLLM_PLUGINS and leave VLLM_TARGET_DEVICE unset"
        )
    _name_it(path)
    register_backend(getattr(AttentionBackendEnum, registered_name()), path)


def registered_name() -> str:
    """What vLLM calls the backend of this process."""
    return os.environ.get(NAME_ENV) or PLACEHOLDER


def _name_it(path: str) -> None:
    """Make the name one that vLLM knows, in this process, unless it does already."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if registered_name() not in AttentionBackendEnum.__members__:
        register_backend(registered_name(), path)


def _check_class(path: str, folder: str | None) -> None:
    """Raise unless the class's module is there; a person's own ``folder`` is searched last."""
    module = path.rpartition(".")[0]
    if folder is None:
        if not module.startswith("servers.plugins.") or not _is_there(module):
            raise UserError(
                f"{CLASS_ENV}={path!r} is no backend of this project; "
                "give the dotted path of a class in servers/plugins/"
            )
        return
    if folder not in sys.path:
        sys.path.append(folder)  # last: no file of it may stand in for an installed module
    if not _is_there(module):
        raise UserError(f"no module {module} in {folder}, nor installed beside vLLM; put it there")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def cpu_platform() -> str | None:
    """``vllm.platform_plugins``: our CPU platform when a backend of ours is asked for, else None.

    Also where the name is told first: a worker reads its config, which has the name in it, after vLLM has
    chosen a platform and before it loads general plugins.
    """
    path = os.environ.get(CLASS_ENV)
    if not path:
        return None
    from vllm.platforms import cpu_platform_plugin

    _name_it(path)
    return "servers.plugins.cpu.CustomCpuPlatform" if cpu_platform_plugin() else None


def read_options() -> dict[str, Option]:
    """The backend's options as the launcher passed them; anything but a flat JSON object raises."""
    text = os.environ.get(OPTIONS_ENV) or "{}"
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{OPTIONS_ENV}={text!r} is not JSON ({error.msg}); give an object"
        ) from error
    if not isinstance(options, dict) or not all(isinstance(v, Option) for v in options.values()):
        raise UserError(f"{OPTIONS_ENV}={text!r}: a JSON object of plain values is wanted")
    return options


def backend_options(backend: str, defaults: Mapping[str, Option]) -> dict[str, Option]:
    """``defaults`` overlaid with the options given; an unknown name or another type raises."""
    given = read_options()
    for name, value in given.items():
        if name not in defaults:
            raise UserError(f"{backend} has no option '{name}'; {nearest(name, defaults)}")
        if type(value) is not type(defaults[name]):
            wanted = type(defaults[name]).__name__
            raise UserError(f"{backend}: option '{name}' wants {wanted}, found {value!r}")
    return {**defaults, **given}
