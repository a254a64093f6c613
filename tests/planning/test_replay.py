"""Traffic against policies whose truth is known: regret, resampled traces, what is held out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greenbench.contract.errors import UserError
from greenbench.contract.policy import Policy, dump_policy, load_policy
from planning.evidence import Evidence, gather
from planning.fit import policy_of
from planning.playing import Fold, play, usual_rate
from planning.replay import replay, within
from planning.requests import Traffic, generated, recorded
from planning.score import scored
from planning.told import table
from tests.planning.sweeps import CROSSING, SHORT, TOKENS, points, truth, written

KNOWN = {name: truth(cost) for name, cost in CROSSING.items()}
RESAMPLED = 40  # scripts/policy_rates.py plays 1,000


def busy(count: int, seed: int, servers: int = 2) -> Traffic:
    """Servers 70 % busy by the known truth: one request alone takes its own time."""
    pattern = generated(count, 1.0, (2048, 32768), TOKENS, seed)
    alone = np.mean([SHORT.e2e_s(n) for n in pattern.prompt_tokens])
    return generated(count, 0.7 * servers / float(alone), (2048, 32768), TOKENS, seed)


def test_regret_against_known_curves_is_small(policy: Policy) -> None:
    traffic = busy(1500, 1)
    fold = Fold(policy, KNOWN)
    scores = scored([play(fold, traffic, 2, "e2e", policy.slo, 7)], traffic, "e2e", policy.slo, 7)
    by_who = {score.who: score for score in scores}
    assert by_who["policy"].regret[0] <= 0.05
    assert by_who["best single"].regret[0] > by_who["policy"].regret[0]
    assert by_who["random"].regret[0] > by_who["best single"].regret[0]
    assert by_who["policy"].as_good >= 0.95


def test_it_is_at_least_as_good_in_traces_played_anew(policy: Policy) -> None:
    fold = Fold(policy, KNOWN)
    won = 0
    for seed in range(RESAMPLED):
        traffic = busy(300, seed)
        done = play(fold, traffic, 2, "e2e", policy.slo, seed)
        won += done["policy"][0].e2e_s.mean() <= done["best single"][0].e2e_s.mean()
    assert won / RESAMPLED >= 0.95


def test_the_truth_is_held_out(policy: Policy, evidence: Evidence) -> None:
    found = replay(policy, evidence, busy(300, 3))
    assert found.held_out and found.folds == len(evidence.blocks) == 4
    assert found.said[0].startswith(
        "Held out: played against each of 4 repeats by a policy made of"
    )
    assert found.servers == 2


def test_a_changed_policy_is_played_as_written_and_says_so(
    policy: Policy, evidence: Evidence
) -> None:
    changed = policy.model_copy(update={"rules": policy.rules[-1:]})
    found = replay(changed, evidence, busy(100, 3))
    assert not found.held_out and found.folds == 1
    assert found.said[0].startswith("Not held out: ")


def test_other_runs_are_held_out(policy: Policy, tmp_path: Path) -> None:
    later = points(CROSSING, change=lambda point: replace(point, started_s=1e6))
    other = gather(written(tmp_path, later, 2), "e2e")
    found = replay(policy, other, busy(100, 3))
    assert found.held_out and found.said[0].startswith("Held out: none of these runs")


def test_no_policy_has_no_regret_over_best_single(tmp_path: Path) -> None:
    root = written(tmp_path, points({"alpha": SHORT, "beta": SHORT}), 3, sd=0.02)
    equal = gather(root, "e2e")
    made = policy_of(equal)
    assert made is not None and not made.decided
    found = replay(made, equal, busy(200, 2, servers=1))
    assert found.score("policy").mean == found.score("best single").mean
    assert found.score("policy").over_single == (1, 1, 1)


def test_lengths_far_beyond_are_refused_and_near_ones_marked() -> None:
    lengths = np.array([100, 300, 4096, 200_000, 300_000])
    kept, said = within(
        Traffic(np.arange(5.0), lengths, np.full(5, 8), "test"), [KNOWN]
    )  # known from 512 to 131,072 tokens
    assert kept.prompt_tokens.tolist() == [300, 4096, 200_000]
    assert said[0].startswith("Refused: 2 of 5 requests") and "2 of 3" in said[1]
    with pytest.raises(UserError, match="no prompt of the traffic is within twice"):
        within(Traffic(np.zeros(1), np.array([1]), np.array([1]), ""), [KNOWN])


def test_the_usual_rate_keeps_the_servers_busy() -> None:
    """70 % of what two servers of alpha serve: each one request at a time of its mean length."""
    pattern = generated(500, 1.0, (2048, 32768), TOKENS, 1)
    alone = np.mean([SHORT.e2e_s(n) for n in pattern.prompt_tokens])
    assert usual_rate(KNOWN["alpha"], pattern, 2) == pytest.approx(0.7 * 2 / alone, rel=0.01)


def test_generated_lengths_are_log_uniform_and_arrivals_poisson() -> None:
    found = generated(4000, 5.0, (1000, 100_000), 16, 3)
    assert np.median(found.prompt_tokens) == pytest.approx(10_000, rel=0.08)  # geometric middle
    gaps = np.diff(found.at_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.05)


def test_a_trace_is_known_by_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n10,100,5\n12,200,6\n14,300,7\n")
    found = recorded(path, None, 2.0, 2)
    assert found.at_s.tolist() == [0, 1] and found.prompt_tokens.tolist() == [100, 200]
    assert found.words == "burstgpt trace t.csv, the first 2 of 3, 2 times as fast"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="the fields of no known trace format"):
        recorded(path, None, 1.0, 2)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff\n"])
@pytest.mark.parametrize("trace_format", [None, "mooncake", "azure"])
def test_an_empty_trace_is_called_empty(
    tmp_path: Path, text: str, trace_format: str | None
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"t\.jsonl: the file is empty; give a trace with requests$"
    ):
        recorded(path, trace_format, 1.0, 2)


@pytest.mark.parametrize(
    "header",
    ["Timestamp,Request tokens,Response tokens", "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens"],
)
def test_a_header_alone_is_no_unknown_format(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n\n")
    with pytest.raises(UserError, match="has a header and no request"):
        recorded(path, None, 1.0, 2)


def test_the_table_has_every_figure(policy: Policy, evidence: Evidence) -> None:
    traffic = busy(200, 4)
    found = replay(policy, evidence, traffic)
    lines = table(found, traffic, policy)
    row = next(line for line in lines if line.startswith("policy"))
    score = found.score("policy")
    assert f"{score.mean:.4g}" in row and f"{100 * score.regret[0]:.1f} %" in row
    assert any("2 servers each" in line for line in lines)


def test_pools_that_the_runs_lack_are_named(policy: Policy, evidence: Evidence) -> None:
    pools = {
        name: pool.model_copy(update={"label": "gamma"}) for name, pool in policy.pools.items()
    }
    with pytest.raises(UserError, match="pool 'alpha' is 'gamma', of which there is no usable run"):
        replay(policy.model_copy(update={"pools": pools}), evidence, busy(10, 1))


def test_a_policy_file_plays_as_the_policy(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(dump_policy(policy))
    assert load_policy(tmp_path / "policy.yaml") == policy
