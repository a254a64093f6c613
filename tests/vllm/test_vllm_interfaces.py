"""Our use of vLLM against the interfaces of every supported release, without running any of them.

Guards what no server here can show: a release without a CPU build. The interfaces are recorded from the
sources by ``scripts/vllm_interfaces.py``.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import vllm

from greenbench.contract.config import ModelConfig, ServerConfig, ServerRequest
from greenbench.contract.vllm_versions import SUPPORTED, release_of
from scripts.vllm_interfaces import Source, our_files, record, uses
from servers.backends.choice import parse_choice
from servers.backends.host_facts import HostFacts, ModelFacts
from servers.backends.registry import BACKENDS
from servers.launch.command import command, plan
from tests.vllm.interfaces import RELEASES

each_release = pytest.mark.parametrize("version", RELEASES)


def test_every_supported_release_is_recorded() -> None:
    assert [release_of(version) for version in RELEASES] == list(SUPPORTED)
    for version, said in RELEASES.items():
        assert said["torch"].startswith(release_of(version).torch)


def test_the_record_is_that_of_the_installed_release() -> None:
    """Guards the recorder: what it reads from the installed sources is what the file says."""
    version = vllm.__version__.split("+")[0]
    folder = Path(vllm.__file__).parents[1]
    said = record(Source(folder, version=version, torch=RELEASES[version]["torch"]))
    assert said == RELEASES[version]


def recorded(version: str, module: str, name: str) -> dict[str, Any] | None:
    return RELEASES[version]["names"].get(module, {}).get(name)


@each_release
def test_every_name_we_import_is_there(version: str) -> None:
    seen = 0
    for path in our_files():
        for use in uses(path):
            if use.name is not None:
                seen += 1
                assert recorded(version, use.module, use.name), (
                    f"{path.name}: {use.module}.{use.name} is not in vLLM {version}, or not recorded"
                )
    assert seen > 60


# Ours, and what it overrides in vLLM: our class → (its file, its bases as written)
@cache
def our_classes() -> dict[str, tuple[Path, ast.ClassDef]]:
    return {
        node.name: (path, node)
        for path in our_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def bare(base: ast.expr) -> str:
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base)


def above(version: str, path: Path, node: ast.ClassDef) -> Iterator[dict[str, Any]]:
    """vLLM's classes that ours is made of, through ours in between."""
    imported = {use.alias: use for use in uses(path)}
    for base in node.bases:
        name = bare(base)
        if name in imported and (use := imported[name]).name:
            found = recorded(version, use.module, use.name)
            assert found is not None
            yield found
        elif name in our_classes():
            yield from above(version, *our_classes()[name])


def accepts(function: ast.FunctionDef, wanted: list[str]) -> str | None:
    """What of vLLM's parameters ours does not take; None where a call by vLLM fits."""
    given = function.args
    ours = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)][1:]
    static = any(ast.unparse(mark) == "staticmethod" for mark in function.decorator_list)
    ours = [given.args[0].arg, *ours] if static and given.args else ours
    theirs = [name.rstrip("=") for name in wanted if name not in ("self", "cls")]
    plain = [name for name in theirs if not name.startswith("*")]
    if given.kwarg is None and (missing := [name for name in plain if name not in ours]):
        return f"takes no {', '.join(missing)}"
    required = len(given.args) - len(given.defaults) - (0 if static else 1)
    own = [name for name in ours[:required] if name not in plain]
    return f"wants {', '.join(own)}" if own else None


@each_release
def test_what_we_override_takes_what_vllm_gives(version: str) -> None:
    """vLLM calls our builders, implementations and managers by these parameters."""
    seen = 0
    for name, (path, node) in our_classes().items():
        for base in above(version, path, node):
            for each in node.body:
                wanted = (
                    base["members"].get(each.name) if isinstance(each, ast.FunctionDef) else None
                )
                if wanted is not None and each.name != "__init__":
                    seen += 1
                    fault = accepts(each, wanted)
                    assert fault is None, f"{name}.{each.name} {fault}, in vLLM {version}: {wanted}"
    assert seen > 10


