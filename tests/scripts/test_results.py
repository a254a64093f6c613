"""What results/h200/README.md says is what the runs beside it hold: by the report, and by plain sums."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.archive import folder_bytes
from analysis.runs.archived import read_archived
from greenbench.contract.errors import UserError
from scripts.results import LINKED, MIB, OVER_BLOCKS, RESULTS, TABLES, add, line_of, power, written
from scripts.results_rows import COMPARED, FIGURES, load_results
from tests.fakes.rundirs import FakeRun, write_run

PAGE = (RESULTS / "README.md").read_text()
MOST_MIB = 40
NS = 1e9


@dataclass(frozen=True)
class Told:
    """A row of a table: the run that it links to, and its cells by their heads."""

    run: Path
    cells: dict[str, str]

    def number(self, head: str) -> float | None:
        text = self.cells[head].replace(",", "")
        return None if text == "–" else float(text)


def told(table: str) -> Iterator[Told]:
    body = PAGE.partition(f"<!-- {table}: begin -->")[2].partition(f"<!-- {table}: end -->")[0]
    heads: list[str] = []
    for line in body.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| context"):
            heads = cells
        elif (link := re.search(r"\]\(([^)]+)\)", line)) and line.startswith("|"):
            yield Told(RESULTS / link[1], dict(zip(heads, cells, strict=True)))


def measured_requests(run: Path) -> tuple[list[dict[str, Any]], tuple[int, int]]:
    """Good requests that were sent and ended within the measured phase; the phase, unix ns."""
    start, end = json.loads((run / "manifest.json").read_text())["phases"]["measure"]
    (path,) = run.glob("requests/*.parquet")
    names = ["sent_unix_ns", "sent_mono_ns", "first_token_ns", "last_token_ns", "end_ns",
             "output_tokens", "error_type"]  # fmt: skip
    rows = read_archived(path).select(names).to_pylist()
    inside = [
        row
        for row in rows
        if row["error_type"] is None
        and row["sent_unix_ns"] >= start
        and row["sent_unix_ns"] + row["end_ns"] <= end
    ]
    return inside, (start, end)


def mean_watts(run: Path, start: int, end: int) -> float:
    """By two readings of the counter of the server's card."""
    facts = json.loads((run / "telemetry" / "sources.json").read_text())["facts"]
    (card,) = (gpu["uuid"] for gpu in facts["gpus"] if gpu["own_pids"])
    gpu = read_archived(run / "telemetry" / "gpu.parquet").to_pylist()
    own = [g for g in gpu if g["gpu_uuid"] == card and start <= g["unix_ns"] <= end]
    spent = (own[-1]["energy_mj"] - own[0]["energy_mj"]) / 1e3
    return spent / ((own[-1]["mono_ns"] - own[0]["mono_ns"]) / NS)


def test_speed_by_counting_requests() -> None:
    """The report counts whole cycles in a steady part of the phase, this all of the phase: a few percent."""
    seen = 0
    for row in told("speed"):
        if row.number("requests/s") is None:
            continue
        rows, (_, end) = measured_requests(row.run)
        ttft = np.median([each["first_token_ns"] for each in rows]) / 1e6
        tpot = np.median(
            [
                (each["last_token_ns"] - each["first_token_ns"]) / (each["output_tokens"] - 1)
                for each in rows
            ]
        )
        e2e = np.median([each["end_ns"] for each in rows]) / NS
        first = min(each["sent_unix_ns"] + each["end_ns"] for each in rows)
        rate = (len(rows) - 1) / ((end - first) / NS)
        assert row.number("TTFT p50, ms") == pytest.approx(ttft, rel=0.05), row.run
        assert row.number("TPOT p50, ms") == pytest.approx(tpot / 1e6, rel=0.05), row.run
        assert row.number("E2E p50, s") == pytest.approx(e2e, rel=0.05), row.run
        assert row.number("requests/s") == pytest.approx(rate, rel=0.1), row.run
        seen += 1
    assert seen > 15


