"""Put a trained checkpoint in its place: weights, config.json and tokenizer, as vLLM loads them.

``python -m models.retriever_long.install head64 FILE``.
"""

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open

from models.retriever_long.plans import plans
from models.retriever_long.vocabulary import HERE, TOKENIZER


def install(name: str, weights: Path, folder: Path) -> None:
    """Fill ``folder`` for the plan of this name."""
    vocab = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    plan = plans(len(vocab))[name]
    with safe_open(weights, "pt") as file:
        dtypes = {str(file.get_tensor(key).dtype) for key in file.keys()}  # noqa: SIM118
    assert dtypes == {"torch.bfloat16"}, dtypes
    folder.mkdir(exist_ok=True)
    shutil.copyfile(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(plan.hf_config(), indent=1) + "\n")
    for file_name in ("tokenizer.json", "tokenizer_config.json"):
        if folder != TOKENIZER:
            shutil.copyfile(TOKENIZER / file_name, folder / file_name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(plans(1)))
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    install(args.model, args.weights, HERE / args.model)


if __name__ == "__main__":
    main()
