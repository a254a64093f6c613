"""Schedules: seeded, of the right distribution and rate, and whole however many processes send them."""

import itertools
from pathlib import Path
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError
from loadgen.driver.arrivals import Arrival, arrivals, shard
from loadgen.driver.traces import read_trace


def load(kind: str = "poisson", rate: float = 20.0, burstiness: float = 1.0) -> LoadConfig:
    return LoadConfig.model_validate(
        {"kind": "open", "rate_per_s": rate, "arrivals": kind, "burstiness": burstiness}
    )


def gaps(config: LoadConfig, count: int = 4000, seed: int = 7) -> list[float]:
    offsets = [0.0, *(a.offset_s for a in itertools.islice(arrivals(config, seed), count))]
    return [b - a for a, b in itertools.pairwise(offsets)]


def test_constant_gaps_are_the_inverse_rate() -> None:
    assert gaps(load("constant", 8.0), 50) == pytest.approx([0.125] * 50)


@pytest.mark.parametrize("rate", [3.0, 200.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    assert kstest(gaps(load("poisson", rate)), "expon", args=(0, 1 / rate)).pvalue > 0.01


@pytest.mark.parametrize("shape", [0.25, 4.0])
def test_gamma_gaps_keep_the_rate_and_have_the_asked_burstiness(shape: float) -> None:
    found = gaps(load("gamma", 20.0, shape))
    assert kstest(found, "gamma", args=(shape, 0, 0.05 / shape)).pvalue > 0.01
    assert mean(found) == pytest.approx(0.05, rel=0.1)
    assert pstdev(found) / mean(found) == pytest.approx(shape**-0.5, rel=0.1)


def test_the_seed_decides() -> None:
    assert gaps(load(), 20, 7) == gaps(load(), 20, 7)
    assert gaps(load(), 20, 7) != gaps(load(), 20, 8)


@given(st.integers(1, 7), st.sampled_from(["poisson", "gamma", "constant"]))
def test_shards_together_are_exactly_the_one_schedule(count: int, kind: str) -> None:
    """GuideLLM's workers share one seed and send 237 req/s for 200."""
    whole = list(itertools.islice(arrivals(load(kind), 7), 60))
    parts = [
        list(
            itertools.takewhile(
                lambda a: a.offset_s <= whole[-1].offset_s, shard(arrivals(load(kind), 7), i, count)
            )
        )
        for i in range(count)
    ]
    assert sorted(itertools.chain(*parts), key=lambda a: a.offset_s) == whole


def test_workers_that_share_a_seed_fail_the_test_of_exponential_gaps() -> None:
    """The check of the workers' union (test_worker_split) can fail: a sharing by seed is caught."""
    right = itertools.islice(arrivals(load("poisson", 60), 7), 180)
    halves = [itertools.islice(arrivals(load("poisson", 30), 7), 90) for _ in range(2)]
    for found, passes in ((right, True), (itertools.chain(*halves), False)):
        offsets = sorted(arrival.offset_s for arrival in found)
        union = [b - a for a, b in itertools.pairwise(offsets)]
        assert (kstest(union, "expon", args=(0, 1 / 60)).pvalue > 0.001) == passes


@pytest.mark.parametrize(("to", "ramp_s"), [(50.0, 10.0), (2.0, 20.0)])
def test_a_ramp_brings_as_many_requests_as_its_rate_integrates_to(to: float, ramp_s: float) -> None:
    """Second method: the integral of the rate at each arrival counts the arrivals."""
    config = LoadConfig(
        kind="open", rate_per_s=10, arrivals="constant", ramp_to_per_s=to, ramp_s=ramp_s
    )
    for number, arrival in enumerate(itertools.islice(arrivals(config, 7), 500), start=1):
        t = arrival.offset_s
        inside = min(t, ramp_s)
        expected = 10 * inside + (to - 10) / (2 * ramp_s) * inside**2 + to * max(0.0, t - ramp_s)
        assert expected == pytest.approx(number)


MOONCAKE = """\
{"timestamp": 3000, "input_length": 40, "output_length": 5, "hash_ids": [1]}
{"timestamp": 1000, "input_length": 64, "output_length": 7, "hash_ids": [1, 2]}
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
1,ChatGPT,64,7,71,Conversation log
2,ChatGPT,10,0,10,Conversation log
3,GPT-4,40,5,45,API log
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,64,7
2023-11-16 18:15:48.0000000,40,5
"""


@pytest.mark.parametrize(
    ("kind", "text"), [("mooncake", MOONCAKE), ("burstgpt", BURSTGPT), ("azure", AZURE)]
)
def test_each_trace_format_gives_times_and_lengths(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    config = LoadConfig.model_validate(
        {"kind": "open", "trace": str(path), "trace_format": kind, "trace_speed": 2}
    )
    assert read_trace(config, 64) == [Arrival(0.0, 64, 7), Arrival(1.0, 40, 5)]
    with pytest.raises(UserError, match="longest prompt is 64 tokens"):
        read_trace(config, 50)
    clipped = read_trace(config.model_copy(update={"trace_clip": True}), 50)
    assert [a.context_tokens for a in clipped] == [50, 40]


@pytest.mark.parametrize(
    "text", ["{}", "not json", "", '{"timestamp": 1, "input_length": 5, "output_length": 0}']
)
def test_a_broken_trace_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        read_trace(LoadConfig(kind="open", trace=str(path)), 64)
    with pytest.raises(UserError, match="cannot be read"):
        read_trace(LoadConfig(kind="open", trace=str(tmp_path / "none")), 64)
