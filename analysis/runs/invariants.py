"""What no honest run can hold: rows against each other, the config, the phases and the clocks.

Each function is one invariant and yields a fault or none. All work on whole columns. What another tool's
result cannot tell (an imported run) is not asked of it. docs/contract.md states the rules.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.runs.chunk_marks import ROUNDING_NS, ChunkMark
from analysis.runs.clocks import LARGEST_STEP_NS
from analysis.runs.fault import Fault
from analysis.runs.run import Run
from analysis.runs.scrapes import KV_USAGE
from greenbench.contract.config import LoadConfig
from greenbench.contract.schema import ERROR_TYPES

S = 1_000_000_000
LATE_NS = S  # of sending after a user took the request up; later, the client is over its budget
SLEW = 1e-3  # by which a wall clock may run fast while it is corrected: twice NTP's 500 ppm
PHASE_SLACK = 0.01  # of the measured phase's length, beside a second
ARRIVAL_SIGMAS = 6
FINISHED = ("length", "stop")
PHASES = ("warmup", "measure", "drain")
MARKS = ("warmup_start", "measure_start", "measure_end", "drain_end")
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

Mask = pd.Series
Moments = npt.NDArray[np.int64]


def imported(run: Run) -> bool:
    return "imported_from" in run.manifest.server.proof_detail


def good(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["error_type"].isna()]


def some(rows: pd.DataFrame, wrong: Mask) -> tuple[int, str]:
    """How many rows are wrong, and the request id of the first."""
    hit = wrong.fillna(False).to_numpy(dtype=bool)
    first = np.flatnonzero(hit)[:1]
    return int(hit.sum()), str(rows["request_id"].iloc[first[0]]) if len(first) else ""


def fault(code: str, rows: pd.DataFrame, wrong: Mask, what: str) -> Iterator[Fault]:
    """One fault when any row is wrong; ``what`` follows the number of rows."""
    count, first = some(rows, wrong)
    if count:
        yield Fault(code, f"{count} of {len(rows)} requests {what} (first: {first})")


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
    rows, point = run.requests, run.point
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
    if len(wrong) or imported(run):
        return
    context = point.context_tokens
    asked = rows["context_tokens_target"]
    if point.load.trace is not None or point.task.name in OWN_LENGTH_TASKS:
        other = asked > context
        what = f"were sent more prompt tokens than the point's {context}"
    elif point.load.turns > 1:
        turn = rows["turn"].fillna(-1).astype("int64")
        other = (asked != context * (turn + 1) // point.load.turns) | (turn < 0)
        other |= turn >= point.load.turns
        what = f"were sent another share of {context} prompt tokens than their turn's"
    else:
        other = asked != context
        what = f"were sent another number of prompt tokens than the point's {context}"
    yield from fault("prompt_length_mismatch", rows, other, what)


def output_lengths(run: Run) -> Iterator[Fault]:
    """Successes against what was asked, and what was asked against the point."""
    if imported(run):
        return
    rows, task = run.requests, run.point.task
    ended = good(rows)
    made, asked = ended["output_tokens"], ended["max_output_tokens"]
    wrong = made.notna() & (made != asked)
    if task.name not in FIXED_LENGTH_TASKS:  # may stop at the end of its answer
        wrong &= (made > asked) | (ended["finish_reason"] != "stop")
    count, first = some(ended, wrong)
    if count:
        row = ended[wrong.fillna(False)].iloc[0]
        yield Fault(
            "output_length_mismatch",
            f"{count} of {len(ended)} good requests made another number of tokens than was asked for "
            f"(first: {first}, {int(row['output_tokens'])} of {int(row['max_output_tokens'])})",
        )
        return
    if run.point.load.trace is not None or not ended["first_token_ns"].notna().any():
        return
    wanted = task.output_tokens
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
        long = end > (run.point.phases.request_timeout_s + run.point.phases.drain_s) * S + LATE_NS
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


def clocks(run: Run) -> Iterator[Fault]:
    """Wall minus monotonic time is one number through events, rows and telemetry of a run.

    Clients on other hosts have another monotonic clock: with several, each must agree with itself.
    """
    reference = [(event.unix_ns, event.mono_ns) for event in run.events]
    if not imported(run):
        anchor = run.manifest.clock
        reference.append((anchor.unix_ns, anchor.mono_ns))
    offsets = np.array([unix - mono for unix, mono in reference], dtype=np.int64)
    low, high = (int(offsets.min()), int(offsets.max())) if len(offsets) else (None, None)
    parts = [("events", low, high)]
    rows = run.requests
    timed = rows[rows["sent_unix_ns"].notna() & rows["sent_mono_ns"].notna()]
    by_client = list(timed.groupby("client_id", sort=True))
    for client, sent in by_client:
        span = _offsets(sent["sent_unix_ns"], sent["sent_mono_ns"])
        if len(by_client) == 1:
            parts.append(("request rows", *span))
        elif span[1] - span[0] > LARGEST_STEP_NS:
            yield _stepped(f"request rows of {client}", span[1] - span[0])
    for name in ("gpu", "host", "server"):
        samples = getattr(run, name)
        if len(samples):
            spoken = f"telemetry/{name}.jsonl"
            parts.append((spoken, *_offsets(samples["unix_ns"], samples["mono_ns"])))
    lowest: int | None = None
    highest: int | None = None
    for name, least, most in parts:
        if least is None or most is None:
            continue
        lowest = least if lowest is None else min(lowest, least)
        highest = most if highest is None else max(highest, most)
        if highest - lowest > LARGEST_STEP_NS:
            yield _stepped(name, highest - lowest)
            return


def _offsets(unix_ns: pd.Series, mono_ns: pd.Series) -> tuple[int, int]:
    """Least and most of wall minus monotonic; exact, since wall times do not fit a float."""
    offsets = unix_ns.to_numpy(dtype=np.int64) - mono_ns.to_numpy(dtype=np.int64)
    return int(offsets.min()), int(offsets.max())


def _stepped(where: str, step_ns: int) -> Fault:
    sentence = f"wall and monotonic time parted by {step_ns / S:.3f} s during the run (in {where})"
    return Fault("clock_stepped", sentence)


def phases(run: Run) -> Iterator[Fault]:
    """The manifest's phases, the marks of the events, and the length that was asked for."""
    told = run.manifest.phases
    for name, (start, end) in told.items():
        if start > end:
            yield Fault("phases_differ", f"the phase {name} ends before it starts")
    marks: dict[str, int] = {}
    for event in run.events:
        if event.name in MARKS:
            if event.name in marks:
                yield Fault("phases_differ", f"events.jsonl has more than one {event.name}")
            marks[event.name] = event.unix_ns
    for name, edges in zip(PHASES, pairwise(MARKS), strict=True):
        for mark, moment in zip(edges, told.get(name, ()), strict=False):
            if mark in marks and abs(marks[mark] - moment) > ROUNDING_NS:
                yield Fault(
                    "phases_differ",
                    f"{mark} is at {marks[mark]} in events.jsonl and at {moment} in the manifest",
                )
    for one, two in (("warmup", "measure"), ("measure", "drain")):
        if one in told and two in told and abs(told[one][1] - told[two][0]) > ROUNDING_NS:
            yield Fault("phases_differ", f"{two} does not start where {one} ends")
    if "measure" in told:
        length_s, asked_s = (
            (told["measure"][1] - told["measure"][0]) / S,
            run.point.phases.measure_s,
        )
        if length_s > asked_s * (1 + PHASE_SLACK) + 1:
            yield Fault(
                "phases_differ",
                f"the measured phase took {length_s:.1f} s, {asked_s:g} were asked for",
            )


