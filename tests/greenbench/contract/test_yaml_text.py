"""The fast loader reads what the loader in Python reads, and is not asked where it would break."""

import pytest
import yaml

from greenbench.contract.config import CONFIGS
from greenbench.contract.yaml_text import DEEPEST, FAST, Loader, nests_little, parse_yaml

DEEP = ("[" * 100_000, "- " * 100_000, "? " * 100_000, "a: " + "{b: " * 100_000)


def test_every_config_reads_as_by_the_loader_in_python() -> None:
    texts = [path.read_text() for path in CONFIGS.rglob("*.yaml")]
    assert len(texts) > 10
    for text in texts:
        assert parse_yaml(text) == yaml.load(text, Loader=Loader)


@pytest.mark.skipif(FAST is None, reason="PyYAML without libyaml")
def test_levels_are_counted() -> None:
    assert nests_little("[" * DEEPEST + "]" * DEEPEST)
    assert not nests_little("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    assert nests_little("\n".join(f"k{n}: [[{n}]]" for n in range(3 * DEEPEST)))


@pytest.mark.parametrize("text", DEEP, ids=["brackets", "dashes", "questions", "braces"])
def test_a_deep_text_is_an_error_and_not_the_end_of_the_program(text: str) -> None:
    with pytest.raises((RecursionError, yaml.YAMLError)):
        parse_yaml(text)


def test_a_fault_is_said_in_the_words_of_the_loader_in_python() -> None:
    text = "a: 1\nb: [1, 2\nc: 3\n"
    with pytest.raises(yaml.MarkedYAMLError) as expected:
        yaml.safe_load(text)
    with pytest.raises(yaml.MarkedYAMLError) as raised:
        parse_yaml(text)
    assert str(raised.value) == str(expected.value)
