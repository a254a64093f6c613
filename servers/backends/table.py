"""The backend table for people and for machines."""

import json
import textwrap
from typing import Any, Final

from greenbench.contract.vllm_versions import NEWEST, OLDEST, warning
from servers.backends.host_facts import HostFacts
from servers.backends.others import others
from servers.backends.registry import Backend, Option

WIDTH: Final = 80  # columns of a plain terminal

Rows = list[tuple[Backend, list[str]]]


def as_json(rows: Rows) -> str:
    return json.dumps([_row(backend, reasons) for backend, reasons in rows], indent=1)


def _row(backend: Backend, reasons: list[str]) -> dict[str, Any]:
    return {
        "name": backend.name,
        "describe": backend.describe,
        "ours": backend.is_ours,
        "exact": backend.exact,
        "vllm_name": backend.vllm_name,
        "kv_dtypes": list(backend.kv_dtypes),
        "class_path": backend.class_path,
        "flash_attn_version": backend.flash_attn_version,
        "devices": list(backend.devices),
        "dtypes": list(backend.dtypes),
        "executions": list(backend.executions),
        "options": {
            name: {
                "default": option.default,
                "describe": option.describe,
                "values": list(option.values),
            }
            for name, option in backend.options.items()
        },
        "can_run": not reasons,
        "refusals": reasons,
    }


def as_table(rows: Rows, host: HostFacts) -> str:
    """Aligned text: name, whether it runs here, what it is; below each name its options or refusals."""
    width = max(len(backend.name) for backend, _ in rows)
    lines = [*_wrapped(_host(host), "host: ", "  "), *_wrapped(_spoken_for(host), "", ""), ""]
    for backend, reasons in rows:
        verdict = "no " if reasons else "yes"
        indent = " " * (width + 7)
        lines += _wrapped(backend.describe, f"{backend.name:<{width}}  {verdict}  ", indent)
        for reason in reasons:
            lines += _wrapped(reason, indent, indent)
        for name, option in backend.options.items():
            words = f"option {name}={_values(option)}: {option.describe}"
            lines += _wrapped(words, indent, f"{indent}  ")
    listed = others(host.release)
    lines += ["", f"vLLM {host.release.name} also lists, without a row here:"]
    width = max(len(other.name) for other in listed)
    for other in listed:
        words = f"{other.on(host.capability)}: {other.why}"
        lines += _wrapped(words, f"{other.name:<{width}}  ", " " * (width + 2))
    return "\n".join(lines)


def _wrapped(text: str, first: str, further: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False
    )


def _spoken_for(host: HostFacts) -> str:
    """For which vLLM the table holds."""
    table = f"this table is of vLLM {host.release.name}; {OLDEST.name} to {NEWEST.name} are tested"
    return warning(host.vllm_version) or table


def _values(option: Option) -> str:
    """The default; where there is a list to choose from, all of it."""
    return "|".join(option.values) or str(option.default)


def _host(host: HostFacts) -> str:
    card = "no NVIDIA GPU"
    if host.capability is not None:
        card = f"{host.gpu_name}, compute capability {host.capability[0]}.{host.capability[1]}"
    elif host.gpu_name is not None:
        card = f"{host.gpu_name}, compute capability not known"
    version = f"vLLM {host.vllm_version}" if host.vllm_version else "vLLM version not known"
    build = f"{host.vllm_build} build" if host.vllm_build else "no vLLM"
    return f"{card}; {version} ({build})"
