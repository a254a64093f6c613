"""Issue "Claims", part 5: decisions and sentences agree with the figures."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.outside.generator import Point, Power, write, write_sweep_yaml
from tests.outside.playing import Load, Pace
from tests.outside.reading import Reading, figures, read
from tests.outside.sweeps import ALL_RIGHT, faster, other_split, starts

ALONE = Pace(0.5, 0.05, schedule="alone")
BASE = Point(pace=ALONE, load=Load(4, "random"), right=ALL_RIGHT)
FAIL = re.compile(r"fail|died|refused|no result|does not|out of memory|did not", re.I)


def reported(root: Path, points: Iterable[Point], *options: str) -> Reading:
    write(root, points)
    return read(root, *options)


def mixed_blocks() -> list[Point]:
    """alpha in blocks 0 to 2, beta in blocks 2 to 4. In the one block they share alpha takes 10 % longer;
    blocks 0 and 1 ran on a quiet machine (30 % faster), so alpha's mean is the better one."""
    quiet = {0: 0.7, 1: 0.7}
    found: list[Point] = []
    for repeat in range(5):
        block = quiet.get(repeat, 1.0)
        if repeat <= 2:
            found.append(replace(BASE, backend="alpha", repeat=repeat, factor=1.1 * block))
        if repeat >= 2:
            found.append(replace(BASE, backend="beta", repeat=repeat, factor=block))
    return [replace(p, started_s=i * 1000.0, noise_seed=i) for i, p in enumerate(found)]


def test_best_comes_from_shared_blocks(tmp_path: Path) -> None:
    """beta is 10 % faster in the one block that both ran in, alpha has the better mean over all starts: alpha
    is not recommended.
    """
    found = reported(tmp_path, mixed_blocks())
    assert not found.recommended("alpha"), found.headline
    assert not [w for w in found.winners() if w == "alpha"]
    for decision in found.summary["decisions"]:
        if decision["objective"] in ("output", "e2e"):
            assert decision.get("best") != "alpha", decision


def test_no_ratio_is_flipped(tmp_path: Path) -> None:
    """A factor belongs to the better one: no clause says that alpha is 1.1× better where beta is."""
    found = reported(tmp_path, mixed_blocks())
    for clause in re.split(r"[;.](?!\d)", found.text):
        if figures(clause) and "alpha" in clause and "beta" in clause:
            assert clause.index("beta") < clause.index("alpha"), clause


def correlated(slo: dict[str, float]) -> list[Point]:
    """beta ends a request in 1.3 % less time, so all three rates gain 1.3 %, with 3.0 times alpha's TTFT."""
    tokens, ttft_s, step_s = 64, 0.5, 0.05
    e2e_s = ttft_s + (tokens - 1) * step_s
    slow = Pace(3 * ttft_s, (e2e_s / 1.013 - 3 * ttft_s) / (tokens - 1), schedule="alone")
    alpha = replace(BASE, backend="alpha", output_tokens=tokens, slo=slo)
    return starts([alpha, replace(alpha, backend="beta", pace=slow)], 5, sd=0.0005, seed=2)


@pytest.mark.parametrize("slo", [{}, {"ttft_s": 60.0}, {"ttft_s": 1.0}], ids=str)
def test_correlated_votes(tmp_path: Path, slo: dict[str, float]) -> None:
    """A gain of 1.3 % under three names, at 3.0 times the TTFT, is no reason to recommend beta."""
    found = reported(tmp_path, correlated(slo))
    assert not found.recommended("beta"), found.headline
    if slo.get("ttft_s") == 1.0:
        assert found.recommended("alpha"), f"beta meets the SLO never: {found.headline}"


def test_what_it_costs_in_the_others_is_said(tmp_path: Path) -> None:
    """alpha takes 20 % less time a request at twice the TTFT: recommended by E2E, and the TTFT is stated."""
    beta = replace(BASE, backend="beta", slo={})
    e2e_s = (0.5 + 63 * 0.05) * 0.8
    alpha = replace(beta, backend="alpha", pace=Pace(1.0, (e2e_s - 1.0) / 63, schedule="alone"))
    found = reported(tmp_path, starts([alpha, beta], 5, sd=0.002, seed=2))
    assert found.recommended("alpha"), found.headline
    told = [s for s in found.sentences if re.search(r"TTFT|first token", s) and "alpha" in s]
    assert told, found.text
    assert any(re.search(r"\b2(\.0\d?)?\s*×|100 %|50 %", s) for s in told), told


