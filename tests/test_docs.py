"""What the documents name must exist: links, the headings they lead to, files, modules."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "results").glob("*/README.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")),
]
# test_readme.py has the README's own rules; entries of the log say what was so on their day
NOW = [page for page in PAGES if page.name != "log.md" and page != ROOT / "README.md"]
ROOMS = "analysis|deploy|gateway|greenbench|loadgen|planning|servers|telemetry"
TOP = f"{ROOMS}|configs|docs|models|scripts|tests"
# our own files and folders; files of a run (telemetry/gpu.jsonl) are not of this repository
PATH = rf"(?<![\w/.~-])(?:(?:{TOP})/[\w./*-]*?(?:\.py|\.c|\.sh|\.yaml|/)|results/h\d00/[\w./-]*\w)(?![\w/*<])"


@cache
def text(page: Path) -> str:
    return page.read_text()


@cache
def anchors(page: Path) -> set[str]:
    """Of each heading, as GitHub makes them: lower case, without signs, words joined by hyphens."""
    prose = re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def is_module(dotted: str) -> bool:
    path = ROOT / Path(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def found(name: str) -> bool:
    """A path from the root; with a star, any that fits."""
    return any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r'\]\((?!http)([^)\s]+)(?: "[^"]*")?\)', text(page)):
        name, _, anchor = target.partition("#")
        leads_to = (page.parent / name).resolve() if name else page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_are_todays(page: Path) -> None:
    missing = {name for name in re.findall(PATH, text(page)) if not found(name)}
    modules = set(re.findall(r"python -m ([a-z_.]+[a-z_])", text(page))) - {"pytest"}
    assert missing | {name for name in modules if not is_module(name)} == set()


def test_paths_are_seen_at_all() -> None:
    seen = {name for page in NOW for name in re.findall(PATH, text(page))}
    assert {"analysis/objectives.py", "servers/plugins/", "results/h100/serving.txz"} <= seen
    assert "telemetry/gpu.jsonl" not in seen and not found("servers/no_such_module.py")


def test_the_index_has_every_page() -> None:
    index = text(ROOT / "docs" / "README.md")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(pages) > 8
    assert {name for name in pages if f"]({name}" not in index} == set()
