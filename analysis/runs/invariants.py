"""What no honest run can hold: rows against each other and the config. ``time_invariants`` has the clocks.

Each function is one invariant and yields a fault or none. All work on whole columns. What another tool's
result cannot tell (an imported run) is not asked of it. docs/contract.md states the rules.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from analysis.runs.chunk_marks import ROUNDING_NS, ChunkMark
from analysis.runs.fault import Fault
from analysis.runs.run import Run
from analysis.runs.scrapes import KV_USAGE, label_sets
from analysis.runs.time_invariants import LATE_NS, PHASES, broken_times
from analysis.runs.wrong_rows import Mask, fault, good, imported, some
from greenbench.contract.clock import NS_PER_S
from greenbench.contract.counted import counted
from greenbench.contract.schema import ERROR_TYPES

FINISHED = ("length", "stop")
# Their requests carry ignore_eos; what another task allows is not known here.
FIXED_LENGTH_TASKS = (
    "retrieve",
    "multi_key",
    "multi_value",
    "variables",
    "frequent_word",
    "documents",
    "summarize",
    "perplexity",
    "own",
)
OWN_LENGTH_TASKS = ("own", "imported")  # a prompt has a length of its own, at most the point's

CHUNK_RULES = (
    (ChunkMark.TIME_FALLS, "chunks_out_of_order", "have chunk times that fall"),
    (
        ChunkMark.OTHER_EDGES,
        "chunks_out_of_order",
        "have another first or last chunk than first or last token",
    ),
    (ChunkMark.OTHER_LENGTH, "chunk_counts", "have not as many counts as chunk times"),
    (ChunkMark.COUNT_FALLS, "chunk_counts", "have cumulative token counts that fall"),
    (ChunkMark.TOO_MANY, "chunk_counts", "count more tokens in their chunks than they made"),
    (ChunkMark.TOO_FEW, "chunk_counts", "count fewer tokens in their chunks than they made"),
)


def duplicate_requests(run: Run) -> Iterator[Fault]:
    rows = run.requests
    twice = rows["request_id"].duplicated()
    yield from fault("duplicate_requests", rows, twice, "stand in more than one row")


def foreign_rows(run: Run) -> Iterator[Fault]:
    rows = run.requests
    other = rows["run_id"] != run.manifest.run_id
    yield from fault("foreign_rows", rows, other, "belong to another run")
    task = rows["task"] != run.point.task.name
    yield from fault("foreign_rows", rows, task, f"are not of task {run.point.task.name}")


def unknown_words(run: Run) -> Iterator[Fault]:
    rows = run.requests
    for name, known in (("phase", PHASES), ("error_type", ERROR_TYPES)):
        strange = rows[name].notna() & ~rows[name].isin(known)
        seen = ", ".join(sorted(rows.loc[strange, name].unique())[:3])
        what = f"have {name} {seen}, which the contract does not know"
        yield from fault("unknown_word", rows, strange, what)
    ended = good(rows)
    odd = ended["finish_reason"].notna() & ~ended["finish_reason"].isin(FINISHED)
    seen = ", ".join(sorted(ended.loc[odd, "finish_reason"].unique())[:3])
    what = f"count as successes with finish_reason {seen}"
    if not imported(run):
        yield from fault("unknown_word", ended, odd, what)


def incomplete_successes(run: Run) -> Iterator[Fault]:
    rows = good(run.requests)
    lacking = rows["sent_unix_ns"].isna() | rows["end_ns"].isna()
    if not imported(run):
        lacking |= rows["sent_mono_ns"].isna()
    if rows["first_token_ns"].notna().any():  # streamed
        lacking |= rows["first_token_ns"].isna() | rows["last_token_ns"].isna()
    what = "count as successes and lack a time that a success has"
    yield from fault("incomplete_success", rows, lacking, what)
    refused = rows["http_status"].notna() & (rows["http_status"] != 200)
    what = "count as successes with another HTTP status than 200"
    yield from fault("incomplete_success", rows, refused, what)


def empty_successes(run: Run) -> Iterator[Fault]:
    rows = good(run.requests)
    what = "count as successes without an output token"
    yield from fault("empty_success", rows, rows["output_tokens"] == 0, what)


def possible_counts(run: Run) -> Iterator[Fault]:
    rows = run.requests
    columns = (
        "prompt_tokens", "output_tokens", "cached_tokens", "context_tokens_target",
        "max_output_tokens", "in_flight_at_send", "prompt_index",
    )  # fmt: skip
    negative = (rows[list(columns)] < 0).any(axis=1)
    yield from fault("impossible_counts", rows, negative, "hold a count below 0")
    cached = rows["cached_tokens"] > rows["prompt_tokens"]
    yield from fault("impossible_counts", rows, cached, "have more cached tokens than tokens")


def prompt_lengths(run: Run) -> Iterator[Fault]:
    """The server's count against what was sent, and what was sent against the point."""
    miscounted = list(_miscounted_prompts(run.requests))
    yield from miscounted
    if miscounted or imported(run):
        return
    other, what = _other_prompts(run)
    yield from fault("prompt_length_mismatch", run.requests, other, what)


