"""The report says what the runs hold: nothing hidden, nothing invented, nothing fetched."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import Environment, StrictUndefined, UndefinedError

from analysis.bottleneck.roofline import PhaseUse
from analysis.report.document import is_none
from analysis.report.page import render
from analysis.report.sentences import summary_sentences
from analysis.study import Study, study, without_beaten
from analysis.summary import summary
from greenbench import SCHEMA_VERSION
from tests.fakes.pages import words
from tests.fakes.rundirs import FakeRun, write_run


def sweep(root: Path, **changes: object) -> None:
    """Two backends, three contexts, three blocks; beta is twice as slow, and slower with context."""
    for repeat in range(3):
        for backend, factor in (("alpha", 1.0), ("beta", 2.0)):
            for number, context in enumerate((512, 2048, 6144)):
                write_run(
                    root,
                    FakeRun(
                        backend=backend,
                        context_tokens=context,
                        ttft_s=(0.05 + context * 5e-5) * factor,
                        itl_s=(0.01 + context * 1e-6) * factor,
                        repeat=repeat,
                        start_factor=1 + 0.01 * ((repeat * 5 + number + len(backend)) % 3 - 1),
                        measure_s=15,
                        started_s=repeat * 1000 + number * 100 + factor,
                        **changes,  # type: ignore[arg-type]
                    ),
                )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("runs")
    sweep(root)
    failed = FakeRun(backend="gamma", status="failed", failure="the server died: out of memory")
    write_run(root, failed)
    write_run(root, FakeRun(backend="delta", failed_every=1, started_s=7))
    return study(root)


@pytest.fixture(scope="module")
def page(whole: Study) -> str:
    return render(whole)


def test_summary_names_the_winner_with_its_interval(page: str) -> None:
    """beta takes twice as long at every length; goodput has no SLO that both meet alike, so E2E speaks."""
    text = words(page)
    said = re.search(
        r"take alpha from 512 to 6,144 tokens \((\d\.\d\d)× \[(\d\.\d+), (\d\.\d+)\]", text
    )
    assert said, text[:3000]
    ratio, low, high = map(float, said.groups())
    assert low <= ratio <= high and low < 2 < high and ratio == pytest.approx(2, abs=0.01)


def test_random_weights_and_failed_grading_are_not_hidden(page: str) -> None:
    text = words(page)
    assert "weights: random" in text
    assert "its answers are not judged" in text
    assert "answers prove nothing and are not judged" in text


def test_failed_points_show_their_reason_and_no_number(whole: Study, page: str) -> None:
    text = words(page)
    assert "the server died: out of memory" in text
    assert "none of the" in text and "requests of the measured phase succeeded" in text
    dead = [point for point in whole.points if point.backend in ("gamma", "delta")]
    assert [point.status for point in dead] == ["failed", "failed"]
    assert all(point.throughput is None for point in dead)


def test_nothing_is_fetched(page: str) -> None:
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)  # plotly's own source names sites
    assert not re.search(r"""(src|href)=["'](https?:)?//""", body)
    assert "@import" not in body and "url(" not in body


def test_every_table_number_has_its_n(page: str) -> None:
    for row in re.findall(r"<tr class=\".*?</tr>", page, flags=re.S):
        for cell in re.findall(r'<td class="num"><span class="main">.*?</td>', row, flags=re.S):
            assert re.search(r"\bn \d|start|prompts|RSS|device|tokens", cell), cell


def test_no_energy_says_why(page: str) -> None:
    assert "no telemetry was recorded" in words(page) or "no GPU energy" in words(page)