def lengths_with_failure() -> list[Point]:
    points: list[Point] = []
    for repeat in range(3):
        for context in (16_384, 65_536):
            slow = replace(BASE, backend="alpha", context=context, repeat=repeat)
            quick = replace(slow, backend="beta", factor=0.85)
            if context == 65_536:
                quick = replace(
                    quick, status="failed", failure="the server died: CUDA out of memory"
                )
            points += [slow, quick]
    return [
        replace(p, started_s=i * 1000.0, noise_seed=i, factor=p.factor * (1 + 0.001 * (i % 5)))
        for i, p in enumerate(points)
    ]


def test_failed_lengths_are_said(tmp_path: Path) -> None:
    """beta is faster at 16,384 and its server dies at 65,536: one sentence says where it fails."""
    found = reported(tmp_path, lengths_with_failure())
    told = [s for s in found.said_of("beta", "65,536") if FAIL.search(s)]
    assert told, found.text
    takes = [s for s in found.sentences if re.search(r"\btake\b", s, re.I) and "beta" in s]
    for sentence in takes:
        assert "16,384" in sentence or "65,536" in sentence, sentence


def no_goodput() -> list[Point]:
    """alpha's first token always comes after the SLO's second, beta's always before; alpha has the rates."""
    alpha = replace(
        BASE, backend="alpha", pace=Pace(1.5, 0.01, schedule="alone"), slo={"ttft_s": 1.0}
    )
    beta = replace(alpha, backend="beta", pace=Pace(0.5, 0.04, schedule="alone"))
    return starts([alpha, beta], 4, sd=0.002, seed=2)


def test_goodput_0_is_a_value(tmp_path: Path) -> None:
    """alpha meets the SLO in no request and has the higher rates; beta meets it in all: beta wins goodput."""
    found = reported(tmp_path, no_goodput())
    (decision,) = [d for d in found.summary["decisions"] if d["objective"] == "goodput"]
    assert decision["winner"] == "beta", decision
    assert "alpha" in str(decision) and not found.recommended("alpha"), found.headline
    assert found.recommended("beta"), found.headline


def test_goodput_0_is_told_with_the_speed_it_had(tmp_path: Path) -> None:
    """Of one start each: alpha's four users each take 1.5 s and 0.01 s a further token for a request."""
    points = [p for p in no_goodput() if p.repeat == 0]
    found = reported(tmp_path, points)
    told = re.search(r"while alpha met the SLO in no request \(([\d,]+) total tokens/s", found.text)
    assert told, found.text
    tokens, users = BASE.context + BASE.output_tokens, 4
    cycle_s = 1.5 + (BASE.output_tokens - 1) * 0.01
    assert float(told[1].replace(",", "")) == pytest.approx(users * tokens / cycle_s, rel=0.02)


def test_goodput_0_of_both_is_no_winner(tmp_path: Path) -> None:
    """Neither meets the SLO: nobody wins goodput."""
    points = [replace(p, slo={"ttft_s": 0.1}) for p in no_goodput()]
    found = reported(tmp_path, points)
    assert not found.winners("goodput")


def test_one_byte_of_memory(tmp_path: Path) -> None:
    """Equal except for one byte of 70 GiB, five starts: no winner."""
    alpha = replace(BASE, backend="alpha", power=Power(memory_bytes=70 << 30))
    beta = replace(BASE, backend="beta", power=Power(memory_bytes=(70 << 30) + 1))
    found = reported(tmp_path, starts([alpha, beta], 5, sd=0.002, seed=2))
    assert not found.claims("memory") and not found.winners("memory")


def test_a_real_difference_of_memory(tmp_path: Path) -> None:
    """60 GiB against 70: a winner."""
    alpha = replace(BASE, backend="alpha", power=Power(memory_bytes=60 << 30))
    beta = replace(BASE, backend="beta", power=Power(memory_bytes=70 << 30))
    found = reported(tmp_path, starts([alpha, beta], 5, sd=0.002, seed=2))
    assert {c.winner for c in found.claims("memory")} == {"alpha"}