def test_joules_by_the_counter_at_both_ends() -> None:
    """Watts from two readings of the card's counter, over the table's own requests a second."""
    rates = {row.run: row.number("requests/s") for row in told("speed")}
    seen = 0
    for row in told("energy"):
        joules = row.number("J / request")
        if joules is None:
            continue
        _, (start, end) = measured_requests(row.run)
        watts = mean_watts(row.run, start, end)
        rate = rates[row.run]
        assert rate is not None
        assert row.number("W") == pytest.approx(watts, rel=0.03), row.run
        assert joules == pytest.approx(watts / rate, rel=0.04), row.run
        assert row.number("J / output token") == pytest.approx(joules / 128, rel=0.01), row.run
        seen += 1
    assert seen > 15


def test_decode_alone_by_the_counter_and_the_tokens() -> None:
    """Tokens by Little's law (users × tokens ÷ time of a request), joules of the whole phase."""
    seen = 0
    for row in told("decode"):
        rows, (start, end) = measured_requests(row.run)
        took_s = statistics.fmean(each["end_ns"] for each in rows) / NS
        users = row.number("users")
        assert users is not None
        tokens = users * statistics.fmean(each["output_tokens"] for each in rows) / took_s
        assert row.number("output tokens/s") == pytest.approx(tokens, rel=0.02), row.run
        if row.number("output tokens / J") is None:
            continue
        watts = mean_watts(row.run, start, end)
        assert row.number("W") == pytest.approx(watts, rel=0.03), row.run
        assert row.number("output tokens / J") == pytest.approx(tokens / watts, rel=0.04), row.run
        seen += 1
    assert seen >= 7


def test_a_line_through_logarithms_has_its_slope_and_no_error_where_all_lie_on_it() -> None:
    x = np.log(np.array([2.0, 4.0, 8.0, 32.0]))
    assert line_of(x, 3 - 0.5 * x) == (pytest.approx(-0.5), pytest.approx(0, abs=1e-9))
    slope, error = line_of(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]))
    assert (slope, error) == (
        0.0,
        pytest.approx(np.sqrt(2 / 3 / 2)),
    )  # rest² 2/3, x² 2, one freedom


def test_two_points_have_a_slope_and_no_interval_and_three_have_one() -> None:
    """Half for each doubling is the power of -1; t of one freedom is 12.71, the error 1/√3."""
    doubled = np.log(np.array([2.0, 4.0]))
    assert power(doubled, -doubled) == "-1.00 (two points, so no interval)"
    said = power(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]))
    assert said == f"0.00 (95 %: {-12.7062 / 3**0.5:.2f} to {12.7062 / 3**0.5:.2f})"


def test_right_answers_by_counting_them() -> None:
    body = [line for line in PAGE.splitlines() if line.startswith("| retriever")]
    counted = [line for line in body if " of 32 |" in line]
    assert len(counted) == 12
    for line in counted:
        (link,) = re.findall(r"\]\(([^)]+)\)", line)
        (path,) = (RESULTS / link).glob("outputs/*.parquet")
        right: dict[int, list[bool]] = {}
        for row in read_archived(path).to_pylist():
            right.setdefault(row["prompt_index"], []).append(row["correct"])
        n = sum(sum(each) * 2 > len(each) for each in right.values())
        assert line.endswith(f"| {n} of {len(right)} |")


def test_every_number_of_the_prose_names_a_figure() -> None:
    linked = list(LINKED.finditer(PAGE))
    assert len(linked) > 50
    over_blocks = [named for match in linked if (named := OVER_BLOCKS.fullmatch(match["figure"]))]
    assert {named["figure"] for named in over_blocks} <= set(COMPARED) and over_blocks
    of_runs = {match["figure"] for match in linked} - {named[0] for named in over_blocks}
    assert {figure.partition(" ÷ ")[0] for figure in of_runs} <= set(FIGURES)


