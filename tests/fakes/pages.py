"""Reading a page: as a person does, and what a browser would run of it."""

import base64
import hashlib
import re
from html.parser import HTMLParser


def words(page: str) -> str:
    """Text of the page without scripts, styles and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", bare).split())


class Scripts(HTMLParser):
    """Texts of the elements that a browser would run, and the policy."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.run: list[str] = []
        self.handlers: list[str] = []
        self.policy = ""
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.handlers += [name for name in given if name.startswith("on")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._inside = tag == "script" and not given.get("type")
        if self._inside:
            self.run.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.run[-1] += data


def source(script: str) -> str:
    """As a policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def check_closed(page: str, *library: str) -> None:
    """Its one script and ``library`` may run, by their hashes; nothing else, and nothing is fetched."""
    found = Scripts(page)
    [script] = found.run
    allowed = " ".join(source(each) for each in (script, *library))
    assert found.policy.startswith(f"default-src 'none'; script-src {allowed}; style-src ")
    assert not found.handlers
    assert "src=" not in page and 'href="http' not in page
