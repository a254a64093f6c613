"""How each shipped model was trained, and the command that repeats it.

``python -m models.retriever_long.recipes head64 --out DIR``; started again it goes on where it stopped. On
the GPU the parts ended by the clock; here each takes the same number of steps.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from models.retriever_long.train import parse_stages, train

SHORT_TO_LONG = (
    "512:.12,1024+512:.12,2048+1024:.13,4096+2048+512:.13,8192+4096:.15,"
    "16384+8192+2048:.13,32768+16384+8192+1024:.22"
)
# a state space takes longer to find its way, and its steps are slower
MOSTLY_SHORT = (
    "512:.3,1024+512:.2,2048+1024:.15,4096+1024:.12,8192+2048:.1,16384+4096:.06,32768+8192+1024:.07"
)
THEN_LONG = "2048+1024:.2,4096+2048:.2,8192+2048:.25,16384+4096+1024:.15,32768+8192+2048:.2"
LONGEST = "32768+2048:.4,32768+16384+8192+512:.6"


@dataclass(frozen=True, slots=True)
class Part:
    """A run of training with a warm-up and a cosine of its own."""

    stages: str
    steps: int
    seconds: int  # it took, two models sharing an H200
    peak: float  # learning rate
    seed: int


BATCH_TOKENS = 131_072
RECIPES = {
    "head128": (Part(SHORT_TO_LONG, 8015, 1000, 1e-3, 1),),
    "head64": (Part(SHORT_TO_LONG, 8523, 1000, 1e-3, 1), Part(LONGEST, 944, 95, 4e-4, 2)),
    "hybrid": (Part(SHORT_TO_LONG, 5336, 1000, 1e-3, 1),),
    "mamba2": (Part(MOSTLY_SHORT, 3630, 1000, 1.2e-3, 1), Part(THEN_LONG, 2093, 320, 6e-4, 2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=7)
    args = parser.parse_args()
    start = None
    for number, part in enumerate(RECIPES[args.model], start=1):
        out = args.out / str(number)
        train(
            argparse.Namespace(
                model=args.model,
                out=out,
                stages=parse_stages(part.stages),
                deadline_s=part.seconds,
                steps=part.steps,
                batch_tokens=BATCH_TOKENS,
                peak=part.peak,
                seed=part.seed,
                workers=args.workers,
                start=start,
                report_s=10.0,
                save_s=60.0,
                check=[512, 8192, 32_768],
                check_sequences=16,
            )
        )
        start = out / "model.safetensors"


if __name__ == "__main__":
    main()
