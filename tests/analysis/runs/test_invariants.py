"""Each invariant of docs/contract.md is broken alone, and honest runs of every kind break none."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.runs.fault import CODES
from analysis.runs.invariants import FIXED_LENGTH_TASKS
from analysis.runs.run import load_run
from analysis.runs.time_invariants import most_open
from analysis.runs.validity import faults
from greenbench.contract.manifest import INVALID_REASONS
from greenbench.contract.run_dir import RunDir
from loadgen.tasks import TASKS
from tests.fakes.rows import Rows, edit, edit_manifest, rehash
from tests.fakes.rundirs import FakeRun, write_run

S = 1_000_000_000
ROOT = Path(__file__).resolve().parents[3]
REQUESTS, OUTPUTS, EVENTS = "requests/w0.jsonl", "outputs/w0.jsonl", "events.jsonl"
GPU, SERVER = "telemetry/gpu.jsonl", "telemetry/server.jsonl"
CLOSED = FakeRun(gpu_power_w=300.0)
OPEN = FakeRun(rate_per_s=5.0)
Change = Callable[[Rows], object]


def codes(run: RunDir) -> list[str]:
    return [fault.code for fault in faults(load_run(run.path))]


def one(**columns: Any) -> Change:
    """The tenth row, which is a success of the measured phase, gets other values."""
    return lambda rows: rows[20].update(columns)


def every(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(rows: Rows) -> None:
        for row in rows:
            change(row)

    return changed


def shift(row: dict[str, Any], seconds: float, *names: str) -> None:
    for name in names:
        row[name] += round(seconds * S)


def ten_times_the_tokens(row: dict[str, Any]) -> None:
    row["chunk_tokens"] = [10 * count for count in row["chunk_tokens"]]


def falling(row: dict[str, Any]) -> None:
    row["chunk_tokens"][4] = row["chunk_tokens"][2]


def turned(row: dict[str, Any]) -> None:
    row["chunk_ns"][3], row["chunk_ns"][5] = row["chunk_ns"][5], row["chunk_ns"][3]


def earlier_ttft(row: dict[str, Any]) -> None:
    """TTFT of −5 s, as a clock that is wrong gives it: chunks go along."""
    for name in ("first_token_ns", "last_token_ns"):
        row[name] -= 5 * S
    row["chunk_ns"] = [at - 5 * S for at in row["chunk_ns"]]


def again(rows: Rows) -> None:
    """A second row of a request, put in where the load leaves room."""
    rows.append({**rows[20]})


def another_user(rows: Rows) -> None:
    """A fifth user's requests beside the four: others' rows under new ids."""
    rows += [
        {**row, "request_id": f"more-{number}"}
        for number, row in enumerate(copy.deepcopy(rows[::4]))
    ]


def stepped(rows: Rows) -> None:
    """The wall clock jumps forward by 5 s in the middle; the anchors stand outside."""
    for row in rows[len(rows) // 2 :]:
        shift(row, 5, "sent_unix_ns")


def late_rows(rows: Rows) -> None:
    for row in rows[-4:]:
        shift(row, 30, "sent_unix_ns", "sent_mono_ns")


def short(row: dict[str, Any]) -> None:
    """8 of 11 tokens came, and the row calls it a success."""
    row["output_tokens"] = 8
    for name in ("chunk_ns", "chunk_tokens"):
        row[name] = row[name][:8]
    row["last_token_ns"] = row["chunk_ns"][-1]


def empty(row: dict[str, Any]) -> None:
    row.update(output_tokens=0, max_output_tokens=0, chunk_ns=None, chunk_tokens=None)
    row.update(first_token_ns=row["end_ns"], last_token_ns=row["end_ns"])


BROKEN: list[tuple[str, FakeRun, str, Change]] = [
    ("duplicate_requests", FakeRun(rate_per_s=1.0), REQUESTS, again),
    ("foreign_rows", CLOSED, REQUESTS, one(task="summarize")),
    ("foreign_rows", CLOSED, REQUESTS, one(run_id="another")),
    ("unknown_word", FakeRun(failed_every=3), REQUESTS, one(error_type="lost")),
    ("unknown_word", CLOSED, REQUESTS, one(phase="cooling")),
    ("unknown_word", CLOSED, REQUESTS, one(finish_reason="abort")),
    ("incomplete_success", CLOSED, REQUESTS, one(http_status=500)),
    ("incomplete_success", CLOSED, REQUESTS, one(end_ns=None)),
    (
        "incomplete_success",
        CLOSED,
        REQUESTS,
        one(first_token_ns=None, last_token_ns=None, chunk_ns=None, chunk_tokens=None),
    ),
    ("impossible_counts", CLOSED, REQUESTS, one(in_flight_at_send=-1)),
    ("prompt_length_mismatch", CLOSED, REQUESTS, one(prompt_tokens=512)),
    (
        "prompt_length_mismatch",
        CLOSED,
        REQUESTS,
        every(lambda row: row.update(prompt_tokens=512, context_tokens_target=512)),
    ),
    ("output_length_mismatch", CLOSED, REQUESTS, lambda rows: short(rows[20])),
    (
        "output_length_mismatch",
        CLOSED,
        REQUESTS,
        every(lambda row: row.update(max_output_tokens=44)),
    ),
    ("prompts_mixed", CLOSED, REQUESTS, one(prompt_sha256="f" * 64)),
    ("prompts_mixed", FakeRun(correct_share=None), REQUESTS, one(prompt_index=8)),
    ("times_out_of_order", CLOSED, REQUESTS, one(headers_ns=-1)),
    ("times_out_of_order", CLOSED, REQUESTS, one(end_ns=600_000_000)),
    ("chunks_out_of_order", CLOSED, REQUESTS, lambda rows: turned(rows[20])),
    ("chunks_out_of_order", CLOSED, REQUESTS, one(first_token_ns=400_000_000)),
    ("chunk_counts", CLOSED, REQUESTS, every(ten_times_the_tokens)),
    ("chunk_counts", CLOSED, REQUESTS, lambda rows: falling(rows[20])),
    ("chunk_counts", CLOSED, REQUESTS, lambda rows: rows[20]["chunk_tokens"].pop()),
    ("outside_phases", OPEN, REQUESTS, one(phase="warmup")),
    ("too_many_in_flight", CLOSED, REQUESTS, one(in_flight_at_send=4)),
    ("too_many_in_flight", CLOSED, REQUESTS, another_user),
    ("not_as_scheduled", OPEN, REQUESTS, one(scheduled_unix_ns=None)),
    ("not_as_scheduled", OPEN, REQUESTS, lambda rows: shift(rows[20], 0.2, "scheduled_unix_ns")),
    ("outputs_differ", CLOSED, OUTPUTS, lambda rows: rows.append(rows[0])),
    ("outputs_differ", CLOSED, OUTPUTS, one(request_id="nobody")),
    ("outputs_differ", CLOSED, OUTPUTS, one(prompt_index=7)),
    ("outputs_differ", CLOSED, OUTPUTS, one(score=1.5)),
    (
        "counter_fell",
        FakeRun(preemptions=40),
        SERVER,
        lambda rows: [row.update(value=0.0) for row in rows[-8:]],
    ),
    ("impossible_reading", CLOSED, SERVER, every(lambda row: row.update(value=20.0))),
    ("impossible_reading", CLOSED, GPU, one(power_avg_w=-3.0)),
    ("clock_stepped", CLOSED, REQUESTS, stepped),
    (
        "clock_stepped",
        CLOSED,
        GPU,
        lambda rows: [shift(row, 5, "unix_ns") for row in rows[100:]],
    ),
    (
        "clock_stepped",
        CLOSED,
        REQUESTS,
        every(lambda row: shift(row, 0.06, "sent_mono_ns")),
    ),
    ("phases_differ", CLOSED, EVENTS, lambda rows: rows.append(rows[1])),
    (
        "phases_differ",
        CLOSED,
        EVENTS,
        lambda rows: shift(rows[-1], 1, "unix_ns", "mono_ns"),
    ),
]


@pytest.mark.parametrize(
    ("code", "fake", "name", "change"), BROKEN, ids=[f"{c}-{i}" for i, (c, *_) in enumerate(BROKEN)]
)
def test_a_broken_invariant_is_named_alone(
    tmp_path: Path, code: str, fake: FakeRun, name: str, change: Change
) -> None:
    run = write_run(tmp_path, fake)
    edit(run, name, change)
    assert codes(run) == [code]


def test_several_invariants_break_at_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)
    edit(run, REQUESTS, lambda rows: [earlier_ttft(row) for row in rows])
    assert codes(run) == ["times_out_of_order", "chunks_out_of_order"]
    run = write_run(tmp_path / "silent", CLOSED)
    edit(run, REQUESTS, lambda rows: empty(rows[20]))
    assert codes(run) == ["empty_success", "output_length_mismatch"]
    run = write_run(tmp_path / "late", FakeRun(rate_per_s=5.0))
    edit(run, REQUESTS, late_rows)
    assert codes(run) == []  # of an open loop the schedule counts, and that they are late is lag
    run = write_run(tmp_path / "cached", CLOSED)
    edit(run, REQUESTS, one(cached_tokens=2048))
    assert codes(run) == ["prefix_cache_hits", "impossible_counts"]


def test_closed_loop_rows_after_the_phase(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)
    edit(run, REQUESTS, late_rows)
    assert codes(run) == ["outside_phases"]


def test_a_request_cut_at_the_drain_did_not_end_before_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun(correct_share=None))
    cut = {"error_type": "cut_at_drain", "finish_reason": None}
    edit(run, REQUESTS, one(**cut))
    assert codes(run) == ["outside_phases"]
    honest = write_run(tmp_path / "honest", FakeRun(correct_share=None))

    def last(rows: Rows) -> None:
        rows[-1].update(cut, output_tokens=7)
        for name in ("chunk_ns", "chunk_tokens"):
            rows[-1][name] = rows[-1][name][:7]
        rows[-1]["last_token_ns"] = rows[-1]["chunk_ns"][-1]

    edit(honest, REQUESTS, last)
    assert codes(honest) == []

    def many(rows: Rows) -> None:
        rows[-1].update(output_tokens=None)
        ten_times_the_tokens(rows[-1])

    edit(honest, REQUESTS, many)  # its tokens count: no more than were asked for
    assert codes(honest) == ["chunk_counts"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sweep", "other"),
        ("seed", 8),
        ("point", {"task": "summarize"}),
        ("point", {"context_tokens": 8192}),
        ("load", {"users": 16}),
    ],
)
def test_manifest_and_config_of_two_points(tmp_path: Path, key: str, value: object) -> None:
    run = write_run(tmp_path, CLOSED)
    edit_manifest(run, lambda raw: raw.update({key: value}))
    assert codes(run) == ["config_differs"]


def test_phases_of_the_manifest(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)

    def longer(raw: dict[str, Any]) -> None:
        start, end = raw["phases"]["measure"]
        raw["phases"] = {"measure": [start, end + 10 * S]}

    edit_manifest(run, longer)
    found = faults(load_run(run.path))
    assert [fault.code for fault in found] == ["phases_differ", "phases_differ"]
    assert "took 50.0 s, 40 at most were asked for" in found[1].sentence


# Honest runs


@pytest.mark.parametrize(
    "fake",
    [
        FakeRun(),
        FakeRun(jitter=0.3, ramp_s=1.5),
        FakeRun(rate_per_s=2.0),
        FakeRun(tokens_per_chunk=3),
        FakeRun(streaming=False, task="perplexity", output_tokens=1, nll_per_token=2.0),
        FakeRun(failed_every=5),
        FakeRun(users=1, output_tokens=1),
        FakeRun(correct_share=None, kv_usage=None),
        FakeRun(gpu_power_w=300.0, preemptions=5),
    ],
)
def test_honest_runs_break_nothing(tmp_path: Path, fake: FakeRun) -> None:
    assert codes(write_run(tmp_path, fake)) == []


def test_rows_without_chunks_or_counts_are_honest(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)
    edit(run, REQUESTS, every(lambda row: row.update(chunk_tokens=None)))
    assert codes(run) == []
    edit(run, REQUESTS, every(lambda row: row.update(chunk_ns=None)))
    assert codes(run) == []


def test_failed_rows_may_be_all_null(tmp_path: Path) -> None:
    kept = [
        "run_id", "client_id", "request_id", "phase", "task", "prompt_index", "prompt_sha256",
        "context_tokens_target", "max_output_tokens", "in_flight_at_send",
    ]  # fmt: skip
    run = write_run(tmp_path, FakeRun(correct_share=None))

    def lost(rows: Rows) -> None:
        rows[20] = {key: rows[20][key] for key in kept} | {"error_type": "not_sent"}

    edit(run, REQUESTS, lost)
    assert codes(run) == []


def turns_of(run: RunDir, turns: int) -> None:
    """The run's requests as conversations: each turn a longer prefix of one prompt."""
    config = run.config_path.read_text()
    run.config_path.write_text(config.replace("turns: 1\n", f"turns: {turns}\n"))
    edit_manifest(run, lambda raw: raw["load"].update(turns=turns))

    def split(rows: Rows) -> None:
        for number, row in enumerate(rows):
            turn = number % turns
            length = row["context_tokens_target"] * (turn + 1) // turns
            row.update(conversation=number // turns, turn=turn)
            row.update(context_tokens_target=length, prompt_tokens=length)

    edit(run, REQUESTS, split)


def test_conversations_send_prefixes(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)
    turns_of(run, 3)
    assert codes(run) == []
    edit(run, REQUESTS, one(prompt_tokens=7, context_tokens_target=7))
    assert codes(run) == ["prompt_length_mismatch"]


def test_a_task_of_ones_own_may_stop_sooner_and_ours_may_not(tmp_path: Path) -> None:
    def stops(rows: Rows) -> None:
        short(rows[20])
        rows[20]["finish_reason"] = "stop"

    free = write_run(tmp_path, FakeRun(task="essay"))
    edit(free, REQUESTS, stops)
    assert codes(free) == []
    edit(free, REQUESTS, one(finish_reason="length"))
    assert codes(free) == ["output_length_mismatch"]
    ours = write_run(tmp_path / "ours", FakeRun(task="retrieve"))
    edit(ours, REQUESTS, stops)
    assert codes(ours) == ["output_length_mismatch"]


def test_tasks_of_fixed_length_are_those_of_the_load_generator() -> None:
    assert set(FIXED_LENGTH_TASKS) == set(TASKS)


def test_a_client_on_another_host_has_a_clock_of_its_own(tmp_path: Path) -> None:
    """Two clients, the second's monotonic clock 1,000 s off; a step within it is still seen."""
    run = write_run(tmp_path, CLOSED)
    edit(run, REQUESTS, lambda rows: [shift(row, 1000, "sent_mono_ns") for row in rows[::2]])
    edit(run, REQUESTS, lambda rows: [row.update(client_id="w1") for row in rows[::2]])
    assert codes(run) == []
    edit(run, REQUESTS, lambda rows: [shift(row, 5, "sent_mono_ns") for row in rows[40:60:2]])
    assert codes(run) == ["clock_stepped"]


def test_an_imported_run_is_not_asked_what_its_tool_cannot_tell(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)
    edit_manifest(run, lambda raw: raw["server"]["proof_detail"].update(imported_from="a tool"))
    edit(
        run,
        REQUESTS,
        every(
            lambda row: row.update(
                prompt_sha256="0" * 64, in_flight_at_send=99, finish_reason=None, sent_mono_ns=None
            )
        ),
    )
    assert codes(run) == []
    edit(run, REQUESTS, lambda rows: empty(rows[20]))
    assert codes(run) == ["empty_success"]


def test_a_user_has_one_request_open(tmp_path: Path) -> None:
    """Four users take turns in the rows; one row given to its neighbour is beside that one's own."""
    run = write_run(tmp_path, FakeRun(ramp_s=0.4))
    edit(run, REQUESTS, lambda rows: [row.update(user=n % 4) for n, row in enumerate(rows)])
    assert codes(run) == []
    edit(run, REQUESTS, one(user=1))
    assert codes(run) == ["too_many_in_flight"]


def test_most_open_against_a_sweep_over_every_moment(tmp_path: Path) -> None:
    """By a second method: at each sending, count the requests that are open."""
    rows = load_run(write_run(tmp_path, FakeRun(rate_per_s=6.0, jitter=0.5)).path).requests
    start = rows["sent_unix_ns"].to_numpy()
    end = start + rows["end_ns"].to_numpy()
    slack = 1_000_000 + (rows["end_ns"].to_numpy() * 1e-3).astype(np.int64)
    counted = max(int(((start <= at) & (at < end - slack)).sum()) for at in start)
    assert most_open(rows) == counted > 1


def test_the_contract_names_every_code() -> None:
    text = (ROOT / "docs" / "contract.md").read_text()
    section = text[text.index("### Validity rules") :]
    table = section[: section.index("\n### ")]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {code for row in rows for code in re.findall(r"`(\w+)`", row.split("|")[1])}
    own = {code for code in CODES if code != "failed"}
    assert own <= named <= own | set(INVALID_REASONS)


def test_hashes_follow_an_edit(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLOSED)
    rehash(run)
    assert codes(run) == []


@pytest.mark.parametrize("said", ["a\nb", "a\x1b[2J\r\n\x00b", "a" * 10_000])
def test_what_a_fault_repeats_of_a_row_stays_one_printable_line(said: str, tmp_path: Path) -> None:
    """Guards against an id that writes lines, or a terminal's commands, into the list of faults."""
    run = write_run(tmp_path, CLOSED)
    path = run.path / OUTPUTS
    path.write_text(
        path.read_text().replace('"request_id":"', f'"request_id":{json.dumps(said)[:-1]}', 1)
    )
    rehash(run)
    sentences = [fault.sentence for fault in faults(load_run(run.path))]
    assert sentences and all(line.isprintable() and len(line) < 700 for line in sentences)
