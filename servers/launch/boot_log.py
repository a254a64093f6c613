"""Reading vLLM's own log: why it died, and what it said about its kernels. Pure text in, facts out."""

import re
from dataclasses import dataclass

from greenbench.contract.vllm_log import ANSI, total_bytes

# "1795.5 (EngineCore pid=12) ERROR 11-23 18:00:00 [core.py:100] ValueError: ..." -> "ValueError: ..."
_PREFIX = re.compile(
    r"^([\d.]+ )?(\([^)]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]+\]\s?)?"
)
_ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b(?:: |$)")
_ARGPARSE = re.compile(r"^\S+: error: ")
# These name no cause: they say that something said above was wrong.
_CONSEQUENCES = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "Worker failed with error",
    "EngineDeadError",
    "EngineCore encountered an issue",
    "Executor failed",
    "cancelled",
    "KeyboardInterrupt",
    "SystemExit",
)
_UNLOADING = re.compile(r"^(nanobind: |See https://nanobind|\s*- (leaked |\.\.\. skipped))")
MAX_LENGTH = 300


def last_error(log: str) -> str | None:
    """The line that names the cause of a death: the first error of the last group, not its echoes.

    A traceback's last line is repeated by every process above the one that failed, each time wrapped in
    a more general error; those wrappers are passed over, unless there is nothing else: an engine that was
    killed says nothing itself. Without any error line: the last one, but for what is said at unloading.
    """
    lines = [_PREFIX.sub("", ANSI.sub("", line)).rstrip() for line in log.splitlines()]
    for index in range(len(lines) - 1, -1, -1):
        if _names_a_cause(lines[index]):
            return _with_detail(lines, index)[:MAX_LENGTH]
    echoes = [line for line in lines if _ERROR.match(line)]
    spoken = echoes or [line for line in lines if line.strip() and not _UNLOADING.match(line)]
    return spoken[-1].strip()[:MAX_LENGTH] if spoken else None


def _names_a_cause(line: str) -> bool:
    if _ARGPARSE.match(line):
        return True
    return bool(_ERROR.match(line)) and not any(word in line for word in _CONSEQUENCES)


def _with_detail(lines: list[str], index: int) -> str:
    """pydantic puts the sentence on the lines after '1 validation error for X'."""
    line = lines[index].strip()
    if "validation error" not in line:
        return line
    detail = [part.strip() for part in lines[index + 1 : index + 3]]
    wanted = next((part for part in detail if part.startswith("Value error,")), " ".join(detail))
    return f"{line}: {wanted.removeprefix('Value error, ')}"


# What a line says that ends a stage of the boot. Each process writes its own; the order is that of a boot.
_STAGE_ENDS = {
    "imports": re.compile(r"non-default args:"),
    "engine_start": re.compile(r"Initializing a V1 LLM engine"),  # its imports, in its own process
    "load": re.compile(r"(Loading weights|Model loading) took"),
    "compile": re.compile(r"torch\.compile took"),
    "warm_up": re.compile(
        r"init engine \(.*\) took"
    ),  # kernels built and tuned, graphs captured, KV pool
}


def boot_stages(log: str, started_unix_s: float, healthy_unix_s: float) -> dict[str, float]:
    """Seconds by stage from the process's start until it answered; they add up to that time.

    A stage that the log does not show is in the next one; ``api`` is what is left at the end.
    """
    ends: dict[str, float] = {}
    for line in log.splitlines():
        stamp, _, text = line.partition(" ")
        for stage, says in _STAGE_ENDS.items():
            if says.search(text) and re.fullmatch(r"\d{9,}\.\d+", stamp):
                ends[stage] = float(stamp)
    stages, before = {}, started_unix_s
    for stage, end in [*((s, ends[s]) for s in _STAGE_ENDS if s in ends), ("api", healthy_unix_s)]:
        if end >= before:
            stages[stage], before = end - before, end
    return stages


def stages_over(log: str) -> list[str]:
    """Stages of the boot whose end the log shows, in the order of a boot."""
    return [stage for stage, says in _STAGE_ENDS.items() if says.search(log)]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the log says of the attention kernels; None and empty where it says nothing."""

    flash_attention: int | None = None  # the version
    flashinfer_decode: str | None = None  # e.g. ``xqa``; where KV groups differ joined by ``+``
    chosen: tuple[str, ...] = ()  # vLLM's names of the backends that it takes


_CHOSEN = re.compile(
    r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+) (?:backend\.|attention backend out of)"
)


def kernels(log: str) -> Kernels:
    versions = re.findall(r"Using FlashAttention version (\d+)", log)
    decodes = dict.fromkeys(re.findall(r"decode_backend=([\w-]+)", log))
    return Kernels(
        int(versions[-1]) if versions else None,
        "+".join(decodes) or None,
        tuple(dict.fromkeys(_CHOSEN.findall(log))),
    )


def changed_cudagraph_mode(log: str) -> str | None:
    """The CUDA graph mode vLLM took in place of the one asked for, with no more than a warning."""
    modes = re.findall(r"setting cudagraph_mode=(\w+)", log)
    return modes[-1] if modes else None


def kv_memory_bytes(log: str) -> int | None:
    """GPU only: what the share of its memory left for the KV pool, on all cards of the server."""
    return total_bytes(log, r"Available KV cache memory: ([\d.]+) GiB")


def weights_bytes(log: str) -> int | None:
    """GPU only: vLLM says how much memory loading the model took; on all cards of the server."""
    return total_bytes(log, r"Model loading took ([\d.]+) Gi?B")


def operators(log: str) -> list[str]:
    """What backends of ours say computes their attention, e.g. ``SdpaImpl: flash kernel``; in order."""
    lines = re.findall(r"greenbench: (\w+) computes with ([^\n]+)", log)
    return list(dict.fromkeys(f"{impl}: {operator.strip()}" for impl, operator in lines))