def test_numbers_of_the_summary_file_equal_arithmetic(whole: Study) -> None:
    found = json.loads(json.dumps(summary(whole), allow_nan=False))
    assert len(found["points"]) == 20
    point = next(
        p for p in found["points"] if p["backend"] == "beta" and p["context_tokens"] == 2048
    )
    factor = 2.0 * (point["latency"]["ttft_s"]["p50"] / (2 * (0.05 + 2048 * 5e-5)))
    e2e_s = factor * ((0.05 + 2048 * 5e-5) + 10 * (0.01 + 2048e-6))
    assert point["latency"]["e2e_s"]["p50"] == pytest.approx(e2e_s, rel=1e-6)
    assert point["throughput"]["output_tokens_per_s"] == pytest.approx(4 * 11 / e2e_s, rel=0.02)
    assert "/" not in point["path"]


def test_crossings_are_answered_for_every_cost(whole: Study) -> None:
    found = {(c.objective.name, c.found.verdict) for c in whole.crossings}
    assert {("ttft", "none"), ("tpot", "none"), ("e2e", "none")} <= found
    assert ("sequence", "within noise") in found


def test_only_unusable_points_still_make_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(status="failed", failure="it broke"))
    text = words(render(study(tmp_path)))
    assert "The only point cannot be used" in text
    assert "it broke" in text


def test_one_start_claims_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(backend="alpha"))
    write_run(tmp_path, FakeRun(backend="beta", start_factor=3, started_s=1))
    text = words(render(study(tmp_path)))
    assert (
        text.count("one start each is too few to test") >= 2
    )  # in the answer and beside the table
    assert "[" not in text.split("Which backend")[1].split("Numbers")[0]
    assert "**" not in " ".join(summary_sentences(study(tmp_path)))


def test_text_from_runs_is_escaped(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(status="failed", failure="<script>alert(1)</script>"))
    page = render(study(tmp_path))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_command_writes_both_files_where_its_relative_paths_say(tmp_path: Path) -> None:
    """Guards against paths that are meant from the checkout when a person stands elsewhere."""
    write_run(tmp_path / "here" / "runs", FakeRun())
    program = Path(sys.executable).with_name("greenbench")
    command = [program, "report", "runs", "--out", "../deep/page.html"]
    folder = tmp_path / "here"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "../deep/page.html"), done.stderr
    out = tmp_path / "deep" / "page.html"
    assert out.read_text().startswith("<!doctype html>")
    assert (
        json.loads((out.parent / "page.summary.json").read_text())["schema_version"]
        == SCHEMA_VERSION
    )


@pytest.mark.parametrize("out", [[], ["--out", "pages/page.html"]])
def test_runs_that_are_not_there_leave_nothing_behind(tmp_path: Path, out: list[str]) -> None:
    command = [sys.executable, "-m", "analysis", "report", "nowhere", *out]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    said = "error: nowhere: no such directory; give a run, a sweep or a folder of sweeps"
    assert (done.returncode, done.stderr.strip()) == (2, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["report", "runs"], ["ceilings"]])
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, command: list[str]
) -> None:
    write_run(tmp_path / "runs", FakeRun())
    (tmp_path / "file").touch()
    argv = [Path(sys.executable).with_name("greenbench"), *command, "--out", "file/deep/out"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = "error: file/deep: cannot be made (Not a directory); choose another --out"
    assert (done.returncode, done.stderr.strip()) == (2, said)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "file"}


@pytest.mark.parametrize("file", [".", "there"])
def test_ceilings_find_a_folder_in_the_place_of_their_file_before_they_measure(
    file: str, tmp_path: Path
) -> None:
    """Guards against 20 seconds of measuring whose figures are then lost."""
    (tmp_path / "there").mkdir()
    argv = [Path(sys.executable).with_name("greenbench"), "ceilings", "--out", file]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = f"error: {file}: is a folder, where a file is to be; choose another --out"
    assert (done.returncode, done.stderr.strip()) == (2, said)


