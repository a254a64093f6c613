"""Issue "Claims", part 1: like with like. Unlike runs are never replicates of one another."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.outside.generator import Card, Point, Power, write
from tests.outside.playing import Load, Pace
from tests.outside.reading import Reading, read, run_command
from tests.outside.sweeps import ALL_RIGHT, faster, starts

BASE = Point(pace=Pace(0.2, 0.01), right=ALL_RIGHT)
OPEN = replace(BASE, pace=Pace(0.15, 0.005, schedule="alone"), load=Load(None, rate_per_s=2.0))
H200 = Card("NVIDIA H200", "GPU-22222222-2222-2222-2222-222222222222", 141 << 30, host="host-b")


def apart(root: Path, *kinds: Point, n: int = 2) -> Reading:
    """``kinds`` of one candidate, each started ``n`` times: no cell holds runs of two kinds."""
    groups = [
        write(root, starts([replace(kind, started_s=at * 77.0)], n, sd=0.002, seed=at + 1))
        for at, kind in enumerate(kinds)
    ]
    found = read(root)
    held = [run for cell in found.summary["cells"] for run in cell["run_ids"]]
    left_out = [p for p in found.summary["points"] if p["status"] != "ok"]
    assert not left_out, [(p["run_id"], p["status"], p["reasons"]) for p in left_out]
    assert sorted(held) == sorted(run for group in groups for run in group)
    assert not found.pooled(*groups), [cell["run_ids"] for cell in found.summary["cells"]]
    return found


def test_arrivals_at_one_rate(tmp_path: Path) -> None:
    """Poisson, constant and gamma arrivals at one rate are three workloads."""
    found = apart(
        tmp_path,
        OPEN,
        replace(OPEN, load=replace(OPEN.load, arrivals="constant")),
        replace(OPEN, load=replace(OPEN.load, arrivals="gamma", burstiness=0.25)),
    )
    assert len({cell["load"] for cell in found.summary["cells"]}) == 3


def test_burstiness_of_gamma_arrivals(tmp_path: Path) -> None:
    """Gamma arrivals of shape 0.5 and 4 at one rate are two workloads."""
    gamma = replace(OPEN, load=replace(OPEN.load, arrivals="gamma", burstiness=0.5))
    apart(tmp_path, gamma, replace(gamma, load=replace(gamma.load, burstiness=4.0)))


def test_needle_depth_0_and_1(tmp_path: Path) -> None:
    """Needles at the start and at the end are two tasks."""
    apart(tmp_path, replace(BASE, params={"depth": 0.0}), replace(BASE, params={"depth": 1.0}))


def test_max_num_seqs_64_and_8(tmp_path: Path) -> None:
    """`max_num_seqs` 64 and 8: two candidates, and their labels tell them apart."""
    found = apart(
        tmp_path, replace(BASE, server={"max_num_seqs": 64}), replace(BASE, server={"max_num_seqs": 8})
    )  # fmt: skip
    assert len({cell["backend"] for cell in found.summary["cells"]}) == 2


@pytest.mark.parametrize(
    "setting",
    [
        {"max_num_batched_tokens": 2048},
        {"kv_cache_dtype": "fp8"},
        {"gpu_memory_utilization": 0.5},
        {"extra_args": ["--no-async-scheduling"]},
        {"block_size": 32},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_any_server_setting(tmp_path: Path, setting: dict[str, object]) -> None:
    """Two servers that differ in one setting are two candidates."""
    apart(tmp_path, BASE, replace(BASE, server=setting))


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "random"},
        {"load": Load(told=(("turn_pause_s", 1.0),))},
        {"params": {"distractors": 64}},
        {"prompts": 16},
        {"server": {"execution": "eager"}},
        {"server": {"prefix_caching": True}},
        {"server": {"tensor_parallel": 2}},
        {"model": "another-llama"},
        {"options": {"tile": 64}},
        {"power": Power(), "card": Card(driver="590.10")},
    ],
    ids=lambda change: "-".join(map(str, next(iter(change.items()))))[:40],
)
def test_any_other_difference(tmp_path: Path, change: dict[str, Any]) -> None:
    """Runs differ in weights, pauses, needles, number of prompts, execution, caching, model, options or
    driver: they are kept apart.
    """
    with_card = {"power": Power(), "card": Card()} if "card" in change else {}
    one = replace(BASE, **with_card, folder="one")  # type: ignore[arg-type]
    apart(tmp_path, one, replace(one, **change, folder="two"))


def test_vllm_versions(tmp_path: Path) -> None:
    """vLLM 0.30 and 0.32, in two folders, are two candidates."""
    old = replace(BASE, vllm="0.30.0", folder="old")
    apart(tmp_path, old, replace(BASE, vllm="0.32.0", folder="new"))


def test_slo(tmp_path: Path) -> None:
    """Goodput under two SLOs is kept apart."""
    apart(tmp_path, BASE, replace(BASE, slo={"ttft_s": 0.01}))


def test_other_prompts(tmp_path: Path) -> None:
    """Another seed makes other prompts: they are kept apart."""
    apart(tmp_path, BASE, replace(BASE, seed=8))


def test_cards(tmp_path: Path) -> None:
    """An H100 and an H200, in two folders, are two devices."""
    one = replace(BASE, power=Power(), card=Card(), folder="h100")
    apart(tmp_path, one, replace(one, card=H200, folder="h200"))


def test_16_and_64_output_tokens(tmp_path: Path) -> None:
    """alpha is asked for 16 output tokens and beta for 64: the two are not compared."""
    short = replace(BASE, output_tokens=16)
    write(tmp_path, starts([short, replace(BASE, backend="beta", started_s=500.0)], 3, sd=0.002))
    found = read(tmp_path)
    assert not found.claims() and not found.winners()
    assert not found.recommended("alpha") and not found.recommended("beta")
    assert all(d["verdict"] == "not comparable" for d in found.summary["differences"])


def test_16_and_64_output_tokens_of_one_candidate(tmp_path: Path) -> None:
    """One candidate asked for 16 and for 64 tokens: two tasks."""
    apart(tmp_path, replace(BASE, output_tokens=16), BASE)


def test_two_cards_versions_and_caches_are_no_tested_winner(tmp_path: Path) -> None:
    """alpha on an H100 with vLLM 0.30 and a bf16 KV cache, beta on an H200 with 0.32 and fp8: either there is
    no winner and a sentence says why, or the sentence with the winner names both cards.
    """
    alpha = replace(BASE, power=Power(), card=Card(), vllm="0.30.0")
    beta = replace(
        faster(BASE, "beta", 0.8),
        power=Power(),
        card=H200,
        vllm="0.32.0",
        server={"kv_cache_dtype": "fp8"},
        started_s=500.0,
    )
    write(tmp_path, starts([alpha, beta], 3, sd=0.002))
    found = read(tmp_path)
    claims = found.claims("output", "total", "requests", "e2e", "ttft", "tpot", "goodput")
    if claims:
        assert found.said_of("beta", "H100", "H200", "0.30", "0.32", "fp8"), found.text
    else:
        assert not found.recommended("beta") and not found.winners("output", "e2e")
        why = [s for s in found.sentences if "compar" in s.lower()]
        assert any("H200" in s or "card" in s or "device" in s.lower() for s in why), found.text


def test_each_on_a_card_of_its_own(tmp_path: Path) -> None:
    """alpha always ran on one H100, beta always on another, 5 % slower one: a difference is not claimed, or
    the sentence names the cards.
    """
    other = Card(uuid="GPU-33333333-3333-3333-3333-333333333333")
    alpha = replace(BASE, power=Power(), card=Card())
    beta = replace(alpha, backend="beta", card=other, factor=1.05)
    write(tmp_path, starts([alpha, beta], 5, sd=0.002))
    found = read(tmp_path)
    if found.claims("output", "e2e", "energy") or found.recommended("alpha"):
        told = [s for s in found.sentences if "alpha" in s and "beta" in s]
        assert any(re.search(r"\bcards?\b|\bdevices?\b|GPU-", s) for s in told), found.text


def test_a_setting_that_differs_is_named(tmp_path: Path) -> None:
    """alpha with `max_num_seqs` 64, beta with 8 and 20 % slower: a recommendation names the setting."""
    beta = replace(faster(BASE, "beta", 1.2), server={"max_num_seqs": 8})
    write(tmp_path, starts([BASE, beta], 4, sd=0.002))
    found = read(tmp_path)
    if found.claims() or found.recommended("alpha"):
        assert found.said_of("alpha", "max_num_seqs"), found.text


def test_two_sets_of_prompts_are_not_compared(tmp_path: Path) -> None:
    """alpha answered the prompts of seed 7, beta those of seed 8: they are not compared."""
    write(tmp_path, starts([BASE, replace(faster(BASE, "beta", 0.8), seed=8)], 3, sd=0.002))
    found = read(tmp_path)
    assert not found.claims() and not found.recommended("beta"), found.headline


def bench_result(burstiness: float, at: int) -> dict[str, object]:
    """What ``vllm bench serve --save-result --save-detailed`` writes, of 60 requests at 2 a second."""
    n, tokens = 120, 16
    starts_s = [1000.0 + i * 0.5 for i in range(n)]
    return {
        "date": f"20260101-0{at}0000",
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": "outside-llama",
        "tokenizer_id": "outside-llama",
        "num_prompts": n,
        "request_rate": 2.0,
        "burstiness": burstiness,
        "max_concurrency": None,
        "duration": n * 0.5 + 0.4,
        "completed": n,
        "failed": 0,
        "total_input_tokens": n * 8192,
        "total_output_tokens": n * tokens,
        "input_lens": [8192] * n,
        "output_lens": [tokens] * n,
        "start_times": starts_s,
        "ttfts": [0.2] * n,
        "itls": [[0.01] * (tokens - 1)] * n,
        "generated_texts": [""] * n,
        "errors": [""] * n,
    }


def test_imported_runs_at_other_burstiness(tmp_path: Path) -> None:
    """Result files of another load generator, one at burstiness 0.2 and one at 5, are kept apart."""
    for at, burstiness in enumerate((0.2, 5.0), start=1):
        file = tmp_path / f"bench{at}.json"
        file.write_text(json.dumps(bench_result(burstiness, at)))
        run_command("import", str(file), "--backend", "alpha", "--out", str(tmp_path / "runs"))
    found = read(tmp_path / "runs")
    assert [len(cell["run_ids"]) for cell in found.summary["cells"]] == [1, 1], found.text


def test_imported_directories_at_other_burstiness(tmp_path: Path) -> None:
    """The same, imported as run directories."""
    told = {"imported_from": "another tool 1.0", "cannot_tell": ["what it cannot"]}
    load = replace(OPEN.load, arrivals="gamma", burstiness=0.2)
    one = replace(OPEN, load=load, proof="unproven", proof_detail=told)
    apart(tmp_path, one, replace(one, load=replace(load, burstiness=5.0)))


def test_folders_of_one_sweep_are_replicates(tmp_path: Path) -> None:
    """Three folders, each with one start of the same sweep, on one card: three starts of each candidate, and
    a true 10 % is found."""
    pair = [replace(BASE, backend="beta"), faster(BASE, "alpha", 0.9)]
    points = [
        replace(
            point, folder=f"part{number}", repeat=0, started_s=point.started_s + number * 50_000
        )
        for number in range(3)
        for point in starts(pair, 1, sd=0.004, seed=number)
    ]
    write(tmp_path, points)
    found = read(tmp_path)
    assert [p["status"] for p in found.summary["points"]] == ["ok"] * 6
    assert [len(cell["run_ids"]) for cell in found.summary["cells"]] == [3, 3]
    assert any(c.winner.startswith("alpha") for c in found.claims("output")), found.text


def test_a_run_measured_again_in_one_folder_is_superseded(tmp_path: Path) -> None:
    """The same point twice in one folder is one measurement, not two replicates."""
    write(tmp_path, [BASE, replace(BASE, started_s=5000.0, noise_seed=1)])
    found = read(tmp_path)
    assert sorted(p["status"] for p in found.summary["points"]) == ["ok", "superseded"]
