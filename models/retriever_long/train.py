"""Train one long retriever from its constructed initial weights, short reports first; resumable.

``python -m models.retriever_long.train head128 --out DIR --stages 512:0.2,2048+512:0.3,32768+2048:0.5
--deadline-s 1100``: a stage is LENGTHS:SHARE of the whole, its lengths by turns. It ends by the clock, so
that it fits a GPU lent for minutes, or with ``--steps`` after so many steps, so that another machine does
the same work. DIR holds ``model.safetensors`` (bfloat16), ``loss.jsonl``, and ``training.pt``: started
again with the same DIR it goes on from there. ``--start FILE`` begins with the weights of a checkpoint
instead. Needs torch, tokenizers, pydantic and safetensors, no vLLM.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from models.retriever_long.construct import construct
from models.retriever_long.data import COUNTED_WEIGHT, LISTED_WEIGHT, Batches, Maker
from models.retriever_long.network import Network, from_checkpoint, to_checkpoint
from models.retriever_long.plans import plans
from models.retriever_long.vocabulary import TOKENIZER

REPORT_EVERY_S = 10.0
SAVE_EVERY_S = 60.0
KINDS = {"code": 1.0, "listed": LISTED_WEIGHT, "counted": COUNTED_WEIGHT}  # by weight in the loss

Stage = tuple[list[int], float]


def fresh(name: str, seed: int) -> Network:
    """A constructed network, before any training."""
    maker = Maker(str(TOKENIZER), "ids")
    vocab = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(seed)
    net = Network(plans(len(vocab))[name])
    construct(net, seed, maker.encoder)
    return net


def token_losses(net: Network, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
        return peak * (progress + 0.0005) / 0.0205
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def stage_at(stages: list[Stage], progress: float) -> int:
    """Index of the stage in which this share of the whole lies."""
    until = 0.0
    for index, (_, share) in enumerate(stages):
        until += share
        if progress < until:
            return index
    return len(stages) - 1


def parameter_groups(net: Network) -> list[dict[str, object]]:
    matrices = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]


def save_weights(net: Network, path: Path) -> None:
    part = path.with_suffix(".part")
    save_file(to_checkpoint(net), part, metadata={"format": "pt"})
    part.replace(path)


def save_training(
    net: Network, optimizer: torch.optim.Optimizer, done: dict[str, Any], path: Path
) -> None:
    part = path.with_suffix(".part")
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "done": done}, part)
    part.replace(path)


def measures(losses: Tensor, correct: Tensor, weight: Tensor) -> dict[str, float | None]:
    """Of one batch: loss and share right of each kind of answer token, and the loss of plain ones."""
    row: dict[str, float | None] = {}
    for kind, value in KINDS.items():
        of_kind = weight == value
        some = bool(of_kind.any())
        row[f"{kind}_loss"] = losses[of_kind].mean().item() if some else None
        row[f"{kind}_right"] = correct[of_kind].float().mean().item() if some else None
    plain = weight < 1
    row["plain_loss"] = losses[plain].mean().item() if bool(plain.any()) else None
    return row


@torch.no_grad()
def exactness(
    net: Network, length: int, sequences: int, device: torch.device
) -> dict[str, float | None]:
    """Share right of each kind of answer token in sequences kept out of training (teacher forcing)."""
    maker = Maker(str(TOKENIZER), f"held-out/{length}")
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(sequences):
        made = maker.sequence(length)
        ids = torch.from_numpy(made.token_ids).to(device).long()[None]
        weights = torch.from_numpy(made.weights).to(device).float()[None]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found.append(token_losses(net, ids, weights))
    losses, correct, weight = (torch.cat(column) for column in zip(*found, strict=True))
    return {"length": length} | measures(losses, correct, weight)


def batches(args: argparse.Namespace, stage: int, part: int, cuda: bool) -> Iterator[Any]:
    """Endless batches of a stage. ``part``: how often training was begun, so that none comes twice."""
    lengths, _ = args.stages[stage]
    seed = f"{args.seed}/{args.model}/{part}"
    return iter(
        DataLoader(
            Batches(str(TOKENIZER), seed, lengths, args.batch_tokens),
            batch_size=None,
            num_workers=args.workers,
            prefetch_factor=6 if args.workers else None,
            pin_memory=cuda,
        )
    )


def train(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    net = fresh(args.model, args.seed)
    if args.start:
        from_checkpoint(net, load_file(args.start))
    net.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(net), betas=(0.9, 0.98), fused=cuda)
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "training.pt"
    done: dict[str, Any] = {"step": 0, "tokens": 0, "elapsed_s": 0.0, "part": 0}
    if state_file.is_file():
        state = torch.load(state_file, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    done["part"] += 1
    log = (args.out / "loss.jsonl").open("a")
    count = sum(p.numel() for p in net.parameters())
    print(f"{args.model}: {count} parameters on {device}, from step {done['step']}", flush=True)
    started = time.monotonic() - done["elapsed_s"]

    def elapsed() -> float:
        return time.monotonic() - started

    def progress() -> float:
        return done["step"] / args.steps if args.steps else elapsed() / args.deadline_s

    stage, feed = -1, iter(())
    said = saved = -math.inf
    while progress() < 1:
        if stage_at(args.stages, progress()) != stage:
            stage = stage_at(args.stages, progress())
            feed = batches(args, stage, done["part"], cuda)
        ids, weights = next(feed)
        rate = learning_rate(progress(), args.peak)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = ids.to(device, non_blocking=True).long()
        weights = weights.to(device, non_blocking=True).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            losses, correct, weight = token_losses(net, ids, weights)
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        done["step"] += 1
        done["tokens"] += ids.numel()
        if elapsed() - said >= args.report_s:
            said = done["elapsed_s"] = elapsed()
            row = {
                **{key: done[key] for key in ("step", "tokens")},
                "elapsed_s": round(said, 1),
                "length": ids.shape[1],
                "rate": rate,
                **measures(losses, correct, weight),
                "gradient": norm.item(),
            }
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(" ".join(f"{k}={v:.4g}" for k, v in row.items() if v is not None), flush=True)
            if not math.isfinite(loss.item()):
                raise SystemExit("the loss is not a number; training.pt holds the last good state")
            if said - saved >= args.save_s:
                saved = said
                save_weights(net, args.out / "model.safetensors")
                save_training(net, optimizer, done, state_file)
    done["elapsed_s"] = elapsed()
    save_weights(net, args.out / "model.safetensors")
    save_training(net, optimizer, done, state_file)
    print(f"done: {done}", flush=True)
    for length in args.check:
        print(exactness(net, length, args.check_sequences, device), flush=True)


def parse_stages(text: str) -> list[Stage]:
    """``512:0.5,2048+512:0.5`` as [([512], 0.5), ([2048, 512], 0.5)]."""
    stages: list[Stage] = []
    for part in text.split(","):
        lengths, share = part.split(":")
        stages.append(([int(length) for length in lengths.split("+")], float(share)))
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(plans(1)))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", type=parse_stages, default=[([512], 1.0)])
    parser.add_argument("--deadline-s", type=float, default=300)
    parser.add_argument(
        "--steps", type=int, default=0, help="all stages together (0: by the clock)"
    )
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--peak", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--start", type=Path, default=None)
    parser.add_argument("--report-s", type=float, default=REPORT_EVERY_S)
    parser.add_argument("--save-s", type=float, default=SAVE_EVERY_S)
    parser.add_argument("--check", type=lambda t: [int(n) for n in t.split(",")], default=[512])
    parser.add_argument("--check-sequences", type=int, default=20)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
