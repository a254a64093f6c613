"""Make a model folder from an architecture config and a seed: weights, tokenizer, config.json.

Runs in the vLLM python (needs torch and transformers): ``python -m servers.models.builder`` with
``{"config": {...}, "seed": 1, "vocab_size": 4096, "folder": "..."}`` on stdin. The folder appears whole or
not at all. vLLM's dummy loader is no substitute: it gives every tensor of one shape the same values, so
layers are identical and logits degenerate.

What random weights are good for: speed, memory, and comparing backends with each other on one model. Not
for the quality of answers.
"""

import hashlib
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from servers.models.tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, train_tokenizer

# Attention that averages over thousands of tokens equally would hide a backend that reads wrong pages.
# Queries and keys of this gain give scores with a standard deviation of about gain**2.
QK_GAIN = 1.5
LOGIT_STD = 3.0  # clear winners: greedy tokens agree between exact kernels
TIME_STEPS = (0.001, 0.1)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build(config: dict[str, Any], seed: int, vocab_size: int, folder: Path) -> None:
    """Write the model into ``folder`` (through a sibling folder that is renamed over it)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_weights(config, seed, vocab_size, scratch)
        write_tokenizer(seed, vocab_size, config.get("max_position_embeddings"), scratch)
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_weights(config: dict[str, Any], seed: int, vocab_size: int, folder: Path) -> None:
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    resolved = AutoConfig.for_model(**{**config, **ids, "vocab_size": vocab_size})
    torch.manual_seed(seed)  # for what the architecture initialises itself: state matrices, biases
    model = AutoModelForCausalLM.from_config(resolved, dtype=resolved.dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = weight_std(name, tuple(parameter.shape))
            if std is not None:
                fill_normal(parameter, f"{seed}/{name}", std)
            elif name.endswith("dt_bias"):
                fill_time_steps(parameter, f"{seed}/{name}")
    model.save_pretrained(folder, max_shard_size="100GB")
    (folder / "generation_config.json").unlink(missing_ok=True)  # it would change sampling defaults


def weight_std(name: str, shape: tuple[int, ...]) -> float | None:
    """Standard deviation of a weight matrix, or None where the architecture's own initial value stays.

    Matrices and (depthwise) convolutions: 1/sqrt(fan_in), queries and keys QK_GAIN times that. Embeddings
    and output matrix: LOGIT_STD/sqrt(hidden), since the last norm has unit variance. Norms, biases and
    decay parameters keep what the architecture sets.
    """
    fan_in = shape[-1] if shape else 0
    if (
        len(shape) < 2
        or "conv" in name
        or "norm" in name
        or name.endswith(("A_log", "dt_bias", ".D"))
    ):
        return None
    if "embed" in name or "lm_head" in name:
        return LOGIT_STD / math.sqrt(fan_in)
    gain = QK_GAIN if "q_proj" in name or "k_proj" in name else 1.0
    return gain / math.sqrt(fan_in)


def fill_normal(parameter: torch.Tensor, key: str, std: float) -> None:
    """Fill from a generator seeded by ``key``: a tensor's values do not hang on the order of tensors."""
    generator = torch.Generator().manual_seed(stable_seed(key))
    values = torch.empty(parameter.shape, dtype=torch.float32)
    parameter.copy_(values.normal_(0.0, std, generator=generator))


def fill_time_steps(parameter: torch.Tensor, key: str) -> None:
    """Bias of a state's time step: softplus of it is log-uniform in TIME_STEPS, as Mamba2 starts out.

    Some architectures start at 1.0, where a state forgets within a few tokens.
    """
    generator = torch.Generator().manual_seed(stable_seed(key))
    low, high = (math.log(step) for step in TIME_STEPS)
    steps = torch.empty(parameter.shape).uniform_(low, high, generator=generator).exp()
    parameter.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus


def stable_seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


def write_tokenizer(seed: int, vocab_size: int, window: int | None, folder: Path) -> None:
    bos, eos, pad = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(seed, vocab_size),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=window or 1_000_000,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def main() -> None:
    order = json.load(sys.stdin)
    build(order["config"], order["seed"], order["vocab_size"], Path(order["folder"]))


if __name__ == "__main__":
    main()
