"""Result files that other load generators really wrote become runs whose figures agree with the tool's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.checks import faults
from analysis.importing import read_result, write_imported
from analysis.load import load_run
from analysis.metrics import point_requests, statistic
from analysis.points import analyse
from analysis.windows import Window
from greenbench.errors import UserError

DATA = Path(__file__).parent / "data" / "import"
VLLM = DATA / "vllm-bench-serve-0.32.0.json"


def test_vllm_bench_agrees_with_its_own_summary(tmp_path: Path) -> None:
    raw = json.loads(VLLM.read_text())
    run = load_run(write_imported(read_result(VLLM), "flash_attn", tmp_path))
    assert faults(run) == []
    measure = run.manifest.phases["measure"]
    found = point_requests(run, Window("whole", *measure))
    frame = found.frame
    assert len(frame) == raw["completed"] == 12
    assert found.tokens.output == raw["total_output_tokens"]
    assert frame["prompt_tokens"].sum() == raw["total_input_tokens"]
    assert frame["ttft_s"].mean() * 1e3 == pytest.approx(raw["mean_ttft_ms"], rel=1e-6)
    assert frame["ttft_s"].median() * 1e3 == pytest.approx(raw["median_ttft_ms"], rel=1e-6)
    assert frame["tpot_s"].mean() * 1e3 == pytest.approx(raw["mean_tpot_ms"], rel=1e-3)
    assert statistic(found.itl_s).n == sum(len(gaps) for gaps in raw["itls"])


def test_what_it_cannot_tell_is_said(tmp_path: Path) -> None:
    point, _ = analyse(load_run(write_imported(read_result(VLLM), "flash_attn", tmp_path)))
    assert point.proof == "unproven" and point.weights == "unknown"
    assert "imported from vllm bench serve" in point.notes
    assert any("the client's own count" in note for note in point.notes)


def test_chunks_of_several_tokens_are_not_taken_for_single_ones(tmp_path: Path) -> None:
    raw = json.loads(VLLM.read_text())
    raw["output_lens"] = [20] * 12  # 8 chunks for 20 tokens: how many each brought is unknown
    changed = tmp_path / "bundled.json"
    changed.write_text(json.dumps(raw))
    run = load_run(write_imported(read_result(changed), "flash_attn", tmp_path))
    found = point_requests(run, Window("whole", *run.manifest.phases["measure"]))
    assert len(found.itl_s) == 0 and found.untimed == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "not a result that is known here"),
        ("not json", "not a JSON result file"),
        ('{"endpoint_type":1,"model_id":1,"total_output_tokens":1}', "--save-detailed"),
    ],
)
def test_bad_files_are_said_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_result(path)


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis", "import", str(VLLM), "--backend", "triton"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "manifest.json").is_file()
