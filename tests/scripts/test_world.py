"""What results/h200/world.md says is what runs, layers.json and world.json hold: by plain sums beside it."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.runs.run import load_run
from scripts.results import PLACE, RESULTS
from scripts.world.between_points import at, whole_prompt_us
from scripts.world.page import PAGE, TABLES, filled
from scripts.world.published import PUBLISHED, load_world
from scripts.world.runs import Ours, read_ours
from scripts.world.steps import PIECES

TEXT = PAGE.read_text()
COUNTED = dict(enumerate(("none", "one", "two", "three", "four", "five", "six", "seven", "eight")))
TBPS, TFLOPS = {"H200": 4.8, "H100": 3.35}, 989.0  # spec sheets
KV_BYTES, WEIGHTS = (
    2 * 2 * 8 * 64 * 16,
    1.2358e9,
)  # of llama-3.2-1b: a token; read a step, head included
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")


def body(name: str) -> str:
    return TEXT.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]


def rows(name: str) -> Iterator[dict[str, str]]:
    heads: list[str] = []
    for line in body(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ---"):
            continue
        if line.startswith("|") and heads:
            yield dict(zip(heads, cells, strict=True))
        elif line.startswith("|"):
            heads = cells


def half_output(link: str) -> int:
    """Tokens by which the mean context of a decode step is longer than the prompt: half of 512, or of 128."""
    return 256 if "kv-full" in link else 64


def number(text: str) -> float:
    return float(text.replace(",", "").removeprefix("≥ "))


@pytest.mark.parametrize("gpu", ["H200", "H100"])
def test_kernels_by_bytes_and_causal_pairs(gpu: str) -> None:
    """32 query and 8 KV heads of 128: 4 KiB a token of KV, 16,384 FLOPs a pair; ours from the recording."""
    recorded = json.loads((RESULTS.parent / gpu.lower() / "layers.json").read_text())
    ours = (recorded if gpu == "H200" else recorded["runs"][0])["results"]["flash_attn3"]
    published = json.loads(PUBLISHED.read_text())["aiconfigurator"]["attention"]
    theirs = {
        each["phase"]: each["us"]
        for each in published
        if (each["gpu"], each["heads"], each["head_size"]) == (gpu, 32, 128)
    }
    ratios: dict[str, float] = {}
    for row in rows(f"kernels-{gpu.lower()}"):
        phase, context, _, batch = row["point"].replace(",", "").split()
        tokens, n = int(context), int(batch)
        kernel = ours[row["point"]]
        us = kernel["graph_us"] if gpu == "H100" else kernel["median_us"]
        assert number(row["ours, µs"]) == pytest.approx(us, rel=0.005)
        of_batch = theirs[phase][batch]
        past = of_batch.get("16384", 0.0) * {"decode": 2, "prefill": 4}[phase]  # at 32,768
        told = of_batch.get(str(tokens), past)
        assert number(row["theirs, µs"]) == pytest.approx(told, rel=0.005), row["point"]
        assert (row["compared"] == "held from 16,384") == (str(tokens) not in of_batch)
        for column, time in (("ours", us), ("theirs", number(row["theirs, µs"]))):
            if phase == "decode":
                share = 4096 * tokens * n / (time / 1e6) / 1e12 / TBPS[gpu]
            else:
                share = 16384 * tokens * (tokens + 1) / 2 * n / (time / 1e6) / 1e12 / TFLOPS
            assert number(row[column]) == pytest.approx(share, rel=0.01), row["point"]
        assert (row["compared"] == "no: launch time") == (gpu == "H200" and us < 200)
        if row["compared"] == "yes":
            ratios[row["point"]] = number(row["ours"]) / number(row["theirs"])
    beyond = [point for point, ratio in ratios.items() if abs(ratio - 1) > 0.1]
    said = f"Of {len(ratios)} points that compare, {len(ratios) - len(beyond)} lie within 10 %"
    assert said in body(f"kernels-{gpu.lower()}")
    assert beyond == ([] if gpu == "H200" else ["decode 8,192 × 1", "decode 32,768 × 1"])


def test_what_the_findings_count() -> None:
    """Of the H200's twelve points three compare, seven are launches and two past the table."""
    told = [row["compared"] for row in rows("kernels-h200")]
    counts = [told.count(x) for x in ("yes", "no: launch time", "held from 16,384")]
    assert counts == [3, 7, 2]
    busy, other = decode_steps()
    assert (len(busy), span(busy), span(other)) == (3, "0.943 to 1.06", "0.543 to 0.904")
    assert span(list(rows("steps-prefill"))) == "0.604 to 0.791"
    host = [row for row in other if number(row["sequences that decode"]) < 9]
    assert span(host, "a kernel ran") == "0.636 to 0.908"


