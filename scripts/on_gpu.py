"""What a GPU host is asked for, as one script with a deadline that can be taken up again.

    VLLM_PYTHON=python3 python3 scripts/on_gpu.py --out results/gpu --deadline-s 540 --stages smoke,verify

Each stage writes to OUT/<stage>/ and, when it ended well, OUT/<stage>/done; a stage that is done is
skipped, one that does not fit before the deadline is left out and said. Nothing here measures by
itself: the stages are the project's own commands. On a host of two cards start it twice, with
CUDA_VISIBLE_DEVICES and an OUT of its own each: what is timed then has a card to itself.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from greenbench.contract.config import ServerConfig, ServerRequest, load_model
from greenbench.contract.run_dir import slug
from greenbench.sweep.child_processes import Child, ServerStage, StageError
from greenbench.vllm_python import vllm_python
from servers.backends.choice import parse_choice
from servers.backends.registry import BACKENDS, Backend

ON_CUDA = [row for row in BACKENDS.values() if "cuda" in row.devices]
OURS = [row.name for row in ON_CUDA if row.is_ours]
# where one of vLLM's own is enough, and what exact answers are compared with
STOCK = max((row for row in ON_CUDA if not row.is_ours), key=lambda row: row.reference_rank).name
REFERENCE = max((row for row in ON_CUDA if row.exact), key=lambda row: row.reference_rank).name


def is_one_of_others(row: Backend) -> bool:
    """Whether the row leaves to vLLM which version runs, of which each has a row of its own."""
    return row.flash_attn_version is None and any(
        other.vllm_name == row.vllm_name and other.flash_attn_version for other in ON_CUDA
    )


def switched_on(row: Backend) -> list[str]:
    """The backend with each of its switches that are off by default."""
    return [f"{row.name}({name}=true)" for name, o in row.options.items() if o.default is False]


def other_kernels(row: Backend) -> list[str]:
    """The backend with each other word of an option, where that needs no further package."""
    return [
        f"{row.name}({name}={word})"
        for name, option in row.options.items()
        for word, fields in option.values.items()
        if word != option.default and "modules" not in fields
    ]


EACH = [row for row in ON_CUDA if not is_one_of_others(row)]
CUDA_BACKENDS = [row.name for row in EACH] + [name for row in EACH for name in switched_on(row)]
SLOW = [
    row.name for row in EACH if row.flash_attn_version == 2
]  # the driver compiles it for minutes
OTHER_FAMILIES = (
    "mamba2-1.3b",
    "falcon-h1-1.5b",
    "granite-4.0-h-1b",
    "qwen3-next-small",
    "lfm2-1.2b",
    "zamba2-1.2b",
    "nemotron-h-small",
)
SMOKE_MODELS = ("llama-3.2-1b", "qwen3-1.7b")
BOOT_LIMIT_S = 400.0
STOP_S = 25.0  # a stage at its limit gets so long to stop what it started
CACHES = (
    "VLLM_CACHE_ROOT",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
)
ANSWERS = {
    "name": "answers",
    "models": ["retriever"],
    "contexts": [2048, 8000],
    "tasks": [{"name": "retrieve", "requests": 50}],
    "loads": [{"kind": "closed", "users": 8}],
    "prompts_per_point": 50,
    "server": {
        "kv_cache_gib": 2,
        "gpu_memory_utilization": 0.06,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 16,
    },
    "phases": {"warmup_s": 0, "measure_s": 120, "drain_s": 60},
}
EQUAL_ARMS = {
    "name": "equal-arms",  # G-8
    "models": ["llama-3.2-1b"],
    "backends": [STOCK, STOCK],
    "contexts": [8192],
    "tasks": [{"name": "retrieve", "output_tokens": 128}],
    "loads": [{"kind": "closed", "users": 16}],
    "prompts_per_point": 24,
    "repeats": 5,
    "server": {
        "execution": "full",
        "max_model_len": 36864,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 32,
        "kv_cache_gib": 24,
    },
    "phases": {"warmup_s": 5, "measure_s": 62, "drain_s": 30},
    "telemetry": {"period_s": 0.05},
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of the work: what runs it, and the least time that makes a start worth while."""

    run: Callable[[Path, float], None]
    least_s: float


