"""The table of backends against what each release's backend classes say of themselves, in its sources."""

from typing import Any, NamedTuple

import pytest

from greenbench.contract.config import ServerConfig
from greenbench.contract.vllm_versions import PLACEHOLDER, release_of
from servers.backends.host_facts import GPU_CAPABILITIES, HostFacts, ModelFacts
from servers.backends.others import others
from servers.backends.registry import BACKENDS, NVFP4, Backend
from servers.backends.requirements import Case, refusals
from tests.vllm.interfaces import RELEASES

CARDS = sorted({*GPU_CAPABILITIES.values(), (7, 5), (8, 6), (11, 0), (12, 0), (12, 1), (13, 0)})
each_release = pytest.mark.parametrize("version", RELEASES)
# the name that vLLM has for what a row runs, where it is not the one it is asked for by
RUNS = {"turboquant": "TURBOQUANT"}
ROWS = {name: RUNS.get(name, row.vllm_name) for name, row in BACKENDS.items() if not row.is_ours}
each_row = pytest.mark.parametrize("name", ROWS)


def claims(version: str, name: str) -> dict[str, Any]:
    return RELEASES[version]["backends"]["AttentionBackendEnum"][ROWS[name]]


@each_release
def test_the_rows_and_the_others_are_all_that_vllm_lists(version: str) -> None:
    listed = RELEASES[version]["backends"]
    names = [*ROWS.values(), *(each.name for each in others(release_of(version)))]
    assert set(names) == {*listed["AttentionBackendEnum"], *listed["MambaAttentionBackendEnum"]}
    other = [each.name for each in others(release_of(version))]
    assert len(other) == len(set(other)) and not set(other) & set(ROWS.values())
    assert PLACEHOLDER in other


@each_release
@each_row
def test_the_class_that_proves_it_is_its_own(version: str, name: str) -> None:
    assert claims(version, name)["get_impl_cls"] in {f"return {i}" for i in BACKENDS[name].impls}


@each_release
@each_row
def test_dtypes(version: str, name: str) -> None:
    assert set(BACKENDS[name].dtypes) == set(claims(version, name)["supported_dtypes"])


@each_release
def test_kv_dtypes_of_all_rows_of_a_class_are_its_own(version: str) -> None:
    """A row that pins a kernel or a version reads less; together they read all, and nothing else."""
    for vllm_name in set(ROWS.values()):
        rows = [BACKENDS[name] for name in ROWS if ROWS[name] == vllm_name]
        said = set(claims(version, rows[0].name)["supported_kv_cache_dtypes"])
        if vllm_name == "CPU_ATTN":
            assert said == set(rows[0].kv_dtypes)
        assert {dtype for row in rows for dtype in row.kv_dtypes} == said, vllm_name


class Capability(NamedTuple):
    major: int
    minor: int = 0


def runs_on(said: str, capability: Capability) -> bool:
    """The claim as vLLM would answer it: one expression over the capability."""
    expression = said.removeprefix("return ")
    return bool(eval(expression, {"capability": capability, "DeviceCapability": Capability}))


@each_release
@each_row
@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_vllm_refuses_is_refused(
    version: str, name: str, card: tuple[int, int]
) -> None:
    row = BACKENDS[name]
    if row.devices == ("cpu",):
        pytest.skip("no card")
    host = HostFacts("X", card, vllm_build="cuda", vllm_version=version)
    said = claims(version, name).get("supports_compute_capability", "return True")
    ours = refusals(Case(row, host)) == []
    theirs = runs_on(said, Capability(*card))
    assert theirs or not ours, f"{name} on {card}: vLLM {version} says {said}"
    if not _pins(row):
        newest = card >= (8, 0)  # the wheels' kernels, and bfloat16
        assert ours or not theirs or not newest, f"{name} on {card}: vLLM {version} says {said}"


def _pins(row: Backend) -> bool:
    """A row that asks for one kernel of several is for fewer cards than the class."""
    return row.flash_attn_version is not None or row.decode_kernel is not None


@each_release
@each_row
def test_head_sizes(version: str, name: str) -> None:
    said = claims(version, name)
    row = BACKENDS[name]
    listed = said.get("get_supported_head_sizes", "return []").removeprefix("return ")
    rule = said["supports_head_size"].removeprefix("return ")
    sizes = range(1, 1025)
    if (
        "head_size % 8 != 0" in rule
    ):  # FlashAttention's; beyond 256 with version 4 alone, on some cards
        assert "head_size <= 256" in rule
        theirs = set(range(8, 257, 8))
    elif "cls" in rule:  # the rule of all backends: what is listed, and all where nothing is
        theirs = set(eval(listed)) or set(sizes)
    else:
        theirs = {size for size in sizes if eval(rule, {"head_size": size})}
    ours = {size for size in sizes if size in row.head_sizes}
    assert ours <= theirs
    assert _pins(row) or ours == theirs


@each_release
@each_row
def test_the_page_is_one_that_the_kernel_reads(version: str, name: str) -> None:
    row = BACKENDS[name]
    said = claims(version, name)["get_supported_kernel_block_sizes"].splitlines()[-1]
    sizes = eval(said.removeprefix("return "), {"MultipleOf": lambda step: range(step, 2048, step)})
    size = row.block_sizes[row.devices[0]]
    assert any(size in each if isinstance(each, range) else size == each for each in sizes), said


@pytest.mark.parametrize(
    ("name", "card", "version", "words"),
    [
        ("flashinfer", (9, 0), "0.31.0", "nvfp4 since vLLM 0.32, 0.31.0 is installed"),
        ("flashinfer", (9, 0), "0.33.0", None),
        ("flashinfer", (10, 0), "0.33.0", "nvfp4 on compute capability 8.x, 9.x or 12.x only"),
        ("flashinfer_trtllm", (10, 0), "0.31.0", None),
        ("flashinfer_xqa", (9, 0), "0.33.0", "nvfp4 on compute capability 12.x only"),
        ("flash_attn", (9, 0), "0.33.0", "not of nvfp4"),
    ],
)
def test_kv_dtypes_hang_on_card_and_release(
    name: str, card: tuple[int, int], version: str, words: str | None
) -> None:
    host = HostFacts("X", card, vllm_build="cuda", vllm_version=version)
    case = Case(BACKENDS[name], host, ModelFacts("m"), server=ServerConfig(kv_cache_dtype=NVFP4[0]))
    said = refusals(case)
    assert [words in reason for reason in said] == ([True] if words else []), said
