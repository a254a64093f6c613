"""Demand, capacity and plan: a candidate whose step time is known, and what a person typed wrongly."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from analysis.report.document import plotly
from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from greenbench.contract.policy import Policy
from greenbench.contract.slo import parse_slo
from planning.__main__ import main
from planning.candidates import Measured, Metered, idle_s, left_out, power_of
from planning.capacity import Choice, Need, fewest, most_factor, need, needed
from planning.demand import Demand, TrafficFile, load_demand
from planning.fleet import fleet
from planning.folder import holds_all
from planning.plan import Plan, Prices, dump, lengths, load_prices, priced, what_to_measure
from planning.plan_page import energy, knee, render
from planning.plan_page import replicas as against_traffic
from planning.plan_told import answer, row, said, table
from planning.requests import Traffic
from planning.simulator import Played, Settings, play
from tests.fakes.pages import check_closed
from tests.planning.steps import candidate

ROOT = Path(__file__).resolve().parents[2]
SLO = SloConfig(ttft_s=0.5, tpot_s=0.02)


@pytest.fixture(scope="module")
def one() -> Measured:
    return candidate()


def demand(rate: float, prompts: Any = 4096, outputs: Any = 64, **more: Any) -> Demand:
    file = TrafficFile.model_validate(
        {"rate_per_s": rate, "prompt_tokens": prompts, "output_tokens": outputs} | more
    )
    return Demand(file, few=500, most=500)


def replicas(one: Measured, asked: Demand) -> int:
    whole = fleet(one, asked, SLO, 7)
    found = fewest(lambda n: whole.seen((n,), 1.0).meets)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def made(one: Measured) -> Need:
    found = need(one, demand(60), SLO, seed=7, draws=3)
    assert isinstance(found, Need)
    return found


def test_the_fewest_replicas_meet_and_one_less_does_not(one: Measured, made: Need) -> None:
    assert made.replicas is not None and made.replicas > 1
    whole = fleet(one, demand(60), SLO, 7)
    assert (
        whole.seen((made.replicas,), 1.0).meets and not whole.seen((made.replicas - 1,), 1.0).meets
    )
    assert made.headroom >= 0 and made.most_rate == pytest.approx(60 * (1 + made.headroom))


@pytest.mark.parametrize(
    "slo", [SLO, SloConfig(ttft_s=0.3), SloConfig(tpot_s=0.012), SloConfig(e2e_s=1.5)]
)
def test_a_play_that_is_not_gone_on_with_would_have_missed(one: Measured, slo: SloConfig) -> None:
    early, whole = (fleet(one, demand(60), slo, 7) for _ in range(2))
    factors = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 2.0)
    said = [early.meets((2,), factor) for factor in factors]
    assert said == [whole.seen((2,), factor).meets for factor in factors]
    assert {True, False} == {*said} and len(early.plays) < len(early.verdicts)


def test_intervals_hold_the_plan(made: Need) -> None:
    assert made.replicas_interval is not None and made.ttft_interval is not None
    low, high = made.replicas_interval
    assert (
        high is not None
        and low <= made.replicas <= high
        and made.ttft_interval[0] < made.ttft_interval[1]
    )
    for ends, value in (
        (made.headroom_interval, made.headroom),
        (made.utilisation_interval, made.utilisation_at_slo),
    ):
        assert ends is not None and ends[0] <= value <= ends[1] and ends[0] < ends[1]
    for counts, number in zip(made.longer_intervals, made.longer, strict=True):
        assert counts is not None and counts[1] is not None
        assert low <= counts[0] <= (number or 0) <= counts[1]
    assert made.watts_interval is not None and made.kwh_interval is not None
    assert made.kwh_interval == pytest.approx(tuple(0.024 * w for w in made.watts_interval))


def test_a_verdict_that_is_not_played_is_the_one_that_would_be(one: Measured) -> None:
    told = fleet(one, demand(60), SLO, 7)
    for factor in (0.6, 0.9, 1.0, 1.3, 2.0):
        for servers in (1, 2, 3, 4, 6):
            played = fleet(one, demand(60), SLO, 7).seen((servers,), factor).meets
            assert told.meets((servers,), factor) == played
    assert len(told.verdicts) < 20


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The requests of each play from now on."""
    found: list[int] = []

    def counts(asked: Traffic, *args: Any, **more: Any) -> Played:
        found.append(len(asked))
        return play(asked, *args, **more)

    monkeypatch.setattr("planning.fleet.play", counts)
    return found