def decode_steps() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Those with 8 users where a kernel ran nearly all of the time; the others that have a sum."""
    busy: list[dict[str, str]] = []
    other: list[dict[str, str]] = []
    for row in rows("steps-decode"):
        few = number(row["sequences that decode"]) < 9
        if row["sum"] != "–":
            (busy if few and number(row["a kernel ran"]) >= 0.97 else other).append(row)
    return busy, other


def span(found: list[dict[str, str]], column: str = "sum ÷ ours") -> str:
    cells = sorted((row[column] for row in found), key=number)
    return f"{cells[0]} to {cells[-1]}"


def test_the_h200_page_says_of_this_page_what_its_tables_say() -> None:
    """Its point beside published figures, each figure of it: so no figure here changes alone."""
    page = (RESULTS / "README.md").read_text()
    (point,) = re.findall(r"^\d+\. \*\*Beside published figures\*\*.*?(?=\n\n)", page, re.M | re.S)
    text = " ".join(re.sub(r"\]\([^)]*\)|\[", "", point).split())
    (above,) = re.findall(r"from \+([\d.]+) % to \+([\d.]+ %)", body("kernels-h200"))
    compared = Counter(row["compared"] for row in rows("kernels-h200"))
    yes, launched, past = (
        COUNTED[compared[told]] for told in ("yes", "no: launch time", "held from 16,384")
    )
    busy, other = (span(found) for found in decode_steps())
    within = re.findall(r"(\d) of (\d)", body("pairs"))
    (one, pairs), (three, _) = ((COUNTED[int(n)] for n in each) for each in within)
    held = [
        f"lies {' to '.join(above)} above AIConfigurator's H200 table at the {yes} points where",
        f"{launched} more are launch time and {past} lie past that table",
        f"what its tables add up to is {busy} of our decode step with 8 users",
        f"{other} of other decode steps and {span(list(rows('steps-prefill')))} of prefill steps",
        f"of {pairs} pairs with its H100 rows {one} lies within 2× in joules a token, {three} in joules",
        f"are {989 / 662:.2f} and {4.8 / 4.23:.2f} times as high",
    ]
    assert not [words for words in held if words not in text], text
    figures = r"\d+\.\d+"
    assert re.findall(figures, text) == [
        each for words in held for each in re.findall(figures, words)
    ]


def test_steps_by_the_engines_log_over_the_whole_phase() -> None:
    """Where the page takes the steady part of it: a few percent."""
    seen = 0
    for name in ("steps-decode", "steps-prefill"):
        for row in rows(name):
            (link,) = LINK.findall(row["run"])
            run = load_run(RESULTS / link)
            log = run.steps[run.steps["unix_ns"].between(*run.manifest.phases["measure"])]
            own = log[(log["prefill_tokens"] > 0) == (name == "steps-prefill")]
            mean_ms, decoding = 1e3 * own["elapsed_s"].mean(), own["decode_tokens"].mean()
            assert number(row["ours, ms"]) == pytest.approx(mean_ms, rel=0.05), link
            assert number(row["sequences that decode"]) == pytest.approx(decoding, rel=0.05), link
            if name == "steps-decode" and row["model"] == "llama-3.2-1b":
                read = (
                    2 * WEIGHTS + decoding * (number(row["context"]) + half_output(link)) * KV_BYTES
                )
                share = read / (mean_ms / 1e3) / 1e12 / TBPS["H200"]
                assert number(row["MBU, ours"]) == pytest.approx(share, rel=0.05), link
            if row["sum"] != "–":
                parts = number(row["their attention, ms"]) + number(row["matrices and head"])
                assert number(row["sum"]) == pytest.approx(parts, rel=0.01)
            seen += 1
    assert seen == 19


def test_the_sum_of_one_user_at_8192_by_hand() -> None:
    """16 layers of world.json's figures at 8,192 tokens and one token; the context is 256 longer."""
    (row,) = (r for r in rows("steps-decode") if r["sequences that decode"] == "1.00")
    attention, matrices = 16 * 16.98, 16 * (6.877 + 6.417 + 20.56 + 12.97)
    by_hand = (attention + matrices + 67.7 * 128256 / 65536) / 1e3
    assert number(row["sum"]) == pytest.approx(by_hand, rel=0.01)


def test_joules_are_those_of_the_h200_page_and_bytes_by_weights_and_cache() -> None:
    page = (RESULTS / "README.md").read_text().partition("<!-- decode: begin -->")[2]
    ours = [row for row in rows("energy") if row["who"].startswith("ours")]
    for row in ours:
        (link,) = LINK.findall(row["who"])
        line = next(line for line in page.splitlines() if f"]({link})" in line)
        joules = line.split("|")[7].strip()
        assert row["J / output token"] == joules
        users, context = number(row["sequences"]), number(row["context"]) + half_output(link)
        least = (2 * WEIGHTS / users + context * KV_BYTES) / 1e9
        assert number(row["GB a token, at least"]) == pytest.approx(least, rel=0.05), link
    assert len(ours) == 6
    per_gb = [number(row["J / GB"]) for row in rows("energy")]
    assert (min(per_gb[: len(ours)]), max(per_gb[: len(ours)])) == (0.198, 0.214)
    assert sorted(per_gb[len(ours) :])[:3] == [0.239, 0.244, 0.284]


