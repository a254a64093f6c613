"""What a sweep compares: backends, candidates with settings of their own, or a cross product."""

from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.config import (
    ModelConfig,
    SweepConfig,
    dump_yaml,
    load_sweep,
    parse,
    points_of,
)
from greenbench.contract.errors import UserError
from greenbench.contract.new_run import point_hash

SWEEP: dict[str, Any] = {
    "name": "s", "models": ["m"], "contexts": [512], "tasks": ["retrieve"], "loads": [{"users": 1}],
    "server": {"max_num_batched_tokens": 2048, "port": 8000},
}  # fmt: skip
MODEL = ModelConfig(name="m", path="/m", max_model_len=4096)


def sweep(**given: Any) -> SweepConfig:
    return parse(SweepConfig, {**SWEEP, **given}, "x")


def refusal(**given: Any) -> str:
    with pytest.raises(UserError) as caught:
        sweep(**given)
    return str(caught.value)


def test_each_candidate_has_the_sweeps_server_but_for_what_it_says_itself() -> None:
    found = sweep(
        candidates=[
            {"backend": "a"},
            {"backend": "a", "server": {"kv_cache_dtype": "fp8"}, "name": "fp8-kv"},
            {
                "backend": {"name": "b", "options": {"w": 1}},
                "server": {"max_num_batched_tokens": 512},
            },
            {"backend": "a", "vllm": "/opt/other/bin/python"},
        ]
    ).contenders
    assert [who.label for who in found] == [
        "a", "fp8-kv", "b(w=1) max_num_batched_tokens=512", "a vllm=/opt/other/bin/python",
    ]  # fmt: skip
    assert [who.server.kv_cache_dtype for who in found] == ["auto", "fp8", "auto", "auto"]
    assert [who.server.max_num_batched_tokens for who in found] == [2048, 2048, 512, 2048]
    assert [who.server.vllm for who in found] == [None, None, None, "/opt/other/bin/python"]
    assert all(who.server.port == 8000 and who.arm == 0 for who in found)


def test_a_matrix_is_every_backend_with_every_combination() -> None:
    found = sweep(
        matrix={
            "backends": ["a", "b"],
            "server": {"max_num_batched_tokens": [512, 2048], "kv_cache_dtype": ["auto", "fp8"]},
        }
    ).contenders
    told = [
        (w.backend.name, w.server.max_num_batched_tokens, w.server.kv_cache_dtype) for w in found
    ]
    assert told == [(b, n, k) for b in "ab" for n in (512, 2048) for k in ("auto", "fp8")]
    assert len({who.label for who in found}) == 8


def test_equal_candidates_are_arms_of_one_and_different_settings_are_different_points() -> None:
    config = sweep(
        candidates=[
            {"backend": "a", "name": "plain"},
            {"backend": "a", "server": {"max_num_batched_tokens": 2048}, "name": "plain"},
            {"backend": "a", "server": {"block_size": 16}},
        ]
    )
    assert [who.arm for who in config.contenders] == [0, 1, 0]
    hashes = {point_hash(p) for who in config.contenders for p in points_of(config, MODEL, who)}
    assert len(hashes) == 3


def test_a_name_is_no_measurement_and_a_sweep_of_backends_measures_as_before() -> None:
    [plain] = sweep(backends=["a"]).contenders
    [named] = sweep(candidates=[{"backend": "a", "name": "mine"}]).contenders
    [one], [other] = (points_of(sweep(backends=["a"]), MODEL, who) for who in (plain, named))
    assert point_hash(one) == point_hash(other)
    assert "vllm" not in one.identity()["server"] and "name" not in one.identity()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "given by 'backends', 'candidates' or 'matrix'; found none of them"),
        ({"backends": ["a"], "matrix": {"backends": ["a"]}}, "found backends and matrix"),
        (
            {"candidates": [{"backend": "a", "server": {"block_sise": 16}}]},
            "candidate 1 (a): server: unknown key 'block_sise'; did you mean 'block_size'",
        ),
        (
            {"candidates": [{"backend": "a", "server": {"tensor_parallel": 9999}}]},
            "candidate 1 (a): server.tensor_parallel: 1,024 at most",
        ),
        (
            {"candidates": [{"backend": "a", "name": "x"}, {"backend": "b", "name": "x"}]},
            "two different candidates are called 'x'",
        ),
        (
            {"candidates": [{"backend": "a", "name": "x"}, {"backend": "a", "name": "y"}]},
            "'x' and 'y' are one and the same server",
        ),
        (
            {"candidates": [{"backend": "a", "vllm": "p", "server": {"vllm": "q"}}]},
            "'vllm' is given twice",
        ),
        (
            {"candidates": [{"backend": "a", "vllm": "p", "server": {"base_url": "http://h:1"}}]},
            "'vllm' is for a server that is started here",
        ),
        (
            {"matrix": {"backends": ["a"], "server": {"block_size": []}}},
            "server.block_size: a list of at least one value is wanted",
        ),
        (
            {"matrix": {"backends": ["a"], "server": {"seed": list(range(1001))}}},
            "1,001 candidates; 1,000 at most",
        ),
        (
            {"candidates": [{"backend": "a"}, {"backend": "b"}], "server": {"base_url": "http://h:1"}},
            "'candidates' has a, b against one running server (http://h:1)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_in_one_sentence(given: dict[str, Any], said: str) -> None:
    assert said in refusal(**given)


def test_two_running_servers_can_be_two_candidates() -> None:
    urls = ["http://h:1", "http://h:2"]
    found = sweep(candidates=[{"backend": "a", "server": {"base_url": url}} for url in urls])
    assert [who.server.base_url for who in found.contenders] == urls


def test_paths_are_meant_from_the_sweeps_folder(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("{}")
    (tmp_path / "python").write_text("")
    file = tmp_path / "s.yaml"
    listed = [{"backend": "own.yaml", "vllm": "python"}, {"backend": "a", "vllm": "python3.99"}]
    file.write_text(dump_yaml(sweep(candidates=listed)))
    first, second = load_sweep(file).contenders
    assert first.backend.name == str(tmp_path / "own.yaml")
    assert first.server.vllm == str(tmp_path / "python")
    assert second.server.vllm == "python3.99"  # a command on PATH