def test_a_draw_takes_few_plays(one: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve each before verdicts followed from one another."""
    played = counted(monkeypatch)
    need(one, demand(60), SLO, seed=7, draws=0)
    alone = len(played)
    need(one, demand(60), SLO, seed=7, draws=10)
    assert len(played) - 2 * alone <= 100


def test_a_large_traffic_takes_no_longer_than_its_servers_share(
    one: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many a server at 3,000 requests/s as at 100 times that, and no play is longer."""
    played = counted(monkeypatch)
    asked = [replace(demand(rate), few=500, most=2_000) for rate in (3e3, 3e5)]
    found = [need(one, each, SLO, seed=7, draws=0) for each in asked]
    few, many = (each.replicas for each in found if isinstance(each, Need))
    assert many / few == pytest.approx(100, rel=0.05)
    assert max(played) <= 2_000 and len(played) < 150


@pytest.mark.parametrize("more", [{}, {"arrivals": "gamma", "burstiness": 0.25}])
def test_servers_that_stand_for_more_are_as_good_and_no_better(
    one: Measured, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    asked = replace(demand(640, {2048: 0.8, 8192: 0.2}, **more), few=2_000, most=80_000)
    part = fleet(one, asked, SLO, 7).seen((48,), 1.0)
    monkeypatch.setattr("planning.fleet.SHARED", 48)
    whole = fleet(one, asked, SLO, 7).seen((48,), 1.0)
    assert part.ttft_s[:2] == pytest.approx(whole.ttft_s[:2], rel=0.03)
    assert part.ttft_s[1] >= 0.99 * whole.ttft_s[1]
    assert part.utilisation == pytest.approx(whole.utilisation, rel=0.03)


def test_a_higher_rate_has_the_same_requests_sooner() -> None:
    asked = Demand(demand(50, {512: 0.7, 4096: 0.3}).file)
    slow, fast = asked.traffic(1.0, 3), asked.traffic(2.0, 3)
    assert len(fast) == 2 * len(slow) == 12_000
    assert fast.at_s[:6000] == pytest.approx(slow.at_s / 2)
    assert (fast.prompt_tokens[:6000] == slow.prompt_tokens).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_a_share_of_the_arrivals_is_that_of_each_kept_with_its_chance(burstiness: float) -> None:
    """Of gaps with mean m and variance m²/k, each request kept with chance p: mean m/p and variance
    (m²/k)/p + m²·(1 − p)/p².
    """
    asked = demand(200, arrivals="gamma", burstiness=burstiness)
    gaps = np.diff(replace(asked, few=40_000, most=40_000).traffic(1.0, 3, 0.25).at_s)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    variance = (1 / 200**2) * (1 / burstiness / 0.25 + 0.75 / 0.25**2)
    assert gaps.var() == pytest.approx(variance, rel=0.1)


def test_a_share_of_a_trace_is_of_all_of_it(tmp_path: Path) -> None:
    rows = tuple((i / 100, 1000 + i, 9) for i in range(40_000))
    asked = Demand(TrafficFile(trace="t"), rows)
    assert asked.shared(64, 16) == (16, 0.25) and asked.shared(10**6, 16) == (2000, 0.05)
    part = asked.traffic(1.0, 3, 0.25)
    assert len(part) == pytest.approx(10_000, rel=0.03)
    assert part.at_s[-1] == pytest.approx(400, rel=0.01) and part.prompt_tokens.max() > 40_000


def test_a_trace_is_planned_for_its_busiest_stretch(tmp_path: Path) -> None:
    """One a second for an hour, then ten a second for ten minutes: 1,200 in two, filled up to 2,000."""
    at = [*range(3600), *(3600 + i / 10 for i in range(6000))]
    rows = [{"timestamp": 1000 * t, "input_length": 2000, "output_length": 9} for t in at]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "traffic.yaml").write_text("trace: t.jsonl\n")
    found = load_demand(tmp_path / "traffic.yaml")
    assert found.rate_per_s == pytest.approx(10, rel=0.01)
    assert (len(found.trace), found.of) == (2000, 9600)


def test_a_trace_of_one_moment_has_no_rate(tmp_path: Path) -> None:
    row = json.dumps({"timestamp": 5, "input_length": 2000, "output_length": 9})
    (tmp_path / "t.jsonl").write_text(f"{row}\n{row}\n")
    (tmp_path / "traffic.yaml").write_text("trace: t.jsonl\n")
    with pytest.raises(UserError, match="at two times are wanted, found 2 at one time"):
        load_demand(tmp_path / "traffic.yaml")


def test_a_negative_seed_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main_with("--seed", "-1")
    assert "a whole number from 0 is wanted, found '-1'" in capsys.readouterr().err


def main_with(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["planning", "plan", *words])
        return main()


def test_a_rate_of_a_thousand_million_has_its_number_of_replicas(one: Measured) -> None:
    found = need(one, demand(1e9), SLO, seed=7, draws=0)
    per = need(one, demand(1e4), SLO, seed=7, draws=0)
    assert isinstance(found, Need) and isinstance(per, Need)
    assert found.replicas == pytest.approx(1e5 * per.replicas, rel=0.05)


def test_headroom_that_was_not_sought_further_says_so(one: Measured) -> None:
    found = need(one, demand(1e-3), SLO, seed=7, draws=0)
    assert isinstance(found, Need) and found.headroom == pytest.approx(63, rel=0.02)
    assert any("at least this: 64 times" in sentence for sentence in found.said)
    # its one server is all but idle at the most that was tried, which is not where its SLO ends
    assert found.utilisation_at_slo < 0.5
    busy, headroom = row(found)[3:5]
    assert busy.startswith("≥ ") and headroom.startswith("≥ 6,3")


def test_starts_that_hold_no_rate_have_no_number_of_replicas(one: Measured) -> None:
    """One start's steps take 20 ms whatever they compute: TPOT of 20 ms is never met by it."""
    slow = one.timed[0][0]
    timed = tuple(
        (block, replace(run, seconds=run.seconds + 0.02) if block == slow else run)
        for block, run in one.timed
    )
    found = need(replace(one, timed=timed, fits={}), demand(60), SLO, seed=7, draws=8)
    assert isinstance(found, Need) and found.replicas_interval is not None
    assert found.replicas_interval == (found.replicas, None)
    assert "none]" in row(found)[1] and found.utilisation_interval is not None
    assert found.utilisation_interval[0] > 0.5  # of the starts that hold some rate
    assert json.loads(dump(Plan("c", "t", SLO, "EUR", (found,), None, ())))["needs"][0][
        "replicas_interval"
    ] == [found.replicas, None]


def test_the_host_is_named_where_no_kernel_ran(one: Measured) -> None:
    """Of 100 steps of 2 ms in a window of 0.25 s, with kernels for half of it, 75 ms are the host's."""
    assert idle_s(np.full(100, 0.002), 0.25, 0.5) == pytest.approx(0.075)
    assert idle_s(np.full(100, 0.002), 0.25, 1.0) == 0


def test_power_is_drawn_with_its_starts(one: Measured) -> None:
    """500 W in one start and 600 W in the other, busy or not: a replica draws 500, 550 or 600 W."""
    metered = {run.run_id: Metered(500.0 + 100 * b.repeat, None) for b, run in one.timed}
    own = replace(one, metered=metered, power=power_of(metered, one.model))
    assert own.power is not None and own.power.computing_w == pytest.approx(550)
    rng = np.random.default_rng(1)
    drawn = [d.power.decoding_w for _ in range(20) if (d := own.drawn(rng)) and d.power]
    assert {round(watts) for watts in drawn} == {500, 550, 600}


def test_the_highest_rate_of_too_few_replicas_is_below_the_asked(one: Measured) -> None:
    """A draw whose steps are slower may not hold the plan's replicas: its headroom is negative."""
    whole = fleet(one, demand(60), SLO, 7)
    (alone, at), asked = most_factor(whole, (1,)), 60
    assert at is not None and at.meets and 0 < alone < 1
    assert whole.seen((1,), alone).meets and not whole.seen((1,), 1.05 * alone).meets
    assert fewest(lambda n: n * alone * asked >= asked) == pytest.approx(
        replicas(one, demand(60)), abs=1
    )


def test_one_start_has_no_interval_and_says_so() -> None:
    found = need(candidate(blocks=1), demand(30), SLO, seed=7)
    assert isinstance(found, Need) and found.replicas_interval is None
    assert any("no interval" in sentence for sentence in found.said)


def test_watts_are_between_idle_and_busy(made: Need) -> None:
    """100 W idle, 400 to 600 W busy, a replica."""
    n = made.replicas or 0
    assert made.watts is not None and made.kwh_day is not None
    assert made.watts[0] == made.watts[1] and n * 100 < made.watts[0] < n * 600
    assert made.kwh_day[0] == pytest.approx(made.watts[0] * 24 / 1000)


def test_capacity_does_not_rise_with_context(one: Measured) -> None:
    counts = [replicas(one, demand(40, context)) for context in (1024, 4096, 12_000)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_capacity_does_not_fall_with_memory() -> None:
    counts = [
        replicas(candidate(1, settings=Settings(256, 2048, 16, tokens)), demand(40, 4096, 100))
        for tokens in (6_000, 20_000, 1_000_000)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_the_cache_binds_where_it_is_small() -> None:
    one = candidate(1, settings=Settings(256, 2048, 16, 6_000))
    assert fleet(one, demand(40, 4096, 200), SLO, 7).seen((4,), 1.0).binds == "KV capacity"


def test_max_num_seqs_binds_where_it_is_small() -> None:
    one = candidate(1, settings=Settings(2, 2048))
    assert fleet(one, demand(60), SLO, 7).seen((1,), 1.0).binds == "max_num_seqs"


@pytest.mark.parametrize(
    ("weights_s", "host_s", "binds"),
    [
        (None, 1.5e-3, "host or weights"),
        (2e-4, None, "host or small kernels"),
        (2e-4, 1.5e-3, "host"),
        (2e-4, 1e-4, "small kernels"),
        (1.9e-3, None, "bandwidth"),
    ],
)
def test_short_requests_are_bound_by_the_host_the_kernels_or_the_weights(
    one: Measured, weights_s: float | None, host_s: float | None, binds: str
) -> None:
    """A step takes 2 ms whatever it computes, of which the memory can read the weights in ``weights_s``, and
    no kernel runs for ``host_s``.
    """
    asked = fleet(replace(one, weights_s=weights_s, host_s=host_s), demand(0.5, 1024, 300), SLO, 7)
    assert asked.seen((1,), 1.0).binds == binds


def test_long_prompts_are_bound_by_compute(one: Measured) -> None:
    assert fleet(one, demand(2, 16_384, 2), SLO, 7).seen((1,), 1.0).binds == "compute"


def test_beyond_the_measured_is_marked_and_beyond_twice_refused(one: Measured) -> None:
    slo = SloConfig(e2e_s=6)
    beyond = need(one, demand(4, 24_000), slo, seed=7, draws=0)
    assert isinstance(beyond, Need) and beyond.extrapolated
    far = need(one, demand(1, 40_000), slo, seed=7)
    assert isinstance(far, str) and "measure those lengths" in far
    assert (
        "prompts of 1,024 to 16,384 tokens were measured, and the traffic's are of 40,000," in far
    )


def test_a_whole_request_is_held_against_the_longest_measured(one: Measured) -> None:
    """Prompts within, and 60,000 tokens out: decodes would read four times the context of any."""
    known = replace(one, hull=replace(one.hull, longest=16_448))
    slo = SloConfig(e2e_s=1000)
    far = need(known, demand(0.01, 4096, 60_000), slo, seed=7, draws=0)
    assert isinstance(far, str) and "up to 16,448 tokens with their output" in far
    asked = replace(demand(0.01, 4096, 16_000), few=20, most=20)
    beyond = need(known, asked, slo, seed=7, draws=0)
    assert isinstance(beyond, Need) and beyond.extrapolated
    assert any("have up to 20,096, 1.22 times beyond" in sentence for sentence in beyond.said)


def test_prompts_from_the_cache_say_nothing_of_computed_ones(one: Measured) -> None:
    """Steps computed 16 tokens of each prompt: 15 of 4,096 are as few, the whole 4,096 are not."""
    known = replace(one, hull=replace(one.hull, chunk=16))
    far = need(known, demand(1), SLO, seed=7, draws=0)
    assert isinstance(far, str) and far.startswith(
        "steps that computed up to 16 tokens of a prompt"
    )
    assert "the traffic's compute up to 2,048, more than 2 times beyond" in far
    near = need(known, demand(1, cached_share=0.998), SLO, seed=7, draws=0)
    assert isinstance(near, Need) and not near.extrapolated


def test_one_cause_of_several_is_said_once_of_them() -> None:
    each = [("a", "too few steps"), ("b", "no log"), ("c", "too few steps")]
    assert left_out(each) == ["a, c: too few steps", "b: no log"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (demand(1), ""),
        (demand(1, cached_share=0.35), "35 % of each prompt in the prefix cache"),
        (
            demand(1, arrivals="gamma", burstiness=0.25),
            "gamma arrivals of burstiness 0.25",
        ),
        (
            Demand(TrafficFile(trace="t", speed=2), tuple((5.0 * n, 9, 9) for n in range(5)), of=5),
            "all 5 requests of a trace, in 10 s; a load that lasts longer may take more",
        ),
        (
            Demand(TrafficFile(trace="t"), tuple((60.0 * n, 9, 9) for n in range(4)), of=7),
            "the busiest 4 requests of a trace of 7, in 180 s",
        ),
    ],
)
def test_what_a_plan_is_for_is_said(asked: Demand, words: str) -> None:
    assert asked.words == words


def test_more_sequences_than_twice_the_measured_are_no_plan(one: Measured) -> None:
    """A loose SLO would let hundreds decode together: 32 were measured."""
    found = need(one, demand(200, 1024, 300), SloConfig(e2e_s=100), seed=7, draws=0)
    assert isinstance(found, Need) and found.seen.sequences <= 64


def test_an_slo_that_nobody_meets_names_the_nearest(one: Measured) -> None:
    found = need(one, demand(1), SloConfig(tpot_s=0.001), seed=7)
    assert isinstance(found, str) and "no number of replicas" in found and "TPOT 0.00" in found


def test_requests_that_no_server_takes_are_said(one: Measured) -> None:
    """3 of 10 are longer than 4,000 tokens."""
    short = replace(one, settings=replace(one.settings, max_model_len=4000))
    found = need(short, demand(10, {1024: 0.7, 8192: 0.3}), SLO, seed=7)
    assert isinstance(found, str) and "4,000 tokens that a server takes" in found


def test_longer_requests_that_no_server_takes_are_no_fewer_replicas(one: Measured) -> None:
    """8 of 100 have 5,000 tokens: a quarter longer a server of 6,000 takes none of them, 92 meet."""
    short = replace(one, settings=replace(one.settings, max_model_len=6000))
    found = need(short, demand(40, {1024: 0.92, 5000: 0.08}), SLO, seed=7, draws=0)
    assert isinstance(found, Need) and found.longer[0] is None
    assert (
        "prompts +25 %: none, too long for a server: up to 6,314 tokens against its max_model_len "
        "of 6,000" in found.said
    )  # 5,000 · 1.25 + 64
    whole = need(one, demand(40, {1024: 0.92, 5000: 0.08}), SLO, seed=7, draws=0)
    assert isinstance(whole, Need) and whole.longer[0] is not None and whole.replicas is not None
    assert whole.longer[0] >= whole.replicas


@pytest.mark.parametrize(
    ("asked", "slo", "says"),
    [
        (
            demand(1, 30_000),
            SloConfig(e2e_s=9),
            "prompts +25 %: none, prompts of up to 37,500 tokens are more than 2 times as long as those "
            "measured (up to 16,384)",
        ),
        (  # 300 decodes of 2.02 ms alone, 375 a quarter longer
            demand(1, 1024, 300),
            SloConfig(e2e_s=0.7),
            "outputs +25 %: none, no number of replicas meets the SLO",
        ),
    ],
)
def test_no_number_for_longer_requests_has_its_cause(
    one: Measured, asked: Demand, slo: SloConfig, says: str
) -> None:
    found = need(one, replace(asked, few=100, most=100), slo, seed=7, draws=0)
    assert isinstance(found, Need) and None in found.longer
    assert [sentence for sentence in found.said if "none, " in sentence] == [says]


def test_one_cause_is_said_once(one: Measured) -> None:
    """Both are too long for the cache by as many tokens."""
    cache = replace(one, settings=replace(one.settings, total_kv_tokens=8200))
    found = need(cache, demand(1, 4096, 4096), SloConfig(e2e_s=100), seed=7, draws=0)
    assert isinstance(found, Need) and found.longer == (None, None)
    assert (
        "prompts +25 % and outputs +25 %: none, too long for a server: up to 9,216 tokens against the "
        "8,200 that its KV cache holds" in found.said
    )


def test_pools_of_a_policy_meet_together(one: Measured) -> None:
    policy = Policy.model_validate(
        {
            "schema": 1,
            "objective": "e2e",
            "model": {"name": "m"},
            "default": "alpha",
            "pools": {"alpha": {"backend": "alpha"}, "beta": {"backend": "beta"}},
            "rules": [
                {
                    "name": "r",
                    "pool": "beta",
                    "when": {"uncached_prompt_tokens": {"at_least": 4000}},
                }
            ],
        }
    )
    both = Choice("both", (one, replace(one, label="beta")), policy)
    asked = demand(60, {1024: 0.5, 8192: 0.5})
    found = needed(both, asked, SLO, 7, draws=3)
    assert isinstance(found, Need) and found.seen.meets
    short, long = found.pools
    assert long > short and found.replicas == short + long == found.cards
    whole = both.fleet(asked, SLO, 7)
    assert not whole.seen((short, long - 1), 1.0).meets
    assert short == 1 or not whole.seen((short - 1, long), 1.0).meets
    for ends, own in (
        (found.replicas_interval, found.replicas),
        (found.headroom_interval, found.headroom),
        (found.watts_interval, found.watts and found.watts[0]),
    ):
        assert ends is not None and own is not None and ends[0] <= own <= (ends[1] or own)
    busy = [100 + 300 * use.utilisation for use in found.seen.uses]  # 100 W idle, 400 to 600 W busy
    assert found.watts is not None and found.watts[0] > np.dot(found.pools, busy)


def test_a_policy_goes_by_what_is_not_cached(one: Measured) -> None:
    """Of 8,192 tokens half are cached: 4,096 new ones, below the bound of 5,000. So does the gateway."""
    policy = Policy.model_validate(
        {
            "schema": 1,
            "objective": "e2e",
            "model": {"name": "m"},
            "default": "alpha",
            "pools": {"alpha": {"backend": "alpha"}, "beta": {"backend": "beta"}},
            "rules": [
                {
                    "name": "r",
                    "pool": "beta",
                    "when": {"uncached_prompt_tokens": {"at_least": 5000}},
                }
            ],
        }
    )
    both = Choice("both", (one, replace(one, label="beta")), policy)
    for cached, busy in ((0.0, {1}), (0.5, {0})):
        seen = both.fleet(demand(2, 8192, cached_share=cached), SLO, 7).seen((1, 1), 1.0)
        assert {at for at, use in enumerate(seen.uses) if use.utilisation} == busy


def test_a_pool_of_few_requests_is_not_left_to_starve(one: Measured) -> None:
    """One of fourteen requests is long: without its pool nine of ten meet the SLO all the same."""
    policy = Policy.model_validate(
        {
            "schema": 1,
            "objective": "e2e",
            "model": {"name": "m"},
            "default": "alpha",
            "pools": {"alpha": {"backend": "alpha"}, "beta": {"backend": "beta"}},
            "rules": [
                {
                    "name": "r",
                    "pool": "beta",
                    "when": {"uncached_prompt_tokens": {"at_least": 8000}},
                }
            ],
        }
    )
    slow = replace(one, label="beta", model=replace(one.model, terms=one.model.terms.times(8)))
    slo = SloConfig(ttft_s=2, tpot_s=0.2)
    both = Choice("both", (one, slow), policy)
    found = needed(both, demand(60, {1024: 0.93, 12_000: 0.07}), slo, seed=7, draws=0)
    assert isinstance(found, Need) and found.pools[1] > 3 and found.seen.ttft_s[2] < 10
    starved = both.fleet(demand(60, {1024: 0.93, 12_000: 0.07}), slo, 7)
    seen = starved.seen((found.pools[0], 1), 1.0)
    assert seen.good > 0.9 and not seen.meets


def test_gamma_arrivals_come_in_bursts() -> None:
    """Coefficient of variation of the gaps: 1/√k."""
    asked = replace(demand(50, arrivals="gamma", burstiness=0.25), few=6000, most=6000)
    gaps = np.diff(asked.traffic(1.0, 3).at_s)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.1)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.1)


