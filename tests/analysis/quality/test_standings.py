"""Who is the reference, and where each candidate stands beside it: the cases that once won."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.point.point import analyse_all
from analysis.quality.gate import gates
from analysis.quality.standings import Standing, Verification, standings
from analysis.runs.run import load_runs
from servers.backends.registry import BACKENDS
from tests.fakes.rundirs import FakeRun, write_run

QUICK = {"prompts": 40, "ttft_s": 0.1, "itl_s": 0.01, "measure_s": 20}
SCORED = {"task": "perplexity", "streaming": False, "output_tokens": 1, "nll_per_token": 2.0}


def judged(
    root: Path, *fakes: FakeRun, checked: tuple[Verification, ...] = ()
) -> dict[str, Standing]:
    """Standings by backend, of runs at one context."""
    for number, fake in enumerate(fakes):
        write_run(root, replace(fake, started_s=float(number)))
    runs = load_runs(root)
    points = analyse_all(runs)
    told = {point.path for point in points if point.answers_stand}
    found = gates([run for run in runs if str(run.path) in told])
    (place,) = standings(found, checked, runs, points).values()
    return {who.backend_label: standing for who, standing in place.items()}


def fake(backend: str, share: float, exactness: int | None = None, **changes: object) -> FakeRun:
    base = FakeRun(backend=backend, correct_share=share, exactness=exactness)
    return replace(base, **(QUICK | changes))  # type: ignore[arg-type]


def kinds(found: dict[str, Standing]) -> dict[str, str]:
    return {name: standing.kind for name, standing in found.items()}


@pytest.mark.parametrize("ranks", [(61, 0), (None, None), (61, None), (None, 0)])
def test_a_window_that_answers_wrong_never_stands(
    tmp_path: Path, ranks: tuple[int | None, int | None]
) -> None:
    """flash_attn3 was in no list of references: "Take sink_window", which answers 3 of 40."""
    found = judged(
        tmp_path, fake("flash_attn3", 1.0, ranks[0]), fake("sink_window", 0.075, ranks[1])
    )
    assert kinds(found) == {"flash_attn3": "reference", "sink_window": "disqualified"}
    said = found["sink_window"].sentence
    assert "on retrieve, 3 of 40 prompts right against 40 of 40 with `flash_attn3`" in said
    assert ("no candidate is known to be exact" in said) == (ranks[0] is None)


def test_the_most_exact_is_the_reference_and_not_the_best_answering(tmp_path: Path) -> None:
    """By rank, whatever the names; 37 against 40 of 40 is no loss of the reference that is shown."""
    found = judged(
        tmp_path, fake("zeta", 37 / 40, 50), fake("alpha", 1.0, 40), fake("beta", 1.0, 0)
    )
    assert kinds(found) == {"zeta": "reference", "alpha": "proven", "beta": "proven"}
    assert found["zeta"].sentence.startswith("the reference here, as the most exact")
    assert not found["zeta"].doubted


def test_an_approximate_one_is_no_reference_where_another_may_be_exact(tmp_path: Path) -> None:
    """Equal answers: by name and share alike the window would come first."""
    found = judged(tmp_path, fake("a_window", 1.0, 0), fake("z_unknown", 1.0, None))
    assert kinds(found) == {"a_window": "proven", "z_unknown": "reference"}


def test_a_quantised_cache_is_no_reference_beside_a_whole_one(tmp_path: Path) -> None:
    found = judged(tmp_path, fake("high", 1.0, 60, kv_cache_dtype="fp8"), fake("low", 1.0, 10))
    assert kinds(found) == {"high": "proven", "low": "reference"}


def test_an_exact_design_that_answers_wrong_is_no_reference(tmp_path: Path) -> None:
    """Its kernel is broken: two others that are exact by design agree against it."""
    found = judged(
        tmp_path, fake("broken", 0.1, 90), fake("sdpa", 1.0, 20), fake("triton", 1.0, 50)
    )
    assert kinds(found) == {"broken": "disqualified", "triton": "reference", "sdpa": "proven"}


def test_one_that_answered_few_prompts_is_no_reference(tmp_path: Path) -> None:
    """Its server died early: all of its 5 answers are right, and 39 of 40 of the other's."""
    found = judged(tmp_path, fake("early", 1.0, None, prompts=5), fake("long", 39 / 40, None))
    assert kinds(found) == {"early": "undecided", "long": "reference"}


