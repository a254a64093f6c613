"""Result files that other load generators really wrote become runs whose figures agree with the tool's own
summary, and with what the scripted server that they were run against did (tests/analysis/importers/data)."""

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from analysis.importers.convert import read_result, write_imported
from analysis.point.point import analyse
from analysis.point.requests import PointRequests, point_requests, run_cycles
from analysis.point.steady_window import Window, WindowEvidence
from analysis.point.throughput import point_rates, throughput
from analysis.runs.run import Run, load_run
from analysis.runs.validity import faults
from analysis.statistics.samples import statistic
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import read_jsonl

DATA = Path(__file__).parent / "data"
VLLM = DATA / "vllm-bench-serve-0.32.0.json"
CONNECT_S = (
    0.025  # what connecting and a busy machine add to the server's own time of the first event
)


@dataclass(frozen=True)
class Case:
    """A tool's result: where, its load here, and how its own summary is read."""

    name: str
    load: str
    scheduled: bool = False

    def place(self, tmp_path: Path) -> Path:
        """A copy as the tool left it: what is kept compressed is unpacked."""
        tool, _, rest = self.name.partition("/")
        copy = tmp_path / tool / rest
        shutil.copytree(DATA / self.name, copy)
        for packed in copy.glob("*.gz"):
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
        return copy

    @property
    def golden(self) -> list[dict[str, Any]]:
        return list(read_jsonl(DATA / self.name / "golden.jsonl"))


CASES = [
    Case("guidellm/concurrent", "closed2"),
    Case("guidellm/constant", "open10", scheduled=True),
    Case("aiperf/concurrency", "closed2"),
    Case("aiperf/rate", "open8", scheduled=True),
    Case("inference-perf/constant", "open8"),
]
BY_NAME = {case.name: case for case in CASES}


def imported(case: Case, tmp_path: Path) -> Run:
    (found,) = read_result(case.place(tmp_path))
    return load_run(write_imported(found, "flash_attn", tmp_path / "runs"))


def whole(run: Run) -> PointRequests:
    start, end = run.manifest.phases["measure"]
    return point_requests(run, Window("whole", start, end + 1))


