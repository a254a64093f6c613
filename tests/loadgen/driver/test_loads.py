"""Conversations and traces, as the server sees them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import GoldenServer, Seen
from tests.fakes.waiting import HUNG_S

ROOT = Path(__file__).resolve().parents[3]


def drive(run: Path, *module: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(request rows in order of sending, outputs)."""
    argv = [sys.executable, "-m", *module, "--run-dir", str(run)]
    ended = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for f in run.glob("requests/*.jsonl") for line in f.open()]
    outputs = [json.loads(line) for f in run.glob("outputs/*.jsonl") for line in f.open()]
    return sorted(rows, key=lambda row: row["sent_mono_ns"]), outputs


def prompts(seen: list[Seen]) -> dict[str, list[int]]:
    return {s.request_id: s.body["prompt"] for s in seen}


def test_the_turns_of_a_conversation_are_growing_prefixes_of_one_prompt(tmp_path: Path) -> None:
    with GoldenServer() as server:
        load = {"kind": "closed", "users": 2, "turns": 4}
        run = make_run(tmp_path, server.url, load=load, context=64)
        rows, outputs = drive(run, "locust", "-f", "loadgen/longctx.py", "--headless")
        sent = prompts(server.seen)
    conversations: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        assert row["error_type"] is None
        conversations.setdefault(row["conversation"], []).append(row)
    whole = [turns for turns in conversations.values() if len(turns) == 4]
    assert len(whole) > 4
    for turns in whole:
        assert [row["turn"] for row in turns] == [0, 1, 2, 3]
        assert [row["prompt_tokens"] for row in turns] == [16, 32, 48, 64]
        last = sent[turns[3]["request_id"]]
        assert all(sent[row["request_id"]] == last[: row["prompt_tokens"]] for row in turns)
    # a cut prompt has lost its question: only last turns are graded
    assert {o["request_id"] for o in outputs} == {r["request_id"] for r in rows if r["turn"] == 3}


@pytest.mark.parametrize("client", ["fast", "httpx"])
def test_users_pause_between_turns_and_every_row_says_whose_it_is(
    tmp_path: Path, client: str
) -> None:
    with GoldenServer() as server:
        load = {"kind": "closed", "users": 2, "turns": 2, "turn_pause_s": 0.15}
        run = make_run(tmp_path, server.url, load=load, context=64)
        rows, _ = drive(run, "locust", "-f", "loadgen/longctx.py", "--headless", "--client", client)
    assert {row["user"] for row in rows} == {0, 1}
    pauses_s: dict[int, list[float]] = {0: [], 1: []}
    for user in (0, 1):
        mine = [row for row in rows if row["user"] == user]
        for before, after in pairwise(mine):
            gap_s = (after["sent_mono_ns"] - before["sent_mono_ns"] - before["end_ns"]) / 1e9
            assert gap_s >= 0  # one request at a time
            pauses_s[after["turn"]].append(gap_s)
            assert (after["conversation"] == before["conversation"]) == (after["turn"] == 1)
    assert min(pauses_s[1]) >= 0.149 and len(pauses_s[1]) > 2
    assert min(pauses_s[0]) < 0.149


def test_a_trace_is_replayed_with_its_times_and_lengths_and_ends_the_run(tmp_path: Path) -> None:
    trace = [(0, 40, 3), (100, 64, 8), (150, 8, 2), (400, 20, 5)]
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": t, "input_length": i, "output_length": o}) + "\n"
            for t, i, o in trace
        )
    )
    with GoldenServer() as server:
        load = {"kind": "open", "trace": str(path)}
        phases = {"warmup_s": 0, "measure_s": 30}
        run = make_run(tmp_path, server.url, load=load, phases=phases)
        rows, _ = drive(run, "loadgen.openloop")
    assert [(r["prompt_tokens"], r["output_tokens"]) for r in rows] == [(i, o) for _, i, o in trace]
    first = rows[0]["scheduled_unix_ns"]
    due_ms = [(r["scheduled_unix_ns"] - first) / 1e6 for r in rows]
    assert [round(ms) for ms in due_ms] == [t for t, _, _ in trace]
    assert {r["error_type"] for r in rows} == {None}
    marks = {e["name"]: e["mono_ns"] for e in map(json.loads, (run / "events.jsonl").open())}
    assert marks["drain_end"] - marks["measure_start"] < phases["measure_s"] * 1e9


def test_fewer_requests_than_users_are_all_measured(tmp_path: Path) -> None:
    """The phase ends while they still connect: they were let out before, so they count."""
    with GoldenServer() as server:
        load = {"kind": "closed", "users": 8}
        phases = {"warmup_s": 0, "measure_s": 30, "requests": 6}
        run = make_run(tmp_path, server.url, load=load, phases=phases)
        rows, _ = drive(run, "locust", "-f", "loadgen/longctx.py", "--headless")
    assert [(row["phase"], row["error_type"]) for row in rows] == [("measure", None)] * 6