def test_disqualified_backends_stand_in_the_decision_table_and_maps_need_no_script(
    tmp_path: Path,
) -> None:
    for backend, sees in (("cpu_attn", None), ("sink_window", 1024)):
        for context in (512, 4096):
            fake = FakeRun(
                backend=backend, context_tokens=context, sees_tokens=sees, ttft_s=0.1, itl_s=0.01
            )
            write_run(tmp_path, replace(fake, prompts=30, correct_share=1.0, measure_s=20))
    whole = study(tmp_path)
    page = render(whole)
    decision = page[page.index('id="decisions"') : page.index('id="answers"')]
    rows = re.findall(r"<tr><th.*?</tr>", decision.split("<tbody>")[1], flags=re.S)
    assert [("sink_window</a>" in row, "4,096" in row) for row in rows] == [
        (False, False),
        (True, True),
    ]
    maps = re.findall(r'<table class="heat">.*?</table>', page, flags=re.S)
    assert len(maps) == 2
    cells = [words(cell) for cell in re.findall(r"<td.*?</td>", maps[1], flags=re.S)]
    assert cells[:2] == ["100 % n 6", "0 % n 6"]
    lost = page[page.index('<details class="lost"') :]
    assert "“wrong”" in lost and "“right”" in lost and "% into the text" in lost
    found = json.loads(json.dumps(summary(whole), allow_nan=False))
    assert [m["backend"] for m in found["heat_maps"]] == ["cpu_attn", "sink_window"]
    assert [(e["backend"], e["context_tokens"]) for e in found["eligible"] if not e["may_win"]] == [
        ("sink_window", 4096)
    ]


def test_level_backends_are_not_ranked_and_many_rivals_do_not_fill_the_page(tmp_path: Path) -> None:
    for number in range(6):
        write_run(tmp_path, FakeRun(backend=f"same{number}", started_s=number))
    text = " ".join(summary_sentences(study(tmp_path)))
    assert "no clear winner at 1,024 tokens" in text
    write_run(tmp_path, FakeRun(backend="fast", start_factor=0.5, started_s=9))
    text = " ".join(summary_sentences(study(tmp_path)))
    assert "`fast` was ahead at 1,024 tokens" in text and "take `fast`" not in text
    assert "one start each is too few to test" in text
    assert "3 others by more" in text


def test_many_ties_are_counted_and_one_task_has_one_spelling(tmp_path: Path) -> None:
    """Eight equal candidates at two depths of one task."""
    for number in range(8):
        for depth in (0.02, 0.5):
            fake = FakeRun(backend=f"equal{number}", task_params={"depth": depth}, measure_s=15)
            write_run(tmp_path, fake)
    whole = study(tmp_path)
    tasks = {"retrieve · depth 0.02", "retrieve · depth 0.5"}
    assert {point.task for point in whole.points} == {gate.task for gate in whole.gates} == tasks
    page = render(whole)
    assert "retrieve(depth" not in page
    table = page[page.index('<table class="decision">') :].partition("</table>")[0]
    goodput = re.findall(r"<td>.*?</td>", table, flags=re.S)[0]
    assert words(goodput) == "no clear winner all 8"
    said = " ".join(summary_sentences(whole))
    assert "no clear winner at 1,024 tokens among all 8 that may win" in said
    assert "Correct answers over all tasks and lengths: 0 % with 8 candidates." in said


def test_the_decision_table_says_what_the_headline_goes_by(tmp_path: Path) -> None:
    """Without an SLO there is no goodput, so the headline goes by E2E, which is the first column."""
    for backend in ("alpha", "beta"):
        write_run(tmp_path, FakeRun(backend=backend, slo_ttft_s=None))
    page = render(study(tmp_path))
    text = words(page)
    assert "the headline goes by E2E p50" in text and "goes by Goodput" not in text
    columns = [words(each) for each in re.findall(r"<th scope=.col.*?</th>", page, flags=re.S)]
    assert columns[:4] == ["Task", "Load", "Context", "E2E p50"]


