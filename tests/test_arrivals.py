"""Schedules: seeded, of the right distribution and rate, and whole however many processes send them."""

import itertools
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from greenbench.config import LoadConfig
from loadgen.arrivals import arrivals, shard


def load(kind: str = "poisson", rate: float = 20.0, burstiness: float = 1.0) -> LoadConfig:
    return LoadConfig.model_validate(
        {"kind": "open", "rate_per_s": rate, "arrivals": kind, "burstiness": burstiness}
    )


def gaps(config: LoadConfig, count: int = 4000, seed: int = 7) -> list[float]:
    offsets = [0.0, *itertools.islice(arrivals(config, seed), count)]
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
            itertools.takewhile(lambda t: t <= whole[-1], shard(arrivals(load(kind), 7), i, count))
        )
        for i in range(count)
    ]
    assert sorted(itertools.chain(*parts)) == whole
