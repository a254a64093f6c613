"""Issue "Claims", part 3: one start says nothing certain."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.objectives import BY_NAME
from analysis.report.plots import against_context, styles
from analysis.study import study
from tests.outside.generator import Point, Power, in_time, write
from tests.outside.playing import Load, Pace, Phases
from tests.outside.reading import Reading, read
from tests.outside.sweeps import ALL_RIGHT, starts

CONTEXTS = (2048, 8192, 32768)
SETTLED_WORDS = re.compile(r"overtak|throughout|break.?even|beyond noise|no crossover", re.I)
IMPERATIVE = re.compile(r"\b(take|choose|pick|prefer)\b", re.I)
LENGTH = re.compile(r"(\d[\d,]+)(?= tokens)")


def says_nothing_certain(found: Reading) -> None:
    assert not found.claims() and not found.winners()
    assert not found.bold, found.bold
    for sentence in found.sentences:
        assert not SETTLED_WORDS.search(sentence), sentence
        assert not IMPERATIVE.search(sentence), sentence
        lengths = {int(n.replace(",", "")) for n in LENGTH.findall(sentence)}
        assert lengths <= set(CONTEXTS), f"a length that was not measured: {sentence}"
    assert re.search("indicative|one start|started once|untested", found.text, re.I), found.text


def equal(load: Load, sd: float, seed: int) -> list[Point]:
    points = [
        Point(
            backend=name,
            context=context,
            pace=Pace(0.03 + context * 4e-5, 0.01 + context * 2e-7, request_sd=0.02),
            load=load,
            right=ALL_RIGHT,
        )
        for name in ("alpha", "beta")
        for context in CONTEXTS
    ]
    return starts(points, 1, sd=sd, seed=seed, shared=False)


@pytest.mark.parametrize("seed", range(8))
def test_equal_candidates(tmp_path: Path, seed: int) -> None:
    """Equal candidates whose single starts differ by chance, 3 % each: nothing is claimed."""
    write(tmp_path, equal(Load(4, "random"), 0.03, seed))
    says_nothing_certain(read(tmp_path))


@pytest.mark.parametrize("seed", range(2))
def test_equal_candidates_in_an_open_loop(tmp_path: Path, seed: int) -> None:
    """The same with Poisson arrivals."""
    points = equal(Load(None, rate_per_s=0.3), 0.03, seed)
    write(tmp_path, [replace(p, pace=replace(p.pace, schedule="alone")) for p in points])
    says_nothing_certain(read(tmp_path))


def test_one_of_the_two_started_once(tmp_path: Path) -> None:
    """alpha was started four times and beta, 20 % slower, once: nothing is claimed."""
    both = equal(Load(4, "random"), 0.0, 1)
    alpha = starts([p for p in both if p.backend == "alpha"], 4, sd=0.01, seed=2)
    beta = [replace(p, factor=1.2) for p in both if p.backend == "beta"]
    write(tmp_path, [*alpha, *(replace(p, started_s=p.started_s + 300.0) for p in beta)])
    says_nothing_certain(read(tmp_path))


def test_two_arms_are_not_two_starts(tmp_path: Path) -> None:
    """alpha is listed twice and beta once, 20 % slower, in one repeat: one block, nothing is claimed."""
    points = equal(Load(4, "random"), 0.02, 3)
    again = [
        replace(p, arm=1, started_s=p.started_s + 100.0) for p in points if p.backend == "alpha"
    ]
    slow = [replace(p, factor=1.2) if p.backend == "beta" else p for p in points]
    write(tmp_path, [*slow, *again])
    says_nothing_certain(read(tmp_path))


def crossing(n: int) -> list[Point]:
    """alpha's prefill has less to set up, beta's grows less: they cross at 0.2 / 4e-5 = 5,000 tokens."""
    points = [
        Point(
            backend=name,
            context=context,
            pace=Pace(fixed + context * slope, 0.01, request_sd=0.005),
            load=Load(2, "staggered"),
            right=ALL_RIGHT,
            power=Power(),
            phases=Phases(10.0, 130.0),  # so long that each prompt is asked at 32k
        )
        for name, fixed, slope in (("alpha", 0.05, 1e-4), ("beta", 0.25, 6e-5))
        for context in CONTEXTS
    ]
    return starts(points, n, sd=0.001, seed=1)


def test_a_true_crossing(tmp_path: Path) -> None:
    """A true crossover gets no length from one start; its figures are shown."""
    write(tmp_path, crossing(1))
    found = read(tmp_path)
    says_nothing_certain(found)
    assert "alpha" in found.text and "beta" in found.text
    assert re.search(r"\d(\.\d+)?\s*(×|%)", found.text), "the ratios are not told"


def test_the_same_crossing_from_four_starts(tmp_path: Path) -> None:
    """The same from four starts: both win where they should, and a length near 5,000 is stated."""
    write(tmp_path, crossing(4))
    found = read(tmp_path)
    assert {c.winner for c in found.claims("ttft")} == {"alpha", "beta"}
    lengths = {
        int(n.replace(",", ""))
        for s in found.sentences
        if re.search(r"overtak|cross|break.?even|from", s, re.I)
        for n in re.findall(r"\d[\d,]+", s)
        if n.replace(",", "").isdigit()
    }
    assert any(4000 < n < 6500 for n in lengths), found.text


def test_who_has_no_value_is_named_and_its_line_breaks(tmp_path: Path) -> None:
    """alpha takes half of beta's time and is missing at the middle length: beta's lead there is none over
    it, and starts are counted as they were made: one of alpha, two arms of beta.
    """
    points = [
        replace(p, factor=0.5 if p.backend == "alpha" else 1.0)
        for p in equal(Load(4, "random"), 0.0, 1)
        if (p.backend, p.context) != ("alpha", CONTEXTS[1])
    ]
    gamma = [replace(p, backend="gamma", factor=1.5) for p in points if p.backend == "beta"]
    again = [
        replace(p, arm=1, started_s=p.started_s + 900.0) for p in points if p.backend == "beta"
    ]
    write(tmp_path, in_time([*points, *gamma, *again]))
    found = read(tmp_path)
    says_nothing_certain(found)
    answer = found.summary["answer"]
    assert "1 to 2 starts each are too few to test" in answer, answer
    assert "one start each" not in found.text.lower(), found.text
    [clause] = [c for c in re.split(r"; (?=`\w+` was)|: ", answer) if "8,192" in c]
    assert clause.startswith("`beta` was ahead") and "`alpha` has no value there" in clause, answer
    whole = study(tmp_path)
    held = [c for c in whole.cells if c.starts]
    figure = against_context(held, BY_NAME["e2e"], styles(["alpha", "beta", "gamma"]))
    assert figure is not None
    [y] = [list(t.y) for t in figure.data if t.name == "alpha"]
    assert len(y) == len(CONTEXTS) and [v is None for v in y] == [False, True, False]