def outside_phases(run: Run) -> Iterator[Fault]:
    """A request belongs to the phase in which a user took it up: it was sent a moment later at most."""
    told = run.manifest.phases
    if imported(run) or "measure" not in told:
        return
    rows = run.requests
    base = rows["scheduled_unix_ns"].fillna(rows["sent_unix_ns"]).astype("Int64")
    late = rows["connect_ns"].fillna(0).astype("int64") + LATE_NS
    late = late.where(rows["scheduled_unix_ns"].isna(), 0) + LARGEST_STEP_NS
    start, end = told["measure"]
    first = told["warmup"][0] if "warmup" in told else None
    phase = rows["phase"]
    wrong = (phase == "measure") & ((base < start - LARGEST_STEP_NS) | (base > end + late))
    wrong |= (phase == "warmup") & (base > start + late)
    wrong |= (phase == "drain") & (base < end - LARGEST_STEP_NS)
    if first is not None:
        wrong |= base < first - LARGEST_STEP_NS
    what = "were not taken up in the phase that their row says"
    yield from fault("outside_phases", rows, wrong, what)
    cut = rows["sent_unix_ns"] + rows["end_ns"] < end - LARGEST_STEP_NS
    what = "were cut at the drain and ended before it"
    yield from fault("outside_phases", rows, cut & (rows["error_type"] == "cut_at_drain"), what)


def in_flight(run: Run) -> Iterator[Fault]:
    users = run.point.load.users
    if imported(run) or users is None:
        return
    rows = run.requests
    said = rows["in_flight_at_send"] >= users
    what = f"had as many other requests open as the load has users ({users}), or more"
    yield from fault("too_many_in_flight", rows, said, what)
    most = most_open(rows)
    if most > users:
        yield Fault(
            "too_many_in_flight",
            f"{most} requests were open at one moment, and the load has {users} users",
        )
        return

    yield from fault(
        "too_many_in_flight", rows, beside_own(rows), "had another of its own user open"
    )


def beside_own(rows: pd.DataFrame) -> Mask:
    """Requests that their user sent while an earlier one of the same user was open."""
    wrong = pd.Series(False, index=rows.index)
    known = rows[rows["user"].notna() & rows["sent_unix_ns"].notna() & rows["end_ns"].notna()]
    start, end = _open(known)
    user = known["user"].to_numpy(dtype=np.int64)
    order = np.lexsort((start, user))
    beside = (user[order][1:] == user[order][:-1]) & (start[order][1:] < end[order][:-1])
    wrong.loc[known.index[order[1:][beside]]] = True
    return wrong


