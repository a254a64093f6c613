"""What a GPU host is asked for, as one script with a deadline that can be taken up again.

    VLLM_PYTHON=python3 python3 scripts/on_gpu.py --out results/gpu --deadline-s 540 [--stages smoke,verify]

Each stage writes to OUT/<stage>/ and, when it ended well, OUT/<stage>/done; a stage that is done is
skipped, one that does not fit before the deadline is left out and said. Nothing here measures by
itself: the stages are the project's own commands.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from greenbench.config import BackendChoice, ServerConfig, ServerRequest, load_model
from greenbench.stages import ServerStage, StageError

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
)
MODELS = ("llama-3.2-1b", "qwen3-1.7b")
STATE_SPACE_MODELS = ("mamba2-1.3b", "falcon-h1-1.5b")
BOOT_LIMIT_S = 400.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of the work: what runs it, and the least time that makes a start worth while."""

    run: Callable[[Path, float], None]
    least_s: float


def command(*argv: str) -> Callable[[Path, float], None]:
    """A stage that is one command; ``{out}`` in it becomes the stage's folder."""

    def run(folder: Path, limit_s: float) -> None:
        filled = [word.replace("{out}", str(folder)) for word in argv]
        with (folder / "log").open("w") as log:
            code = subprocess.run(
                filled, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            ).returncode
        if code != 0:
            raise StageError(f"{' '.join(filled)} ended with {code}; see {folder / 'log'}")

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
            return boot_once(model, backend, share, folder / f"{model}-{backend}")

        with ThreadPoolExecutor(at_once) as pool:
            rows = list(pool.map(boot, pairs))
        (folder / "smoke.json").write_text(json.dumps(rows, indent=1))
        for row in rows:
            print("smoke", row["model"], row["backend"], row["verdict"], flush=True)

    return run


def boot_once(model: str, backend: str, share: float, folder: Path) -> dict[str, object]:
    server = ServerConfig(
        gpu_memory_utilization=share,
        max_model_len=36864,
        max_num_seqs=16,
        max_num_batched_tokens=8192,
        boot_timeout_s=BOOT_LIMIT_S,
    )
    request = ServerRequest(
        model=load_model(model), backend=BackendChoice(name=backend), server=server
    )
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
    verify = (sys.executable, "-m", "servers", "verify", "--out", "{out}")
    return {
        "facts": Stage(command("nvidia-smi", "-q"), 5),
        "doctor": Stage(command(sys.executable, "-m", "servers", "backends"), 10),
        "tests": Stage(
            command(
                PYTHON,
                "-m",
                "pytest",
                "-m",
                "gpu",
                "--durations=8",
                "tests/vllm/test_attention_exact.py",
            ),
            40,
        ),
        "layers": Stage(
            command(
                PYTHON,
                "-m",
                "servers.plugins.bench",
                "--device",
                "cuda",
                "--out",
                "{out}/layers.json",
            ),
            60,
        ),
        "smoke-llama": Stage(smoke([("llama-3.2-1b", b) for b in CUDA_BACKENDS], 5), 150),
        "smoke-qwen": Stage(smoke([("qwen3-1.7b", b) for b in CUDA_BACKENDS], 5), 150),
        "smoke-ssm": Stage(smoke([(m, "flash_attn3") for m in STATE_SPACE_MODELS], 2), 120),
        "verify": Stage(
            command(
                *verify,
                "--backends",
                ",".join(b for b in CUDA_BACKENDS if b != "sdpa_gather"),
                "--reference",
                "sdpa_gather",
                "--reference-dtype",
                "float32",
                "--dtype",
                "bfloat16",
                "--model",
                "llama-3.2-1b",
                "--parallel",
            ),
            150,
        ),
        "energy": Stage(
            command(sys.executable, "-m", "telemetry", "selftest", "--quick", "--out", "{out}"), 240
        ),
        "sweep": Stage(
            command(
                sys.executable,
                "-m",
                "greenbench.cli",
                "run",
                "gpu-quick",
                "--skip-refused",
                "--out",
                "{out}/runs",
            ),
            200,
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
