"""Result files of each tool's versions become runs with the figures they were made with, or a sentence says
which version it seems to be and what is missing; nothing is left half-written."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.importers.convert import read_result, write_all
from analysis.importers.record import NO_TOKEN
from analysis.runs.run import Run, load_run
from analysis.runs.validity import faults
from greenbench.contract.errors import UserError
from tests.fakes import tool_results as tools

FILE = "result.json"
Write = Callable[[Path], Path]


def runs_of(path: Path, tmp_path: Path) -> list[Run]:
    return [load_run(run) for run in write_all(read_result(path), "flash_attn", tmp_path / "runs")]


def aiperf(load: dict[str, Any], **how: Any) -> Write:
    before_0_9 = {"endpoint": {"model_names": ["acme/llm"]}, "loadgen": load}
    return lambda folder: tools.write_aiperf(folder, before_0_9, **how)


def aiperf_phases(phase: dict[str, Any]) -> Write:
    config = {
        "models": {"items": [{"name": "acme/llm"}]},
        "phases": [{"name": "warmup", "type": "concurrency"}, {"name": "profiling", **phase}],
    }
    return lambda folder: tools.write_aiperf(folder, config)


def guidellm(**how: Any) -> Write:
    return lambda folder: tools.write_json(folder / "benchmarks.json", tools.guidellm(**how))


FORMS: list[tuple[str, Write, str]] = [
    ("vllm", lambda f: tools.write_json(f / FILE, tools.vllm_bench(3)), "open1"),
    (
        "vllm-not-limited",
        lambda f: tools.write_json(f / FILE, tools.vllm_bench(3, request_rate="inf")),
        "closed3",
    ),
    (
        "vllm-limited",
        lambda f: tools.write_json(
            f / FILE, tools.vllm_bench(3, request_rate="inf", max_concurrency=2)
        ),
        "closed2",
    ),
    ("guidellm-0.8", guidellm(), "open1"),
    ("guidellm-0.4", guidellm(version=None), "open1"),
    (
        "guidellm-throughput",
        guidellm(strategy={"type_": "throughput", "max_concurrency": 7}),
        "closed7",
    ),
    ("aiperf-0.3", aiperf({"request_rate": 1.0}, issued=False), "open1"),
    ("aiperf-0.3-one", aiperf({}, issued=False), "closed1"),
    ("aiperf-0.6", aiperf({"concurrency": 2, "arrival_pattern": "concurrency_burst"}), "closed2"),
    ("aiperf-named", aiperf({"concurrency": 2}, prefix="mine"), "closed2"),
    ("aiperf-0.9", aiperf_phases({"type": "gamma", "rate": 1.0, "smoothness": 2.0}), "open1"),
    ("aiperf-0.13", aiperf_phases({"type": "concurrency", "concurrency": 4}), "closed4"),
    *((f"inference-perf-{v}", lambda f, v=v: tools.write_inference_perf(f, v), "open1") for v in
      ("0.2", "0.5", "0.6")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "load"), FORMS, ids=[name for name, *_ in FORMS])
def test_every_version_gives_the_figures_that_its_file_was_made_with(
    tmp_path: Path, name: str, write: Write, load: str
) -> None:
    [run] = runs_of(write(tmp_path / "theirs"), tmp_path)
    assert faults(run) == []
    rows = run.requests
    assert run.point.load.label == load and run.point.model.path == "acme/llm"
    assert len(rows) == 3 and rows["error_type"].isna().all()
    assert (rows["prompt_tokens"] == tools.PROMPT).all()
    assert (rows["output_tokens"] == tools.TOKENS).all()
    assert rows["first_token_ns"].to_numpy() / 1e9 == pytest.approx(tools.TTFT_S, abs=1e-6)
    assert rows["end_ns"].to_numpy() / 1e9 == pytest.approx(tools.E2E_S, abs=1e-6)
    assert rows["sent_unix_ns"].diff().dropna().to_numpy() / 1e9 == pytest.approx(1.0, abs=1e-6)


def test_guidellm_before_0_4(tmp_path: Path) -> None:
    [run] = runs_of(tools.write_json(tmp_path / FILE, tools.guidellm_0_3()), tmp_path)
    good = run.requests[run.requests["error_type"].isna()]
    failed = run.requests[run.requests["error_type"].notna()]
    assert (len(good), len(failed)) == (3, 1) and run.point.load.label == "closed2"
    assert list(failed["error_message"]) == ["HTTP 500"]
    assert failed["first_token_ns"].isna().all() and failed["last_token_ns"].isna().all()
    assert (good["first_token_ns"].to_numpy() / 1e9) == pytest.approx(tools.TTFT_S, abs=1e-6)


def test_a_run_that_ended_by_time_is_no_sample(tmp_path: Path) -> None:
    """Requests that were due and never sent are counted by the tool and kept nowhere."""
    [run] = runs_of(guidellm(good=3, cut=2, unsent=4)(tmp_path / "theirs"), tmp_path)
    kinds = run.requests["error_type"].fillna("good").value_counts()
    assert dict(kinds) == {"good": 3, "cut_at_drain": 2}
    assert "4 requests were due and never sent" in str(run.manifest.server.proof_detail)


def test_warm_up_that_guidellm_keeps_nowhere_is_no_sample_either(tmp_path: Path) -> None:
    whole = tools.guidellm(good=5, warmup={"percent": 0.4, "value": None})
    del whole["benchmarks"][0]["requests"]["successful"][:2]
    [run] = runs_of(tools.write_json(tmp_path / FILE, whole), tmp_path)
    assert len(run.requests) == 3
    assert "2 requests of warm-up and cool-down" in str(run.manifest.server.proof_detail)
    whole["benchmarks"][0]["config"]["sample_size"] = 3
    with pytest.raises(UserError, match="3 of 5 requests"):
        read_result(tools.write_json(tmp_path / FILE, whole))


def test_a_success_without_a_token_is_a_failure(tmp_path: Path) -> None:
    whole = tools.vllm_bench(
        5,
        output_lens=[5, 0, 5, 5, 0],
        ttfts=[0.2, 0.0, 0.2, 0.2, 0.0],
        itls=[[0.1] * 4, [], [0.1] * 4, [0.1] * 4, []],
    )
    [run] = runs_of(tools.write_json(tmp_path / FILE, whole), tmp_path)
    rows = run.requests
    bad = rows[rows["error_type"].notna()]
    assert faults(run) == [] and len(bad) == 2 and set(bad["error_message"]) == {NO_TOKEN}
    assert bad["end_ns"].isna().all() and bad["first_token_ns"].isna().all()
    assert rows["first_token_ns"].dropna().min() / 1e9 == pytest.approx(tools.TTFT_S)
    assert (run.manifest.counts.ok, run.manifest.counts.failed) == (3, 2)


def test_a_request_that_vllm_never_sent_does_not_shift_the_others(tmp_path: Path) -> None:
    """Its start is 0 of a clock that counts from boot: 1000 s before the first."""
    whole = tools.vllm_bench(
        3,
        start_times=[0.0, 1001.0, 1002.0],
        output_lens=[0, 5, 5],
        errors=["refused", "", ""],
    )
    [run] = runs_of(tools.write_json(tmp_path / FILE, whole), tmp_path)
    assert list(run.requests["error_type"].dropna()) == ["not_sent"]
    start, end = run.manifest.phases["measure"]
    assert (end - start) / 1e9 == pytest.approx(1 + tools.E2E_S, abs=1e-6)


def test_results_one_after_the_other_are_a_point_each(tmp_path: Path) -> None:
    """``--append-result`` of vllm bench serve."""
    later = tools.vllm_bench(4, date="20261123-102500")
    runs = runs_of(tools.write_json(tmp_path / FILE, tools.vllm_bench(3), later), tmp_path)
    assert [len(run.requests) for run in runs] == [3, 4]
    starts = [run.manifest.phases["measure"][0] for run in runs]
    assert (starts[1] - starts[0]) / 1e9 == pytest.approx(599)  # ended 600 s later, 1 s longer


def test_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    records = aiperf({"concurrency": 2})(tmp_path / "theirs")
    records.write_bytes(records.read_bytes()[:-40])
    [run] = runs_of(records, tmp_path)
    assert len(run.requests) == 2
    assert "last line was cut off" in str(run.manifest.server.proof_detail)
    appended = tools.write_json(tmp_path / FILE, tools.vllm_bench(3), tools.vllm_bench(4))
    appended.write_bytes(appended.read_bytes()[:-40])
    with pytest.raises(UserError, match="its last result is cut off"):
        read_result(appended)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_that_shells_write(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / FILE
    path.write_text(json.dumps(tools.vllm_bench(3)), encoding=encoding)
    assert len(read_result(path)[0].requests) == 3


def changed(**changes: Any) -> Write:
    return lambda folder: tools.write_json(folder / FILE, tools.vllm_bench(4, **changes))


def raw(content: bytes) -> Write:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / FILE).write_bytes(content)
        return folder / FILE

    return write


def inference_perf(config: str) -> Write:
    return lambda folder: tools.write_inference_perf(folder, "0.6", config)


REFUSED: list[tuple[str, Write, str]] = [
    ("no-starts", changed(start_times=None), r"since vLLM 0\.15.*of an older version"),
    (
        "vllm-0.9",
        changed(start_times=None, endpoint_type=None),
        r"vllm bench serve.*since vLLM 0\.15",
    ),
    ("no-detail", changed(start_times=None, ttfts=None, itls=None), "ttfts, itls.*--save-detailed"),
    ("ramp", changed(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=4),
     "rises from 1 to 4 requests a second"),
    ("nan", changed(ttfts=[0.2, math.nan, 0.2, 0.2]), r"ttfts\[1\]: a finite number was wanted, found nan"),
    ("null", changed(ttfts=[0.2, None, 0.2, 0.2]), r"ttfts\[1\]: a number was wanted, and it is missing"),
    ("text", changed(itls=["x"] * 4), r"itls\[0\]: a list was wanted, found 'x'"),
    ("lengths", changed(ttfts=[0.2] * 3), "ttfts holds 3 values, start_times 4"),
    ("huge", changed(output_lens=[2**70] * 4), r"output_lens\[0\]: a finite number was wanted"),
    ("many", changed(output_lens=[2**40] * 4), "request 0: its output_tokens would be 1.09951e"),
    ("date", changed(date="yesterday"), "date: a date such as 20260301-101500 was wanted"),
    ("rate", changed(request_rate=-1.0), "its load: rate_per_s"),
    ("no-requests", changed(start_times=[], ttfts=[], itls=[], input_lens=[], output_lens=[], errors=[]),
     "holds no requests"),
    ("sample", guidellm(good=0, cut=0, unsent=0), "holds no requests"),
    ("guidellm-trace", guidellm(strategy={"type_": "trace"}), "load 'trace' is not readable"),
    ("guidellm-ramp", guidellm(strategy={"type_": "poisson", "rate": 1, "rampup_duration": 9}),
     "its rate rises"),
    ("guidellm-older", guidellm(strategy={"type_": "constant"}, version=None),
     r"GuideLLM 0\.4, but benchmarks\[0\]\.config\.strategy\.rate: a number was wanted, and it is missing"),
    ("aiperf-lists", aiperf({"concurrency": [1, 2]}),
     r"AIPerf 0\.6\.0, but input_config\.loadgen\.concurrency"),
    ("aiperf-trace", aiperf({"user_centric_rate": 2}), "load 'user_centric_rate' is not readable"),
    ("aiperf-ramp", aiperf({"request_rate": 2, "request_rate_ramp_duration": 5}), "its rate rises"),
    ("aiperf-phases", aiperf_phases({"type": "fixed_schedule"}), "load 'fixed_schedule'"),
    ("perf-model", inference_perf("load: {type: constant, stages: [{rate: 1}]}"),
     "pretrained_model_name_or_path: a text was wanted"),
    ("perf-trace", inference_perf("load: {type: trace_replay, stages: []}"), "load 'trace_replay'"),
    ("bytes", raw(b"\xff\xfe\x00{"), "not a JSON result file"),
    ("latin-1", raw(b'{"model": "\xe9"}'), "no text of UTF-8"),
    ("empty", raw(b" \n"), "the file is empty"),
    ("csv", raw(b"a,b\n1,2\n"), "not its CSV, YAML or HTML"),
    ("gzip", raw(b"\x1f\x8b\x08"), "unpack it first"),
    ("deep", raw(b"[" * 100_000), "nested too deeply"),
    ("digits", raw(b'{"a": ' + b"9" * 5000 + b"}"), "not a JSON result file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "words"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, write: Write, words: str
) -> None:
    with pytest.raises(UserError, match=words) as said:
        runs_of(write(tmp_path / "theirs"), tmp_path)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "runs").exists()


def test_where_one_point_cannot_be_written_none_is(tmp_path: Path) -> None:
    """Both are of one file; the second was imported before."""
    later = tools.vllm_bench(4, date="20261123-102500")
    [there] = runs_of(tools.write_json(tmp_path / "later.json", later), tmp_path)
    both = tools.write_json(tmp_path / FILE, tools.vllm_bench(3), later)
    with pytest.raises(UserError, match="was imported before"):
        runs_of(both, tmp_path)
    assert list((tmp_path / "runs").iterdir()) == [there.path]
    with pytest.raises(UserError, match="stands twice"):
        write_all(read_result(both) + read_result(both), "x", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("out", ["/proc/imported", "a-file/imported"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, out: str) -> None:
    (tmp_path / "a-file").write_text("")
    file = tools.write_json(tmp_path / FILE, tools.vllm_bench(3))
    command = [sys.executable, "-m", "analysis", "import", file, "--out", tmp_path / out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr and "--out" in done.stderr


def test_texts_that_no_file_can_hold_are_marked(tmp_path: Path) -> None:
    """A lone surrogate and an escape sequence, in the model's name and in an error."""
    whole = tools.vllm_bench(
        3, model_id="acme/\ud800\x1b[2J", errors=["", "", "\udfff\x07"], output_lens=[5, 5, 0]
    )
    [run] = runs_of(tools.write_json(tmp_path / FILE, whole), tmp_path)
    assert faults(run) == []
    assert run.point.model.path == "acme/��[2J"
    assert list(run.requests["error_message"].dropna()) == ["��"]
