"""A fast backend with wrong answers must not win; an equal one must not be disqualified."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.quality.answers import answers_by_prompt
from analysis.quality.gate import gates
from analysis.report.sentences import summary_sentences
from analysis.runs.run import load_runs
from analysis.study import Study, study
from tests.fakes.rundirs import FakeRun, write_run


def disqualified(whole: Study) -> dict[int, dict[str, str | None]]:
    """By context: who may not win, and why."""
    out: dict[int, dict[str, str | None]] = {}
    for (scenario, candidate), each in whole.eligible.items():
        if not each.may_win:
            label = whole.labels.candidates[candidate]
            out.setdefault(scenario.context_tokens, {})[label] = each.why_not
    return out


def write_pair(root: Path, **odd: object) -> None:
    """cpu_attn answers all of 40 prompts; another backend, twice as fast, does as ``odd`` says."""
    common = {"prompts": 40, "measure_s": 20, "users": 4, "kv_usage": None}
    for repeat in range(3):
        write_run(
            root,
            FakeRun(backend="cpu_attn", correct_share=1.0, repeat=repeat, **common),  # type: ignore[arg-type]
        )
        write_run(
            root,
            FakeRun(
                backend="sink_window",
                start_factor=0.5 + 0.001 * repeat,
                repeat=repeat,
                started_s=1,
                **common | odd,  # type: ignore[arg-type]
            ),
        )


def test_fast_and_wrong_is_disqualified_and_shown(tmp_path: Path) -> None:
    write_pair(tmp_path, correct_share=0.4)
    whole = study(tmp_path)
    (gate,) = whole.gates
    assert (gate.verdict, gate.reference) == ("worse", "cpu_attn")
    assert (gate.backend_right, gate.reference_right, gate.prompts) == (16, 40, 40)
    assert len(gate.examples) == 3
    assert (gate.examples[0].expected, gate.examples[0].reference_text) == ("right", "right")
    assert gate.examples[0].backend_text == "wrong"
    assert {d.front for d in whole.decisions} == {("cpu_attn",)}
    assert {c.label for d in whole.decisions for c in d.out} == {"sink_window"}


def test_fast_and_right_wins(tmp_path: Path) -> None:
    write_pair(tmp_path, correct_share=1.0)
    whole = study(tmp_path)
    assert [gate.verdict for gate in whole.gates] == ["no worse"]
    assert disqualified(whole) == {}
    output = next(d for d in whole.decisions if d.objective.name == "output")
    assert output.winner == "sink_window"


def test_failed_verification_bars_everywhere(tmp_path: Path) -> None:
    write_pair(tmp_path, correct_share=1.0)
    folder = tmp_path / "fake" / "verify" / "sink_window"
    folder.mkdir(parents=True)
    verdict = {
        "verdict": "fail",
        "model": "tiny",
        "label": "sink_window",
        "reference": "cpu_attn",
        "reasons": ["alone-640: token 3 differs"],
    }
    (folder / "verify.json").write_text(json.dumps(verdict))
    whole = study(tmp_path)
    assert disqualified(whole) == {
        1024: {
            "sink_window": "it fails verification against `cpu_attn` (alone-640: token 3 differs)"
        }
    }
    assert {d.front for d in whole.decisions} == {("cpu_attn",)}


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "no worse"), (0.05, "no worse"), (0.5, "worse")]
)
def test_log_probability_drift(tmp_path: Path, shift: float, verdict: str) -> None:
    common = {"task": "perplexity", "streaming": False, "output_tokens": 1, "nll_per_token": 2.0}
    write_run(tmp_path, FakeRun(backend="cpu_attn", **common))  # type: ignore[arg-type]
    write_run(tmp_path, FakeRun(backend="sdpa", logprob_shift=shift, **common))  # type: ignore[arg-type]
    (gate,) = gates(load_runs(tmp_path))
    assert (gate.kind, gate.verdict) == ("log-probabilities", verdict)
    assert gate.worse_by == pytest.approx(shift, abs=1e-4)
    assert gate.drift[0].start == 1
    assert gate.drift[-1].end == 256
    assert all(bucket.absolute == pytest.approx(shift, abs=1e-4) for bucket in gate.drift)


def test_the_same_prompt_is_paired_by_its_hash(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(backend="cpu_attn", correct_share=1.0))
    found = answers_by_prompt(load_runs(tmp_path))
    assert len(found) == 8 and all(answer.right for answer in found.values())


def write_window(root: Path, task: str = "retrieve", **changes: object) -> None:
    """A backend that sees 1,024 tokens beside one that sees all, at 512, 2,048 and 6,144 tokens."""
    for backend, sees, speed in (("cpu_attn", None, 1.0), ("sink_window", 1024, 0.5)):
        for number, context in enumerate((512, 2048, 6144)):
            fake = FakeRun(
                backend=backend,
                task=task,
                context_tokens=context,
                prompts=30,
                correct_share=1.0,
                sees_tokens=sees,
                start_factor=speed,
                ttft_s=0.1,
                itl_s=0.01,
                measure_s=20,
                weights="trained",
                started_s=number,
            )
            write_run(root, replace(fake, **(changes if backend == "sink_window" else {})))  # type: ignore[arg-type]


def test_a_window_is_no_worse_inside_and_disqualified_beyond(tmp_path: Path) -> None:
    write_window(tmp_path)
    whole = study(tmp_path)
    found = {gate.context_tokens: gate for gate in whole.gates}
    assert {context: gate.verdict for context, gate in found.items()} == {
        512: "no worse",
        2048: "worse",
        6144: "worse",
    }
    assert set(disqualified(whole)) == {2048, 6144}
    # half of 2,048 tokens are seen, a sixth of 6,144: 15 and 5 of 30 needles
    assert (found[2048].backend_right, found[6144].backend_right) == (15, 5)
    for gate in (found[2048], found[6144]):
        assert all((e.depth or 0) < 1 - 1024 / gate.context_tokens for e in gate.examples)
    fronts = {
        d.scenario.context_tokens: d.front for d in whole.decisions if d.objective.name == "output"
    }
    assert fronts == {512: ("sink_window",), 2048: ("cpu_attn",), 6144: ("cpu_attn",)}
    text = " ".join(summary_sentences(whole))
    assert (
        "`sink_window` is disqualified at 2,048 and 6,144 tokens: at 6,144 tokens, on retrieve, "
        "5 of 30 prompts right against 30 of 30 with `cpu_attn`"
    ) in text
    assert "though it has 2.00× higher total tokens/s than `cpu_attn` there" in text


def test_answers_of_points_with_unbelievable_times_still_count(tmp_path: Path) -> None:
    """A late client spoils its times; the wrong answers it got must still bar the backend."""
    write_window(tmp_path, status="invalid", invalid_reasons=("client_bound",))
    whole = study(tmp_path)
    assert {p.status for p in whole.points if p.backend == "sink_window"} == {"invalid"}
    assert set(disqualified(whole)) == {2048, 6144}


def test_answers_of_another_backend_than_asked_for_do_not_count(tmp_path: Path) -> None:
    write_window(tmp_path, proof="mismatch")
    assert study(tmp_path).gates == []


def test_two_comparisons_ask_no_more_of_each_than_one(tmp_path: Path) -> None:
    """6 of 30 lost is p = 1/64; Holm over two would have let both pass."""
    for context in (512, 1024):
        for backend, share in (("cpu_attn", 1.0), ("sink_window", 0.8)):
            fake = FakeRun(backend=backend, context_tokens=context, prompts=30, correct_share=share)
            write_run(tmp_path, replace(fake, ttft_s=0.1, itl_s=0.01, measure_s=20))
    found = gates(load_runs(tmp_path))
    assert len(found) == 2
    for gate in found:
        assert gate.p == pytest.approx(2**-6)
        assert gate.verdict == "worse"


def test_few_prompts_of_log_probabilities_cannot_tell(tmp_path: Path) -> None:
    common = {"task": "perplexity", "streaming": False, "output_tokens": 1, "nll_per_token": 2.0}
    for backend in ("cpu_attn", "sdpa"):
        write_run(tmp_path, FakeRun(backend=backend, prompts=7, **common))  # type: ignore[arg-type]
    (gate,) = gates(load_runs(tmp_path))
    assert (gate.verdict, gate.high) == ("undecided", None)
    assert "7 prompts are too few (8 are needed at least)" in gate.sentence


def test_answers_of_other_parameters_length_or_settings_are_not_pooled(tmp_path: Path) -> None:
    """Two lengths of output are two questions; two batch limits of one backend two candidates."""
    common = {"prompts": 40, "ttft_s": 0.1, "itl_s": 0.01, "measure_s": 20}
    for number, (tokens, limit, share) in enumerate(
        [(11, 64, 1.0), (22, 64, 1.0), (11, 8, 0.5), (22, 8, 1.0)]
    ):
        fake = FakeRun(output_tokens=tokens, max_num_seqs=limit, correct_share=share)
        write_run(tmp_path, replace(fake, started_s=number, **common))  # type: ignore[arg-type]
    found = {(g.task, g.backend): g.verdict for g in gates(load_runs(tmp_path))}
    assert found == {
        ("retrieve · 11 tokens out", "alpha · max_num_seqs 8"): "worse",
        ("retrieve · 22 tokens out", "alpha · max_num_seqs 8"): "no worse",
    }


def test_a_prompt_answered_right_half_of_the_times_is_not_right(tmp_path: Path) -> None:
    """One of two starts is broken: its prompts must not pass as right by a tie."""
    for repeat, share in enumerate((1.0, 0.0)):
        write_run(tmp_path, FakeRun(correct_share=share, repeat=repeat, started_s=repeat))
    assert not any(answer.right for answer in answers_by_prompt(load_runs(tmp_path)).values())


def test_answers_of_a_point_without_a_steady_state_stand(tmp_path: Path) -> None:
    """2 s are too short for a window; the answers in them are the model's all the same."""
    write_run(tmp_path, FakeRun(measure_s=2.0, correct_share=0.5))
    (point,) = study(tmp_path).points
    assert point.status == "invalid" and "no steady state" in point.reasons[0]
    assert point.answers_stand and point.answers is not None
    assert (point.answers.correct_share, point.latency) == (0.5, None)
