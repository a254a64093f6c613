"""What a plan takes to be in the prefix cache, against what was measured and what a trace shows."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from greenbench.contract.config import SloConfig
from greenbench.contract.traces import repeated_tokens
from planning.batches import Lengths, Log, Sent
from planning.candidates import Measured
from planning.capacity import Need, need
from planning.demand import Demand, TrafficFile, load_demand
from planning.plan import Plan, dump
from planning.plan_page import render
from planning.plan_told import row, said
from tests.planning.steps import candidate

SLO = SloConfig(ttft_s=0.5, tpot_s=0.02)


@pytest.fixture(scope="module")
def one() -> Measured:
    return candidate()


def planned(one: Measured, cached: tuple[float, float] | None, share: float) -> Need:
    known = replace(one, hull=replace(one.hull, cached=cached))
    told = {"rate_per_s": 5, "prompt_tokens": 4096, "output_tokens": 64, "cached_share": share}
    asked = Demand(TrafficFile.model_validate(told), few=200, most=200)
    found = need(known, asked, SLO, seed=7, draws=0)
    assert isinstance(found, Need)
    return found


def of_the_cache(found: Need) -> list[str]:
    return [sentence for sentence in found.said if "prefix cache" in sentence]


@pytest.mark.parametrize(
    ("cached", "share", "says"),
    [
        (
            (0.0, 0.0),
            0.9,
            "extrapolated: 90 % of each prompt is taken to be in the prefix cache, where it held 0 % of the "
            "measured prompts; measure prompts that are cached as much",
        ),
        (
            (0.5, 0.6),
            0.0,
            "extrapolated: no part of a prompt is taken to be in the prefix cache, where it held 50 to 60 % "
            "of the measured prompts; measure prompts that are cached as much",
        ),
    ],
)
def test_far_more_or_less_in_the_cache_than_was_measured_is_marked(
    one: Measured, cached: tuple[float, float], share: float, says: str
) -> None:
    found = planned(one, cached, share)
    assert of_the_cache(found) == [says]
    assert found.extrapolated and found.most_extrapolated and "(extrapolated)" in row(found)[1]
    plan = Plan("a card", "some traffic", SLO, "EUR", (found,), None, ())
    assert says in json.loads(dump(plan))["needs"][0]["said"]
    assert f"`alpha`: {says}." in said(plan) and says in render(plan)


@pytest.mark.parametrize(
    ("cached", "share"), [((0.0, 0.0), 0.0), ((0.0, 0.05), 0.1), ((0.2, 0.8), 0.5), (None, 0.9)]
)
def test_as_much_in_the_cache_as_was_measured_is_not(
    one: Measured, cached: tuple[float, float] | None, share: float
) -> None:
    found = planned(one, cached, share)
    assert not of_the_cache(found) and not found.extrapolated


def test_what_was_cached_is_of_all_prompt_tokens_of_a_run() -> None:
    """(0 + 300) of (100 + 400)."""
    sent = Sent(0, 0, True, 0.0)
    log = Log([], [(sent, Lengths(100, 0, 1)), (sent, Lengths(400, 300, 1))])
    assert log.cached_share == pytest.approx(0.6)


def test_a_prompt_repeats_the_blocks_that_one_earlier_prompt_begins_with() -> None:
    """Of 4 blocks the first 2; block 9 alone begins none; 3 after 1 is another prompt's, not after 1, 2."""
    blocks = [(1, 2), (1, 2, 5, 6), (9, 2), (1, 3), (1, 2, 3, 6), (), (1, 2, 5, 6)]
    asked = [((float(n), 250 * len(each) or 9, 1), each) for n, each in enumerate(blocks)]
    assert repeated_tokens(asked) == [0, 500, 0, 250, 500, 0, 1000]


def test_blocks_are_full_but_the_last() -> None:
    """Of 800 tokens in blocks of 512 the first block has 512, the second 288."""
    asked = [((float(n), 800, 1), blocks) for n, blocks in enumerate([(1, 2), (1, 3), (1, 2)])]
    assert repeated_tokens(asked) == [0, 512, 800]


def traffic(tmp_path: Path, more: str = "", ids: bool = True) -> Demand:
    """40 prompts of two blocks, the first of which all share: 39 of 80 blocks were there before, 48.75 %."""
    rows = [
        {"timestamp": 500 * i, "input_length": 1024, "output_length": 9}
        | ({"hash_ids": [0, i + 1]} if ids else {})
        for i in range(40)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "traffic.yaml").write_text(f"trace: t.jsonl\n{more}")
    return load_demand(tmp_path / "traffic.yaml")


def test_a_trace_that_shares_prefixes_says_what_was_assumed_of_them(
    tmp_path: Path, one: Measured
) -> None:
    asked = traffic(tmp_path)
    assert asked.repeated == pytest.approx(39 / 80)
    (says,) = asked.assumed
    assert says == (
        "assumed: no part of a prompt in the prefix cache, where by the trace's hash_ids about 49 % of its "
        "prompts' tokens begin an earlier prompt too; if a cache holds them fewer replicas may do "
        "(cached_share: 0.49)"
    )
    plan = Plan("a card", "t", SLO, "EUR", (planned(one, None, 0.0),), None, (), (says,))
    told = f"A{says[1:]}."
    assert said(plan)[0] == told and json.loads(dump(plan))["assumed"] == [says]
    assert told.replace("'", "&#39;") in render(plan)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("cached_share: 0.48\n", None),
        (
            "cached_share: 0.2\n",
            "20 % of each prompt in the prefix cache, .* fewer replicas may do",
        ),
        ("cached_share: 0.9\n", "90 % of each prompt .* more may be needed"),
    ],
)
def test_a_share_is_held_against_the_trace(tmp_path: Path, more: str, says: str | None) -> None:
    found = traffic(tmp_path, more).assumed
    assert not found if says is None else re.search(says, found[0])


def test_a_trace_of_which_some_prompts_have_no_ids_tells_nothing(tmp_path: Path) -> None:
    traffic(tmp_path)
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    row = {k: v for k, v in json.loads(lines[7]).items() if k != "hash_ids"}
    (tmp_path / "t.jsonl").write_text("\n".join([*lines[:7], json.dumps(row), *lines[8:]]))
    asked = load_demand(tmp_path / "traffic.yaml")
    assert asked.repeated is None and asked.assumed == ()


def test_a_trace_without_ids_tells_nothing_of_prefixes(tmp_path: Path) -> None:
    asked = traffic(tmp_path, ids=False)
    assert asked.repeated is None and asked.assumed == ()
