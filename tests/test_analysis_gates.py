"""A fast backend with wrong answers must not win; an equal one must not be barred."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from analysis.differences import holm
from analysis.gates import (
    answers_by_prompt,
    bootstrap_mean,
    gates,
    judge_answers,
    loss_interval,
    mcnemar,
)
from analysis.load import load_runs
from analysis.sentences import summary_sentences
from analysis.study import study
from tests.fakes.rundirs import FakeRun, write_run


def test_mcnemar_by_hand() -> None:
    # 1 against 9 discordant: 2·(C(10,0) + C(10,1)) / 2¹⁰ = 22 / 1024
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(0, 0) == 1.0


def test_published_case_is_worse() -> None:
    # 91 of 100 against 13 of 100: the FP8 attention of the published case
    reference = {i: i < 91 for i in range(100)}
    verdict, share, low, high, p = judge_answers(reference, {i: i < 13 for i in range(100)})
    assert verdict == "worse"
    assert share == pytest.approx(0.78)
    assert low > 0.6 and high < 0.9 and p < 1e-15
    # the mended one: 89 of 100 right, 2 lost
    assert judge_answers(reference, {i: i < 89 for i in range(100)})[0] == "equal"


def test_few_prompts_cannot_tell() -> None:
    same = {i: True for i in range(8)}
    assert judge_answers(same, same)[0] == "not enough prompts"
    # identical answers are "equal" from 26 prompts on: the interval is ± 1.96·√2 / (n + 2)
    assert loss_interval(0, 0, 26)[1] == pytest.approx(1.959964 * 2**0.5 / 28)
    for count, verdict in ((25, "not enough prompts"), (26, "equal")):
        same = {i: True for i in range(count)}
        assert judge_answers(same, same)[0] == verdict


def test_the_counts_that_the_docs_promise() -> None:
    """docs/tasks.md says how many prompts a sweep needs; a person plans by it."""

    def verdict(n: int, lost: int) -> str:
        reference = {i: True for i in range(n)}
        return judge_answers(reference, {i: i >= lost for i in range(n)})[0]

    assert (verdict(41, 1), verdict(42, 1)) == ("not enough prompts", "equal")
    assert (verdict(28, 5), verdict(28, 6)) == ("not enough prompts", "worse")
    six_tests = [mcnemar(8, 0), 1.0, 1.0, 1.0, 1.0, 1.0]
    assert holm(six_tests)[0] and not holm([mcnemar(7, 0), *six_tests[1:]])[0]


def test_loss_interval_covers_the_truth() -> None:
    # second method: 60 prompts, 10 % truly lost and 4 % truly gained, drawn many times
    rng = np.random.default_rng(2)
    counts = rng.multinomial(60, [0.10, 0.04, 0.86], size=2000)
    hits = [low <= 0.06 <= high for low, high in (loss_interval(a, b, 60) for a, b, _ in counts)]
    assert 0.93 <= np.mean(hits) <= 0.98


def test_equal_backends_are_seldom_called_worse() -> None:
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(400):
        right = rng.random(60) < 0.7
        flips = rng.random((2, 60)) < 0.05  # each arm errs on its own
        a, b = (dict(enumerate(right ^ flip)) for flip in flips)
        called += judge_answers(a, b)[0] == "worse"
    assert called <= binom.ppf(0.999, 400, 0.05)


def test_bootstrap_mean_matches_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(1.0, 0.2, 200)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.003),
        pytest.approx(values.mean() + half, abs=0.003),
    )


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


def test_fast_and_wrong_is_barred_and_shown(tmp_path: Path) -> None:
    write_pair(tmp_path, correct_share=0.4)
    whole = study(tmp_path)
    (gate,) = whole.gates
    assert (gate.verdict, gate.barred, gate.reference) == ("worse", True, "cpu_attn")
    assert (gate.backend_right, gate.reference_right, gate.prompts) == (16, 40, 40)
    assert len(gate.examples) == 3
    assert (gate.examples[0].expected, gate.examples[0].reference_text) == ("right", "right")
    assert gate.examples[0].backend_text == "wrong"
    assert {d.best for d in whole.decisions} == {"cpu_attn"}
    assert all("sink_window" in d.barred for d in whole.decisions)


def test_fast_and_right_wins(tmp_path: Path) -> None:
    write_pair(tmp_path, correct_share=1.0)
    whole = study(tmp_path)
    assert [gate.verdict for gate in whole.gates] == ["equal"]
    assert whole.barred == {}
    output = next(d for d in whole.decisions if d.objective == "output")
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
    assert whole.barred[("tiny", 1024)] == {
        "sink_window": "it fails verification against cpu_attn: alone-640: token 3 differs"
    }
    assert {d.best for d in whole.decisions} == {"cpu_attn"}


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "equal"), (0.05, "equal"), (0.5, "worse")])
def test_log_probability_drift(tmp_path: Path, shift: float, verdict: str) -> None:
    common = {"task": "perplexity", "streaming": False, "output_tokens": 1, "nll_per_token": 2.0}
    write_run(tmp_path, FakeRun(backend="cpu_attn", **common))  # type: ignore[arg-type]
    write_run(tmp_path, FakeRun(backend="sdpa", logprob_shift=shift, **common))  # type: ignore[arg-type]
    (gate,) = gates(load_runs(tmp_path))
    assert (gate.kind, gate.verdict, gate.barred) == (
        "log-probabilities",
        verdict,
        verdict == "worse",
    )
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


def test_a_window_is_equal_inside_and_barred_beyond(tmp_path: Path) -> None:
    write_window(tmp_path)
    whole = study(tmp_path)
    found = {gate.context_tokens: gate for gate in whole.gates}
    assert {context: gate.verdict for context, gate in found.items()} == {
        512: "equal",
        2048: "worse",
        6144: "worse",
    }
    assert set(whole.barred) == {("tiny", 2048), ("tiny", 6144)}
    # half of 2,048 tokens are seen, a sixth of 6,144: 15 and 5 of 30 needles
    assert (found[2048].backend_right, found[6144].backend_right) == (15, 5)
    for gate in (found[2048], found[6144]):
        assert all((e.depth or 0) < 1 - 1024 / gate.context_tokens for e in gate.examples)
    bests = {d.place[2]: d.best for d in whole.decisions if d.objective == "output"}
    assert bests == {512: "sink_window", 2048: "cpu_attn", 6144: "cpu_attn"}
    text = " ".join(summary_sentences(whole))
    assert "`sink_window` is barred at 2,048, 6,144 tokens" in text
    assert "answers 5 of 30 prompts right, `cpu_attn` 30" in text
    assert "though it serves 2.0× the tokens/s of `cpu_attn` there" in text
    assert "At 512 tokens its answers are equal." in text


def test_answers_of_points_with_unbelievable_times_still_count(tmp_path: Path) -> None:
    """A late client spoils its times; the wrong answers it got must still bar the backend."""
    write_window(tmp_path, status="invalid", invalid_reasons=("client_bound",))
    whole = study(tmp_path)
    assert {p.status for p in whole.points if p.backend == "sink_window"} == {"invalid"}
    assert set(whole.barred) == {("tiny", 2048), ("tiny", 6144)}


def test_answers_of_another_backend_than_asked_for_do_not_count(tmp_path: Path) -> None:
    write_window(tmp_path, proof="mismatch")
    assert study(tmp_path).gates == []


def test_a_verdict_that_holm_withdraws_is_withdrawn_in_words_too(tmp_path: Path) -> None:
    # 5 of 30 lost is p = 0.0625 alone; 6 lost p = 0.03, which two comparisons do not keep
    for context in (512, 1024):
        for backend, share in (("cpu_attn", 1.0), ("sink_window", 0.8)):
            fake = FakeRun(backend=backend, context_tokens=context, prompts=30, correct_share=share)
            write_run(tmp_path, replace(fake, ttft_s=0.1, itl_s=0.01, measure_s=20))
    for gate in gates(load_runs(tmp_path)):
        assert gate.p == pytest.approx(2 / 2**6)
        assert (gate.verdict, gate.barred) == ("not enough prompts", False)
        assert gate.sentence.endswith(": not enough prompts")
