"""What a model is, asked of vLLM's own Python once and kept.

``servers.models.resolver`` runs there as a subprocess: importing vLLM takes it seconds, so all models that
are asked for go in one, and each answer is kept in ``<cache>/shapes/`` under a hash of all that decides
it: the config, the flags that change it, the versions of vLLM and transformers, the resolver's own text.
What could not be resolved is asked again next time.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from greenbench.contract import hub
from greenbench.contract.config import ModelConfig
from greenbench.contract.installation import plugin_folder
from greenbench.contract.model_folder import CONFIG, has_config, read_config
from greenbench.contract.model_shape import ModelShape
from greenbench.contract.run_dir import write_atomic
from servers.backends.host_facts import HostFacts, ModelFacts
from servers.backends.own_flags import OwnFlags, own_flags
from servers.models.resolver_protocol import MARK

RESOLVER = Path(__file__).with_name("resolver.py")
TIME_LIMIT_S = 180.0
# plugins and the network would make the answer another one, or late
PINNED_ENV = {
    "VLLM_PLUGINS": "none",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where models are resolved, and where answers are kept."""

    host: HostFacts
    vllm_python: str
    cache: Path
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Wish:
    """A model and the person's own flags of the server that is to run it."""

    model: ModelConfig
    args: tuple[str, ...] = ()

    @property
    def flags(self) -> OwnFlags:
        return own_flags([*self.model.server_args, *self.args])


def model_shapes(wishes: Sequence[Wish], place: Place) -> list[ModelShape]:
    """The shape of each, from the cache or of one subprocess for all that are not there.

    One that cannot be resolved says why. A config.json that is broken, or a flag: UserError.
    """
    orders = [_order(wish) for wish in wishes]
    keys = [_key(order, place) for order in orders]
    found = {key: shape for key in dict.fromkeys(keys) if (shape := _kept(place.cache, key))}
    asked = {
        key: order
        for key, order in zip(keys, orders, strict=True)
        if key not in found and order.get("unknown") is None
    }
    for key, shape in zip(asked, _resolve(list(asked.values()), place), strict=True):
        found[key] = shape
        if shape.unknown is None:
            _keep(place.cache, key, shape)
    return [
        found.get(key) or ModelShape.not_known(str(order["unknown"]))
        for key, order in zip(keys, orders, strict=True)
    ]


def facts_of(name: str, shape: ModelShape) -> ModelFacts:
    """What a backend must be able to serve; an unknown fact refuses nothing."""
    config = shape.config
    layers = config.get("layer_types")
    sliding = config.get("sliding_window") or None
    if layers is not None and "sliding_attention" not in layers:
        sliding = None
    has = {
        "mla": bool(shape.mla),
        "alibi": _has_alibi(config),
        "soft_cap": bool(config.get("attn_logit_softcapping")),
        "sliding_window": sliding is not None,
        "learned_sinks": config.get("model_type") == "gpt_oss",
    }
    return ModelFacts(
        name=name,
        head_size=shape.head_size,
        window_tokens=shape.window_tokens,
        sliding_window=sliding,
        vocab_size=shape.vocab_size,
        features=frozenset(feature for feature, there in has.items() if there),
        unknown=shape.unknown,
    )


def _has_alibi(config: Mapping[str, Any]) -> bool:
    """As ``ModelConfig.uses_alibi`` of vLLM."""
    attention = config.get("attn_config")
    return (
        bool(config.get("alibi"))
        or config.get("model_type") == "bloom"
        or "alibi" in (config.get("position_encoding_type"), config.get("position_embedding_type"))
        or (isinstance(attention, dict) and bool(attention.get("alibi")))
    )


def _order(wish: Wish) -> dict[str, Any]:
    """What the resolver is told, with the config for the key; or why it need not be asked."""
    model, flags = wish.model, wish.flags
    given = {
        "overrides": flags.hf_overrides,
        "trust_remote_code": flags.trust_remote_code,
        "config_format": flags.config_format,
    }
    if model.build is not None:
        return {**given, "config": {**model.build.config, "vocab_size": model.build.vocab_size}}
    path = model.path or ""
    folder = Path(path)
    if not has_config(folder):
        folder = hub.config_folder(path) if hub.is_id(path) else None
    if folder is None:
        return {"unknown": f"the {CONFIG} of {path} is not on this machine"}
    return {**given, "folder": str(folder), "config_text": read_config(folder / CONFIG)}


def _key(order: Mapping[str, Any], place: Place) -> str:
    host = place.host
    whole = {
        "order": {key: value for key, value in order.items() if key != "folder"},
        # code of the model's own lies beside its config
        "folder": order.get("folder") if order.get("trust_remote_code") else None,
        "versions": [place.vllm_python, host.vllm_version, host.transformers_version],
        "resolver": hashlib.sha256(RESOLVER.read_bytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:24]


def _resolve(orders: list[dict[str, Any]], place: Place) -> list[ModelShape]:
    if not orders:
        return []
    if place.host.vllm_build is None:
        why = f"no vLLM is installed in {place.vllm_python}, whose code would say it"
        return [ModelShape.not_known(why)] * len(orders)
    body = json.dumps([{k: v for k, v in o.items() if k != "config_text"} for o in orders])
    try:
        done = subprocess.run(
            [place.vllm_python, "-m", "servers.models.resolver"],
            input=body, text=True, capture_output=True, cwd=plugin_folder(), check=False,
            env={**place.env, **PINNED_ENV}, timeout=TIME_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        why = f"{place.vllm_python} took longer than {TIME_LIMIT_S:.0f} s to read its config"
        return [ModelShape.not_known(why)] * len(orders)
    except OSError as error:
        why = f"{place.vllm_python} cannot be run ({error.strerror})"
        return [ModelShape.not_known(why)] * len(orders)
    answers = _answers(done.stdout, len(orders))
    if answers is None:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        why = f"{place.vllm_python} did not resolve its config: {said[-1].strip()[:200]}"
        return [ModelShape.not_known(why)] * len(orders)
    return answers


def _answers(stdout: str, count: int) -> list[ModelShape] | None:
    lines = [line for line in stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        return None
    try:
        found = json.loads(lines[-1].removeprefix(MARK))
        shapes = [ModelShape.model_validate(each.get("shape") or each) for each in found]
    except (ValueError, AttributeError):  # ValidationError is a ValueError
        return None
    return shapes if len(shapes) == count else None


def _kept(cache: Path, key: str) -> ModelShape | None:
    try:
        return ModelShape.model_validate_json((cache / "shapes" / f"{key}.json").read_text())
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _keep(cache: Path, key: str, shape: ModelShape) -> None:
    with suppress(OSError):  # a cache that cannot be written costs seconds next time, no more
        (cache / "shapes").mkdir(parents=True, exist_ok=True)
        write_atomic(cache / "shapes" / f"{key}.json", shape.model_dump_json() + "\n")