def summary_of(case: Case, tmp_path: Path) -> dict[str, float]:
    """Counts, tokens and means (seconds) as the tool itself sums them up."""
    place = case.place(tmp_path / "own")
    if case.name.startswith("guidellm"):
        raw = json.loads((place / "benchmarks.json").read_text())["benchmarks"][0]["metrics"]
        return {
            "good": raw["request_totals"]["successful"],
            "prompt_tokens": raw["prompt_token_count"]["successful"]["total_sum"],
            "output_tokens": raw["output_token_count"]["successful"]["total_sum"],
            "ttft_s": raw["time_to_first_token_ms"]["successful"]["mean"] / 1e3,
            "tpot_s": raw["inter_token_latency_ms"]["successful"]["mean"] / 1e3,
            "e2e_s": raw["request_latency"]["successful"]["mean"],
        }
    if case.name.startswith("aiperf"):
        raw = json.loads((place / "profile_export_aiperf.json").read_text())
        return {
            "good": raw["request_count"]["avg"],  # "completed" counts the refused one too
            "prompt_tokens": raw["total_usage_prompt_tokens"]["avg"],
            "output_tokens": raw["total_usage_completion_tokens"]["avg"],
            "ttft_s": raw["time_to_first_token"]["avg"] / 1e3,
        }
    raw = json.loads((place / "summary_lifecycle_metrics.json").read_text())["successes"]
    return {
        "good": raw["count"],
        "prompt_tokens": raw["prompt_tokens"]["total"],
        "output_tokens": raw["output_tokens"]["total"],
        "ttft_s": raw["latency"]["time_to_first_token"]["mean"],
        "e2e_s": raw["latency"]["request_latency"]["mean"],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures_are_those_of_the_tools_own_summary(case: Case, tmp_path: Path) -> None:
    run = imported(case, tmp_path)
    assert faults(run) == []
    frame = whole(run).frame
    measured = frame[(frame["phase"] == "measure") & frame["ok"]]
    own = summary_of(case, tmp_path)
    assert len(measured) == own["good"]
    assert measured["prompt_tokens"].sum() == pytest.approx(own["prompt_tokens"], abs=1e-6)
    assert measured["output_tokens"].sum() == pytest.approx(own["output_tokens"], abs=1e-6)
    from_sending = measured["first_token_ns"] / 1e9  # the tools count from there in open loop too
    assert from_sending.mean() == pytest.approx(own["ttft_s"], rel=1e-5)
    if "tpot_s" in own:
        assert measured["tpot_s"].mean() == pytest.approx(own["tpot_s"], rel=1e-5)
    if "e2e_s" in own:
        assert (measured["end_ns"] / 1e9).mean() == pytest.approx(own["e2e_s"], rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures_are_what_the_server_did(case: Case, tmp_path: Path) -> None:
    run = imported(case, tmp_path)
    frame = whole(run).frame
    good, bad = frame[frame["ok"]], frame[~frame["ok"]]
    answered = [row for row in case.golden if row["tokens"]]
    refused = [row for row in case.golden if not row["tokens"]]
    assert (len(good), len(bad)) == (len(answered), len(refused)) == (len(case.golden) - 1, 1)
    assert bad["error_message"].str.contains("500").all()
    assert good["output_tokens"].sum() == sum(sum(row["tokens"]) for row in answered)
    assert sorted(good["prompt_tokens"]) == sorted(row["prompt_tokens"] for row in answered)
    late_s = [
        found - true
        for found, true in zip(
            sorted(good["first_token_ns"] / 1e9),
            sorted((row["sent_ns"][0] - row["received_ns"]) / 1e9 for row in answered),
            strict=True,
        )
    ]
    assert min(late_s) > 0 and max(late_s) < CONNECT_S
    decode_s = [(row["sent_ns"][-1] - row["sent_ns"][0]) / 1e9 for row in answered]
    spans_s = (good["last_token_ns"] - good["first_token_ns"]) / 1e9
    assert spans_s.mean() == pytest.approx(fmean(decode_s), abs=0.003)
    assert run.point.load.label == case.load
    assert frame["scheduled_unix_ns"].notna().any() == case.scheduled


@pytest.mark.parametrize("name", ["aiperf/concurrency", "inference-perf/constant"])
def test_gaps_count_only_where_each_chunk_is_one_token(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    found = whole(imported(case, tmp_path))
    measured = found.frame["in_window"] & found.frame["ok"]
    single = [row for row in case.golden if row["tokens"] and set(row["tokens"]) == {1}]
    several = [row for row in case.golden if len(set(row["tokens"])) > 1]
    warmed = int((found.frame["phase"] == "warmup").sum())
    assert len(single) + len(several) == measured.sum() + warmed
    gaps = [(b - a) / 1e9 for row in single for a, b in pairwise(row["sent_ns"])]
    assert len(found.itl_s) + 8 * warmed >= len(gaps) >= len(found.itl_s) > 30
    assert statistic(found.itl_s).mean == pytest.approx(fmean(gaps), rel=0.05)
    assert 0 < found.untimed <= len(several)


def test_without_chunk_times_tokens_per_second_are_those_of_whole_cycles(tmp_path: Path) -> None:
    run = imported(BY_NAME["guidellm/concurrent"], tmp_path)
    found = whole(run)
    window = Window("steady", *run.manifest.phases["measure"], evidence=WindowEvidence(1))
    cycles = run_cycles(run, window)
    assert cycles is not None
    rates = throughput(found, point_rates(found.frame, cycles, window, None))
    assert len(found.itl_s) == 0 and rates.output_tokens is None
    # second method: of each user the tokens after its first end, over the time to its last
    load = run.point.load
    ends = (found.frame["sent_unix_ns"] + found.frame["end_ns"]).to_numpy(dtype=float) / 1e9
    tokens = found.frame["output_tokens"].fillna(0).to_numpy(dtype=float)
    gained = sum(tokens[row] for row in cycles.request)
    spent = sum(
        max(ends[cycles.request[cycles.user == user]])
        - min(cycles.start_ns[cycles.user == user]) / 1e9
        for user in set(cycles.user)
    )
    assert load.users is not None and gained > 0
    assert rates.output.value == pytest.approx(load.users * gained / spent, rel=1e-6)
    assert "no ITL" in str(run.manifest.server.proof_detail)


def test_warm_up_stays_warm_up(tmp_path: Path) -> None:
    run = imported(BY_NAME["aiperf/concurrency"], tmp_path)
    phases = run.requests["phase"].value_counts()
    assert dict(phases) == {"measure": 12, "warmup": 2}
    start = run.manifest.phases["measure"][0]
    assert (run.requests.loc[run.requests["phase"] == "warmup", "sent_unix_ns"] < start).all()


def test_open_loop_latencies_count_from_the_schedule(tmp_path: Path) -> None:
    run = imported(BY_NAME["guidellm/constant"], tmp_path)
    frame = whole(run).frame
    gaps = frame["scheduled_unix_ns"].sort_values().diff().dropna() / 1e9
    assert gaps.mean() == pytest.approx(0.1, rel=0.01)  # 10 a second
    raw = json.loads(
        (BY_NAME["guidellm/constant"].place(tmp_path / "x") / "benchmarks.json").read_text()
    )
    timings = [r["info"]["timings"] for r in raw["benchmarks"][0]["requests"]["successful"]]
    expected = fmean(t["first_token_iteration"] - t["targeted_start"] for t in timings)
    assert frame["ttft_s"].mean() == pytest.approx(expected, rel=1e-4)
    assert (frame["lag_s"] > 0).all()


def test_vllm_bench_agrees_with_its_own_summary(tmp_path: Path) -> None:
    raw = json.loads(VLLM.read_text())
    (read,) = read_result(VLLM)
    run = load_run(write_imported(read, "flash_attn", tmp_path))
    assert faults(run) == []
    found = whole(run)
    frame = found.frame
    assert len(frame) == raw["completed"] == 12
    assert found.tokens.output == raw["total_output_tokens"]
    assert frame["prompt_tokens"].sum() == raw["total_input_tokens"]
    assert frame["ttft_s"].mean() * 1e3 == pytest.approx(raw["mean_ttft_ms"], rel=1e-6)
    assert frame["ttft_s"].median() * 1e3 == pytest.approx(raw["median_ttft_ms"], rel=1e-6)
    assert frame["tpot_s"].mean() * 1e3 == pytest.approx(raw["mean_tpot_ms"], rel=1e-3)
    assert statistic(found.itl_s).n == sum(len(gaps) for gaps in raw["itls"])


def test_what_it_cannot_tell_is_said(tmp_path: Path) -> None:
    (read,) = read_result(VLLM)
    point = analyse(load_run(write_imported(read, "flash_attn", tmp_path)))
    assert point.proof == "unproven" and point.weights == "unknown"
    assert "imported from vllm bench serve" in point.notes
    assert any("the client's own count" in note for note in point.notes)
    assert "prompts of 100 to 1,890 tokens stand under their median" in point.notes
    assert point.context_tokens == (1390 + 1628) / 2  # the middle two of the twelve lengths


def test_chunks_of_several_tokens_are_not_taken_for_single_ones(tmp_path: Path) -> None:
    raw = json.loads(VLLM.read_text())
    raw["output_lens"] = [20] * 12  # 8 chunks for 20 tokens: how many each brought is unknown
    changed = tmp_path / "bundled.json"
    changed.write_text(json.dumps(raw))
    (read,) = read_result(changed)
    found = whole(load_run(write_imported(read, "flash_attn", tmp_path)))
    assert len(found.itl_s) == 0 and found.untimed == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "not a result that is known here"),
        ("[]", "not a result that is known here"),
        ("not json", "not a JSON result file"),
        ('{"endpoint_type":1,"model_id":1,"total_output_tokens":1}', "--save-detailed"),
        ('{"aiperf_version":"0.13.0","request_latency":{"avg":1}}', "aggregates only"),
        (
            '{"metadata":{"guidellm_version":"0.1.0"},"benchmarks":[{}]}',
            r"a result of GuideLLM 0\.1\.0, but benchmarks\[0\]\.args\.strategy\.type_: a text was wanted",
        ),
        (
            '{"metadata":{"guidellm_version":"0.8.1"},"benchmarks":[]}',
            "the result holds no requests",
        ),
    ],
)
def test_bad_files_are_said_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_result(path)


