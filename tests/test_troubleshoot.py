"""Each message that docs/troubleshoot.md quotes is one that the code can say."""

import re

import pytest

from greenbench.contract.installation import ROOT
from tests.fakes.messages import texts

PACKAGES = ("analysis", "gateway", "greenbench", "loadgen", "planning", "servers", "telemetry")
PAGE = (ROOT / "docs" / "troubleshoot.md").read_text()
QUOTED = re.findall(r"^\*\*`(.+?)`\*\*", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> str:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return "\n".join(text for path in paths for text in texts(path))


def test_there_are_some() -> None:
    assert len(QUOTED) > 30


@pytest.mark.parametrize("message", QUOTED)
def test_the_code_says_it(message: str, said: str) -> None:
    """``…`` stands for one filled-in part, or at an end for the rest."""
    assert message.removesuffix("…").rstrip() in said, message
