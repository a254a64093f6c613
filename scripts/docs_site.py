"""What mkdocs.yml needs besides docs/: pages that lie elsewhere here, and the generated reference.

A link in a page is what it is on the disk. Where it leads to a page of the site it becomes a link to that;
to another file of the repository there is none on a site, and the words stay.
"""

import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# pages of the site that lie elsewhere, under the name that they have there
ELSEWHERE = {
    "start.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "deploy.md": "deploy/README.md",
    "h200.md": "results/h200/README.md",
    "h200-world.md": "results/h200/world.md",
    "h100.md": "results/h100/README.md",
    "model-retriever.md": "models/retriever/README.md",
    "model-retriever-long.md": "models/retriever_long/README.md",
}
MADE = {
    "commands.md": ("scripts.command_lines",),
    "files.md": ("scripts.schema_pages", "docs/schema"),
}
# how far up a page stands in the search: a message's cause before what was once decided about it
BOOSTS = {"troubleshoot.md": 4, "log.md": 0.1, "changelog.md": 0.1}
SITE_NAMES = {path: name for name, path in ELSEWHERE.items()}
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s]+)((?:\s\"[^\"]*\")?)\)"
)


def on_files(files: Files, config: Any) -> Files:
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    for name, module in MADE.items():
        files.append(File.generated(config, name, content=made(*module)))
    return files


def made(*module: str) -> str:
    """By a process of its own: Locust changes the one that it is loaded into."""
    argv = [sys.executable, "-W", "ignore", "-m", *module]
    return subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.src_uri in BOOSTS:
        page.meta["search"] = {"boost": BOOSTS[page.file.src_uri]}
    here = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    names = {file.src_uri: "" for file in files} | dict(titles(config.nav))
    return LINK.sub(lambda found: relinked(found, posixpath.dirname(here), names), markdown)


def titles(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """Page and what the navigation calls it."""
    for entry in nav:
        for title, below in entry.items() if isinstance(entry, dict) else ():
            if isinstance(below, str):
                yield below, title
            else:
                yield from titles(below)


def relinked(found: re.Match[str], folder: str, names: dict[str, str]) -> str:
    """A link that is called by its file (`method.md`) gets the page's title (``names``)."""
    image, words, target, title = found.groups()
    path, _, heading = target.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    name = SITE_NAMES.get(path) or path.removeprefix("docs/")
    if name not in names:
        return words
    if " " not in words and not image and words.strip("/") in f"{path} README":
        words = names[name] or words
    return f"{image}[{words}]({name}{'#' if heading else ''}{heading}{title})"
