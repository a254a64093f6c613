"""Eager and CUDA graphs are never in one ranking unless asked for, and then it is said."""

from pathlib import Path

import pytest

from analysis.report.page import render
from analysis.report.sentences import summary_sentences
from analysis.study import Study, study
from analysis.summary import summary
from tests.fakes.pages import words
from tests.fakes.rundirs import FakeRun, write_run

FACTORS = {("cpu_attn", "eager"): 1.0, ("beta", "eager"): 1.5, ("cpu_attn", "full"): 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under full graphs cpu_attn takes half the time; beta was measured eager only."""
    scenario = tmp_path_factory.mktemp("runs")
    for repeat in range(3):
        for number, ((backend, execution), factor) in enumerate(FACTORS.items()):
            fake = FakeRun(
                backend=backend,
                execution=execution,
                sweep=execution,
                repeat=repeat,
                start_factor=factor * (1 + 0.002 * repeat),
                measure_s=15,
                started_s=1000 * repeat + 100 * number,
                correct_share=1.0 if backend == "cpu_attn" else 0.0,
            )
            write_run(scenario, fake)
    return scenario


def ttft_pairs(whole: Study) -> dict[tuple[str, str, str], float | None]:
    return {
        (whole.labels.loads[d.scenario], d.a, d.b): d.ratio.ratio
        for d in whole.differences
        if d.objective.name == "ttft"
    }


def test_each_execution_has_its_own_ranking(root: Path) -> None:
    whole = study(root)
    found = ttft_pairs(whole)
    assert list(found) == [("4 users · eager", "beta", "cpu_attn")]
    # were the full starts of cpu_attn averaged in, as starts of one backend, this would be 2.1
    assert found["4 users · eager", "beta", "cpu_attn"] == pytest.approx(1.5, rel=1e-6)
    assert {cell.load for cell in whole.cells} == {"4 users · eager", "4 users · full"}
    text = words(render(whole))
    assert "4 users · eager" in text and "4 users · full" in text
    (said,) = [s for s in summary_sentences(whole) if "xecution" in s]
    assert "eager, full" in said and "ranked separately" in said


def test_told_to_they_stand_in_one_ranking_which_is_said(root: Path) -> None:
    whole = study(root, across_executions=True)
    found = ttft_pairs(whole)
    assert set(found) == {
        ("4 users", "beta · eager", "cpu_attn · eager"),
        ("4 users", "beta · eager", "cpu_attn · full"),
        ("4 users", "cpu_attn · eager", "cpu_attn · full"),
    }
    assert found["4 users", "cpu_attn · eager", "cpu_attn · full"] == pytest.approx(2, rel=1e-6)
    assert "within one ranking, as requested" in words(render(whole))


def test_a_disqualified_backend_is_so_under_every_execution(root: Path) -> None:
    """beta answers nothing right; 8 prompts lost of 8 are enough to say so."""
    for across, names in ((False, {"beta"}), (True, {"beta · eager"})):
        whole = study(root, across_executions=across)
        out = {
            whole.labels.candidates[candidate]
            for (_, candidate), each in whole.eligible.items()
            if not each.may_win
        }
        # full and eager answer alike, but 8 prompts are too few to show it of the one that is no reference
        assert out - {"cpu_attn", "cpu_attn · eager", "cpu_attn · full"} == names


def test_points_keep_their_load_and_say_their_execution(root: Path) -> None:
    points = summary(study(root))["points"]
    assert {(p["load"], p["execution"]) for p in points} == {
        ("4 users · eager", "eager"), ("4 users · full", "full")
    }  # fmt: skip


def test_one_execution_changes_no_name(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(measure_s=15, execution="full"))
    for across in (False, True):
        whole = study(tmp_path, across_executions=across)
        assert [(p.backend, p.load) for p in whole.points] == [("alpha", "4 users")]
        assert not [s for s in summary_sentences(whole) if "xecution" in s]


def named_by_its_sweep(root: Path, name: str) -> None:
    config = write_run(root, FakeRun(measure_s=15)).path / "config.yaml"
    text = config.read_text()
    assert "  name: null\n" in text
    config.write_text(text.replace("  name: null\n", f"  name: {name}\n", 1))


def test_a_name_that_only_one_sweep_gives_is_not_that_of_all_starts(tmp_path: Path) -> None:
    named_by_its_sweep(tmp_path, "mine")
    assert {point.backend for point in study(tmp_path).points} == {"mine"}
    write_run(tmp_path, FakeRun(measure_s=15, repeat=1, started_s=100))
    assert {point.backend for point in study(tmp_path).points} == {"alpha"}