def test_candidates_of_two_sets_of_prompts_are_each_held_to_who_answered_theirs(
    tmp_path: Path,
) -> None:
    """Of one task at one context: prompts are told apart by hash, so indices 0 to 39 and 40 to 79."""
    found = judged(
        tmp_path,
        fake("exact", 1.0, 90),
        fake("other", 0.5, 20),
        fake("far", 1.0, 50, first_prompt=40),
        fake("wrong", 0.5, 30, first_prompt=40),
    )
    assert kinds(found) == {
        "exact": "reference",
        "other": "disqualified",
        "far": "reference",
        "wrong": "disqualified",
    }


def test_an_approximate_one_that_answers_better_does_not_unseat_an_exact_one(
    tmp_path: Path,
) -> None:
    found = judged(tmp_path, fake("flash_attn", 0.6, 70), fake("sink_window", 1.0, 0))
    assert kinds(found) == {"flash_attn": "reference", "sink_window": "proven"}
    assert found["flash_attn"].doubted
    assert "`sink_window` answers more correctly" in found["flash_attn"].sentence


@pytest.mark.parametrize(
    ("right", "kind"),
    [
        (40, "proven"),
        (39, "undecided"),
        (36, "undecided"),
        (35, "disqualified"),
        (28, "disqualified"),
    ],
)
def test_not_shown_is_not_innocent(tmp_path: Path, right: int, kind: str) -> None:
    """Of 40 prompts: one lost may be a tenth (P(≤ 1 of 40 | 0.1) = 0.08), five lost are p = 1/32."""
    found = judged(tmp_path, fake("exact", 1.0, 90), fake("other", right / 40, 20))
    assert kinds(found) == {"exact": "reference", "other": kind}
    assert found["other"].doubted == (kind == "undecided")


def test_too_few_prompts_leave_it_undecided_beside_the_reference(tmp_path: Path) -> None:
    ten = {"prompts": 10}
    found = judged(tmp_path, fake("exact", 1.0, 90, **ten), fake("other", 1.0, 20, **ten))
    assert kinds(found) == {"exact": "reference", "other": "undecided"}
    assert "10 prompts are too few (29 are needed at least)" in found["other"].sentence
    assert not found["other"].doubted


@pytest.mark.parametrize(
    ("share", "kind"), [(1.0, "proven"), (0.6, "undecided"), (0.1, "disqualified")]
)
def test_a_short_second_task_can_accuse_and_not_acquit(
    tmp_path: Path, share: float, kind: str
) -> None:
    """40 prompts of one task are all right; of 10 of another all, 6 (p = 1/16) or 1 (p = 1/512)."""
    short = {"task": "summarize", "prompts": 10}
    found = judged(
        tmp_path,
        fake("exact", 1.0, 90),
        fake("other", 1.0, 20),
        fake("exact", 1.0, 90, **short),
        fake("other", share, 20, **short),
    )
    assert kinds(found) == {"exact": "reference", "other": kind}


def test_log_probabilities_alone_acquit_only_where_no_answers_were_judged(tmp_path: Path) -> None:
    pair = [fake("exact", 1.0, 90, **SCORED), fake("other", 1.0, 20, **SCORED)]
    found = judged(tmp_path / "scored", *pair)
    assert kinds(found) == {"exact": "reference", "other": "proven"}
    assert "no answers were judged" in found["other"].sentence
    few = [fake("exact", 1.0, 90, prompts=10), fake("other", 1.0, 20, prompts=10)]
    assert kinds(judged(tmp_path / "both", *pair, *few))["other"] == "undecided"


