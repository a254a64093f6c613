"""Why a backend cannot run: each reason a sentence, found before a GPU is touched.

An empty list means: nothing known speaks against it. vLLM still validates on its own at start.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from greenbench.contract.config import ServerConfig
from greenbench.contract.installation import INSTALL_VLLM
from servers.backends.host_facts import FEATURES, Device, HostFacts, ModelFacts
from servers.backends.registry import BACKENDS, FP8, Backend


@dataclass(frozen=True, slots=True)
class Case:
    """One server that is asked for. ``model`` is None when only backend and host are in question."""

    backend: Backend
    host: HostFacts
    model: ModelFacts | None = None
    dtype: str = "auto"
    server: ServerConfig = field(default_factory=ServerConfig)


def refusals(case: Case) -> list[str]:
    case = replace(case, backend=case.backend.on(case.host.device))
    return [reason for check in CHECKS for reason in check(case)]


def _vllm(case: Case) -> Iterator[str]:
    if case.host.vllm_build is None:
        python = case.host.vllm_python
        yield f"vLLM is not installed in {python}; {INSTALL_VLLM}"


def _device(case: Case) -> Iterator[str]:
    backend, host = case.backend, case.host
    if host.vllm_build == "cuda" and not host.has_gpu:
        yield f"the vLLM in {host.vllm_python} is built for CUDA, and no NVIDIA GPU answers here"
        return
    if host.vllm_build is None or host.device in backend.devices:
        return
    who = _called(backend, "devices", host.device)
    if "cuda" not in backend.devices:
        yield f"{backend.name} runs on the CPU build of vLLM, and this one is built for CUDA"
    elif not host.has_gpu:
        yield f"{who} needs an NVIDIA GPU and none answers here"
    else:
        yield f"{who} needs the CUDA build of vLLM, and the CPU build is installed"


def _called(backend: Backend, field_name: str, device: Device) -> str:
    """By its name alone, unless what the field forbids is forbidden by its options."""
    whole = BACKENDS.get(backend.name, backend).on(device)
    alike = getattr(whole, field_name) == getattr(backend, field_name)
    return backend.name if alike else f"{backend.name} with these options"


def _capability(case: Case) -> Iterator[str]:
    backend, has = case.backend, case.host.capability
    if has is None or case.host.device != "cuda" or "cuda" not in backend.devices:
        return
    card = f"{case.host.gpu_name} has {_dotted(has)}"
    if backend.capability_min and has < backend.capability_min:
        yield (
            f"{_called(backend, 'capability_min', 'cuda')} needs compute capability "
            f"{_dotted(backend.capability_min)} or newer, {card}"
        )
    if backend.capability_max and has > backend.capability_max:
        yield (
            f"{backend.name} is built up to compute capability {_dotted(backend.capability_max)}, {card}"
        )
    if backend.capability_majors and has[0] not in backend.capability_majors:
        yield f"{backend.name} needs compute capability {_majors(backend.capability_majors)}, {card}"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _modules(case: Case) -> Iterator[str]:
    there = case.host.modules
    if there is None or case.host.device not in case.backend.devices:
        return
    for module, package in case.backend.modules.items():
        if module not in there:
            python = case.host.vllm_python
            yield f"{case.backend.name} needs the module {module} (package {package}) in {python}"


def _dtype(case: Case) -> Iterator[str]:
    if case.dtype != "auto" and case.dtype not in case.backend.dtypes:
        who = _called(case.backend, "dtypes", case.host.device)
        yield f"{who} computes in {_or(case.backend.dtypes)}, not in {case.dtype}"


def _kv_dtype(case: Case) -> Iterator[str]:
    if case.model is None:  # no server is asked for, so no KV cache either
        return
    wanted, backend, has = case.server.kv_cache_dtype, case.backend, case.host.capability
    majors, since = backend.kv_majors.get(wanted), backend.kv_since.get(wanted)
    if wanted not in backend.kv_dtypes and not (wanted == case.dtype != "auto"):
        yield f"{backend.name} reads a KV cache of {_or(backend.kv_dtypes)}, not of {wanted}"
    elif majors is not None and has is not None and has[0] not in majors:
        yield (
            f"{backend.name} reads a KV cache of {wanted} on compute capability {_majors(majors)} only, "
            f"{case.host.gpu_name} has {_dotted(has)}"
        )
    elif since is not None and case.host.release.series < since:
        yield (
            f"{backend.name} reads a KV cache of {wanted} since vLLM {since[0]}.{since[1]}, "
            f"{case.host.vllm_version} is installed"
        )


def _majors(majors: tuple[int, ...]) -> str:
    return _or([f"{major}.x" for major in majors])


def _cpu_fp8(case: Case) -> Iterator[str]:
    flags = case.host.cpu_flags
    wanted = case.server.kv_cache_dtype
    if case.host.device == "cpu" and wanted in FP8 and flags is not None and "avx512f" not in flags:
        yield f"a KV cache of {wanted} needs AVX-512, which this CPU has not; use auto"


def _head_size(case: Case) -> Iterator[str]:
    size = case.model.head_size if case.model else None
    if size is not None and size not in case.backend.head_sizes:
        sizes = case.backend.head_sizes
        if isinstance(sizes, range):
            step = f", multiples of {sizes.step}" if sizes.step > 1 else ""
            allowed = f"from {sizes.start} to {sizes[-1]}{step}"
        else:
            allowed = _or([str(each) for each in sizes])
        who = _called(case.backend, "head_sizes", case.host.device)
        yield f"{who} has head sizes {allowed}; {case.model.name} has {size}"  # type: ignore[union-attr]


def _features(case: Case) -> Iterator[str]:
    for feature in sorted(case.model.features if case.model else ()):
        if feature not in case.backend.features:
            yield f"{case.backend.name} does not serve {FEATURES[feature]}, which {case.model.name} has"  # type: ignore[union-attr]


def _needs(case: Case) -> Iterator[str]:
    model = case.model
    if model is None or model.unknown is not None:
        return
    for feature in sorted(case.backend.needs - model.features):
        yield f"{case.backend.name} is for {FEATURES[feature]} alone, which {model.name} has not"


def _execution(case: Case) -> Iterator[str]:
    wanted, backend = case.server.execution, case.backend
    if wanted == "eager":
        return
    if case.host.device == "cpu":
        yield f"execution '{wanted}' records CUDA graphs, which a CPU has not; use execution: eager"
    elif wanted not in backend.executions:
        yield f"{backend.name} runs as {_or(backend.executions)}, not with execution '{wanted}'"


def _or(words: tuple[str, ...] | list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _vllm,
    _device,
    _capability,
    _modules,
    _dtype,
    _kv_dtype,
    _cpu_fp8,
    _head_size,
    _features,
    _needs,
    _execution,
)
