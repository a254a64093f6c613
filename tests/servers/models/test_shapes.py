"""A model's shape is asked of vLLM's Python once, and what it does not say is not known."""

import json
import sys
from pathlib import Path

import pytest

from greenbench.contract.config import BuiltModel, ModelConfig
from greenbench.contract.errors import UserError
from greenbench.contract.model_shape import ModelShape
from servers.backends.host_facts import HostFacts
from servers.models import resolver_protocol, shapes
from servers.models.shapes import Place, Wish, facts_of, model_shapes

# A Python that notes what it is asked, and answers with the window that the config has (0: unknown).
FAKE = """#!{python}
import json, pathlib, sys
orders = json.load(sys.stdin)
with pathlib.Path({notes!r}).open("a") as notes:
    notes.write(json.dumps(orders) + "\\n")
def answer(order):
    config = order.get("config") or json.loads(open(order["folder"] + "/config.json").read())
    window = order["overrides"].get("window", config["window"])
    return {{"shape": {{"window_tokens": window}}}} if window else {{"unknown": "no such class"}}
print("a warning of a library")
print({mark!r} + json.dumps([answer(order) for order in orders]))
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    python = tmp_path / "python"
    notes = str(tmp_path / "notes")
    python.write_text(FAKE.format(python=sys.executable, notes=notes, mark=resolver_protocol.MARK))
    python.chmod(0o755)
    return at(tmp_path, python)


def at(tmp_path: Path, python: Path, version: str = "0.32.0") -> Place:
    host = HostFacts(vllm_build="cpu", vllm_version=version, vllm_python=str(python))
    return Place(host, str(python), tmp_path / "cache")


def model(tmp_path: Path, name: str, window: int) -> ModelConfig:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"window": window}))
    return ModelConfig(name=name, path=str(folder))


def asked(tmp_path: Path) -> list[int]:
    """How many models each call of the Python was asked about."""
    notes = tmp_path / "notes"
    return [len(json.loads(line)) for line in notes.read_text().splitlines()]


def windows(found: list[ModelShape]) -> list[int | None]:
    return [shape.window_tokens for shape in found]


def test_all_models_go_in_one_call_and_each_is_asked_once(tmp_path: Path, place: Place) -> None:
    long, short = model(tmp_path, "long", 4096), model(tmp_path, "short", 512)
    same = model(tmp_path, "same-config-elsewhere", 512)
    built = ModelConfig(name="b", build=BuiltModel(config={"window": 64}))
    wishes = [Wish(long), Wish(short), Wish(same), Wish(built)]
    assert windows(model_shapes(wishes, place)) == [4096, 512, 512, 64]
    assert asked(tmp_path) == [3]
    assert windows(model_shapes([Wish(built), Wish(short)], place)) == [64, 512]
    assert asked(tmp_path) == [3]


def test_what_changes_the_answer_is_asked_anew(tmp_path: Path, place: Place) -> None:
    """Another config under the same path, an override, another vLLM."""
    one = model(tmp_path, "m", 4096)
    assert windows(model_shapes([Wish(one)], place)) == [4096]
    doubled = Wish(one, ("--hf-overrides", '{"window": 8192}'))
    assert windows(model_shapes([doubled, Wish(one)], place)) == [8192, 4096]
    other_vllm = at(tmp_path, Path(place.vllm_python), version="0.33.0")
    model_shapes([Wish(one)], other_vllm)
    model(tmp_path, "m", 2048)
    assert windows(model_shapes([Wish(one)], place)) == [2048]
    assert asked(tmp_path) == [1, 1, 1, 1]


def test_an_unknown_class_costs_itself_and_is_asked_again(tmp_path: Path, place: Place) -> None:
    wishes = [Wish(model(tmp_path, "odd", 0)), Wish(model(tmp_path, "good", 512))]
    odd, good = model_shapes(wishes, place)
    assert (odd.unknown, odd.window_tokens, good.window_tokens) == ("no such class", None, 512)
    model_shapes(wishes, place)
    assert asked(tmp_path) == [2, 1]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo '[{}, []]'", "did not resolve its config: it said nothing"),
        ("echo out of memory >&2; exit 9", "did not resolve its config: out of memory"),
        (f"echo '{resolver_protocol.MARK}[]'", "did not resolve its config"),
        (f"echo '{resolver_protocol.MARK}[{{\"shape\": 3}}]'", "did not resolve its config"),
        (f"echo '{resolver_protocol.MARK}[{{'", "did not resolve its config"),
        ("sleep 60", "took longer than 1 s to read its config"),
    ],
    ids=["another answer", "dies", "too few", "no shape", "cut", "hangs"],
)
def test_a_python_that_cannot_say_it_leaves_it_unknown(
    tmp_path: Path, script: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "TIME_LIMIT_S", 1.0)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    [shape] = model_shapes([Wish(model(tmp_path, "m", 512))], at(tmp_path, python))
    assert shape.unknown is not None and why in shape.unknown
    assert facts_of("m", shape).head_size is None and facts_of("m", shape).features == frozenset()


def test_without_vllm_nothing_is_asked(tmp_path: Path, place: Place) -> None:
    bare = Place(HostFacts(vllm_python="py"), "py", tmp_path / "cache")
    [shape] = model_shapes([Wish(model(tmp_path, "m", 512))], bare)
    assert shape.unknown == "no vLLM is installed in py, whose code would say it"
    gone = Place(place.host, str(tmp_path / "gone"), tmp_path / "cache")
    [shape] = model_shapes([Wish(model(tmp_path, "m", 512))], gone)
    assert shape.unknown == f"{tmp_path}/gone cannot be run (No such file or directory)"
    [shape] = model_shapes([Wish(ModelConfig(name="x", path="/no/where"))], place)
    assert shape.unknown == "the config.json of /no/where is not on this machine"
    assert not (tmp_path / "notes").exists()


def test_a_broken_config_or_cache(tmp_path: Path, place: Place) -> None:
    one = model(tmp_path, "m", 512)
    model_shapes([Wish(one)], place)
    [kept] = (tmp_path / "cache" / "shapes").iterdir()
    kept.write_text('{"window_tok')
    assert windows(model_shapes([Wish(one)], place)) == [512]
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"m/config\.json: not valid JSON"):
        model_shapes([Wish(one)], place)


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ({"mla": True}, {"mla"}),
        ({"config": {"alibi": True}}, {"alibi"}),
        ({"config": {"attn_config": {"alibi": True}}}, {"alibi"}),
        ({"config": {"model_type": "bloom"}}, {"alibi"}),
        ({"config": {"attn_logit_softcapping": 50.0}}, {"soft_cap"}),
        ({"config": {"model_type": "gpt_oss"}}, {"learned_sinks"}),
        ({"config": {"sliding_window": 4096}}, {"sliding_window"}),
        ({"config": {"sliding_window": 9, "layer_types": ["full_attention"]}}, set()),
        (
            {"config": {"sliding_window": 9, "layer_types": ["sliding_attention"]}},
            {"sliding_window"},
        ),
        ({}, set()),
    ],
)
def test_what_a_backend_must_serve(shape: dict[str, object], features: set[str]) -> None:
    facts = facts_of("m", ModelShape.model_validate(shape))
    assert facts.features == features
    assert facts.sliding_window == (
        None
        if "sliding_window" not in features
        else ModelShape.model_validate(shape).config["sliding_window"]
    )