def test_a_missing_neighbour_is_named(tmp_path: Path) -> None:
    """Without it model and load would have to be guessed."""
    aiperf = BY_NAME["aiperf/rate"].place(tmp_path)
    (aiperf / "profile_export_aiperf.json").unlink()
    with pytest.raises(UserError, match=r"profile_export_aiperf\.json.*is not there"):
        read_result(aiperf)
    perf = BY_NAME["inference-perf/constant"].place(tmp_path)
    (perf / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml.*is not there"):
        read_result(perf)
    with pytest.raises(UserError, match="give the result file itself"):
        read_result(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path / "nowhere.json")


def test_stages_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    place = BY_NAME["inference-perf/constant"].place(tmp_path)
    config = yaml.safe_load((place / "config.yaml").read_text())
    config["load"]["stages"] *= 2
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="2 load stages"):
        read_result(place)


def test_a_sample_of_the_requests_is_refused(tmp_path: Path) -> None:
    file = BY_NAME["guidellm/concurrent"].place(tmp_path) / "benchmarks.json"
    raw = json.loads(file.read_text())
    raw["benchmarks"][0]["requests"]["successful"].pop()
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="11 of 12 requests"):
        read_result(file)


def test_requests_cut_at_the_tools_end_are_no_failures_of_the_server(tmp_path: Path) -> None:
    file = BY_NAME["guidellm/concurrent"].place(tmp_path) / "benchmarks.json"
    raw = json.loads(file.read_text())
    kept = raw["benchmarks"][0]["requests"]
    cut = kept["successful"].pop()
    cut["info"]["timings"]["request_end"] = None
    kept["incomplete"].append(cut)
    file.write_text(json.dumps(raw))
    (read,) = read_result(file)
    run = load_run(write_imported(read, "flash_attn", tmp_path / "runs"))
    assert dict(run.requests["error_type"].value_counts()) == {"imported": 1, "cut_at_drain": 1}
    assert run.requests["end_ns"].notna().all()


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("greenbench")
    return subprocess.run([program, *args], capture_output=True, text=True, check=False)


def test_import_and_report_from_the_command_line(tmp_path: Path) -> None:
    place = BY_NAME["inference-perf/constant"].place(tmp_path)
    out = tmp_path / "runs"
    done = command("import", place, VLLM, "--out", out)
    assert done.returncode == 0, done.stderr
    runs = [Path(line) for line in done.stdout.splitlines()]
    assert [run.parent for run in runs] == [out, out]
    reported = command("report", out)
    assert reported.returncode == 0, reported.stderr
    summary = json.loads((out / "summary.json").read_text())
    point = next(p for p in summary["points"] if p["run_id"] == runs[0].name)
    assert point["status"] == "ok" and "imported from inference-perf" in point["notes"]
    assert point["backend"] == "unknown" and point["model"] == "golden"
    html = (out / "report.html").read_text()
    assert "imported from inference-perf" in html
    again = command("import", place, "--out", out)
    assert again.returncode == 2 and "was imported before" in again.stderr
