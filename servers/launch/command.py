"""From a request to the argv and environment of one vLLM server. Pure: no I/O, no clock, no os.environ.

Every flag that could differ between two backends is given explicitly, also where it repeats vLLM's
default: a default that changes with the backend would be measured as the backend.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from greenbench.contract.config import SECRET, ServerConfig, ServerRequest
from greenbench.contract.cpu import ServedDtype
from greenbench.contract.vllm_versions import Release
from servers.backends.choice import resolve
from servers.backends.host_facts import Device, HostFacts, ModelFacts, served_dtype
from servers.backends.own_flags import KEY_ENV, OwnFlags, own_flags, refused, shut_out
from servers.backends.registry import Backend
from servers.backends.requirements import Case, refusals

GIB = 1024**3
CPU_KV_POOL_GIB = 1.0

# What a server takes over from the person's environment. VLLM_* and everything else that could change what
# is measured stays out unless the sweep names it (server.env); secrets are passed on and never recorded.
PASSED_ON = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
    "XDG_CACHE_HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH",
    "CC", "CXX", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NCCL_DEBUG", "NCCL_P2P_DISABLE",
    "NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS",
    "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE", "FLASHINFER_CUDA_ARCH_LIST", "TORCH_CUDA_ARCH_LIST",
    "CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE", "MAX_JOBS", "PYTHONPATH", "HF_HOME", "HF_HUB_CACHE",
    "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy",
    "no_proxy",
))  # fmt: skip
RECORDED = frozenset((
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_CPU_NUM_OF_RESERVED_CPU", "NCCL_P2P_DISABLE", "NCCL_NVLS_ENABLE", "LD_PRELOAD",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS",
))  # fmt: skip
# Beginnings of the names that vLLM and what it loads listen to: of these the ones left out are said.
LISTENED_TO = (
    "ATEN_", "CUBLAS", "CUDA_", "CUDNN", "FLASHINFER_", "FLASH_", "GLOO_", "GOMP_", "HF_", "KMP_", "LD_",
    "MALLOC_", "MKL_", "NCCL_", "NVSHMEM_", "OMP_", "PYTORCH_", "RAY_", "SAFETENSORS_", "TORCH",
    "TOKENIZERS_", "TRANSFORMERS_", "TRITON_", "UCX_", "VLLM_",
)  # fmt: skip
# Of these names, what no server is meant by: our own setting, and a label of container images.
NOT_MEANT = frozenset(("VLLM_PYTHON", "CUDA_VERSION"))

# full: vLLM's own default, decode steps as whole graphs and mixed steps piecewise.
CUDAGRAPH_MODES = {"piecewise": "PIECEWISE", "full": "FULL_AND_PIECEWISE"}


@dataclass(frozen=True, slots=True)
class Command:
    argv: list[str]
    env: dict[str, str]  # what the launcher sets; the rest is passed on by name


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided of one server before its model is fetched; ``command`` writes it down."""

    request: ServerRequest
    backend: Backend
    options: dict[str, int | float | str | bool]
    refusals: list[str]
    max_model_len: int | None  # None: left to vLLM, since nobody knows the model's window
    device: Device
    dtype: ServedDtype
    facts: ModelFacts
    server: ServerConfig  # as vLLM will follow it: the person's own flags count
    vllm: Release


def plan(request: ServerRequest, host: HostFacts, facts: ModelFacts) -> Plan:
    """Work out one server. Unknown backend or option, or a window too long: UserError (see ``resolve``)."""
    backend, options = resolve(request.backend)
    dtype = served_dtype(request.model, request.server, host)
    flags = own_flags([*request.model.server_args, *request.server.extra_args])
    server = _as_served(request.server, flags)
    case = Case(backend, host, facts, dtype.name, server)
    device = host.device if host.device in backend.devices else backend.devices[0]
    running = request.server.base_url is not None  # it has a window already, and says it when asked
    own_window = None if running else facts.window_tokens
    max_model_len = server.max_model_len or request.model.max_model_len or own_window
    windowed = [] if running else _window_reasons(max_model_len, facts)
    reasons = [*refusals(case), *windowed, *([] if running else _flag_conflicts(request))]
    return Plan(
        request,
        backend,
        options,
        reasons,
        max_model_len,
        device,
        dtype,
        facts,
        server,
        host.release,
    )


