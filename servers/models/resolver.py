"""What vLLM's own code makes of a model's config: window, heads, layers, and every default of its class.

Runs in the vLLM python: ``python -m servers.models.resolver`` with a list of orders on stdin, each
``{"folder": "/models/m"}`` or ``{"config": {...}}``, with ``overrides`` (of ``--hf-overrides``),
``trust_remote_code``, ``config_format`` and ``revision`` where given. Prints, as the last line, MARK and a
JSON list with one answer an order: ``{"shape": {...}}``, or ``{"unknown": "why"}``. Loads no weights and
needs no GPU. It takes vLLM's own steps of ``ModelConfig`` up to the maximum length, without looking for
the model's class, which would import it.
"""

import inspect
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
import vllm
from vllm.config import model as vllm_model
from vllm.transformers_utils import config as vllm_config
from vllm.transformers_utils import model_arch_config_convertor as convertors

from servers.models.resolver_protocol import MARK

# of a config, what says nothing of its shape
LEFT_OUT = ("id2label", "label2id", "transformers_version", "name_or_path", "_name_or_path")
# worked out by a class from other fields, where it lists its layers so
DERIVED = ("layers_block_type", "layer_types")
# names that a class may give its own: ``attribute_map`` says them
CANONICAL = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "intermediate_size",
    "head_dim",
)


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of one model; whatever its config or vLLM does with it, one answer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = order.get("folder")
        if folder is None:
            folder = scratch
            (Path(scratch) / "config.json").write_text(json.dumps(order["config"]))
        try:
            return {"shape": shape(str(folder), order)}
        except Exception as error:  # of any config class, also of a model's own code
            said = sentence(error).replace(scratch, "the model's recipe")
            return {"unknown": said}


def sentence(error: Exception) -> str:
    """The first line that it says, with the kind of error where the words may need it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0].rstrip(".")[:300] if lines else "no more was said"
    plain_words = isinstance(error, ValueError | RuntimeError | OSError) and lines
    return said if plain_words else f"{type(error).__name__}: {said}"


def shape(folder: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """``greenbench.contract.model_shape.ModelShape`` as JSON."""
    whole = load(folder, order)
    text = vllm_config.get_hf_text_config(whole)
    kind = getattr(convertors, "MODEL_ARCH_CONFIG_CONVERTORS", {}).get(
        whole.model_type, convertors.ModelArchConfigConvertorBase
    )
    arch = kind(whole, text).convert()
    # of a model without attention the heads are those of its states
    head_size = arch.head_size if arch.total_num_attention_heads and arch.head_size else None
    return {
        "source": f"vLLM {vllm.__version__}, transformers {transformers.__version__}",
        "model_type": getattr(text, "model_type", None) or whole.model_type,
        "window_tokens": window(text, arch),
        "head_size": head_size,
        "kv_heads": (1 if arch.is_deepseek_mla else arch.total_num_kv_heads) if head_size else None,
        "layers": arch.total_num_hidden_layers or None,
        "mla": bool(arch.is_deepseek_mla),
        "vocab_size": arch.vocab_size or None,
        "config": {**plain(text), **varying(arch)},
    }


def load(folder: str, order: Mapping[str, Any]) -> Any:
    """The config object, with ``--hf-overrides`` put in as ``ModelConfig`` does: flat ones while it is
    made, mappings afterwards, into a part of the config or in place of a value.
    """
    overrides = order.get("overrides") or {}
    nested = {key: value for key, value in overrides.items() if isinstance(value, dict)}
    whole = vllm_config.get_config(
        folder,
        trust_remote_code=bool(order.get("trust_remote_code")),
        revision=order.get("revision"),
        config_format=order.get("config_format") or "auto",
        hf_overrides_kw={key: value for key, value in overrides.items() if key not in nested},
    )
    for key, value in nested.items():
        part = getattr(whole, key, None)
        if isinstance(part, transformers.PretrainedConfig):
            update(part, value)
        else:
            setattr(whole, key, value)
    return whole


def update(target: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        old = target.get(key) if isinstance(target, dict) else getattr(target, key, None)
        if isinstance(value, dict) and (isinstance(old, dict) or hasattr(old, "__dict__")):
            update(old, value)
        elif isinstance(target, dict):
            target[key] = value
        else:
            setattr(target, key, value)


def window(text: Any, arch: Any) -> int | None:
    """The longest sequence that vLLM accepts, tokens; None where the config does not bound it.

    vLLM's own rule. Of longrope its default is the short window that the model was trained in first, and
    it accepts the long one: that is the derived length.
    """
    derived, key = arch.derived_max_model_len_and_key
    if key is None:
        return None
    if any(rope.get("rope_type") == "longrope" for rope in ropes(text)):
        return int(derived)
    given = {
        "hf_config": text,
        "model_arch_config": arch,
        "tokenizer_config": None,
        "max_model_len": None,
        "disable_sliding_window": False,
        "sliding_window": getattr(text, "sliding_window", None),
    }
    rule = vllm_model._get_and_verify_max_len  # pyright: ignore[reportPrivateUsage]
    known = inspect.signature(rule).parameters
    return int(rule(**{name: value for name, value in given.items() if name in known}))


def ropes(text: Any) -> Iterable[dict[str, Any]]:
    """The position encodings of the model's kinds of layers. vLLM lists them since 0.32."""
    listed = getattr(vllm_config, "iter_rope_parameters", None)
    if listed is not None:
        return listed(text)
    given = getattr(text, "rope_parameters", None) or {}
    return [given] if "rope_type" in given else filter(None, given.values())


def varying(arch: Any) -> dict[str, Any]:
    """Where layers differ in what ``arch`` says of all of them: the values, a mapping a layer."""
    layers = getattr(arch, "per_layer_overrides", None)
    return {"per_layer_overrides": layers} if layers else {}


def plain(text: Any) -> dict[str, Any]:
    """The config of the language model as JSON, with defaults, under the usual names as well."""
    found = {key: value for key, value in text.to_dict().items() if key not in LEFT_OUT}
    for name in (*CANONICAL, *DERIVED):
        try:
            value = getattr(text, name, None)
        except Exception:  # of a config whose layers differ: it refuses to give one value for all
            continue
        if value is not None:
            found[name] = value
    found["model_type"] = getattr(text, "model_type", None) or found.get("model_type")
    kept = {key: value for key, value in found.items() if value is not None and key[:1] != "_"}
    return json.loads(json.dumps(kept, default=str))


def main() -> None:
    orders = json.load(sys.stdin)
    answers = [answer(order) for order in orders]
    print(MARK + json.dumps(answers))


if __name__ == "__main__":
    main()
