"""Depth × length maps: each prompt in its cell, counted once; and what a window cannot see is seen there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from analysis.quality.depth_map import HeatMap, heat_maps, tally
from analysis.runs.run import load_runs
from tests.fakes.rundirs import GOLDEN, FakeRun, write_run


def test_a_prompt_falls_into_the_stretch_of_its_depth() -> None:
    def at(depth: float | None, right: bool) -> Any:
        return cast(Any, SimpleNamespace(depth=depth, right=right))

    found = tally(
        [at(0.0, True), at(0.199, False), at(0.2, True), at(1.0, True), at(None, True)], 5
    )
    # the absent needle has no place; a depth of 1 is the end of the last stretch
    assert [(cell.right, cell.n) for cell in found] == [(1, 2), (1, 1), (0, 0), (0, 0), (1, 1)]
    assert [cell.share for cell in found] == [0.5, 1.0, None, None, 1.0]


def maps(root: Path, prompts: int) -> dict[str, HeatMap]:
    for backend, sees in (("cpu_attn", None), ("sink_window", 1024)):
        for context in (512, 2048, 4096):
            write_run(
                root,
                FakeRun(
                    backend=backend,
                    context_tokens=context,
                    prompts=prompts,
                    correct_share=1.0,
                    sees_tokens=sees,
                    ttft_s=0.1,
                    itl_s=0.01,
                    measure_s=20,
                ),
            )
    return {found.backend: found for found in heat_maps(load_runs(root))}


def test_a_window_shows_as_a_wedge(tmp_path: Path) -> None:
    """1,024 tokens are all of 512, the last half of 2,048 and the last quarter of 4,096."""
    found = maps(tmp_path, prompts=60)["sink_window"]
    assert found.contexts == [512, 2048, 4096] and found.stretches == 10
    by_context = list(zip(*found.cells, strict=True))
    assert all(cell.share == 1 for cell in by_context[0])
    assert [cell.share for cell in by_context[1]] == [0] * 5 + [1] * 5
    assert [cell.share for cell in by_context[2][:7]] == [0] * 7
    assert [cell.share for cell in by_context[2][8:]] == [1] * 2
    # between them the edge at depth 0.75 cuts through a stretch: worked out prompt by prompt
    inside = [d for d in (i * GOLDEN % 1 for i in range(60)) if 0.7 <= d < 0.8]
    assert by_context[2][7].n == len(inside)
    assert by_context[2][7].right == sum(d >= 0.75 for d in inside)


def test_few_prompts_get_coarse_stretches_and_every_prompt_counts_once(tmp_path: Path) -> None:
    found = maps(tmp_path, prompts=28)
    assert {each.stretches for each in found.values()} == {5}
    for each in found.values():
        for column in zip(*each.cells, strict=True):
            assert sum(cell.n for cell in column) == 28  # though each was asked several times
    assert found["cpu_attn"].depths(1) == (pytest.approx(0.2), pytest.approx(0.4))


def test_tasks_without_a_depth_have_no_map(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(task="perplexity", streaming=False, nll_per_token=2.0))
    assert heat_maps(load_runs(tmp_path)) == []