def _miscounted_prompts(rows: pd.DataFrame) -> Iterator[Fault]:
    ended = good(rows)
    counted = ended[ended["prompt_tokens"].notna()]
    sent, target = counted["prompt_tokens"], counted["context_tokens_target"]
    wrong = counted[sent != target]
    if len(wrong):
        first = wrong.iloc[0]
        yield Fault(
            "prompt_length_mismatch",
            f"{len(wrong)} of {len(counted)} prompts had another length than asked for "
            f"(first: {int(first['prompt_tokens'])} instead of "
            f"{int(first['context_tokens_target'])} tokens)",
        )


def _other_prompts(run: Run) -> tuple[Mask, str]:
    """Requests that were sent another number of prompt tokens than their point has, and that in words."""
    context, load, asked = (
        run.point.context_tokens,
        run.point.load,
        run.requests["context_tokens_target"],
    )
    if load.trace is not None or run.point.task.name in OWN_LENGTH_TASKS:
        return asked > context, f"were sent more prompt tokens than the point's {context}"
    if load.turns > 1:
        turn = run.requests["turn"].fillna(-1).astype("int64")
        share = context * (turn + 1) // load.turns
        other = (asked != share) | (turn < 0) | (turn >= load.turns)
        return other, f"were sent another share of {context} prompt tokens than their turn's"
    return (
        asked != context,
        f"were sent another number of prompt tokens than the point's {context}",
    )


def output_lengths(run: Run) -> Iterator[Fault]:
    """Successes against what was asked, and what was asked against the point."""
    if imported(run):
        return
    short = list(_other_lengths_made(run))
    yield from short or _other_lengths_asked(run)


def _other_lengths_made(run: Run) -> Iterator[Fault]:
    ended = good(run.requests)
    made, asked = ended["output_tokens"], ended["max_output_tokens"]
    wrong = made.notna() & (made != asked)
    if run.point.task.name not in FIXED_LENGTH_TASKS:  # may stop at the end of its answer
        wrong &= (made > asked) | (ended["finish_reason"] != "stop")
    count, first = some(ended, wrong)
    if count:
        row = ended[wrong.fillna(False)].iloc[0]
        yield Fault(
            "output_length_mismatch",
            f"{count} of {len(ended)} good requests made another number of tokens than was asked for "
            f"(first: {first}, {int(row['output_tokens'])} of {int(row['max_output_tokens'])})",
        )


def _other_lengths_asked(run: Run) -> Iterator[Fault]:
    rows = run.requests
    streamed = good(rows)["first_token_ns"].notna().any()
    if run.point.load.trace is not None or not streamed:
        return
    wanted = run.point.task.output_tokens
    if wanted is None:
        wanted = int(rows["max_output_tokens"].iloc[0])
    other = rows["max_output_tokens"] != wanted
    what = f"asked for another number of output tokens than the point's {wanted}"
    yield from fault("output_length_mismatch", rows, other, what)


def prompts_mixed(run: Run) -> Iterator[Fault]:
    if imported(run):
        return
    rows = run.requests
    beyond = rows["prompt_index"] >= run.point.prompts_per_point
    what = f"name a prompt beyond the point's {run.point.prompts_per_point}"
    yield from fault("prompts_mixed", rows, beyond, what)
    pairs = rows[["prompt_index", "prompt_sha256"]].drop_duplicates()
    clash = int(pairs["prompt_index"].duplicated().sum())
    if clash:
        yield Fault("prompts_mixed", f"{clash} prompt indexes stand for more than one prompt hash")


def times_in_order(run: Run) -> Iterator[Fault]:
    rows = run.requests
    offsets = ("connect_ns", "send_ns", "headers_ns", "first_token_ns", "last_token_ns", "end_ns")
    negative = (rows[list(offsets)] < 0).any(axis=1)
    yield from fault("times_out_of_order", rows, negative, "have a time before their sending")
    first, last, end = (rows[f"{name}_ns"] for name in ("first_token", "last_token", "end"))
    turned = (first > last) | (last > end + ROUNDING_NS) | (first > end + ROUNDING_NS)
    what = "do not have first token, last token and end in this order"
    yield from fault("times_out_of_order", rows, turned, what)
    if not imported(run):
        limit_s = run.point.phases.request_timeout_s + run.point.phases.drain_s
        long = end > limit_s * NS_PER_S + LATE_NS
        what = "took longer than the time limit of a request allows"
        yield from fault("times_out_of_order", rows, long, what)


def chunks(run: Run) -> Iterator[Fault]:
    """Chunk times ascend within their request; cumulative counts never fall and end at its output tokens.

    The lists were looked through when they were read: see ``analysis.runs.chunk_marks``.
    """
    rows = run.requests
    marks = rows["chunk_marks"].to_numpy(dtype=np.int64)
    for mark, code, what in CHUNK_RULES:
        if not (imported(run) and mark is ChunkMark.OTHER_EDGES):  # tools round each time by itself
            yield from fault(code, rows, pd.Series((marks & mark) > 0), what)


