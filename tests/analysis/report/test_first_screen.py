"""What is seen first says what the analysis found, in the page, in its twin and for programs alike."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from analysis.compare.cells import Cell
from analysis.compare.differences import Difference
from analysis.objectives import BY_NAME
from analysis.point.point import Point
from analysis.report.answer import answer
from analysis.report.choices import between_words, difference_words
from analysis.report.document import code
from analysis.report.first_screen import first_screen
from analysis.report.four_figures import delta_words, fit_words, start_links
from analysis.report.page import render, render_twin
from analysis.report.side_by_side import side_by_side, write_side_by_side
from analysis.statistics.ratios import Ratio
from analysis.study import Study, study
from analysis.summary import summary
from tests.fakes.pages import Scripts, source, words
from tests.fakes.rundirs import FakeRun, write_run

CONTEXTS = (1024, 4096, 8000)
# seconds to the first token: 0.05 + 1e-4 c and 0.25 + 4e-5 c are equal at c = 0.2 / 6e-5 = 3,333
EARLY, LATE = (0.05, 1e-4), (0.25, 4e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four starts of two candidates that change places in TTFT."""
    root = tmp_path_factory.mktemp("runs")
    for repeat in range(4):
        for name, (fixed, slope) in (("early", EARLY), ("late", LATE)):
            for number, context in enumerate(CONTEXTS):
                # off the middle by −1.5, −0.5, 0.5, 1.5 ‰, in another order for each
                off = (repeat + number + len(name)) % 4 - 1.5
                fake = FakeRun(backend=name, context_tokens=context, repeat=repeat, itl_s=0.01)
                write_run(
                    root,
                    replace(
                        fake,
                        ttft_s=fixed + slope * context,
                        start_factor=1 + off / 1000,
                        measure_s=20,
                        started_s=repeat * 1000 + number * 100 + len(name),
                        gpu_power_w=None,
                    ),
                )
    return study(root, by="ttft")


@pytest.fixture(scope="module")
def page(whole: Study) -> str:
    return render(whole)


def test_the_answer_is_the_analysis_s_and_names_the_length(whole: Study, page: str) -> None:
    said = answer(whole)
    found = re.search(
        r"take `early` below ([\d,]+) tokens\*\* \[([\d,]+), ([\d,]+)\] \*\*and `late` above", said
    )
    assert found, said
    at, low, high = (int(number.replace(",", "")) for number in found.groups())
    assert at == pytest.approx(0.2 / 6e-5, rel=0.02) and low <= at <= high
    assert summary(whole)["answer"] == said
    [shown] = re.findall(r'<p class="answer" id="answer">(.*?)</p>', page)
    assert shown == code(said)
    assert said in render_twin(whole)


