"""What this project uses of vLLM, read from a release's sources without running them.

    pip download vllm==0.33.0 --no-deps --only-binary :all: && unzip -q vllm-0.33.0-*.whl -d /tmp/vllm-0.33.0
    python -m scripts.vllm_interfaces /tmp/vllm-0.33.0

writes tests/vllm/data/interfaces-0.33.0.json: the names that our code imports with their parameters and
members, the flags of the server, and what each attention backend says it can do. SOURCE is a folder that
holds ``vllm/`` and its ``.dist-info``. ``tests/vllm/test_vllm_interfaces.py`` holds our code to the files.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from greenbench.contract.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "vllm" / "data"
OURS = (
    "servers/plugins",
    "servers/bench",
    "servers/models/resolver.py",
    "analysis/bottleneck/peaks_torch.py",
)
REGISTRY = "vllm.v1.attention.backends.registry"
ENUMS = ("AttentionBackendEnum", "MambaAttentionBackendEnum")
FLAG_MODULES = (
    "vllm.engine.arg_utils",
    "vllm.entrypoints.launchers.cli_args",  # up to 0.32
    "vllm.entrypoints.common.cli_args",
)
MAIN_MODULES = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.api_server",
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def our_files() -> list[Path]:
    places = [ROOT / each for each in OURS]
    return [
        path
        for each in places
        for path in (sorted(each.rglob("*.py")) if each.is_dir() else [each])
    ]


@dataclass(frozen=True, slots=True)
class Use:
    """A vLLM name that one of our files imports, as ``alias`` there. ``name`` None: the module itself."""

    path: Path
    alias: str
    module: str
    name: str | None


def uses(path: Path) -> Iterator[Use]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for each in node.names:
                yield Use(path, each.asname or each.name, str(node.module), each.name)
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "vllm":
                    yield Use(path, each.asname or each.name, each.name, None)


def mentioned() -> set[str]:
    """Every attribute and method name of our files: of vLLM's classes only these members are kept."""
    found: set[str] = set()
    for path in our_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, Function):
                found.add(node.name)
            elif isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def parameters(function: Function) -> list[str]:
    """Names in order; a default is written ``name=``, and stars as in Python."""
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    first_default = len(plain) - len(given.defaults)
    names = [each.arg + ("=" if at >= first_default else "") for at, each in enumerate(plain)]
    names += ["*" + given.vararg.arg] if given.vararg else (["*"] if given.kwonlyargs else [])
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        names.append(each.arg + ("=" if default is not None else ""))
    return names + (["**" + given.kwarg.arg] if given.kwarg else [])