def test_lengths_have_their_shares() -> None:
    asked = replace(demand(50, {512: 0.7, 4096: 0.3}), few=6000, most=6000)
    tokens = asked.traffic(1.0, 3).prompt_tokens
    assert (tokens == 4096).mean() == pytest.approx(0.3, abs=0.02)


def test_a_trace_is_played_at_its_times(tmp_path: Path) -> None:
    rows = [{"timestamp": 500 * i, "input_length": 2000, "output_length": 9} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "traffic.yaml").write_text("trace: t.jsonl\nspeed: 2\n")
    found = load_demand(tmp_path / "traffic.yaml")
    assert found.traffic(1.0, 1).at_s[-1] == pytest.approx(39 * 0.25)
    assert found.rate_per_s == pytest.approx(40 / (39 * 0.25))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rate_per_s: 3\n", "prompt_tokens and output_tokens missing"),
        ("rate_per_s: -3\nprompt_tokens: 5\noutput_tokens: 5\n", "rate_per_s"),
        ("rate_per_s: 3\nprompt_tokens: {512: 0.5}\noutput_tokens: 5\n", "sum to 0.5"),
        ("rate_per_s: 3\nprompt_tokens: {from: 9, to: 5}\noutput_tokens: 5\n", "at least 'from'"),
        (
            "rate_per_s: 3\nprompt_tokens: {a: 1}\noutput_tokens: 5\n",
            "t.yaml: prompt_tokens: a number of tokens is wanted, .* found 'a'",
        ),
        ("rate_per_s: 3\nprompt_tokens: 1k\noutput_tokens: 5\n", "found '1k'"),
        ("rate_per_s: 3\nprompt_tokens: {p50: 512, p90: 900}\noutput_tokens: 5\n", "found 'p50'"),
        ("rate_per_s: 3\nprompt_tokens: {9: 70%}\noutput_tokens: 5\n", "found '70%'"),
        ("rate: 3\n", "rate_per_s"),
        (
            "rate_per_s: 3\nprompt_tokens: 99999999999999999999\noutput_tokens: 5\n",
            "prompt_tokens: at most 100,000,000 tokens",
        ),
        (
            "rate_per_s: 3\nprompt_tokens: 5\noutput_tokens: {9: 0.5, 999999999999: 0.5}\n",
            "output_tokens: at most",
        ),
        (
            "rate_per_s: 3\nprompt_tokens: {from: 5, to: 999999999999}\noutput_tokens: 5\n",
            r"prompt_tokens\.to: it should be less than or equal to 100000000",
        ),
        ("rate_per_s: 1e300\nprompt_tokens: 5\noutput_tokens: 5\n", "equal to 1000000000"),
        ("rate_per_s: 1e-300\nprompt_tokens: 5\noutput_tokens: 5\n", "rate_per_s"),
        (  # what would change nothing was meant to
            "rate_per_s: 3\nburstiness: 0.2\nprompt_tokens: 5\noutput_tokens: 5\n",
            "burstiness would change nothing: only 'arrivals: gamma'",
        ),
        ("rate_per_s: 3\nspeed: 2\nprompt_tokens: 5\noutput_tokens: 5\n", "speed would change"),
        ("trace: t.jsonl\narrivals: gamma\n", "arrivals would change nothing: a trace"),
    ],
)
def test_bad_traffic_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_demand(tmp_path / "t.yaml")