def test_their_bytes_by_their_models_sizes() -> None:
    """Llama-3.1-8B reads 7.505e9 weights a step and keeps 131,072 B a token; Qwen3-8B 7.568e9 and 147,456."""
    sizes = {"Llama-3.1-8B-Instruct": (7.505e9, 131072), "Qwen3-8B": (7.568e9, 147456)}
    theirs = [row for row in rows("energy") if not row["who"].startswith("ours")]
    published = json.loads(PUBLISHED.read_text())["ml_energy"]["rows"]
    for row, told in zip(theirs, published, strict=True):
        assert row["who"] == f"{told['model'].split('/')[1]}, {told['task']}"
        assert number(row["J / output token"]) == pytest.approx(told["j_per_token"], rel=0.005)
        assert number(row["sequences"]) == pytest.approx(told["mean_sequences"], rel=0.005)
        weights, token = sizes[row["who"].split(",")[0]]
        least = (2 * weights / number(row["sequences"]) + number(row["context"]) * token) / 1e9
        assert number(row["GB a token, at least"]) == pytest.approx(least, rel=0.01)
        per_gb = number(row["J / output token"]) / least
        assert number(row["J / GB"]) == pytest.approx(per_gb, rel=0.01)
    assert len(theirs) == 4


def test_pairs_are_quotients_of_the_energy_table() -> None:
    energy = list(rows("energy"))
    found = list(rows("pairs"))
    for row in found:
        users, who, n = re.findall(
            r"^(\d+) users at 8,192 ÷ (.+), ([\d.]+)$", row["ours ÷ theirs"]
        )[0]
        one = next(
            e for e in energy if e["context"] == "8,192" and number(e["sequences"]) == int(users)
        )
        two = next(e for e in energy if e["who"] == who and e["sequences"] == n)
        for column in ("J / output token", "J / GB"):
            quotient = number(one[column]) / number(two[column])
            assert number(row[column]) == pytest.approx(quotient, rel=0.01)
    within = [
        sum(0.5 <= number(row[column]) <= 2 for row in found)
        for column in ("J / output token", "J / GB")
    ]
    assert f"Within 2× a token: {within[0]} of 4; within 2× a gigabyte: {within[1]} of 4" in TEXT
    assert within == [1, 3]  # what the findings say


def test_figures_of_the_prose_stand_in_a_table_or_are_no_measurement() -> None:
    prose = PLACE.sub("", TEXT)
    tables = "\n".join(match[0] for match in PLACE.finditer(TEXT))
    given = {"4.8", "3.35", "4.23", "0.32", "0.24", "0.11.1", "33.6", "llama-3.2-1b", "1,980"}
    given |= {"1.49", "1.13", "0.881"}  # tested below
    cells = set(re.findall(r"[\d,.]*\d", tables))
    told = set(re.findall(r"(?<![\w.,-])\d+(?:[.,]\d+)+", prose))
    assert not told - cells - given
    assert (f"{989 / 662:.2f}", f"{4.8 / 4.23:.2f}") == ("1.49", "1.13")
    assert f"{4.23 / 4.8:.3f}" == "0.881"
    assert f"{8192 * 4096 / 1e6:.1f}" == "33.6"


def test_between_points_and_past_them() -> None:
    points = {2: 8.0, 8: 2.0}
    assert at(2, points) == pytest.approx(8.0)
    assert at(4, points) == pytest.approx(4.0)  # the geometric middle
    assert at(8.4, points) == pytest.approx(2.1)  # the last rate is held
    assert at(9, points) is None
    assert at(1, points) is None
    assert at(1, {}) is None


def test_a_longer_prompt_by_its_pairs() -> None:
    times = {1: {2: 6.0, 4: 20.0}}
    assert whole_prompt_us(times, 2) == 6.0
    assert whole_prompt_us(times, 8) == pytest.approx(20.0 * 36 / 10)
    assert whole_prompt_us(times, 1) is None


def test_what_is_published_says_where_it_is_from() -> None:
    world = load_world()
    for source in (world.aiconfigurator.source, world.ml_energy.source):
        assert re.fullmatch(r"[0-9a-f]{40}", source.commit)
        assert source.licence.startswith("Apache-2.0") and source.files
    times = [
        us
        for each in world.aiconfigurator.attention
        for row in each.us.values()
        for us in row.values()
    ]
    assert all(math.isfinite(us) and us > 0 for us in times)


def test_tables_of_the_page_are_all_there() -> None:
    assert [match["name"] for match in PLACE.finditer(TEXT)] == list(TABLES)
    assert filled("no table", load_world(), Ours({}, {})) == "no table"


@pytest.mark.e2e
def test_the_page_is_what_the_runs_say() -> None:
    assert filled(TEXT, load_world(), read_ours(PIECES)) == TEXT, "python -m scripts.world"


def test_links_lead_to_runs() -> None:
    linked = [link for link in LINK.findall(TEXT) if link.startswith(("llama", "qwen"))]
    assert len(linked) == 25
    assert all((RESULTS / Path(link) / "archive.json").is_file() for link in linked)
