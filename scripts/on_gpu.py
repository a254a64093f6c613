"""What a GPU host is asked for, as one script with a deadline that can be taken up again.

    VLLM_PYTHON=python3 python3 scripts/on_gpu.py --out results/gpu --deadline-s 540 [--stages smoke,verify]

Each stage writes to OUT/<stage>/ and, when it ended well, OUT/<stage>/done; a stage that is done is
skipped, one that does not fit before the deadline is left out and said. Nothing here measures by
itself: the stages are the project's own commands.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from greenbench.config import ServerConfig, ServerRequest, load_model
from greenbench.rundir import slug
from greenbench.stages import ServerStage, StageError
from servers.choices import parse_choice

PYTHON = os.environ.get("VLLM_PYTHON", sys.executable)
CUDA_BACKENDS = (
    "flash_attn2",
    "flash_attn3",
    "flash_attn4",
    "flashinfer",
    "triton",
    "flex",
    "sdpa",
    "sdpa_gather",
    "xformers",
    "sink_window",
    "sink_window(free_blocks=true)",
)
OTHER_FAMILIES = (
    "mamba2-1.3b",
    "falcon-h1-1.5b",
    "granite-4.0-h-1b",
    "qwen3-next-small",
    "lfm2-1.2b",
    "zamba2-1.2b",
    "nemotron-h-small",
)
BOOT_LIMIT_S = 400.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of the work: what runs it, and the least time that makes a start worth while."""

    run: Callable[[Path, float], None]
    least_s: float


def command(line: str) -> Callable[[Path, float], None]:
    """A stage that is one command. ``{out}`` is the stage's folder, ``{vllm}`` and ``{bench}`` pythons."""

    def run(folder: Path, limit_s: float) -> None:
        argv = shlex.split(line.format(out=folder, vllm=PYTHON, bench=sys.executable))
        with (folder / "log").open("w") as log:
            code = subprocess.run(
                argv, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            ).returncode
        if code != 0:
            raise StageError(f"{line} ended with {code}; see {folder / 'log'}")

    return run


def smoke(pairs: list[tuple[str, str]], at_once: int) -> Callable[[Path, float], None]:
    """Boot (model, backend) pairs, several beside each other on one card, prove and smoke-test each.

    Beside each other nothing is timed: only what was built and whether it answers counts.
    """

    def run(folder: Path, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        share = 0.8 / at_once

        def boot(pair: tuple[str, str]) -> dict[str, object]:
            model, backend = pair
            if time.monotonic() > end - 60:
                return {"model": model, "backend": backend, "verdict": "not run: no time left"}
            return boot_once(model, backend, share, folder / slug(f"{model}-{backend}"))

        with ThreadPoolExecutor(at_once) as pool:
            rows = list(pool.map(boot, pairs))
        (folder / "smoke.json").write_text(json.dumps(rows, indent=1))
        for row in rows:
            print("smoke", row["model"], row["backend"], row["verdict"], flush=True)

    return run


def boot_once(model: str, backend: str, share: float, folder: Path) -> dict[str, object]:
    config = load_model(model)
    server = ServerConfig(
        gpu_memory_utilization=share,
        kv_cache_gib=4,  # pinned, so that what neighbours take does not matter
        max_model_len=min(36864, config.max_model_len),
        max_num_seqs=16,
        max_num_batched_tokens=8192,
        boot_timeout_s=BOOT_LIMIT_S,
    )
    request = ServerRequest(model=config, backend=parse_choice(backend), server=server)
    row: dict[str, object] = {"model": model, "backend": backend}
    started = time.monotonic()
    try:
        with ServerStage(request, folder) as stage:
            facts = stage.start(lambda: None)
            row |= {
                "verdict": facts.proof,
                "observed": facts.observed_backend,
                "ready_s": facts.ready_s,
                "boot_stages_s": facts.boot_stages_s,
                "kv_cache_tokens": facts.kv_cache_tokens,
                "proof": facts.proof_detail,
            }
    except Exception as error:  # every failure of a backend is this stage's result
        row |= {"verdict": "failed", "error": str(error)}
    return row | {"took_s": round(time.monotonic() - started, 1)}


def table() -> dict[str, Stage]:
    exact = ",".join((*CUDA_BACKENDS[:-2], "sink_window(window=4096)"))
    arms = "flash_attn3,sdpa,xformers,xformers cutlass,sink_window,flash_attn2"
    return {
        "facts": Stage(command("nvidia-smi -q"), 5),
        "doctor": Stage(command("{bench} -m servers backends"), 10),
        "tests": Stage(
            command("{vllm} -m pytest -m gpu --durations=8 tests/vllm/test_attention_exact.py"), 40
        ),
        "smoke-llama": Stage(smoke([("llama-3.2-1b", b) for b in CUDA_BACKENDS], 11), 90),
        "smoke-qwen": Stage(smoke([("qwen3-1.7b", b) for b in CUDA_BACKENDS], 11), 90),
        "smoke-families": Stage(smoke([(m, "flash_attn3") for m in OTHER_FAMILIES], 7), 90),
        "verify": Stage(
            command(
                "{bench} -m servers verify --out {out} --model qwen3-1.7b --reference sdpa_gather "
                "--reference-dtype float32 --dtype bfloat16 --tolerance 0.25 --parallel "
                f"--kv-cache-gib 2 --backends '{exact}'"
            ),
            100,
        ),
        "energy": Stage(command("{bench} -m telemetry selftest --quick --out {out}"), 240),
        "layers": Stage(
            command(
                "{vllm} -m servers.plugins.bench --device cuda --limit-s 150 "
                f"--out {{out}}/layers.json --backends '{arms}'"
            ),
            60,
        ),
    }


def main() -> int:
    """Run the stages asked for, in order, until the deadline. Returns 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline-s", type=float, required=True)
    parser.add_argument("--stages", default=",".join(table()))
    options = parser.parse_args()
    end = time.monotonic() + options.deadline_s
    failed = False
    for name in options.stages.split(","):
        failed |= run_stage(name, table()[name], options.out / name, end)
    return int(failed)


def run_stage(name: str, stage: Stage, folder: Path, end: float) -> bool:
    """True when the stage was tried and failed."""
    left_s = end - time.monotonic()
    if (folder / "done").exists():
        print(f"{name}: done before", flush=True)
        return False
    if left_s < stage.least_s:
        print(f"{name}: not run, {left_s:.0f} s left, {stage.least_s:.0f} s wanted", flush=True)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        stage.run(folder, left_s)
    except (StageError, subprocess.TimeoutExpired) as error:
        print(f"{name}: failed after {time.monotonic() - started:.0f} s: {error}", flush=True)
        return True
    (folder / "done").write_text(f"{time.monotonic() - started:.1f} s\n")
    print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