def test_the_format_of_a_trace_is_seen_from_it(tmp_path: Path) -> None:
    names = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = ["1,ChatGPT,100,20,120,Conversation log", "5,ChatGPT,300,40,340,Conversation log"]
    (tmp_path / "trace.csv").write_text("\n".join([names, *rows]) + "\n")
    (tmp_path / "t.yaml").write_text("trace: trace.csv\n")
    asked = load_demand(tmp_path / "t.yaml")
    assert [row[1:] for row in asked.trace] == [(100, 20), (300, 40)]
    assert asked.rate_per_s == pytest.approx(2 / 4)


def test_a_folder_of_folders_of_sweeps_names_them(tmp_path: Path) -> None:
    for name in ("a/sweep/run", "b/sweep/run", "heldout/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"name one of \S+/a, \S+/b, \S+/heldout$"):
        holds_all(tmp_path)
    holds_all(tmp_path / "a")
    holds_all(tmp_path / "heldout" / "run")


def test_negative_prices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("per_card_hour: -1\n")
    with pytest.raises(UserError, match="per_card_hour"):
        load_prices(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("per_card_hour: 2\n")
    assert load_prices(tmp_path / "p.yaml").per_kwh == 0


def test_prices_without_a_price_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("currency: USD\npue: 1.2\n")
    with pytest.raises(UserError, match="per_card_hour or per_kwh above 0 is wanted"):
        load_prices(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("prices", "cost", "says"),
    [
        (Prices(per_kwh=0.5, pue=2.0), (24.0, 48.0), "of energy alone"),  # 24 and 48 kWh
        (Prices(per_card_hour=1.0), (48.0, 48.0), "without energy: the prices"),  # 2 cards
        (Prices(per_card_hour=1.0, per_kwh=1.0), (72.0, 96.0), ""),
    ],
)
def test_a_cost_says_what_it_is_of(
    made: Need, prices: Prices, cost: tuple[float, float], says: str
) -> None:
    found = priced(replace(made, replicas=2, cards=2, kwh_day=(24.0, 48.0), said=()), prices)
    assert found.cost_day == pytest.approx(cost)
    assert [says in sentence for sentence in found.said] == ([True] if says else [])


def test_the_page_the_lines_and_the_json_say_the_same(made: Need) -> None:
    plan = Plan("a card", "some traffic", SLO, "EUR", (made,), None, ("beta: one load only",))
    page, lines, plain = render(plan), table(plan), json.loads(dump(plan))
    assert plain["needs"][0]["replicas"] == made.replicas
    assert f"<code>alpha</code> would serve this traffic with {made.replicas} replicas" in page
    assert "Left out: beta: one load only." in page
    assert lines[1].split()[:2] == ["alpha", str(made.replicas)]
    check_closed(page, plotly())
    assert len(page) < len(plotly())  # which it carries packed


def test_the_figures_name_every_row_in_one_colour(made: Need) -> None:
    """By the legend, which is as wide as the page; the policy's pools grow together."""
    policy = replace(made, label="the policy: 1 × a + 2 × b", pools=(1, 2), replicas=3)
    plan = Plan("a card", "some traffic", SLO, "EUR", (made,), policy, ())
    figures = [knee(plan), against_traffic(plan), energy(plan)]
    rows = [made.label, "the policy"]
    for figure in figures:
        assert figure is not None and figure.layout.showlegend
        assert [trace.name.rpartition("× ")[2] for trace in figure.data] == rows
    colours = [[(t.marker.color or t.line.color) for t in f.data] for f in figures if f is not None]
    assert colours[0] == colours[1] == colours[2] and len({*colours[0]}) == 2
    at, servers = (figures[1].data[1][axis] for axis in "xy") if figures[1] else ((), ())
    assert [*servers] == [3, 6, 9, 12]
    assert [*at] == pytest.approx([n * made.most_rate for n in range(4)])


def test_the_answer_names_who_may_serve(made: Need) -> None:
    """One that may not is no answer; as many replicas are a tie, and more are said."""
    out, more = replace(made, barred=True), replace(made, label="beta", replicas=9)
    plan = Plan(
        "a card", "traffic", SLO, "EUR", (made, replace(made, label="same"), more, out), None, ()
    )
    assert answer(plan).endswith("so would `same`.")
    assert answer(replace(plan, needs=(made, more, out))).endswith("the next, `beta`, takes 9.")
    assert answer(replace(plan, needs=(made, out))).count("`") == 2
    assert answer(replace(plan, needs=(out,))).startswith("No candidate may serve.")
    doubted = replace(made, label="fp8", unjudged=True)
    assert answer(replace(plan, needs=(made, doubted))).endswith(
        "so would `fp8` (answers not judged)."
    )
    assert said(replace(plan, needs=(made, doubted)))[0].startswith("All: ")
    far = replace(doubted, extrapolated=True)
    assert answer(replace(plan, needs=(made, far))).endswith(
        "so would `fp8` (answers not judged, extrapolated)."
    )


def test_replicas_of_several_cards_compare_by_cards(made: Need) -> None:
    """Two servers of four cards are no tie with two of one card, and the answer counts cards."""
    two, eight = (
        replace(made, label=label, replicas=2, cards=cards, replicas_interval=None)
        for label, cards in (("one", 2), ("four", 8))
    )
    plan = Plan("a card", "traffic", SLO, "EUR", (two, eight), None, ())
    assert answer(plan) == (
        "`one` would serve this traffic with 2 replicas; the next, `four`, takes 2 (8 cards)."
    )
    assert answer(replace(plan, needs=(eight,))).endswith("2 replicas (8 cards).")
    assert row(eight)[1] == "2 (8 cards)" and row(two)[1] == "2"


def test_the_sweep_to_measure_is_of_the_traffics_lengths() -> None:
    text = what_to_measure(demand(3, {"from": 1000, "to": 9000}), SLO, 1)
    assert "users: 16" in text and "ttft_s: 0.5" in text and "iteration_log: true" in text


def main_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``greenbench plan``."""
    monkeypatch.setattr(sys, "argv", ["planning", "plan", *words])
    code = main()
    out, err = capsys.readouterr()
    return code, out, err


def test_an_slo_file_has_a_sweeps_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text("ttft_s: 2\ntpot_s: 0.05\n")
    assert parse_slo(str(path)) == parse_slo("ttft=2,tpot=50ms")
    code, out, _ = main_says(monkeypatch, capsys, "--what-to-measure", "--slo", str(path))
    assert code == 0 and yaml.safe_load(out)["slo"] == {"ttft_s": 2.0, "tpot_s": 0.05}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("ttft_s: [", "not valid YAML at line"),
        ("ttft: 2\n", "ttft"),
        ("ttft_s: -1\n", "ttft_s"),
        ("ttft_s: soon\n", "ttft_s"),
        ("- ttft_s: 1\n", "at least one of ttft_s, tpot_s, e2e_s; it holds"),
        ("", "at least one of ttft_s, tpot_s, e2e_s is wanted"),
        ("ttft_s:\n", "at least one of ttft_s, tpot_s, e2e_s is wanted"),
    ],
)
def test_a_bad_slo_file_is_one_sentence_and_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    says: str,
) -> None:
    path, page = tmp_path / "slo.yaml", tmp_path / "plan.html"
    if text is not None:
        path.write_text(text)
    words = (str(tmp_path), "--traffic", "t.yaml", "--slo", str(path), "--page", str(page))
    code, out, err = main_says(monkeypatch, capsys, *words)
    assert code == 2 and says in err and str(path) in err and err.count("\n") == 1
    assert not out and not page.exists()


def test_a_page_that_cannot_be_written_is_said_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "none" / "plan.html"
    words = ("nowhere", "--traffic", "t.yaml", "--slo", "ttft=1", "--page", str(page))
    code, _, err = main_says(monkeypatch, capsys, *words)
    assert code == 2 and f"there is no folder {page.parent}" in err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--json", "p.html"), "it is --json and --page"),
        (("--json", "./t.yaml"), "it is --traffic and --json"),
        (("--prices", "p.html"), "it is --prices and --page"),
        (("--window", "2h"), "--window is of --traffic prometheus=URL"),
    ],
)
def test_nothing_is_written_over_what_is_read_or_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: Any, says: str
) -> None:
    words = ("nowhere", "--traffic", "t.yaml", "--slo", "ttft=1", "--page", "p.html", *more)
    code, _, err = main_says(monkeypatch, capsys, *words)
    assert code == 2 and says in err


def test_two_files_of_forwards_for_one_candidate_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "nowhere",
        "--traffic",
        "t.yaml",
        "--slo",
        "ttft=1",
        "--forward",
        "a=f",
        "--forward",
        "a=g",
    )
    code, _, err = main_says(monkeypatch, capsys, *words)
    assert code == 2 and "one file a candidate, found a, a" in err


def test_a_plan_without_traffic_says_what_is_wanted(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "planning", "plan", str(tmp_path), "--slo", "ttft=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--traffic traffic.yaml" in done.stderr


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([4096, 4096], "4,096 tokens"),
        ([1000, 3000], "2,000 tokens on average (1,000 to 3,000)"),
    ],
)
def test_prompts_of_one_length_have_no_range(tokens: list[int], told: str) -> None:
    assert lengths(np.array(tokens)) == told