def test_four_figures_equal_arithmetic_in_page_and_twin(whole: Study, page: str) -> None:
    """late at 8,000 tokens: 0.57 s to the first token, 0.67 with ten more; 4 users of 8,011 tokens each."""
    screen = first_screen(whole)
    assert screen.shown is not None and screen.shown.context_tokens == 8000
    pair = screen.pair(screen.shown)
    assert pair is not None and (pair.subject, pair.rival) == ("late", "early")
    throughput, ttft, joules, fits = pair.figures
    assert float((throughput.entry.main or "").replace(",", "")) == pytest.approx(
        4 * 8011 / 0.67, rel=0.01
    )
    assert ttft.entry.main == "570 ms" and ttft.rival == "850 ms"
    factor = re.search(r"([\d.]+)× \[([\d.]+), ([\d.]+)\] lower TTFT than `early`", ttft.delta)
    assert factor and float(factor[2]) <= 0.85 / 0.57 <= float(factor[3])
    assert fits.entry.main == fits.rival == str(65_536 // 8000)
    assert fits.delta == "the same as `early`" and fits.bar is None
    assert joules.entry.main is None and joules.delta == "" and joules.entry.why
    twin, text = render_twin(whole), words(page)
    assert "A/A noise not measured" in text
    for each in pair.figures:
        if each.entry.main is not None:
            row = next(line for line in twin.splitlines() if line.startswith(f"| {each.title} |"))
            assert each.entry.main in row and each.delta in row
            assert each.entry.main in text and words(code(each.delta)) in text


def test_where_winners_change_without_a_length_it_is_said_why(whole: Study, page: str) -> None:
    """By tokens/s they change places between 1,024 and 4,096 as by TTFT, but no form is fitted to rates."""
    screen = first_screen(whole)
    [family] = screen.families
    by = {objective.name: why for (_, objective), why in screen.no_lengths.items()}
    assert family.number == 0 and "ttft" not in by
    assert by["output"] == (
        "No length is given at which output tokens/s changes hands: no form is fitted to it. Measure between "
        "1,024 and 4,096 tokens."
    )
    assert by["output"] in page


def test_no_direction_is_told_where_none_is_shown() -> None:
    """0.937 to 1.097 of the rival's: 6.3 % below to 9.7 % above, whichever of the two is better."""
    ratio = Ratio(1.014, 4, 0.937, 1.097)
    for name, quantity in (("total", "total tokens/s"), ("ttft", "TTFT")):
        found = SimpleNamespace(objective=BY_NAME[name], ratio=ratio, b="beta", left_out=False)
        said = between_words(cast(Difference, found))
        assert said == f"between 6.3 % lower and 9.7 % higher {quantity} than `beta`"
    found = SimpleNamespace(objective=BY_NAME["energy"], ratio=ratio, b="beta", left_out=False)
    assert between_words(cast(Difference, found)).startswith("between 6.3 % fewer and 9.7 % more J")


def test_an_interval_beside_1_that_shows_nothing_says_why() -> None:
    """6.4 % to 13.7 % more throughput, and 6.9 % to 13.3 % less energy: both ends lie on one side."""
    why = "not kept by the correction over all comparisons of this report"
    for name, ratio, told in (
        ("total", Ratio(1.1, 2, 1.064, 1.137), "6.4 % and 13.7 % higher total tokens/s"),
        ("energy", Ratio(0.898, 2, 0.867, 0.931), "6.9 % and 13.3 % fewer J"),
    ):
        found = SimpleNamespace(
            objective=BY_NAME[name],
            ratio=ratio,
            b="beta",
            verdict="no difference shown",
            reason=why,
            left_out=False,
        )
        said = delta_words(cast(Cell, SimpleNamespace(backend="beta")), cast(Difference, found))
        assert said.startswith(f"no difference shown: between {told}")
        assert said.endswith(f"than `beta`, {why}")


@pytest.mark.parametrize(
    ("both", "where"),
    [((1,), " in the block that has both"), ((0, 1), " in the 2 blocks that have both")],
)
def test_a_ratio_that_is_not_that_of_the_figures_says_of_which_blocks(
    tmp_path: Path, both: tuple[int, ...], where: str
) -> None:
    """alpha's start 3 has none of beta beside it and is three times as slow: its figure is the mean over its
    starts, while the ratio is of each pair: beta takes half as long.
    """
    for repeat, factor in ((0, 1.0), (1, 1.0), (2, 3.0)):
        if repeat in both or repeat == 2:
            fake = FakeRun(
                repeat=repeat, start_factor=factor, started_s=1000 * repeat, measure_s=20
            )
            write_run(tmp_path, fake)
    for repeat in both:
        fake = FakeRun(backend="beta", repeat=repeat, start_factor=0.5, measure_s=20)
        write_run(tmp_path, replace(fake, started_s=1000 * repeat + 100))
    found = study(tmp_path, by="ttft")
    [ttft] = [d for d in found.differences if d.objective.name == "ttft"]
    said = difference_words(found, ttft if ttft.a == "beta" else ttft.turned)
    assert re.fullmatch(r"2\.00×( \[.*\])? lower TTFT than `alpha`" + where, said), said
    whole = difference_words(
        found, replace(ttft.turned if ttft.b == "beta" else ttft, left_out=False)
    )
    assert whole == said.removesuffix(where)


def test_a_tested_comparison_is_shown_before_one_start_that_is_ahead(tmp_path: Path) -> None:
    """With 4 users one start each, and beta twice as fast; with 8 users four starts of two equal ones."""
    for name, factor in (("alpha", 1.0), ("beta", 0.5)):
        write_run(tmp_path, FakeRun(backend=name, start_factor=factor, measure_s=15))
        for repeat in range(4):
            off = 1 + ((repeat + len(name)) % 2) / 20
            fake = FakeRun(backend=name, users=8, repeat=repeat, start_factor=off, measure_s=15)
            write_run(tmp_path, replace(fake, started_s=1000 * (repeat + 1) + len(name)))
    screen = first_screen(study(tmp_path, by="ttft"))
    assert [family.level for family in screen.families] == [4, 8]
    outcomes = {
        case.family.level: case.decision.outcome
        for case in screen.cases
        if case.objective.name == "ttft"
    }
    assert outcomes == {4: "indicative", 8: "no clear winner"}
    assert screen.shown is not None and screen.shown.family.level == 8


def test_starts_of_several_sweeps_are_told_apart() -> None:
    def start(path: str, repeat: int, arm: int = 0) -> Point:
        return cast(Point, SimpleNamespace(path=path, repeat=repeat, arm=arm))

    b2, b3 = start("/r/block-2/x", 1), start("/r/block-3/y", 1)
    links = {"/r/block-2/x": "point-2", "/r/block-3/y": "point-1", "/r/block-2/z": "point-3"}
    alike = (("block-2 start 2", "point-2"), ("block-3 start 2", "point-1"))
    assert start_links([b3, b2], links) == alike
    copy = start("/r/block-2/z", 1, arm=1)
    assert start_links([copy, b2], links) == (
        ("start 2", "point-2"),
        ("start 2 (copy 2)", "point-3"),
    )


def test_sequences_that_fit_are_counted() -> None:
    assert fit_words(65, 32, "b") == "2.03× as many as `b`"
    assert fit_words(32, 65, "b") == "0.49× as many as `b`"
    assert fit_words(61, 61, "b") == "the same as `b`"
    assert fit_words(61, None, "b") == "`b` has no value"


def test_the_first_screen_says_what_ran_and_what_random_weights_cannot_show(page: str) -> None:
    text = words(page)
    assert "tiny, random weights · Fake CPU · vLLM 0.32.0" in text.partition("How to read")[0]
    assert "its answers are not judged" in text.partition("Findings")[0]


def test_each_point_opens_what_ran(page: str) -> None:
    links = re.findall(r'<a href="#(point-\d+)">start \d</a>', page)
    assert links and all(f'<details id="{link}">' in page for link in links)
    section = page[page.index(f'<details id="{links[0]}">') :].partition("</details>")[0]
    for name in ("Proof", "Versions", "Command line", "Raw files"):
        assert f"<dt>{name}</dt>" in section
    assert "manifest.json" in section and "vLLM 0.32.0" in section


def test_raw_files_are_what_was_measured_and_not_what_a_report_made_of_it(page: str) -> None:
    """derived/ is disposable: an archive and a clone lack it, and its links led nowhere."""
    listed = re.findall(r"<dt>Raw files</dt><dd>(.*?)</dd>", page)
    assert listed and all("requests/" in each for each in listed)
    assert not any("derived/" in each for each in listed)


EVIL = '</script><script>alert(1)</script><!--<script><img src=x onerror="alert(2)">'


def test_a_hostile_run_scripts_nothing_and_does_not_bloat(tmp_path: Path) -> None:
    write_run(tmp_path / "small", FakeRun(status="failed", failure="x", observed_backend="y"))
    fake = FakeRun(backend="alpha", model=f"m{EVIL}", task=EVIL, sweep="evil", measure_s=12)
    write_run(tmp_path / "large", replace(fake, observed_backend=EVIL))
    write_run(
        tmp_path / "large",
        replace(fake, backend="beta", status="failed", failure=EVIL + "x" * 3_000_000),
    )
    plain, page = (render(study(tmp_path / name)) for name in ("small", "large"))
    for each in (plain, page):
        found = Scripts(each)
        [script] = found.run
        assert source(script) in found.policy
        assert found.policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in found.policy.partition("script-src")[2].partition(";")[0]
        assert found.handlers == []
    assert len(page) - len(plain) < 200_000
    assert len(page) < 5_000_000
    twin = render_twin(study(tmp_path / "large"))
    assert "<script" not in twin and "<img" not in twin and len(twin) < 100_000


def test_two_sweeps_stand_side_by_side_without_a_claim(tmp_path: Path) -> None:
    """The same candidate takes twice as long in the second."""
    for name, factor in (("monday", 1.0), ("friday", 2.0)):
        for repeat in range(3):
            write_run(
                tmp_path / name,
                FakeRun(start_factor=factor, repeat=repeat, started_s=factor * 86_400 + repeat),
            )
    write_run(tmp_path / "friday", FakeRun(backend="beta", started_s=4))
    studies = [study(tmp_path / name) for name in ("monday", "friday")]
    found = side_by_side(studies[0], studies[1])
    [row] = found.rows
    ttft = next(each for each in row.figures if each.objective.name == "ttft")
    assert (ttft.a.main, ttft.b.main, ttft.quotient) == ("500 ms", "1.00 s", "2.00 ×")
    assert found.alone[0] == [] and len(found.alone[1]) == 1 and "beta" in found.alone[1][0]
    assert {each.name for each in found.circumstances if each.differs} >= {"Days", "Server starts"}
    out = tmp_path / "both.html"
    write_side_by_side(studies[0], studies[1], out)
    for text in (words(out.read_text()), out.with_suffix(".md").read_text()):
        assert "Nothing between the two sweeps is tested" in text
        assert "2.00 ×" in text and "1.00 s" in text
    assert Scripts(out.read_text()).policy.startswith("default-src 'none'")


def test_a_report_of_three_sweeps_is_refused(tmp_path: Path) -> None:
    for name in "abc":
        write_run(tmp_path / name, FakeRun(status="failed", failure="x"))
    command = [sys.executable, "-m", "analysis", "report", *(str(tmp_path / n) for n in "abc")]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    said = "error: 3 folders: a report is of one sweep, or of two side by side"
    assert (done.returncode, done.stderr.strip()) == (2, said)
    assert not list(tmp_path.rglob("*.html"))
