"""What the README shows must work as it stands: its sweep, its row of the table, its links and commands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from greenbench.contract.config import ROOT, ServerRequest, SweepConfig, load_model, parse
from servers.backends import registry
from servers.backends.choice import parse_choice
from servers.backends.host_facts import HostFacts, ModelFacts
from servers.launch.command import command, plan

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_sweep_of_the_readme_is_a_sweep() -> None:
    sweep, _ = blocks("yaml")
    config = parse(SweepConfig, yaml.safe_load(sweep), "README.md")
    assert len(config.contenders) == 4 and config.repeats == 3


@pytest.mark.parametrize(("key", "count"), [("candidates", 4), ("matrix", 2 * 3 * 2)])
def test_the_candidates_of_the_readme_stand_in_place_of_its_backends(key: str, count: int) -> None:
    sweep, others = (yaml.safe_load(text) for text in blocks("yaml"))
    del sweep["backends"]
    config = parse(SweepConfig, sweep | {key: others[key]}, "README.md")
    assert len(config.contenders) == count
    assert len({who.label for who in config.contenders}) == count


def test_the_row_of_the_readme_is_enough_to_plan_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    row = eval(blocks("python")[1], vars(registry).copy())
    monkeypatch.setitem(registry.BACKENDS, row.name, row)
    request = ServerRequest(
        model=load_model("tiny-llama"), backend=parse_choice("my_attn(tile=64)")
    )
    host = HostFacts(vllm_build="cpu", vllm_version="0.32.0", modules=frozenset())
    facts = ModelFacts("m", head_size=64, window_tokens=8192)
    planned = plan(request, host, facts)
    assert planned.refusals == []
    assert planned.options == {"tile": 64}
    env = command(planned, "/models/m", 8000, "python3").env
    assert "servers.plugins.my_attn.MyBackend" in env.values()


def test_every_link_and_target_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target.split("#")[0]).exists(), target
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        shlex.split(line)[1] for line in re.findall(r"^    (make .*)", README, flags=re.MULTILINE)
    }
    assert named and named <= made
    for module in re.findall(r"python -m ([a-z.]+)", README):
        path = ROOT / Path(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
