"""What the person's own vLLM flags (``server_args``, ``extra_args``) say of model and server.

They stand after ours in the command line, so that vLLM takes them where both name one thing.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from greenbench.contract.errors import UserError

SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size"}
UNBOUNDED = ("-1", "auto")  # vLLM: as much as fits
# vLLM's way to write numbers: 25.6k is 25,600 and 25K is 25 · 1024 = 25,600
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

# What has a place of its own: said twice, the run would store the one and serve the other.
PLACES = {
    "--attention-backend": "`backends`",
    "--attention-config.backend": "`backends`",
    "--model": "`models`",
    "--served-model-name": "the model's `name`",
    "--dtype": "`server.dtype`",
    "--seed": "`server.seed`",
    "--port": "`server.port`",
    "--block-size": "`server.block_size`",
    "--max-num-seqs": "`server.max_num_seqs`",
    "--max-num-batched-tokens": "`server.max_num_batched_tokens`",
    "--enforce-eager": "`server.execution`",
    "--enable-prefix-caching": "`server.prefix_caching`",
    "--num-gpu-blocks-override": "`server.num_gpu_blocks`",
    "--kv-cache-memory-bytes": "`server.kv_cache_gib`",
    "--gpu-memory-utilization": "`server.gpu_memory_utilization`",
    "--enable-logging-iteration-details": "`server.iteration_log`",
}
# With these the bench does not reach the server that it started, at http://127.0.0.1 and without a key.
SHUT_OUT = frozenset((
    "--api-key", "--host", "--uds", "--fd", "--headless", "--grpc", "--ssl-keyfile", "--ssl-certfile",
    "--ssl-ca-certs", "--ssl-cert-reqs",
))  # fmt: skip
KEY_ENV = "VLLM_API_KEY"


@dataclass(frozen=True, slots=True)
class OwnFlags:
    """None and empty: not said."""

    max_model_len: int | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel: int | None = None
    trust_remote_code: bool = False
    config_format: str | None = None
    revision: str | None = None
    hf_overrides: dict[str, Any] = field(default_factory=dict[str, Any])


def own_flags(args: Sequence[str]) -> OwnFlags:
    """Read them as vLLM does: the last of a name counts. A value that it could not read: UserError."""
    last: dict[str, str | None] = {}
    overrides: dict[str, Any] = {}
    for name, value in pairs(args):
        if name == "--hf-overrides":
            overrides = {**overrides, **_mapping(name, value)}
        elif name.startswith("--hf-overrides."):
            _put(overrides, name.split(".")[1:], _json_or_text(value))
        else:
            last[name] = value
    return OwnFlags(
        max_model_len=_tokens("--max-model-len", last.get("--max-model-len")),
        kv_cache_dtype=last.get("--kv-cache-dtype"),
        tensor_parallel=_tokens("--tensor-parallel-size", last.get("--tensor-parallel-size")),
        trust_remote_code="--trust-remote-code" in last,
        config_format=last.get("--config-format"),
        revision=last.get("--revision"),
        hf_overrides=overrides,
    )


def refused(extra_args: Sequence[str], server_args: Sequence[str] = ()) -> list[str]:
    """Why flags of the person's own cannot be passed on, a sentence each.

    A model's ``server_args`` may say what it needs in another place's stead, such as no prefix caching.
    """
    extra = [name.replace("--no-", "--", 1) for name, _ in pairs(extra_args)]
    every = [*extra, *(name for name, _ in pairs(server_args))]
    placed = [f"{name} has a place of its own: {PLACES[name]}" for name in extra if name in PLACES]
    return list(dict.fromkeys([*placed, *(shut_out(name) for name in every if name in SHUT_OUT)]))


def shut_out(what: str) -> str:
    return (
        f"{what} would shut the bench out of the server that it starts; start such a server yourself, and "
        "give its address as base_url"
    )


def pairs(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(flag, its value or None) in order; ``--a=b``, ``--a b``, ``--a_b`` for ``--a-b``, short names."""
    for index, word in enumerate(args):
        if not word.startswith("-") or _NUMBER.fullmatch(word[1:]):
            continue
        name, assigned, value = word.partition("=")
        head, dot, rest = name.partition(".")
        name = SHORT.get(head, head.replace("_", "-")) + dot + rest
        if assigned:
            yield name, value
            continue
        following = args[index + 1] if index + 1 < len(args) else None
        is_value = following is not None and (
            not following.startswith("-") or following in UNBOUNDED
        )
        yield name, following if is_value else None


def _mapping(name: str, value: str | None) -> dict[str, Any]:
    try:
        found = json.loads(value or "")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name} wants a JSON mapping, found {(value or '')[:80]!r} ({error}); "
            f"write {name} '{{\"max_position_embeddings\": 16384}}'"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{name} wants a JSON mapping, found {(value or '')[:80]!r}")
    return found


def _json_or_text(value: str | None) -> Any:
    try:
        return json.loads(value or "null")
    except (ValueError, RecursionError):
        return value


def _put(target: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = target[key] = {}
        target = inner
    target[path[-1]] = value


def _tokens(name: str, value: str | None) -> int | None:
    if value is None or value in UNBOUNDED:
        return None
    if match := _NUMBER.fullmatch(value):
        number, suffix = match.groups()
        base = 1024 if suffix.isupper() else 1000
        amount = float(number) * base ** _POWERS[suffix.lower()]
        if amount == int(amount) > 0:
            return int(amount)
    raise UserError(f"{name} wants a whole number such as 8192 or 32k, found {value!r}")
