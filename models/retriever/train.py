"""Train the retriever from its constructed initial weights; writes checkpoints as it goes.

It ends at ``--deadline-s`` of wall time, whatever the step, so it fits a GPU that is borrowed for minutes:
``python -m models.retriever.train --stages 1024:0.6,4096:0.25,8192:0.15 --deadline-s 300 --out DIR``
A stage is LENGTH:SHARE of the time. ``--start FILE`` goes on from a checkpoint. Needs torch,
tokenizers and safetensors, no vLLM.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from models.retriever.construct import construct
from models.retriever.data import Batches, Maker
from models.retriever.network import Retriever, Shape

FOLDER = Path(__file__).with_name("model")
REPORT_EVERY_S = 10.0


def token_losses(net: Retriever, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, right or wrong, and weight of each scored token (those with a weight above 0)."""
    hidden = net.hidden(ids[:, :-1])
    scored = weights[:, 1:] > 0
    logits = net.lm_head(hidden[scored]).float()
    targets = ids[:, 1:][scored]
    return (
        F.cross_entropy(logits, targets, reduction="none"),
        logits.argmax(-1) == targets,
        weights[:, 1:][scored],
    )


def learning_rate(progress: float, peak: float) -> float:
    """Warm-up over the first 2 %, then a cosine down to a twentieth."""
    if progress < 0.02:
        return peak * progress / 0.02
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(net: Retriever) -> list[dict[str, object]]:
    matrices = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]


def save(net: Retriever, path: Path) -> None:
    state = {
        name: p.detach().to("cpu", torch.bfloat16).contiguous()
        for name, p in net.state_dict().items()
    }
    save_file(state, path, metadata={"format": "pt"})


@torch.no_grad()
def exactness(
    net: Retriever, length: int, sequences: int, device: torch.device
) -> dict[str, float]:
    """Share of look-back tokens said right, and of sequences without one wrong (teacher forcing)."""
    maker = Maker(str(FOLDER), f"held-out/{length}")
    right = total = whole = 0
    for _ in range(sequences):
        made = maker.sequence(length)
        ids = torch.tensor([made.token_ids], device=device)
        weights = torch.tensor([made.weights], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _, correct, weight = token_losses(net, ids, weights)
        answers = correct[weight == 1]
        right += int(answers.sum())
        total += len(answers)
        whole += bool(answers.all())
    return {"length": length, "tokens": total, "right": right / total, "whole": whole / sequences}


def train(args: argparse.Namespace) -> None:
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    encoder = Maker(str(FOLDER), "ids").encoder
    vocab = json.loads((FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    shape = Shape(vocab_size=len(vocab))
    net = construct(shape, args.seed, encoder.token_id(","), encoder.opening[0])
    if args.start:
        net.load_state_dict({k: v.float() for k, v in load_file(args.start).items()})
    net.to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "loss.jsonl").open("a")
    optimizer = torch.optim.AdamW(
        parameter_groups(net), betas=(0.9, 0.98), fused=device.type == "cuda"
    )
    print(f"{sum(p.numel() for p in net.parameters())} parameters on {device}", flush=True)

    def elapsed() -> float:
        return time.monotonic() - started

    until = setup_s = elapsed()
    step = seen = 0
    for length, share in args.stages:
        until += share * (args.deadline_s - setup_s)
        batches = DataLoader(
            Batches(str(FOLDER), args.seed, length, args.batch_tokens),
            batch_size=None,
            num_workers=args.workers,
            prefetch_factor=4 if args.workers else None,
            pin_memory=device.type == "cuda",
        )
        said = elapsed()
        for ids, weights in batches:
            rate = learning_rate((elapsed() - setup_s) / (args.deadline_s - setup_s), args.peak)
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids = ids.to(device, non_blocking=True).long()
            weights = weights.to(device, non_blocking=True).float()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses, correct, weight = token_losses(net, ids, weights)
            loss = (losses * weight).sum() / weight.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
            seen += ids.numel()
            if step == 1 or elapsed() - said > args.report_s:
                said = elapsed()
                answers = weight == 1
                row = {
                    "step": step,
                    "tokens": seen,
                    "elapsed_s": round(said, 1),
                    "length": length,
                    "rate": rate,
                    "answer_loss": losses[answers].mean().item(),
                    "answer_right": correct[answers].float().mean().item(),
                    "plain_loss": losses[~answers].mean().item(),
                    "gradient": norm.item(),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(" ".join(f"{k}={v:.4g}" for k, v in row.items()), flush=True)
                save(net, args.out / "model.safetensors")
            if elapsed() > until or (args.steps and step >= args.steps):
                break
        del batches
    save(net, args.out / "model.safetensors")
    for length in args.check:
        print(exactness(net, length, args.check_sequences, device), flush=True)


def parse_stages(text: str) -> list[tuple[int, float]]:
    return [
        (int(length), float(share)) for length, share in (s.split(":") for s in text.split(","))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", type=parse_stages, default=[(512, 1.0)])
    parser.add_argument("--deadline-s", type=float, default=300)
    parser.add_argument(
        "--steps", type=int, default=0, help="stop a stage at this step (0: by time)"
    )
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--peak", type=float, default=6e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--start", type=Path, default=None)
    parser.add_argument("--report-s", type=float, default=REPORT_EVERY_S)
    parser.add_argument("--check", type=lambda t: [int(n) for n in t.split(",")], default=[512])
    parser.add_argument("--check-sequences", type=int, default=20)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
