"""A copy of a long retriever whose checkpoint asks for FP8 keys and values with one scale everywhere.

``python -m models.retriever_long.scales head64 0.004 --out DIR``. Scales from 0.02 to 100 cost no answer;
0.004 cuts keys and values off at 448 × 0.004 = 1.8 and costs all. A sweep names DIR under ``models``; under
``server`` ``kv_cache_dtype: bfloat16`` serves the copy unquantised, ``fp8`` and also ``auto`` by its scales.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.retriever_long.vocabulary import HERE

ATTENDING = ("head64", "head128")
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
QUANTIZATION = {  # of keys and values alone: no group of weights is quantised
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {},
    "ignore": ["lm_head"],
    "kv_cache_scheme": SCHEME,
}


def copy_with_scale(source: Path, scale: float, folder: Path) -> None:
    """Fill ``folder`` with the model in ``source`` and a key and a value scale for each layer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    state = load_file(source / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        for what in ("k_scale", "v_scale"):
            state[f"model.layers.{layer}.self_attn.{what}"] = torch.tensor([scale])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config["quantization_config"] = QUANTIZATION
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=ATTENDING)
    parser.add_argument("scale", type=float)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    copy_with_scale(HERE / args.model, args.scale, args.out)


if __name__ == "__main__":
    main()