def _as_served(server: ServerConfig, flags: OwnFlags) -> ServerConfig:
    """The settings that vLLM will follow: the person's own flags come last, and count."""
    said = {
        "kv_cache_dtype": flags.kv_cache_dtype,
        "tensor_parallel": flags.tensor_parallel,
        "max_model_len": flags.max_model_len,
    }
    return server.model_copy(update={key: value for key, value in said.items() if value})


def command(
    plan: Plan, model_path: str, port: int | str, vllm_python: str, model_is_local: bool = True
) -> Command:
    request = plan.request
    return Command(
        argv=[
            *(vllm_python, "-m", plan.vllm.entry_point),
            *_model_flags(plan, model_path),
            *("--host", "127.0.0.1", "--port", str(port)),
            *_backend_flags(plan),
            *_memory_flags(plan),
            *_execution_flags(request.server.execution),
            *_observation_flags(request.server.iteration_log),
            *request.model.server_args,
            *request.server.extra_args,
        ],
        env=_given(request) | _env(plan, model_is_local),
    )


def child_env(
    base: Mapping[str, str], pinned: Mapping[str, str], named: Iterable[str] = ()
) -> dict[str, str]:
    """The server's whole environment: of ``base`` what is listed or ``named``, and what the launcher sets."""
    return {**{name: base[name] for name in PASSED_ON.union(named) if name in base}, **pinned}


def recorded_env(
    base: Mapping[str, str], pinned: Mapping[str, str], named: Iterable[str] = ()
) -> dict[str, str]:
    """The part of it that may stand in a run directory."""
    kept = RECORDED.union(name for name in named if not SECRET.search(name))
    return {**{name: base[name] for name in kept if name in base}, **pinned}


def left_out(
    base: Mapping[str, str], pinned: Mapping[str, str], named: Iterable[str] = ()
) -> list[str]:
    """Names of variables that vLLM would listen to and that the server does not get as they are set here."""
    gets = child_env(base, pinned, named)
    return sorted(
        name
        for name, value in base.items()
        if name.startswith(LISTENED_TO) and name not in NOT_MEANT and gets.get(name) != value
    )


def unset(base: Mapping[str, str], request: ServerRequest) -> list[str]:
    """Why the variables that a request passes on by name cannot be: they have no value."""
    asked = request.server.env
    return [
        f"server.env passes on {name}, which is not set here; set it, or give its value in the sweep"
        for name, value in asked.items()
        if value is None and name not in base
    ]


def _model_flags(plan: Plan, path: str) -> tuple[str, ...]:
    request = plan.request
    return (
        *("--model", path),
        *("--served-model-name", request.model.name),
        *("--dtype", plan.dtype.name),
        *(("--max-model-len", str(plan.max_model_len)) if plan.max_model_len else ()),
        *("--seed", str(request.server.seed)),
        *("--tensor-parallel-size", str(request.server.tensor_parallel)),
        *("--generation-config", "vllm"),  # a model's own sampling defaults would differ by model
    )