def test_a_ratio_over_blocks_is_that_of_the_speed_table() -> None:
    """Requests/s of triton over flash_attn3 at 32,768, from the page's rounded figures: geometric mean over
    the blocks on 16 cores and the t interval of their logarithms (copies averaged).
    """
    of: dict[tuple[str, str], list[float]] = {}
    for line in told("speed"):
        served = line.number("requests/s")
        if (
            line.run.parents[1].name == "llama-3.2-1b"
            and line.cells["context"] == "32,768"
            and served
        ):
            backend = line.run.name.split("-")[1] if "fp8" not in line.cells["candidate"] else "fp8"
            of.setdefault((backend, line.run.parent.name), []).append(math.log(served))
    logs = [
        statistics.fmean(of["triton", block]) - statistics.fmean(of["flash_attn3", block])
        for block in ("block-2", "block-3", "block-4")
    ]
    middle, half = statistics.fmean(logs), 4.303 * statistics.stdev(logs) / math.sqrt(3)
    table = PAGE.partition("<!-- differences: begin -->")[2]
    row = next(x for x in table.splitlines() if x.startswith("| 32,768 | `triton` |"))
    said = [float(x) for x in re.findall(r"[\d.]+", row.split("|")[3])]
    expected = [math.exp(middle + x) for x in (0, -half, half)]
    assert said == pytest.approx(expected, rel=0.01)  # the table's figures have three digits


def test_all_runs_are_archived_and_small() -> None:
    runs = [path.parent for path in RESULTS.glob("*/*/*/manifest.json")]
    assert len(runs) >= 32
    assert all((run / "archive.json").is_file() for run in runs)
    assert folder_bytes(RESULTS) / MIB < MOST_MIB


@pytest.mark.e2e
def test_the_page_is_what_the_runs_say() -> None:
    assert written(PAGE, load_results(RESULTS)) == PAGE, "make results"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder of results with one model of one piece, on no card."""
    write_run(tmp_path, FakeRun(measure_s=15, sweep="sweep", weights="random"))
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "plan.yaml").write_text(
        "starts: 3\nload: {users: 4, output_tokens: 11}\nunmeasured: [joules]\nmodels:\n"
        "  - {name: tiny, contexts: [1024, 2048], candidates: [alpha, beta]}\n"
    )
    assert add(tmp_path / "sweep", folder) == folder / "tiny" / "sweep-1"
    return folder


def test_a_sweep_is_added_once_and_its_next_runs_as_a_piece_of_their_own(small: Path) -> None:
    with pytest.raises(UserError, match=r"is in .*/tiny/sweep-1 already; delete that piece"):
        add(small.parent / "sweep", small)
    write_run(small.parent / "later", FakeRun(measure_s=15, sweep="sweep", started_s=1000))
    assert add(small.parent / "later" / "sweep", small) == small / "tiny" / "sweep-2"


def test_a_folder_of_several_sweeps_is_refused(small: Path) -> None:
    """It lay one folder too deep for the page, which left its runs out without a word."""
    for card in ("card0", "card1"):
        write_run(small.parent / "both", FakeRun(measure_s=15, sweep=card))
    with pytest.raises(UserError, match=r"one sweep, .* add .*/both/card0, .*/both/card1"):
        add(small.parent / "both", small)
    with pytest.raises(UserError, match=r"one sweep, .* add .*/both/card0$"):
        shutil.rmtree(small.parent / "both" / "card1")
        add(small.parent / "both", small)
    assert not (small / "tiny" / "both-1").exists()


def test_a_sweep_of_several_models_by_batch(small: Path) -> None:
    """One folder holds both models; other loads than the plan's stand in a table of their own, alone."""
    for model, users in (("tiny", 2), ("other", 2), ("other", 1)):
        fake = FakeRun(
            sweep="batches",
            model=model,
            users=users,
            measure_s=15,
            weights="random",
            execution="full",
            started_s=1000 * users + 10_000 * (model == "other"),
        )
        write_run(small.parent, fake)
    assert add(small.parent / "batches", small) == small / "batches" / "batches-1"
    begun = "".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in TABLES)
    page = written(begun, load_results(small))
    batches = page.partition("<!-- batches: begin -->")[2].partition("<!-- batches: end -->")[0]
    heads = re.findall(
        r"^\*\*(\w+), random weights\*\*, 1,024 context tokens, 11 output", batches, re.M
    )
    assert heads == ["tiny", "other"]
    rows = [
        line.split(" | ") for line in batches.splitlines() if "](batches/batches-1/" in line[:80]
    ]
    # a request takes 1 s in the pretended server (0.5 + 10 x 0.05), so there are as many a second as users
    assert [(row[0], row[2]) for row in rows] == [("| 2", "2.00"), ("| 1", "1.00"), ("| 2", "2.00")]
    rest = page.replace(batches, "").partition("<!-- pieces: begin -->")
    assert "| tiny | alpha | missing | missing |" in rest[0]
    assert "batches-1/2" not in rest[0] + rest[2]