class Source:
    """The modules of one release."""

    def __init__(self, folder: Path, version: str, torch: str | None) -> None:
        self.folder = folder
        self.version = version
        self.torch = torch

    @classmethod
    def unpacked(cls, folder: Path) -> "Source":
        metadata = next(iter(folder.glob("vllm*.dist-info/METADATA")), None)
        if metadata is None or not (folder / "vllm").is_dir():
            raise UserError(
                f"{folder}: a folder with vllm/ and its .dist-info is wanted; unpack a wheel there"
            )
        text = metadata.read_text()
        torch = re.search(r"^Requires-Dist: torch==([\w.+]+)", text, re.M)
        version = re.findall(r"^Version: (\S+)", text, re.M)[0]
        return cls(folder, version, torch[1] if torch else None)

    @cache  # noqa: B019  (one source a run)
    def tree(self, module: str) -> ast.Module | None:
        base = self.folder.joinpath(*module.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return ast.parse(path.read_text())
        return None

    def find(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Where a name is defined: its module and node, imports followed."""
        tree = self.tree(module)
        if tree is None:
            return None
        if self.tree(f"{module}.{name}") is not None:
            return module, ast.Pass()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ClassDef | Function)
                and node.name == name
                and node in _top(tree)
            ):
                return module, node
            if isinstance(node, ast.ImportFrom):
                for each in node.names:
                    if (each.asname or each.name) == name:
                        found = self.find(_absolute(module, node, self), each.name)
                        return found or (module, node)
        for node in _top(tree):
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            if any(isinstance(each, ast.Name) and each.id == name for each in targets):
                return module, node
        says = ast.unparse(tree)
        return (
            (module, ast.Pass())
            if re.search(rf"""['"]{name}['"]|global {name}\b""", says)
            else None
        )

    def members(self, module: str, node: ast.ClassDef) -> dict[str, Any]:
        """Methods with their parameters and fields (null), of the class and what it is made of."""
        found: dict[str, Any] = {}
        for base in node.bases:
            bare = base.value if isinstance(base, ast.Subscript) else base
            above = self.find(module, bare.id) if isinstance(bare, ast.Name) else None
            if above and isinstance(above[1], ast.ClassDef):
                found |= self.members(above[0], above[1])
        for each in node.body:
            if isinstance(each, Function):
                found[each.name] = parameters(each)
                for inner in ast.walk(each) if each.name == "__init__" else ():
                    if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                        found.setdefault(inner.attr, None)
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                found[each.target.id] = None
            elif isinstance(each, ast.Assign):
                found |= {t.id: None for t in each.targets if isinstance(t, ast.Name)}
        return found

    def abstract(self, module: str, node: ast.ClassDef) -> list[str]:
        """Methods that a class must bring to be made."""
        missing: list[str] = []
        for base in node.bases:
            bare = base.value if isinstance(base, ast.Subscript) else base
            above = self.find(module, bare.id) if isinstance(bare, ast.Name) else None
            if above and isinstance(above[1], ast.ClassDef):
                missing += self.abstract(above[0], above[1])
        for each in node.body:
            if isinstance(each, Function):
                marks = {ast.unparse(mark) for mark in each.decorator_list}
                missing = [name for name in missing if name != each.name]
                missing += [each.name] if "abstractmethod" in marks else []
        return missing

    def described(self, module: str, name: str, kept: set[str]) -> dict[str, Any] | None:
        found = self.find(module, name)
        if found is None:
            return None
        where, node = found
        if isinstance(node, Function):
            return {"in": where, "parameters": parameters(node)}
        if not isinstance(node, ast.ClassDef):
            return {"in": where}
        members = self.members(where, node)
        shown = {key: value for key, value in sorted(members.items()) if key in kept | {"__init__"}}
        said: dict[str, Any] = {"in": where, "members": shown}
        if abstract := self.abstract(where, node):
            said["abstract"] = sorted(abstract)
        return said

    def flags(self) -> list[str]:
        found: set[str] = set()
        for module in FLAG_MODULES:
            for node in ast.walk(self.tree(module) or ast.Module([], [])):
                if isinstance(node, ast.Constant) and re.fullmatch(
                    r"--[a-z][\w-]+", str(node.value)
                ):
                    found.add(str(node.value))
                elif isinstance(node, ast.ClassDef) and node.name.endswith("FrontendArgs"):
                    fields = [e.target.id for e in node.body if isinstance(e, ast.AnnAssign)]  # type: ignore[union-attr]
                    found |= {f"--{name.replace('_', '-')}" for name in fields}
        return sorted(found)

    def backends(self, enum: str) -> dict[str, Any]:
        _, node = self.find(REGISTRY, enum) or (None, None)
        assert isinstance(node, ast.ClassDef)
        paths = {
            each.targets[0].id: ast.literal_eval(each.value)  # type: ignore[union-attr]
            for each in node.body
            if isinstance(each, ast.Assign)
        }
        return {name: self.backend(path) for name, path in sorted(paths.items())}

    def backend(self, path: str | None) -> dict[str, Any] | None:
        """What its class says of itself; null where there is none (a tag, or the placeholder)."""
        module, _, name = (path or "").rpartition(".")
        found = self.find(module, name) if module else None
        if found is None or not isinstance(found[1], ast.ClassDef):
            return None
        said = {"class": path, **self.claims(*found)}
        return {key: said[key] for key in sorted(said)}

    def claims(self, module: str, node: ast.ClassDef) -> dict[str, Any]:
        said: dict[str, Any] = {}
        for base in node.bases:
            above = self.find(module, base.id) if isinstance(base, ast.Name) else None
            if above and isinstance(above[1], ast.ClassDef):
                said |= self.claims(above[0], above[1])
        for each in node.body:
            if isinstance(each, ast.AnnAssign | ast.Assign) and each.value is not None:
                target = each.target if isinstance(each, ast.AnnAssign) else each.targets[0]
                if (key := ast.unparse(target)) in (
                    "supported_dtypes",
                    "supported_kv_cache_dtypes",
                ):
                    said[key] = [word.removeprefix("torch.") for word in _words(each.value)]
            elif isinstance(each, Function) and each.name in _CLAIMS:
                body = [line for line in each.body if not isinstance(line, ast.Expr)]
                said[each.name] = "\n".join(ast.unparse(line) for line in body)
        return said


_CLAIMS = (
    "get_impl_cls",
    "get_supported_head_sizes",
    "get_supported_kernel_block_sizes",
    "supports_compute_capability",
    "supports_head_size",
)


def _top(tree: ast.Module) -> list[ast.stmt]:
    """Statements of a module, also those below ``if TYPE_CHECKING`` and ``try``."""
    found = list(tree.body)
    for node in tree.body:
        for part in ("body", "orelse", "handlers") if isinstance(node, ast.If | ast.Try) else ():
            for each in getattr(node, part, []):
                found += each.body if isinstance(each, ast.ExceptHandler) else [each]
    return found


def _absolute(module: str, node: ast.ImportFrom, source: Source) -> str:
    if not node.level:
        return str(node.module)
    parts = module.split(".")
    is_package = source.folder.joinpath(*parts).is_dir()
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _words(node: ast.expr) -> list[str]:
    items = node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return [
        str(each.value) if isinstance(each, ast.Constant) else ast.unparse(each) for each in items
    ]


def record(source: Source) -> dict[str, Any]:
    kept = mentioned()
    wanted = sorted(
        {(use.module, use.name) for path in our_files() for use in uses(path) if use.name}
    )
    names: dict[str, dict[str, Any]] = {}
    for module, name in wanted:
        names.setdefault(module, {})[str(name)] = source.described(module, str(name), kept)
    config = source.find("vllm.config", "AttentionConfig")
    assert config is not None and isinstance(config[1], ast.ClassDef)
    return {
        "version": source.version,
        "torch": source.torch,
        "entry_points": [each for each in MAIN_MODULES if _runs(source.tree(each))],
        "attention_config": sorted(source.members(config[0], config[1])),
        "flags": source.flags(),
        "backends": {enum: source.backends(enum) for enum in ENUMS},
        "names": names,
    }


def _runs(tree: ast.Module | None) -> bool:
    return tree is not None and "__name__ == '__main__'" in ast.unparse(tree)


def write(said: Mapping[str, Any]) -> Path:
    path = DATA / f"interfaces-{said['version']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=1) + "\n")
    return path


def main() -> int:
    if len(sys.argv) < 2:
        raise UserError(
            "give the folders of one or more unpacked releases, as the head of this file says"
        )
    for folder in sys.argv[1:]:
        print(write(record(Source.unpacked(Path(folder)))))
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