def most_open(rows: pd.DataFrame) -> int:
    """Most requests open at one moment; an end counts sooner by what two clocks may differ in its length."""
    sent = rows[rows["sent_unix_ns"].notna() & rows["end_ns"].notna()]
    if not len(sent):
        return 0
    start, end = (np.sort(moments) for moments in _open(sent))
    level = np.arange(1, len(start) + 1) - np.searchsorted(end, start, side="right")
    return int(level.max())


def _open(sent: pd.DataFrame) -> tuple[Moments, Moments]:
    """When requests were sent, and when they were surely over."""
    start = sent["sent_unix_ns"].to_numpy(dtype=np.int64)
    length = sent["end_ns"].to_numpy(dtype=np.int64)
    slack = (SLEW * length).astype(np.int64) + ROUNDING_NS
    return start, start + length - np.minimum(length, slack)


def schedule(run: Run) -> Iterator[Fault]:
    """An open loop sends what is due, not before it is due, and as many as its rate asks for."""
    load = run.point.load
    if imported(run) or load.kind != "open":
        return
    rows = run.requests
    unknown = rows["scheduled_unix_ns"].isna()
    yield from fault("not_as_scheduled", rows, unknown, "of an open loop were never due")
    early = rows["sent_unix_ns"] < rows["scheduled_unix_ns"] - LARGEST_STEP_NS
    yield from fault("not_as_scheduled", rows, early, "were sent before they were due")
    if load.rate_per_s is None or load.ramp_s is not None or "measure" not in run.manifest.phases:
        return
    start, end = run.manifest.phases["measure"]
    due = int(((rows["scheduled_unix_ns"] >= start) & (rows["scheduled_unix_ns"] < end)).sum())
    wanted = load.rate_per_s * (end - start) / S
    if abs(due - wanted) > ARRIVAL_SIGMAS * np.sqrt(wanted * _dispersion(load)) + 2:
        yield Fault(
            "not_as_scheduled",
            f"{due} requests were due in the measured phase, the rate asks for {wanted:.0f}",
        )


def _dispersion(load: LoadConfig) -> float:
    """Variance over mean of the number of arrivals in a long time (a renewal process: cv² of the gaps)."""
    return {"constant": 0.0, "poisson": 1.0, "gamma": 1 / load.burstiness}[load.arrivals]


def outputs(run: Run) -> Iterator[Fault]:
    """A graded answer belongs to one good request, and its figures can be."""
    answers, rows = run.outputs, run.requests
    if not len(answers):
        return
    twice = int(answers["request_id"].duplicated().sum())
    if twice:
        yield Fault("outputs_differ", f"{twice} requests were graded more than once")
    verdict = answers[["correct", "score", "nll_sum"]].notna().any(axis=1)
    graded = answers[verdict & ~answers["request_id"].isin(good(rows)["request_id"])]
    if len(graded):
        first = graded["request_id"].iloc[0]
        yield Fault(
            "outputs_differ",
            f"{len(graded)} graded answers are of no good request (first: {first})",
        )
    if not twice and not rows["request_id"].duplicated().any():
        index = rows.set_index("request_id")["prompt_index"]
        asked = answers["request_id"].map(index)
        other = int((asked.notna() & (asked != answers["prompt_index"])).sum())
        if other:
            yield Fault("outputs_differ", f"{other} graded answers are of another prompt")
    score = pd.to_numeric(answers["score"])
    tokens, nll = pd.to_numeric(answers["nll_tokens"]), pd.to_numeric(answers["nll_sum"])
    beyond = int(((score < 0) | (score > 1) | (tokens < 0) | (nll < 0)).sum())
    if beyond:
        yield Fault("outputs_differ", f"{beyond} graded answers have a score that cannot be")


COUNTERS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
)


def counters(run: Run) -> Iterator[Fault]:
    """A counter that falls is that of a server which was started anew within the point."""
    server = run.server
    labels = [name for name in server.columns if str(name).startswith("labels.")]
    for metric in COUNTERS:
        samples = server[server["metric"] == metric]
        groups: Iterable[pd.Series] = (
            [values for _, values in samples.groupby(labels, dropna=False)["value"]]
            if labels and len(samples)
            else [samples["value"]]
        )
        if any((np.diff(values.to_numpy(dtype=float)) < 0).any() for values in groups):
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
)
BY_WALL_TIME: tuple[Invariant, ...] = (phases, outside_phases, in_flight, schedule)


def broken(run: Run) -> Iterator[Fault]:
    """Every invariant that does not hold. Where the clock stepped, wall times are not asked further."""
    for invariant in INVARIANTS:
        yield from invariant(run)
    stepped = list(clocks(run))
    yield from stepped
    for invariant in () if stepped else BY_WALL_TIME:
        yield from invariant(run)
