"""Which vLLM is treated how; an unknown newer one is served with a warning."""

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
