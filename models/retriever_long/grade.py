"""Grade a checkpoint by greedy decoding in plain PyTorch, on a GPU if there is one: no vLLM needed.

``python -m models.retriever_long.grade head64 --weights FILE --out results.json --prompts DIR``. The prompts
are the benchmark's own, graded by the tasks' own functions. Cells that results.json already holds for
these weights are kept. ``--prepare`` only makes the prompts.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from greenbench.contract.run_dir import file_sha256
from loadgen.prompts.encoder import load_encoder
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.grading import grade_reply
from models.retriever_long.cells import (
    CELLS,
    Cell,
    by_tenth,
    holds,
    load_results,
    prompts_of,
    write_results,
)
from models.retriever_long.network import Network, from_checkpoint
from models.retriever_long.plans import plans
from models.retriever_long.vocabulary import TOKENIZER

TOKENS_AT_ONCE = 262_144  # of all prompts read together


@torch.no_grad()
def greedy(net: Network, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """``tokens`` most likely next tokens of each prompt; the prompts are all of one length."""
    cache = net.new_cache()
    device = net.lm_head.weight.device
    ids = torch.tensor(prompts, device=device)
    said: list[torch.Tensor] = []
    for _ in range(tokens):
        hidden = net.hidden(ids, cache)
        ids = net.lm_head(hidden[:, -1]).argmax(-1, keepdim=True)
        said.append(ids)
    return torch.cat(said, 1).tolist()


def load(name: str, weights: Path, device: torch.device) -> Network:
    """A network of bfloat16 weights, ready to answer."""
    state = load_file(weights)
    embedding = next(n for n in state if n.endswith((".embed_tokens.weight", ".embeddings.weight")))
    net = Network(plans(state[embedding].shape[0])[name])
    from_checkpoint(net, state)
    return net.to(device, torch.bfloat16).eval()


def answers(net: Network, prompts: list[Prompt]) -> Iterator[bool]:
    """Right or wrong, of each prompt."""
    encoder = load_encoder(str(TOKENIZER))
    at_once = max(1, TOKENS_AT_ONCE // prompts[0].context_tokens)
    for start in range(0, len(prompts), at_once):
        group = prompts[start : start + at_once]
        replies = greedy(net, [p.token_ids for p in group], group[0].output_tokens)
        for prompt, reply in zip(group, replies, strict=True):
            text = encoder.decode(reply)
            yield bool(grade_reply(prompt, "grade", text, None).correct)


def measure(net: Network, cell: Cell, prompts: list[Prompt]) -> dict[str, Any]:
    right = list(answers(net, prompts))
    wrong = [index for index, one in enumerate(right) if not one]
    return {"right": sum(right), "count": cell.count, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(plans(1)))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--longest", type=int, default=10**9, help="leave longer contexts out")
    parser.add_argument("--count", type=int, default=10**9, help="prompts a cell, at most")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="start nothing new after"
    )
    args = parser.parse_args()
    started = time.monotonic()
    cells = [
        Cell(c.task, c.context_tokens, c.params, min(c.count, args.count))
        for c in CELLS
        if c.context_tokens <= args.longest
    ]
    if args.prepare:
        for cell in cells:
            prompts_of(cell, args.prompts)
            print(f"{time.monotonic() - started:6.0f} s {cell.key}", flush=True)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    where = f"plain PyTorch {torch.__version__}, {name}, bfloat16"
    results = load_results(args.out, file_sha256(args.weights))
    results["where"] = where
    net = load(args.model, args.weights, device)
    for cell in cells:
        if holds(results, cell):
            continue
        if time.monotonic() - started > args.limit_s:
            break
        found = measure(net, cell, prompts_of(cell, args.prompts))
        results["cells"][cell.key] = found
        write_results(args.out, results)
        tenths = ""
        if cell.task == "retrieve" and not cell.params:
            tenths = " ".join(f"{right}/{asked}" for right, asked in by_tenth(found))
        print(
            f"{time.monotonic() - started:6.0f} s {args.model} {cell.key}: "
            f"{found['right']}/{found['count']} {tenths}",
            flush=True,
        )


if __name__ == "__main__":
    main()