@each_release
def test_no_method_that_vllm_wants_is_missing(version: str) -> None:
    def brings(name: str) -> set[str]:
        _, node = our_classes()[name]
        own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        return own.union(
            *(brings(bare(base)) for base in node.bases if bare(base) in our_classes())
        )

    rows = [row for row in BACKENDS.values() if row.is_ours]
    assert len(rows) >= 4
    for row in rows:
        name = str(row.class_path).rpartition(".")[2]
        for base in above(version, *our_classes()[name]):
            missing = set(base.get("abstract", ())) - brings(name)
            assert not missing, f"{name} lacks {missing}, which vLLM {version} wants"


def calls(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Calls of a vLLM function or class by its imported name."""
    imported = {use.alias: use for use in uses(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            use = imported.get(node.func.id)
            if use is not None and use.name:
                yield node, use.module, use.name


@each_release
def test_what_we_call_takes_what_we_give(version: str) -> None:
    seen = 0
    for path in our_files():
        for node, module, name in calls(path):
            found = recorded(version, module, name) or {}
            wanted = found.get("parameters")
            if wanted is None:
                continue
            seen += 1
            names = [each.rstrip("=") for each in wanted]
            rest = any(each.startswith("**") for each in names)
            for keyword in node.keywords:
                assert rest or keyword.arg is None or keyword.arg in names, (
                    f"{path.name}:{node.lineno}: {name} of vLLM {version} takes no {keyword.arg}"
                )
            starred = any(isinstance(each, ast.Starred) for each in node.args)
            positional = names[: names.index("*")] if "*" in names else names
            assert (
                starred
                or any(each.startswith("*") for each in names)
                or (len(node.args) <= len(positional))
            ), f"{path.name}:{node.lineno}: {name} of vLLM {version} takes {wanted}"
            if not starred and not any(each.arg is None for each in node.keywords):
                required = [each for each in wanted if not each.endswith("=") and each[0] != "*"]
                given = {*positional[: len(node.args)], *(each.arg for each in node.keywords)}
                assert set(required) <= given, f"{path.name}:{node.lineno}: {name} wants {required}"
    assert seen > 10


@each_release
def test_what_we_read_of_vllms_objects_is_there(version: str) -> None:
    """Attributes of parameters and names whose annotation, or value, is a class of vLLM."""
    seen = 0
    for path in our_files():
        imported = {use.alias: use for use in uses(path) if use.name}
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            given = function.args
            typed = {
                each.arg: bare(each.annotation)
                for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)
                if each.annotation is not None
            }
            for node in ast.walk(function):
                if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                    continue
                use = imported.get(typed.get(node.value.id, node.value.id).strip('"'))
                found = use and recorded(version, use.module, str(use.name))
                if found and "members" in found:
                    seen += 1
                    assert node.attr in found["members"] or node.attr.startswith("__"), (
                        f"{path.name}:{node.lineno}: {use.name} of vLLM {version} has no {node.attr}"
                    )
    assert seen > 15


@each_release
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("execution", ["eager", "full"])
def test_the_command_line_is_one_that_it_reads(version: str, name: str, execution: str) -> None:
    """Guards against a flag that a release does not know: it ends every server at its start."""
    said = RELEASES[version]
    build = "cpu" if BACKENDS[name].devices == ("cpu",) else "cuda"
    host = HostFacts("X", (9, 0), vllm_build=build, vllm_version=version)
    server = ServerConfig(execution=execution, num_gpu_blocks=10, kv_cache_gib=1)
    request = ServerRequest(
        model=ModelConfig(name="m", path="/m", max_model_len=64),
        backend=parse_choice(name),
        server=server,
    )
    made = command(plan(request, host, ModelFacts("m")), "/m", 1, "python3")
    assert made.argv[2] in said["entry_points"]
    for word in (each for each in made.argv if each.startswith("--")):
        flag, dot, inner = word.partition(".")
        assert flag.replace("--no-", "--") in said["flags"], f"{flag} is not in vLLM {version}"
        assert not dot or inner in said["attention_config"], f"{word} is not in vLLM {version}"
    asked = made.argv[made.argv.index("--attention-backend") + 1]
    own = asked.startswith("GREENBENCH_") and release_of(version).names_backends
    assert own or asked in {"auto", *said["backends"]["AttentionBackendEnum"]}