def test_what_to_take_is_said_by_load_where_loads_disagree(tmp_path: Path) -> None:
    """Guards against a majority over loads that names a backend which some of them should not take."""
    for repeat in range(4):
        for users, factors in ((1, {"lean": 0.5, "wide": 1.0}), (16, {"lean": 1.0, "wide": 0.5})):
            for backend, factor in factors.items():
                fake = FakeRun(
                    backend=backend, users=users, start_factor=factor * (1 + repeat / 100)
                )
                write_run(tmp_path, replace(fake, repeat=repeat, started_s=100 * repeat))
    text = " ".join(summary_sentences(study(tmp_path)))
    assert "retrieve with 1 user: **take `lean` at 1,024 tokens**" in text
    assert "retrieve with 16 users: **take `wide` at 1,024 tokens**" in text


def test_a_ceiling_that_a_point_beats_is_none() -> None:
    def use(mfu: float, ceiling: str) -> PhaseUse:
        return PhaseUse("prefill", 1, 1.0, 0.5, 10, 0, 10.0, 1e9, 1e9, 1.0, mfu, 0.1, ceiling)

    uses, beaten = without_beaten(
        {"a": [use(0.6, "wrong"), use(0.5, "right")], "b": [use(1.3, "wrong")]}
    )
    assert beaten == {"wrong": 1.3}
    assert [u.mfu for u in uses["a"]] == [None, 0.5]
    assert (uses["b"][0].mfu, uses["b"][0].ceiling) == (None, None)
    assert without_beaten({"a": [use(1.04, "noise")]})[1] == {}


def of_model(root: Path, model: str, **fake: object) -> None:
    """A run of another model: FakeRun knows one, so its name is changed in the config."""
    run = write_run(root, FakeRun(sweep=model, **fake))  # type: ignore[arg-type]
    run.config_path.write_text(run.config_path.read_text().replace("name: tiny", f"name: {model}"))


def test_several_models_are_compared_as_arms(tmp_path: Path) -> None:
    for context in (512, 2048, 4096):
        of_model(tmp_path, "mamba", context_tokens=context, ttft_s=0.1, itl_s=0.01)
        slow = {"context_tokens": context, "ttft_s": 0.1 * context / 512, "itl_s": 0.02}
        of_model(tmp_path, "llama", **slow)
        of_model(tmp_path, "llama", backend="beta", started_s=1, **slow)
    whole = study(tmp_path)
    assert {p.backend for p in whole.points} == {"mamba", "llama · alpha", "llama · beta"}
    ttft = {d.scenario.context_tokens: d for d in whole.decisions if d.objective.name == "ttft"}
    assert (ttft[4096].outcome, ttft[4096].front) == ("indicative", ("mamba",)), ttft
    assert {d.b for d in ttft[4096].against} == {"llama · alpha", "llama · beta"}
    assert any({c.a, c.b} == {"mamba", "llama · alpha"} for c in whole.crossings)
    # answers are judged within a model only
    assert all("mamba" not in (gate.backend, gate.reference) for gate in whole.gates)
    text = words(render(whole))
    assert "mamba was ahead" in text
    found = summary(whole)
    assert {(p["model"], p["backend"], p["compared_as"]) for p in found["points"]} == {
        ("mamba", "alpha", "mamba"),
        ("llama", "alpha", "llama · alpha"),
        ("llama", "beta", "llama · beta"),
    }
    assert "heat" not in {m for m in re.findall(r'<table class="(\w+)"', render(whole))}


def test_points_measured_again_are_not_counted_as_excluded(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(status="failed", failure="it broke"))
    write_run(tmp_path, FakeRun(started_s=100))
    text = words(render(study(tmp_path)))
    assert "Excluded (0)" in text and "Every measured point is used." in text
    assert "1 more was measured again later" in text


def test_a_misspelt_name_in_a_template_is_an_error_even_where_it_is_compared_with_none() -> None:
    environment = Environment(undefined=StrictUndefined)
    environment.tests["none"] = is_none
    for text in ("{% if row.joles is not none %}x{% endif %}", "{{ row.joles is none }}"):
        with pytest.raises(UndefinedError, match="joles"):
            environment.from_string(text).render(row={"joules": None})
    assert (
        environment.from_string("{{ row.joules is none }}").render(row={"joules": None}) == "True"
    )