def test_a_difference_below_the_level_margin_is_no_winner(tmp_path: Path) -> None:
    """0.5 % in everything, proven by eight starts with almost no noise: too small to matter, no winner."""
    pair = [replace(BASE, backend="beta"), faster(BASE, "alpha", 0.995)]
    found = reported(tmp_path, starts(pair, 8, sd=0.0002, seed=2))
    assert not found.winners("output", "e2e", "ttft", "tpot", "itl")
    assert not found.recommended("alpha"), found.headline


def test_a_noisy_second_task_erases_nothing(tmp_path: Path) -> None:
    """7 % at `retrieve` with 0.5 % noise a start is found, though `summarize` of the same sweep has 15 %
    noise.
    """
    pair = [replace(BASE, backend="beta"), faster(BASE, "alpha", 1 / 1.07)]
    noisy = [replace(p, task="summarize", factor=1.0) for p in pair]
    sds = {"retrieve": 0.005, "summarize": 0.15}
    found = reported(tmp_path, starts([*pair, *noisy], 5, sds=sds, seed=4, shared=False))
    claimed = [c for c in found.claims("e2e") if "summarize" not in c.words]
    assert [c.winner for c in claimed] == ["alpha"], found.text


def test_block_drift_masks_no_paired_difference(tmp_path: Path) -> None:
    """5 % with 0.5 % noise a start is found, though whole blocks are up to 20 % slower or faster."""
    pair = [replace(BASE, backend="beta"), faster(BASE, "alpha", 1 / 1.05)]
    drift = (1.0, 1.2, 0.9, 1.15, 0.85)
    found = reported(tmp_path, starts(pair, 5, sd=0.005, seed=4, blocks=drift))
    assert {c.winner for c in found.claims("e2e")} == {"alpha"}, found.text


def several(n: int = 4) -> list[Point]:
    """Three candidates at three contexts: some differ by 30 %, some by 4 %, some not at all."""
    speeds = {"alpha": (1.0, 1.0, 1.0), "beta": (1.04, 1.3, 1.04), "gamma": (1.0, 1.04, 0.8)}
    points = [
        replace(
            BASE,
            backend=name,
            context=context,
            pace=replace(ALONE, prefill_s=0.1 + context * 3e-5),
            factor=factors[i],
            power=Power(),
        )
        for name, factors in speeds.items()
        for i, context in enumerate((4096, 8192, 16384))
    ]
    return starts(points, n, sd=0.004, seed=9, shared=False)


def test_counts_in_sentences_are_those_of_the_table(tmp_path: Path) -> None:
    """Where a sentence counts comparisons, winners and points, the table has as many."""
    found = reported(tmp_path, several())
    decisions = found.summary["decisions"]
    by_objective = {
        o: [d for d in decisions if d["objective"] == o]
        for o in {d["objective"] for d in decisions}
    }
    groups = [decisions, *by_objective.values()]
    allowed = {(sum(bool(d["winner"]) for d in g), len(g)) for g in groups}
    for sentence in found.sentences:
        for won, of in re.findall(r"(\d+) of (\d+) (?:comparisons|decisions|entries)", sentence):
            assert (int(won), int(of)) in allowed, (sentence, allowed)
        for usable, of in re.findall(r"(\d+) usable points of (\d+)", sentence):
            points = found.summary["points"]
            assert int(usable) == sum(p["status"] == "ok" for p in points)
            assert int(of) == len(points)


def test_factors_in_sentences_are_those_of_the_differences(tmp_path: Path) -> None:
    """Every factor in a sentence is a difference of the table, to the digits shown."""
    found = reported(tmp_path, several())
    known: list[float] = []
    for d in found.summary["differences"]:
        ratio = d["ratio"]["ratio"] if isinstance(d["ratio"], dict) else d["ratio"]
        if ratio:
            known += [float(ratio), 1 / float(ratio)]
    quoted = [f for s in found.sentences for f in figures(s)]
    assert quoted, found.text
    for figure in quoted:
        assert any(math.isclose(figure, ratio, abs_tol=0.051) for ratio in known), figure


def test_who_is_throughout_better_than_whom(tmp_path: Path) -> None:
    """Three candidates: a sentence that calls one better throughout says than which."""
    found = reported(tmp_path, several())
    for sentence in found.said_of("throughout"):
        named = [name for name in ("alpha", "beta", "gamma") if name in sentence]
        assert len(named) > 1, sentence


def test_several_starts_are_not_called_one(tmp_path: Path) -> None:
    """Three starts each, of which one block is shared: the report does not say that each was started once."""
    found = reported(tmp_path, mixed_blocks())
    assert not re.search(r"one start (per|each|of each)|started once", found.text, re.I), found.text