def test_a_model_that_answers_nothing_right_proves_nobody(tmp_path: Path) -> None:
    """Random weights: equal answers, all wrong; and of 40 right answers 4, too few to lose a tenth."""
    for share in (0.0, 0.1):
        found = judged(tmp_path / f"{share}", fake("exact", share, 90), fake("other", share, 20))
        assert kinds(found) == {"exact": "undecided", "other": "undecided"}
        assert "answers too few prompts correctly" in found["other"].sentence
        assert not found["other"].doubted


def test_failing_or_unproven_is_said(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        fake("exact", 1.0, 90),
        fake("failing", 1.0, 20, failed_every=2),
        fake("unproven", 1.0, 20, proof="unproven"),
        fake("sound", 1.0, 20, failed_every=20),
    )
    assert kinds(found) == {
        "exact": "reference",
        "failing": "undecided",
        "unproven": "undecided",
        "sound": "proven",
    }
    failing = found["failing"]
    assert failing.doubted and found["unproven"].doubted
    assert failing.evidence.failed * 2 == pytest.approx(failing.evidence.requests, abs=1)
    assert failing.sentence.endswith("measured requests failed")
    assert "which attention class ran is unproven" in found["unproven"].sentence


def test_an_unproven_backend_is_no_reference(tmp_path: Path) -> None:
    """What ran under the exact one's name is not known."""
    found = judged(tmp_path, fake("cpu_attn", 1.0, 90, proof="unproven"), fake("sdpa", 1.0, 20))
    assert kinds(found) == {"cpu_attn": "undecided", "sdpa": "reference"}


def test_failed_verification_disqualifies_at_every_length(tmp_path: Path) -> None:
    check = Verification("tiny", "other", "exact", "fail", ["alone-640: token 3 differs"])
    found = judged(tmp_path, fake("exact", 1.0, 90), fake("other", 1.0, 20), checked=(check,))
    assert kinds(found) == {"exact": "reference", "other": "disqualified"}
    assert found["other"].sentence == (
        "it fails verification against `exact` (alone-640: token 3 differs)"
    )


def test_alone_an_exact_one_is_the_reference_and_an_approximate_one_undecided(
    tmp_path: Path,
) -> None:
    for rank, kind in ((90, "reference"), (0, "undecided"), (None, "undecided")):
        found = judged(tmp_path / f"{rank}", fake("one", 1.0, rank))
        assert kinds(found) == {"one": kind}


def test_evidence_is_counted(tmp_path: Path) -> None:
    found = judged(tmp_path, fake("exact", 1.0, 90), fake("other", 0.5, 20))
    evidence = found["other"].evidence
    assert (evidence.no_worse, evidence.undecided, evidence.worse) == (0, 0, 1)
    assert evidence.prompts == 40
    # 4 users, 0.2 s a request (0.1 + 10 · 0.01), 20 s
    assert evidence.requests == pytest.approx(4 * 20 / 0.2, abs=4)


def test_the_table_ranks_every_backend() -> None:
    """Approximate ones at 0, and no two of vLLM's own alike, so that the reference hangs on no name."""
    assert BACKENDS["sink_window"].exactness == 0
    exact = [row for row in BACKENDS.values() if row.exact]
    ranks = [row.exactness for row in exact]
    assert min(ranks) > 1 and len(set(ranks)) == len(ranks)
    on_gpu = max((row for row in exact if "cuda" in row.devices), key=lambda row: row.exactness)
    on_cpu = max((row for row in exact if "cpu" in row.devices), key=lambda row: row.exactness)
    # those that `verify` takes by default (servers/__main__.py)
    assert (on_gpu.name, on_cpu.name) == ("sdpa_gather", "cpu_attn")
