"""What is installed: pinned, of licences that go with Apache-2.0, and all that is asked for."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PIN = re.compile(r"[A-Za-z0-9._-]+==[0-9][\w.+!-]*")
REFUSED = re.compile(
    r"\b(AGPL|GPL|GNU (Affero )?General Public)", re.IGNORECASE
)  # not the lesser one


def pins(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    pairs = [line.split("==") for line in lines]
    found = {plain(name): version for name, version in pairs}
    assert len(found) == len(lines), f"{lock.name} names a package twice"
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_is_one_version(lock: Path) -> None:
    assert pins(lock)


def test_what_the_project_asks_for_is_pinned() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*asked["project"]["dependencies"], *asked["dependency-groups"]["dev"]]
    names = {plain(re.split(r"[<>=~! \[]", each)[0]) for each in wanted}
    assert names - set(pins(ROOT / "requirements" / "bench.lock")) == set()


def test_the_sites_packages_are_none_of_the_benchs() -> None:
    """They are laid over its environment: of a package in both the bench would see another version."""
    assert (
        set(pins(ROOT / "requirements/docs.lock")) & set(pins(ROOT / "requirements/bench.lock"))
        == set()
    )


def test_each_package_of_the_bench_has_a_licence_that_may_be_used() -> None:
    for name in pins(ROOT / "requirements" / "bench.lock"):
        about = metadata.metadata(name)
        classes = [each for each in about.get_all("Classifier") or [] if each.startswith("License")]
        told = " ".join(filter(None, [about.get("License-Expression"), *classes]))
        told = told or (about.get("License") or "")[:200]
        assert told and not REFUSED.search(told), f"{name}: {told or 'no licence'}"