@pytest.mark.parametrize("percent", [1, 2.5, 4])
def test_one_is_never_printed_as_a_difference(tmp_path: Path, percent: float) -> None:
    """alpha surely takes a few per cent less time: the factor has enough digits, or is not shown."""
    pair = [replace(BASE, backend="beta"), faster(BASE, "alpha", 1 / (1 + percent / 100))]
    found = reported(tmp_path, starts(pair, 5, sd=0.0005, seed=4))
    assert not re.search(r"(?<![\d.,])1(\.0+)?\s*×", found.text), found.text


def test_a_tie_at_the_top_is_no_winner(tmp_path: Path) -> None:
    """alpha and beta are equal and gamma is 20 % slower: gamma is beaten, and neither of the two is
    recommended over the other.
    """
    alpha = replace(BASE, backend="alpha")
    points = [alpha, replace(alpha, backend="beta"), faster(alpha, "gamma", 1.2)]
    found = reported(tmp_path, starts(points, 5, sd=0.004, seed=9))
    assert {c.loser for c in found.claims("e2e")} == {"gamma"}
    assert not found.winners()
    takes = [s for s in found.sentences if re.search(r"\btake\b", s, re.I)]
    for sentence in takes:  # either of the two, as such, may be said
        assert "alpha" in sentence and "beta" in sentence, sentence


def test_two_loads_two_answers(tmp_path: Path) -> None:
    """alpha is 20 % faster for 4 users, beta for 16: no sentence recommends one of them for both."""
    points = [
        replace(BASE, backend=name, load=Load(users, "random"), factor=factor)
        for users, factors in ((4, (0.8, 1.0)), (16, (1.0, 0.8)))
        for name, factor in zip(("alpha", "beta"), factors, strict=True)
    ]
    found = reported(tmp_path, starts(points, 5, sd=0.004, seed=9))
    for sentence in found.sentences:
        for clause in re.split(r"[;.](?!\d)", sentence):
            if re.search(r"\btake alpha", clause, re.I):
                assert "4 users" in sentence and "16" not in clause, sentence
            if re.search(r"\btake beta", clause, re.I):
                assert "16 users" in sentence, sentence


def test_goodput_0_in_some_starts(tmp_path: Path) -> None:
    """alpha's first tokens miss the SLO in two starts of five, beta's in none, and alpha has 5 % more
    requests/s otherwise: alpha does not win goodput, and nothing breaks.
    """
    alpha, beta = (replace(BASE, backend=name, slo={"ttft_s": 0.52}) for name in ("alpha", "beta"))
    points = starts([replace(alpha, factor=1 / 1.05), beta], 5, sd=0.002, seed=3)
    late = [
        replace(p, pace=replace(p.pace, prefill_s=0.6))
        if p.backend == "alpha" and p.repeat < 2
        else p
        for p in points
    ]
    found = reported(tmp_path, late)
    assert "alpha" not in found.winners("goodput")


def bimodal() -> list[Point]:
    """TPOT of beta: three requests of five at 7 ms a token, the others at 35; alpha's always 25 ms."""
    beta = replace(
        BASE,
        backend="beta",
        output_tokens=100,
        load=Load(2, "random"),
        pace=Pace(
            3.0, 0.001, schedule="alone", tpot_modes=(7.0, 35.0, 7.0, 35.0, 7.0), request_sd=0.05
        ),
    )
    alpha = replace(beta, backend="alpha", pace=replace(beta.pace, tpot_modes=(25.0,)))
    return starts([alpha, beta], 3, sd=0.002, seed=9)


def test_a_bimodal_median_is_not_quoted(tmp_path: Path) -> None:
    """TPOT of 7 ms in three of five requests and 35 in two: the report says so, and no clause quotes a ratio
    of medians.
    """
    found = reported(tmp_path, bimodal())
    for sentence in found.sentences:
        for clause in sentence.split(";"):
            if re.search(r"TPOT|further token", clause):
                assert not figures(clause), clause
    assert re.search(r"bimodal|two (modes|groups|peaks|clusters)", found.text, re.I), found.text