def command(line: str) -> Callable[[Path, float], None]:
    """A stage that is one command. ``{out}`` is the stage's folder, ``{vllm}`` and ``{bench}`` pythons,
    ``{limit}`` its seconds and ``{within}`` those that leave it time to end by itself."""

    def run(folder: Path, limit_s: float) -> None:
        filled = line.format(
            out=folder,
            vllm=vllm_python(),
            bench=sys.executable,
            limit=limit_s,
            within=limit_s - 2 * STOP_S,
        )
        run_argv(shlex.split(filled), folder / "log", limit_s)

    return run


def run_argv(argv: list[str], log: Path, limit_s: float) -> None:
    """Run to the end. Near the limit TERM first, so that what it started on the card goes with it."""
    child = Child(argv, log)
    try:
        code = child.process.wait(max(1.0, limit_s - STOP_S))
    except subprocess.TimeoutExpired:
        child.stop(STOP_S)
        raise StageError(f"{shlex.join(argv[:4])} was stopped at its limit; see {log}") from None
    if code != 0:
        raise StageError(f"{shlex.join(argv[:4])} {child.how_it_ended()}; see {log}")


Wanted = tuple[str, str, str]  # model, backend, execution


def smoke(wanted: list[Wanted], at_once: int) -> Callable[[Path, float], None]:
    """Boot servers, several beside each other on one card, prove and smoke-test each.

    Beside each other nothing is timed: only what was built and whether it answers counts.
    """

    def run(folder: Path, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        share = 0.85 / at_once

        def boot(one: Wanted) -> dict[str, object]:
            if time.monotonic() > end - 60:
                return named(one) | {"verdict": "not run: no time left"}
            return boot_once(one, small_server(one, share), folder / slug("-".join(one)))

        with ThreadPoolExecutor(at_once) as pool:
            rows = list(pool.map(boot, wanted))
        (folder / "smoke.json").write_text(json.dumps(rows, indent=1))
        for row in rows:
            print("smoke", *(str(value)[:120] for value in row.values()), sep="  ", flush=True)

    return run


def named(one: Wanted) -> dict[str, object]:
    return dict(zip(("model", "backend", "execution"), one, strict=True))


def small_server(one: Wanted, share: float) -> ServerConfig:
    return ServerConfig(
        execution=one[2],  # type: ignore[arg-type]
        gpu_memory_utilization=share,
        kv_cache_gib=4,  # pinned, so that what neighbours take does not matter
        max_model_len=min(36864, load_model(one[0]).max_model_len),
        max_num_seqs=16,
        max_num_batched_tokens=8192,
        boot_timeout_s=BOOT_LIMIT_S,
    )


def boot_once(one: Wanted, server: ServerConfig, folder: Path) -> dict[str, object]:
    request = ServerRequest(model=load_model(one[0]), backend=parse_choice(one[1]), server=server)
    row = named(one)
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


def boots(folder: Path, limit_s: float) -> None:
    """One server with nothing kept, again with what the first left, and as vLLM starts it by itself."""
    rows = []
    one = ("llama-3.2-1b", STOCK, "full")
    server = small_server(one, 0.5)
    tuned = server.model_copy(update={"extra_args": ["--enable-flashinfer-autotune"]})
    end = time.monotonic() + limit_s
    for name, config, cache in (
        ("nothing kept, autotuning off", server, "cold"),
        ("caches kept, autotuning off", server, "cold"),
        ("nothing kept, autotuning on", tuned, "cold too"),
    ):
        if time.monotonic() > end - 100:
            break
        with caches(folder / slug(cache)):
            rows.append({"what": name} | boot_once(one, config, folder / slug(name)))
        (folder / "boots.json").write_text(json.dumps(rows, indent=1))
        print("boot", name, rows[-1].get("ready_s"), rows[-1].get("boot_stages_s"), flush=True)


@contextmanager
def caches(folder: Path) -> Iterator[None]:
    """Every start-up cache of a server below ``folder``."""
    places = {name: str(folder / name.lower()) for name in CACHES}
    before = {name: os.environ.get(name) for name in CACHES}
    os.environ |= places
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def sweep(config: Mapping[str, object], out: Path, limit_s: float, blocks: str = "") -> None:
    """`greenbench run` of ``config`` into ``out``; what is complete there is not measured again."""
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    argv = [sys.executable, "-c", "from greenbench.cli import main; main()", "run"]
    argv += [str(path), "--out", str(out), *(["--blocks", blocks] if blocks else [])]
    run_argv(argv, out.with_suffix(".log"), limit_s)


def equal_arms(blocks: str = "") -> Callable[[Path, float], None]:
    """The arms of G-8; two cards take some blocks each and are judged together."""
    return lambda folder, limit_s: sweep(EQUAL_ARMS, folder / "runs", limit_s, blocks)


def answers(backends: list[str]) -> Callable[[Path, float], None]:
    """The trained model's right answers under each backend, a sweep each, all beside each other."""

    def run(folder: Path, limit_s: float) -> None:
        def ask(backend: str) -> None:
            config = ANSWERS | {"backends": [parse_choice(backend).model_dump()]}
            try:
                sweep(config, folder / slug(backend), limit_s)
            except StageError as error:
                print("answers", backend, error, flush=True)

        with ThreadPoolExecutor(len(backends)) as pool:
            list(pool.map(ask, backends))

    return run


def compared(backends: list[str]) -> Callable[[Path, float], None]:
    """`greenbench verify` in bfloat16 against the exact reference in float32, all beside each other."""
    return command(
        "{bench} -m servers verify --out {out} --model llama-3.2-1b "
        f"--reference {REFERENCE} --reference-dtype float32 --dtype bfloat16 --parallel --skip-refused "
        f"--kv-cache-gib 1 --backends '{','.join(backends)}'"
    )


def to_verify() -> list[str]:
    """All, an approximate one with a window beyond the prompts'; what is slow to compile goes alone."""
    names = [row.name if row.exact else f"{row.name}(window=4096)" for row in EACH]
    return [name for name in names if name not in SLOW]


def by_layer() -> list[str]:
    """One of vLLM's own, which the others are compared with, ours, then the rest, the slow last."""
    first, *rest = (row.name for row in EACH if not row.is_ours and row.name not in SLOW)
    return [first, *OURS, *(name for row in EACH for name in other_kernels(row)), *rest, *SLOW]


def table() -> dict[str, Stage]:
    return {
        "facts": Stage(command("nvidia-smi -q"), 5),
        "doctor": Stage(command("{bench} -m servers backends"), 10),
        "tests": Stage(
            command("{vllm} -m pytest -s -m gpu --durations=8 tests/vllm/test_attention_exact.py"),
            80,
        ),
        "smoke": Stage(
            smoke(
                [
                    *((m, b, "eager") for m in SMOKE_MODELS for b in CUDA_BACKENDS),
                    *(("llama-3.2-1b", b, "piecewise") for b in OURS),
                ],
                7,
            ),
            120,
        ),
        "smoke-families": Stage(smoke([(m, STOCK, "eager") for m in OTHER_FAMILIES], 7), 90),
        "answers": Stage(answers(CUDA_BACKENDS), 90),
        "answers-again": Stage(answers(OURS), 90),
        "verify": Stage(compared(to_verify()), 100),
        # alone, for its time
        "verify-flash2": Stage(compared(SLOW), 400),
        "turns": Stage(
            command(
                "{bench} scripts/by_turns.py measure --out {out} --model llama-3.2-1b --our-s 66 "
                f"--backend {STOCK} --execution full "
                "--kv-cache-gib 24 --limit-s {limit} "
                "--shape 32768x8:ours,off,ours --shape 8192x16:ours,on,off,off,on,on,off,off,on"
            ),
            200,
        ),
        "equal-arms": Stage(equal_arms(), 300),
        "equal-arms-0-2": Stage(equal_arms("0-2"), 300),
        "equal-arms-3-4": Stage(equal_arms("3-4"), 300),
        "boots": Stage(boots, 150),
        "energy": Stage(command("{bench} -m telemetry selftest --quick --out {out}"), 240),
        "layers": Stage(
            command(
                "{vllm} -m servers.bench.layers --device cuda --limit-s 240 --within-s {within} "
                f"--out {{out}}/layers.json --backends '{','.join(by_layer())}'"
            ),
            60,
        ),
    }


def main() -> int:
    """Run the stages asked for, in order, until the deadline. Returns 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline-s", type=float, required=True)
    parser.add_argument("--stages", required=True, help=", ".join(table()))
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
    except StageError as error:
        print(f"{name}: failed after {time.monotonic() - started:.0f} s: {error}", flush=True)
        return True
    (folder / "done").write_text(f"{time.monotonic() - started:.1f} s\n")
    print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
