"""The model of queueing against closed forms."""

from collections.abc import Sequence

import numpy as np
import pytest

from planning.curves import Paces
from planning.requests import Traffic
from planning.simulate import Server, server, simulate

OPEN = 64


def paces(prefill_s: Sequence[float], step_s: float, shared: bool = True) -> Paces:
    """Of processor sharing: n times as long with n open; or of requests that do not disturb each other."""
    n = np.arange(1, OPEN + 1) if shared else np.ones(OPEN)
    ttft = np.outer(prefill_s, n)
    return Paces(ttft, np.outer(np.full(len(prefill_s), step_s), n), np.full(ttft.shape, 100.0))


def traffic(at: Sequence[float], prompts: Sequence[int], outputs: Sequence[int]) -> Traffic:
    return Traffic(np.array(at, dtype=float), np.array(prompts), np.array(outputs), "test")


def first(_: int, servers: Sequence[Server]) -> int:
    return 0


def test_a_request_alone_takes_its_own_times() -> None:
    of = paces([0.5], 0.02)
    done = simulate(traffic([0.0], [100], [11]), [server("a", of, None)], first)
    assert done.ttft_s[0] == pytest.approx(0.5)
    assert done.tpot_s[0] == pytest.approx(0.02)
    assert done.e2e_s[0] == pytest.approx(0.5 + 10 * 0.02)
    assert done.joules[0] == pytest.approx(100 * 0.7)


def test_two_that_come_together_share_the_server() -> None:
    """Prefills of 1 and 2 s: at half speed the first is through at 2; the other has 1 s left, ends at 3."""
    of = paces([1.0, 2.0], 0.02)
    done = simulate(traffic([0, 0], [9, 9], [1, 1]), [server("a", of, None)], first)
    assert done.ttft_s.tolist() == pytest.approx([2.0, 3.0])
    assert np.isnan(done.tpot_s).all()  # one token has no time after it


def test_a_prompt_that_does_not_fit_waits_for_the_kv_cache() -> None:
    of = paces([1.0, 1.0], 0.1, shared=False)
    done = simulate(traffic([0, 0.5], [60, 60], [11, 11]), [server("a", of, 100)], first)
    assert done.e2e_s.tolist() == pytest.approx([2.0, 1.5 + 2.0])  # from 2.0 on


def test_no_more_run_than_may() -> None:
    of = paces([1.0, 1.0], 0.1, shared=False)
    done = simulate(traffic([0, 0], [9, 9], [1, 1]), [server("a", of, None, 1)], first)
    assert done.ttft_s.tolist() == pytest.approx([1.0, 2.0])


def test_what_nobody_takes_is_counted() -> None:
    of = paces([1.0, 1.0], 0.1)
    done = simulate(
        traffic([0, 0], [9, 9], [2, 2]),
        [server("a", of, None)],
        lambda number, servers: 0 if number else None,
    )
    assert done.unserved == 1 and np.isnan(done.e2e_s[0]) and done.e2e_s[1] > 0


@pytest.mark.parametrize("busy", [0.3, 0.6])
def test_poisson_arrivals_at_processor_sharing_take_their_mean_time(busy: float) -> None:
    """M/G/1 with processor sharing: E[time] = E[work] / (1 − ρ), whatever the distribution of the work."""
    rng = np.random.default_rng(5)
    n = 12_000
    work = rng.exponential(0.5, n)
    at = np.cumsum(rng.exponential(0.5 / busy, n))
    of = paces(work.tolist(), 0.0)
    done = simulate(traffic(at.tolist(), [9] * n, [1] * n), [server("a", of, None)], first)
    assert done.e2e_s.mean() == pytest.approx(work.mean() / (1 - busy), rel=0.05)


def test_a_full_closed_loop_of_one_length_takes_the_measured_times() -> None:
    """8 requests at once, all alike: each stage at the figure of 8 open requests."""
    of = paces([0.5] * 8, 0.02)
    done = simulate(traffic([0] * 8, [9] * 8, [11] * 8), [server("a", of, None)], first)
    assert done.ttft_s.tolist() == pytest.approx([8 * 0.5] * 8)
    assert done.tpot_s.tolist() == pytest.approx([8 * 0.02] * 8)