def traded() -> list[Point]:
    """alpha: half of beta's TTFT. beta: 20 % less time a request. All meet the SLO."""
    tokens = 64
    beta = replace(BASE, backend="beta", output_tokens=tokens, power=Power())
    e2e_s = (0.5 + 63 * 0.05) * 1.25
    alpha = replace(beta, backend="alpha", pace=Pace(0.25, (e2e_s - 0.25) / 63, schedule="alone"))
    return starts([alpha, beta], 5, sd=0.002, seed=9)


@pytest.mark.parametrize(("objective", "best"), [("ttft", "alpha"), ("e2e", "beta")])
def test_objective_of_the_command(tmp_path: Path, objective: str, best: str) -> None:
    """`--objective`: alpha has half the TTFT, beta 20 % less time a request; the chosen one leads the
    headline.
    """
    found = reported(tmp_path, traded(), "--objective", objective)
    other = {"alpha": "beta", "beta": "alpha"}[best]
    assert found.recommended(best) and not found.recommended(other), found.headline


@pytest.mark.parametrize(("objective", "best"), [("ttft", "alpha"), ("output", "beta")])
def test_objective_of_the_sweep(tmp_path: Path, objective: str, best: str) -> None:
    """`objective:` in sweep.yaml does the same."""
    points = traded()
    write(tmp_path, points)
    write_sweep_yaml(tmp_path / points[0].sweep, points, objective=objective)
    found = read(tmp_path)
    other = {"alpha": "beta", "beta": "alpha"}[best]
    assert found.recommended(best) and not found.recommended(other), found.headline


def test_default_objective_is_goodput_under_the_slo(tmp_path: Path) -> None:
    """beta has the higher rates and misses the SLO in every request, alpha meets it: goodput leads the
    headline.
    """
    points = [replace(p, slo={"ttft_s": 0.4}) for p in traded()]
    found = reported(tmp_path, points)
    assert found.recommended("alpha") and not found.recommended("beta"), found.headline


def test_default_objective_without_an_slo_is_e2e(tmp_path: Path) -> None:
    """No SLO: beta, with the lower E2E time, is recommended."""
    found = reported(tmp_path, [replace(p, slo={}) for p in traded()])
    assert found.recommended("beta") and not found.recommended("alpha"), found.headline


def test_unknown_objective_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """`--objective speed` ends with 2 and names the known objectives."""
    write(tmp_path, traded()[:2])
    with pytest.raises(AssertionError, match="ended with 2") as refused:
        read(tmp_path, "--objective", "speed")
    assert "goodput" in str(refused.value)


def test_an_objective_without_values(tmp_path: Path) -> None:
    """`--objective energy` without recorded energy: nobody is recommended, and the report is made."""
    points = [replace(p, power=None) for p in traded()]
    found = reported(tmp_path, points, "--objective", "energy")
    assert not found.recommended("alpha") and not found.recommended("beta"), found.headline
    assert re.search(r"energy|joule|J per", found.headline), found.headline


def test_too_few_cycles_for_rates(tmp_path: Path) -> None:
    """Cycles of 20 s in 70 s: goodput in one start of six, no other rate. The first sentence still answers
    the choice: it names goodput, or what replaced it.
    """
    tokens, users = 64, 16
    pace = Pace(0.3 * 20 / users, 0.7 * 20 / (tokens - 1), request_sd=0.003)
    alpha = replace(
        BASE,
        backend="alpha",
        output_tokens=tokens,
        load=Load(users, "in step"),
        pace=pace,
        context=65_536,
        power=Power(),
        slo={"ttft_s": 100.0},
    )
    beta = replace(alpha, backend="beta", pace=other_split(pace, users, tokens, 7 / 3))
    found = reported(tmp_path, starts([alpha, beta], 3, sd=0.001, seed=3))
    assert re.match(r"(?!also)[^:]*(goodput|E2E)", found.headline, re.I), found.text


def test_one_candidate_alone(tmp_path: Path) -> None:
    """One candidate alone: nothing is claimed."""
    found = reported(tmp_path, starts([replace(BASE, backend="alpha")], 3, sd=0.002))
    assert not found.claims() and not found.winners()
    assert not found.recommended("alpha"), found.headline


def test_nothing_is_usable(tmp_path: Path) -> None:
    """All points failed: the report is made, says so, and recommends nobody."""
    failed = replace(BASE, status="failed", failure="the server died: CUDA out of memory")
    found = reported(tmp_path, starts([failed, replace(failed, backend="beta")], 2))
    assert not found.claims() and not found.winners()
    assert FAIL.search(found.text), found.text
