"""What is timed as a ceiling is a linear layer of the server, and the shortest round counts."""

import os

import pytest
import torch

from analysis.bottleneck import peaks_torch
from analysis.bottleneck.peaks_torch import DTYPES, best_s, linear, linear_flops

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("name", DTYPES)
def test_the_timed_call_computes_the_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second method: the product in float64 of the same rows and weights."""
    made: list[torch.Tensor] = []
    rows, layer = torch.randn, torch.nn.Linear

    def kept(*args, **kwargs):
        made.append(rows(*args, **kwargs))
        return made[-1]

    class Kept(layer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self.weight.detach())

    monkeypatch.setattr(torch, "randn", kept)
    monkeypatch.setattr(torch.nn, "Linear", Kept)
    found = linear(64, 128, 96, DTYPES[name], "cpu")()
    assert found.shape == (64, 96) and found.dtype == DTYPES[name]
    weight, given = made
    exact = given.to(DTYPES[name]).double() @ weight.double().t()
    # weights of U(-1/sqrt(128), 1/sqrt(128)) and 128 normal rows: values of about 0.6, 2^-8 of rounding
    assert (found.double() - exact).abs().max() < {"float32": 1e-5}.get(name, 0.02)


def test_the_shortest_round_counts_and_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: acts take 40 ms, one in ten meets nobody and takes 10."""
    clock, acts = [0.0], [0]

    def act() -> None:
        acts[0] += 1
        clock[0] += 0.010 if acts[0] % 10 == 0 else 0.040

    monkeypatch.setattr(peaks_torch.time, "perf_counter", lambda: clock[0])
    assert best_s(act, "cpu", 2.0) == pytest.approx(0.010)
    assert 2.0 <= clock[0] < 2.1
    assert best_s(lambda: clock.__setitem__(0, clock[0] + 0.0001), "cpu", 0.1) == pytest.approx(
        1e-4
    )


def test_a_layer_that_would_take_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 GFLOP/s, as a CPU without bfloat16 had it, the layer of 17 GFLOP would take 17 s."""
    clock, tried = [0.0], []

    def slow(tokens: int, inputs: int, outputs: int, *_):
        work = 2 * tokens * inputs * outputs
        tried.append(work)
        return lambda: clock.__setitem__(0, clock[0] + work / 1e9)

    monkeypatch.setattr(peaks_torch.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(peaks_torch, "linear", slow)
    assert linear_flops(torch.float32, "cpu", 2.0) == pytest.approx(1e9)
    assert tried == [2 * 256 * 256 * 768]
    assert clock[0] < 3.0


@pytest.mark.parametrize("bound", ["0", "nobind"])
def test_the_cores_are_those_of_a_worker(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """As a server's log tells it: ``core ids=[0]`` where a person binds it so; all where nothing is bound."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", bound)
    expected = {0} if bound == "0" else os.sched_getaffinity(0)
    assert peaks_torch.worker_cores() == expected


def test_one_core_is_left_to_the_scheduler() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    assert len(peaks_torch.worker_cores()) < len(os.sched_getaffinity(0))
