"""The search finds the value it should, says what is uncertain, and goes on where it stopped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from loadgen.driver.slo_search import Probe, Search, meets, run_search, wilson
from loadgen.search import conclusion, ladder_conclusion, ladder_values
from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import GoldenServer, Script, Seen, well_behaved
from tests.fakes.waiting import HUNG_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("good", "total"), [(0, 5), (5, 5), (90, 100), (1, 1000)])
def test_the_interval_is_wilsons(good: int, total: int) -> None:
    expected = binomtest(good, total).proportion_ci(method="wilson")
    assert wilson(good, total) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("limit", [0.3, 3.7, 50.0])
def test_the_highest_rate_is_found_within_the_step(limit: float) -> None:
    """A server that is good up to ``limit`` and bad beyond."""
    search = Search(start=1.0, step=1.1)
    best = run_search(search, lambda v, _: (200 if v <= limit else 20, 200), lambda p: None)
    assert best is not None and best <= limit < best * 1.12
    assert len(search.probes) < 16


def test_users_are_found_exactly() -> None:
    search = Search(start=1, whole=True, step=1.0)
    assert run_search(search, lambda v, _: (99 if v <= 13 else 10, 100), lambda p: None) == 13


def test_a_share_at_the_target_is_repeated_and_then_decided() -> None:
    """181 of 200 is 90.5 %, and even 543 of 600 has 90 % within its interval."""
    asked: list[tuple[float, int]] = []

    def probe(value: float, number: int) -> tuple[int, int]:
        asked.append((value, number))
        return (198 if value < 4 else 181 if value == 4 else 40), 200

    search = Search(start=2.0)
    run_search(search, probe, lambda p: None)
    assert [n for v, n in asked if v == 4.0] == [0, 1, 2]
    assert search.probes[4.0].total == 600


def test_nothing_good_anywhere_and_everything_good_end() -> None:
    assert run_search(Search(start=1.0), lambda v, _: (0, 50), lambda p: None) is None
    assert run_search(Search(start=1.0, most=64), lambda v, _: (50, 50), lambda p: None) == 64
    assert Search(start=1.0).verdict(Probe(1.0, 0, 0, runs=1)) is False  # nothing came back


SLO = SloConfig(ttft_s=1, tpot_s=0.05)


def searched(*probes: tuple[float, int, int]) -> Search:
    search = Search(start=8)
    search.probes = {value: Probe(value, good, 200, runs) for value, good, runs in probes}
    return search


def test_a_search_ends_with_its_answer_and_how_sure_it_is() -> None:
    """Wilson's interval of 181 of 200 is 85.6 % to 93.8 %; that of 198 lies above 90 %."""
    sure = conclusion(searched((2, 198, 1), (3, 40, 1)), "rate", SLO)
    assert sure == (
        "highest rate that meets the SLO: 2 requests/s; 99.0% of 200 requests meet TTFT 1 s, TPOT 0.05 s, "
        "90% wanted; at 3 20.0% do"
    )
    unsure = conclusion(searched((2, 181, 3)), "users", SLO)
    assert ", which is uncertain (95 % interval 85.6% to 93.8%); " in unsure
    assert unsure.endswith("nothing above it was probed (--most)")
    none = conclusion(searched((8, 10, 1), (4, 20, 1)), "rate", SLO)
    assert none == (
        "no rate from 8 down meets the SLO (TTFT 1 s, TPOT 0.05 s): "
        "at 4 10.0% of 200 requests do, 90% wanted"
    )


def test_a_ladder_ends_with_what_holds_and_what_fails() -> None:
    ladder = searched((4, 181, 1), (1, 200, 1), (8, 2, 1), (2, 199, 1))
    assert ladder_conclusion(ladder, "users", SloConfig()) == (
        "users, success for 90% of requests: meets the SLO at 1, 2; undecided at 4; fails at 8"
    )


@pytest.mark.parametrize("text", ["1,x", "", "0,1", "1,-2", "inf", "nan,1"])
def test_a_ladder_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="numbers above 0"):
        ladder_values(text)
    assert ladder_values("4,1,4") == [4, 1]


def row(**more: object) -> dict[str, object]:
    base: dict[str, object] = {
        "error_type": None,
        "scheduled_unix_ns": None,
        "sent_unix_ns": 10**9,
        "first_token_ns": 500_000_000,
        "last_token_ns": 900_000_000,
        "end_ns": 1_000_000_000,
        "output_tokens": 5,
    }
    return base | more


def test_a_request_is_good_within_every_bound_counted_from_the_schedule() -> None:
    assert meets(row(), SloConfig(ttft_s=0.5, tpot_s=0.1, e2e_s=1.0))
    assert not meets(row(), SloConfig(ttft_s=0.499))
    assert not meets(row(), SloConfig(tpot_s=0.099))  # 0.4 s over 4 gaps
    assert not meets(row(), SloConfig(e2e_s=0.99))
    assert not meets(row(error_type="timeout"), SloConfig(e2e_s=9))
    late = row(scheduled_unix_ns=10**9 - 300_000_000)
    assert not meets(late, SloConfig(ttft_s=0.7))
    assert meets(late, SloConfig(ttft_s=0.81))


def test_a_search_on_a_server_is_resumed_without_probing_again(tmp_path: Path) -> None:
    """The server answers fast while fewer than 4 are open, and far too slowly beyond."""

    def script(seen: Seen) -> Script:
        return well_behaved(0.005 if server.open_connections < 4 else 0.3, 0.001)(seen)

    with GoldenServer(script) as server:
        base = make_run(tmp_path / "base", server.url)
        argv = [sys.executable, "-m", "loadgen.search", "--run-dir", str(base), "--over", "users"]
        argv += ["--ttft-s", "0.15", "--warmup-s", "0.3", "--measure-s", "0.7", "--step", "1"]
        argv += ["--out", str(tmp_path / "out"), "--most", "4"]
        first = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=False
        )
        count = len(server.seen)
        again = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=False
        )
        assert (first.returncode, again.returncode) == (0, 0), first.stdout + first.stderr
        assert len(server.seen) == count
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert (found["best"], found["first_failing"]) == (3.0, 4.0)
    assert first.stdout == again.stdout
    assert first.stdout.splitlines()[-1].startswith("highest users that meets the SLO: 3 users; ")


def test_the_help_says_of_every_option_what_it_is_for_within_80_columns() -> None:
    argv = [sys.executable, "-m", "loadgen.search", "--help"]
    env = {**os.environ, "COLUMNS": "80"}
    said = subprocess.run(argv, capture_output=True, text=True, env=env, check=True).stdout
    assert max(map(len, said.splitlines())) <= 80
    options = re.findall(r"^  (--[a-z0-9-]+[^\n]*(?:\n {4,}[^\n]+)*)", said, flags=re.MULTILINE)
    assert len(options) >= 20
    for option in options:
        plain = re.sub(r"--[a-z0-9-]+|\{.*?\}|\b[A-Z_]{3,}(=[A-Z]+)?\b", "", option)
        assert len(plain.split()) >= 2, option