def outputs(run: Run) -> Iterator[Fault]:
    """A graded answer belongs to one good request, and its figures can be."""
    answers, rows = run.outputs, run.requests
    for clauses in (_graded_twice, _graded_without_request, _graded_of_another, _scores_beyond):
        for sentence in clauses(answers, rows) if len(answers) else ():
            yield Fault("outputs_differ", sentence)


def _graded_twice(answers: pd.DataFrame, _: pd.DataFrame) -> Iterator[str]:
    twice = int(answers["request_id"].duplicated().sum())
    if twice:
        yield f"{counted(twice, 'request', 'was', 'were')} graded more than once"


def _graded_without_request(answers: pd.DataFrame, rows: pd.DataFrame) -> Iterator[str]:
    verdict = answers[["correct", "score", "nll_sum"]].notna().any(axis=1)
    alone = answers[verdict & ~answers["request_id"].isin(good(rows)["request_id"])]
    if len(alone):
        first = alone["request_id"].iloc[0]
        yield f"{len(alone)} graded answers are of no good request (first: {first})"


def _graded_of_another(answers: pd.DataFrame, rows: pd.DataFrame) -> Iterator[str]:
    if answers["request_id"].duplicated().any() or rows["request_id"].duplicated().any():
        return
    asked = answers["request_id"].map(rows.set_index("request_id")["prompt_index"])
    other = int((asked.notna() & (asked != answers["prompt_index"])).sum())
    if other:
        yield f"{other} graded answers are of another prompt"


def _scores_beyond(answers: pd.DataFrame, _: pd.DataFrame) -> Iterator[str]:
    score = pd.to_numeric(answers["score"])
    tokens, nll = pd.to_numeric(answers["nll_tokens"]), pd.to_numeric(answers["nll_sum"])
    beyond = int(((score < 0) | (score > 1) | (tokens < 0) | (nll < 0)).sum())
    if beyond:
        yield f"{beyond} graded answers have a score that cannot be"


COUNTERS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
)


def counters(run: Run) -> Iterator[Fault]:
    """A counter that falls is that of a server which was started anew within the point."""
    for metric in COUNTERS:
        if any((np.diff(values) < 0).any() for values in label_sets(run, metric)):
            yield Fault("counter_fell", f"{metric} fell during the point")


def readings(run: Run) -> Iterator[Fault]:
    """Shares lie in 0..1; what cannot be negative is not."""
    for metric in KV_USAGE:
        usage = run.server.loc[run.server["metric"] == metric, "value"]
        if ((usage < 0) | (usage > 1 + 1e-6)).any():
            yield Fault("impossible_reading", f"{metric} is not within 0 and 1")
    for name, columns in (
        ("gpu", ("power_w", "power_avg_w", "energy_mj", "mem_used_bytes", "read_ns")),
        ("host", ("server_rss_bytes", "mem_used_bytes", "read_ns")),
    ):
        frame = getattr(run, name)
        for column in columns:
            if (pd.to_numeric(frame[column]) < 0).any():
                yield Fault("impossible_reading", f"telemetry/{name}.jsonl: {column} is below 0")


def config(run: Run) -> Iterator[Fault]:
    """Manifest and config speak of one point."""
    manifest, point = run.manifest, run.point
    facts = {
        "run_id": (manifest.run_id, run.live.run_id),
        "sweep": (manifest.sweep, point.sweep),
        "seed": (manifest.seed, point.seed),
    }
    told = {
        "task": point.task.name,
        "context_tokens": point.context_tokens,
        "repeat": point.repeat,
        "arm": point.arm,
    }
    facts |= {f"point.{k}": (manifest.point[k], v) for k, v in told.items() if k in manifest.point}
    load = point.load.model_dump(mode="json")
    facts |= {f"load.{k}": (v, load[k]) for k, v in manifest.load.items() if k in load}
    if point.server.base_url is None:
        facts["server.execution"] = (manifest.server.execution, point.server.execution)
        parallel = (manifest.server.tensor_parallel, point.server.tensor_parallel)
        facts["server.tensor_parallel"] = parallel
    for name, (one, other) in facts.items():
        if one != other:
            yield Fault(
                "config_differs", f"{name} is {one} in manifest.json and {other} in config.yaml"
            )


Invariant = Callable[[Run], Iterator[Fault]]
INVARIANTS: tuple[Invariant, ...] = (
    config,
    duplicate_requests,
    foreign_rows,
    unknown_words,
    incomplete_successes,
    empty_successes,
    possible_counts,
    prompt_lengths,
    output_lengths,
    prompts_mixed,
    times_in_order,
    chunks,
    outputs,
    counters,
    readings,
    broken_times,
)


def broken(run: Run) -> Iterator[Fault]:
    """Every invariant that does not hold."""
    for invariant in INVARIANTS:
        yield from invariant(run)