@pytest.mark.parametrize("name", ["decode", "batches"])
def test_points_without_figures_are_named_alike(name: str) -> None:
    text = PAGE.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]
    lines = re.findall(r"^\* .*users.*", text, re.M)
    assert lines
    for line in lines:
        assert re.match(r"\* (?:[\d,]+, )?\[.+\]\(\S+\), \d+ users?[:,] ", line), line


def test_windows_of_batches_that_are_not_even_are_told_with_both_halves() -> None:
    """By the requests that ended in each half of the phase, the report's window being nearly all of it."""
    batches = PAGE.partition("<!-- batches: begin -->")[2].partition("<!-- batches: end -->")[0]
    said = re.findall(
        r"\]\((\S+)\), \d+ users: a request took (\S+) s in the first half .* and (\S+) s", batches
    )
    assert [link.rpartition("-")[2] for link, *_ in said] == ["046c26d4"]
    for link, *halves in said:
        start, end = json.loads((RESULTS / link / "manifest.json").read_text())["phases"]["measure"]
        (path,) = (RESULTS / link).glob("requests/*.parquet")
        rows = read_archived(path).select(["sent_unix_ns", "end_ns"]).to_pylist()
        middle = (start + end) / 2
        for half, (a, b) in zip(halves, ((start, middle), (middle, end)), strict=True):
            took = [r["end_ns"] / NS for r in rows if a <= r["sent_unix_ns"] + r["end_ns"] < b]
            assert float(half) == pytest.approx(statistics.mean(took), rel=0.01)


def test_a_page_of_other_results(small: Path) -> None:
    results = load_results(small)
    begun = "".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in TABLES)
    run = results.rows[0].link
    page = written(f'{begun}[?]({run} "TTFT") [?]({run} "TTFT ÷ {run}")', results)
    assert f'[500]({run} "TTFT")' in page  # the pretended server's half a second, in ms
    assert f'[1.00]({run} "TTFT ÷ {run}")' in page
    assert "| tiny | alpha | missing | missing |" in page  # it ran eager, under that name
    assert "Of 4 cells 0 have a start, and 0 the 3" in page
    assert f"| 1,024 | [{results.rows[0].candidate}]({run}) |" in page
    assert "* Missing as well: joules." in page
    assert written(page, results) == page


def test_crossovers_of_a_folder_that_is_not_called_as_its_model(small: Path) -> None:
    for place, backend in enumerate(("alpha", "beta")):
        for context in (1024, 2048, 4096):
            fake = FakeRun(
                backend=backend,
                context_tokens=context,
                measure_s=15,
                started_s=1000 * (place + 1) + context / 10,
                sweep="pair",
                weights="random",
            )
            write_run(small.parent, fake)
    add(small.parent / "pair", small)
    (small / "tiny").rename(small / "tiny-decode")
    page = written("<!-- crossovers: begin -->\n<!-- crossovers: end -->\n", load_results(small))
    assert "`alpha · eager`, `beta · eager` | 1,024, 2,048, 4,096" in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[1](nowhere "TTFT")', "names 0 runs"),
        ('[1](sweep-1 "speed")', "no figure 'speed'"),
        ('[1](sweep-1 "J/request")', "no such figure"),
        ("<!-- prices: begin -->\n<!-- prices: end -->", "no table 'prices'"),
    ],
)
def test_what_the_runs_cannot_say_is_refused(small: Path, text: str, said: str) -> None:
    results = load_results(small)
    text = text.replace("sweep-1", results.rows[0].link)
    with pytest.raises(UserError, match=re.escape(said)):
        written(text, results)
