"""Between and about the measured points."""

import numpy as np
import pytest

from planning.curves import Curves, grid, paces


def made(values: dict[tuple[float, int], float]) -> Curves:
    of = grid(values)
    assert of is not None
    return Curves(of, of, of)


def test_a_power_law_is_met_exactly_between_and_beyond() -> None:
    known = {(4.0, c): 1e-6 * c**1.5 for c in (1024, 4096, 16384)}
    tokens = np.array([512, 2048, 10_000, 32_768])
    found = paces(made(known), tokens, 4).ttft_s[:, 3]
    assert found.tolist() == pytest.approx((1e-6 * tokens**1.5).tolist())


def test_one_context_is_a_constant() -> None:
    assert paces(made({(4.0, 1024): 2.0}), np.array([10, 5000]), 4).tpot_s[:, 3].tolist() == [2, 2]


def test_loads_between_are_a_power_law_and_above_a_server_is_busy() -> None:
    """2 s at 2 open requests, 8 s at 8: n s between; twice 8 s at 16, and at 1 as at 2."""
    found = paces(made({(2.0, 100): 2.0, (8.0, 100): 8.0}), np.array([100]), 16)
    seconds = dict(enumerate(found.ttft_s[0].tolist(), start=1))
    assert [seconds[n] for n in (1, 2, 4, 8, 16)] == pytest.approx([2, 2, 4, 8, 16])
    assert found.watts is not None
    assert found.watts[0, 15] == pytest.approx(8 / 2)  # joules a request stay as they are


def test_a_load_may_have_other_contexts_than_another() -> None:
    known = {(1.0, 100): 1.0, (1.0, 400): 4.0, (4.0, 100): 2.0}
    found = paces(made(known), np.array([200]), 4).ttft_s[0]
    assert found[0] == pytest.approx(2.0) and found[3] == pytest.approx(2.0)


def test_nothing_measured_is_no_curve() -> None:
    assert grid({}) is None