def _backend_flags(plan: Plan) -> list[str]:
    server, backend = plan.request.server, plan.backend
    flags = ["--attention-backend", backend.name_in(plan.vllm)]
    if backend.flash_attn_version is not None:
        flags += ["--attention-config.flash_attn_version", str(backend.flash_attn_version)]
    for name, value in backend.attention_config.items():
        flags += [f"--attention-config.{name}", value]
    flags += ["--kv-cache-dtype", server.kv_cache_dtype]
    flags += ["--block-size", str(server.block_size or backend.block_sizes[plan.device])]
    flags += ["--max-num-seqs", str(server.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(server.max_num_batched_tokens)]
    prefix = "--enable-prefix-caching" if server.prefix_caching else "--no-enable-prefix-caching"
    return [*flags, "--enable-chunked-prefill", prefix]


def _memory_flags(plan: Plan) -> list[str]:
    server = plan.request.server
    if server.num_gpu_blocks is not None:
        pool = ["--num-gpu-blocks-override", str(server.num_gpu_blocks)]
    else:
        pool = []
    pool_bytes = kv_pool_bytes(plan)
    if pool_bytes is not None:  # not VLLM_CPU_KVCACHE_SPACE: that takes whole GiB, and the CPU only
        pool += ["--kv-cache-memory-bytes", str(pool_bytes)]
    if plan.device == "cpu":
        return pool
    # autotuning picks sampling and MoE kernels by timing them at boot: minutes, and another pick each time
    share = ["--gpu-memory-utilization", str(server.gpu_memory_utilization)]
    return [*pool, *share, "--no-enable-flashinfer-autotune"]


def kv_pool_bytes(plan: Plan) -> int | None:
    """What the KV pool is told to take; None: a GPU's share, measured by vLLM at boot."""
    gib = plan.request.server.kv_cache_gib or (CPU_KV_POOL_GIB if plan.device == "cpu" else None)
    return None if gib is None else int(gib * GIB)


def _execution_flags(execution: str) -> list[str]:
    if execution == "eager":
        return ["--enforce-eager"]
    mode = json.dumps({"cudagraph_mode": CUDAGRAPH_MODES[execution]})
    return ["--no-enforce-eager", "--compilation-config", mode]


def _observation_flags(iteration_log: bool) -> list[str]:
    flags = [
        "--fail-on-environ-validation",
        "--enable-per-request-metrics",
        "--enable-force-include-usage",
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    ]
    return [*flags, "--enable-logging-iteration-details"] if iteration_log else flags


def _given(request: ServerRequest) -> dict[str, str]:
    return {name: value for name, value in request.server.env.items() if value is not None}


def _env(plan: Plan, model_is_local: bool) -> dict[str, str]:
    backend = plan.backend
    env = {
        # unset, vLLM would load every plugin that happens to be installed; 'none' matches no plugin
        "VLLM_PLUGINS": "greenbench,greenbench_cpu" if backend.is_ours else "none",
        "VLLM_SERVER_DEV_MODE": "1",  # model inspection and /server_info, the proof; loopback only
        "VLLM_NO_USAGE_STATS": "1",
        # FlashInfer's sampler is compiled at a first start (136 s on an H100); greedy requests never use it
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # a logging format, put before vLLM's own: its date has whole seconds and no year, and the
        # duration of an engine step is placed in time by this epoch
        "VLLM_LOGGING_PREFIX": "%(created).6f ",
        "VLLM_LOGGING_COLOR": "0",
        "PYTHONUNBUFFERED": "1",
    }
    env |= backend.plugin_env(plan.options, backend.name_in(plan.vllm))
    if model_is_local:
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _window_reasons(max_model_len: int | None, facts: ModelFacts) -> list[str]:
    if facts.window_tokens is None or (max_model_len or 0) <= facts.window_tokens:
        return []
    return [
        f"max_model_len {max_model_len} is longer than the window of {facts.name}, "
        f"{facts.window_tokens} tokens; ask for that at most"
    ]


def _flag_conflicts(request: ServerRequest) -> list[str]:
    server = request.server
    reasons = refused(server.extra_args, request.model.server_args)
    if KEY_ENV in server.env:
        reasons.append(shut_out(KEY_ENV))
    forbids = "--no-enable-prefix-caching" in request.model.server_args
    if forbids and request.server.prefix_caching:
        reasons.append(
            f"{request.model.name} cannot run with prefix caching; set prefix_caching: false"
        )
    return reasons
