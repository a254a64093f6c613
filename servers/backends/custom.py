"""A person's own attention backend, kept outside this checkout: one YAML file, and the file of its class.

Wherever a backend is named, the path of such a file may stand: ``--backend ~/attn/mine.yaml``. It holds the
row that ``servers/backends/registry.py`` has for the others; its stem is the backend's name.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from greenbench.contract.config import StrictModel, load_yaml, parse
from greenbench.contract.errors import UserError
from greenbench.contract.vllm_versions import PLACEHOLDER
from servers.backends.host_facts import Device
from servers.backends.registry import (
    ANY_HEAD_SIZE,
    BACKENDS,
    BLOCK_SIZES,
    HALF,
    OURS,
    Backend,
    Option,
)

Dtype = Literal["bfloat16", "float16", "float32"]
Feature = Literal["mla", "alibi", "soft_cap", "sliding_window", "learned_sinks"]
Value = bool | int | float | str


class OwnOption(StrictModel):
    default: Value
    describe: str = ""
    minimum: int | None = None


class OwnBackend(StrictModel):
    """The keys of the YAML file; each means what the field of ``Backend`` with its name means.

    ``class_path`` is imported from the file's folder, or from what is installed beside vLLM.
    """

    class_path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    impls: list[str] = Field(min_length=1)
    describe: str
    devices: list[Device] = Field(min_length=1)
    dtypes: list[Dtype] = Field(default=list(HALF), min_length=1)
    head_sizes: list[int] | None = None  # None: any
    kv_dtypes: list[str] = Field(default=["auto"], min_length=1)
    features: list[Feature] = Field(default_factory=list[Feature])
    block_sizes: dict[Device, int] = Field(default_factory=dict[Device, int])
    executions: list[Literal["eager", "piecewise", "full"]] = Field(default=list(OURS))
    exact: bool = True  # False: it needs an option 'window', the tokens up to which it must agree
    options: dict[str, OwnOption] = Field(default_factory=dict[str, OwnOption])


def is_own(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def read_backend(name: str) -> Backend:
    """The row in the file ``name`` (relative: from the working folder). Any fault of it: UserError."""
    path = Path(name).expanduser()
    row = parse(OwnBackend, load_yaml(path), str(path))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", path.stem) or path.stem in BACKENDS:
        raise UserError(
            f"{path}: the file's name is the backend's; give one of small letters, digits and _ "
            f"that is not taken by {', '.join(BACKENDS)}"
        )
    window = row.options.get("window")
    if not row.exact and (window is None or type(window.default) is not int):
        raise UserError(
            f"{path}: 'exact: false' wants an option 'window', the number of tokens up to which "
            "its answers must still be the reference's"
        )
    return Backend(
        name=path.stem,
        vllm_name=PLACEHOLDER,
        describe=row.describe,
        devices=tuple(row.devices),
        impls=tuple(row.impls),
        class_path=row.class_path,
        class_folder=str(path.resolve().parent),
        dtypes=tuple(row.dtypes),
        head_sizes=row.head_sizes or ANY_HEAD_SIZE,
        kv_dtypes=tuple(row.kv_dtypes),
        features=frozenset(row.features),
        block_sizes={**BLOCK_SIZES, **row.block_sizes},
        executions=tuple(row.executions),
        exact=row.exact,
        options={
            key: Option(option.default, option.describe, option.minimum)
            for key, option in row.options.items()
        },
    )
