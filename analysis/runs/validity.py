"""``python -m analysis check``: does a run directory hold what its manifest says, and may it be believed?

A fault makes a point invalid for the report. Nothing is mended and nothing is written here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from analysis.runs.boundary import of_one_run
from analysis.runs.fault import Fault
from analysis.runs.identity import Identity
from analysis.runs.invariants import broken, imported
from analysis.runs.parquet import row_count, table_sources
from analysis.runs.run import Run
from analysis.runs.scrapes import counter_gain
from greenbench.contract.archive import ARCHIVE
from greenbench.contract.counted import counted
from greenbench.contract.manifest import INVALID_REASONS
from greenbench.contract.run_dir import file_sha256

OF_THE_LOAD = ("timeout", "stalled", "cut_at_drain", "not_sent")  # error types that overload brings
SERVER_GONE = ("connect", "cut_in_stream", "http_5xx")
MOST_FAILED = 0.5  # of the measured phase; what the others took is then the figure of another load
FEWEST_GONE = 3  # failures in a row at the end of the phase …
GONE_BY_CHANCE = 0.01  # … which requests that fail now and then bring about no oftener than this


def faults(run: Run) -> list[Fault]:
    """Every fault of one run; empty when it may be used.

    Only a finished point has counts and hashes to compare with. Where a file cannot be read, or is not
    the one that was measured, nothing is asked of what it holds.
    """
    listed = list(of_manifest(run))
    listed += [Fault("unreadable", sentence) for sentence in run.unreadable]
    if run.unreadable or run.manifest.status not in ("complete", "invalid"):
        return listed
    whole = [*_asked(_counts, run), *_asked(_files, run)]
    seen = [*whole, *(fault for ask in ALWAYS for fault in _asked(ask, run))]
    if not whole:
        seen += [fault for ask in ASKED for fault in _asked(ask, run)]
    codes = {fault.code for fault in seen}  # what was seen says more than its code in the manifest
    return [*(fault for fault in listed if fault.code not in codes), *seen]


def _asked(ask: Callable[[Run], Iterator[Fault]], run: Run) -> list[Fault]:
    return of_one_run(run.path, lambda: list(ask(run)), lambda why: [Fault("unreadable", why)])


def of_manifest(run: Run) -> Iterator[Fault]:
    """What its manifest says against a run."""
    manifest = run.manifest
    if manifest.status == "running":
        yield Fault("interrupted", "the point was never finished (its manifest still says running)")
    if manifest.status == "failed":
        yield Fault("failed", manifest.failure or "the point failed; its manifest does not say why")
    for code in manifest.invalid_reasons:
        if code == "no_steady_state":
            continue  # the window is looked for again (analysis.point.point)
        if code == "client_bound" and run.manifest.acquitted:
            continue
        said = "; ".join(audit_over_budget(run)) if code == "client_bound" else ""
        detail = f" ({said})" if said else ""
        yield Fault(code, INVALID_REASONS.get(code, code) + detail)


def audit_over_budget(run: Run) -> list[str]:
    """What the load generator says it did worse than its budget; empty when it kept to it."""
    audits = run.manifest.audits.values()
    return [reason for audit in audits for reason in audit.faults]


def _counts(run: Run) -> Iterator[Fault]:
    counts = run.manifest.counts
    on_disk = sum(row_count(path) for path in table_sources(run.path, "requests"))
    if counts.ok + counts.failed != counts.rows or counts.rows != on_disk:
        yield Fault(
            "record_count_mismatch",
            f"the manifest counts {counts.ok} good + {counts.failed} failed of {counts.rows} requests, "
            f"{counted(on_disk, 'row', 'is', 'are')} on disk",
        )
        return
    good = int(run.requests["error_type"].isna().sum())
    if good != counts.ok:
        yield Fault(
            "record_count_mismatch",
            f"the manifest counts {counted(counts.ok, 'good request')}, "
            f"{counted(good, 'row', 'has', 'have')} no error",
        )


def _files(run: Run) -> Iterator[Fault]:
    raw = run.archive.raw if run.archive else {}
    for name, entry in sorted(run.manifest.files.items()):
        path = run.path / name
        if name in raw:
            if raw[name] != entry.sha256:
                yield Fault("file_changed", f"{name} had changed before it was archived")
        elif not path.is_file():
            yield Fault("file_missing", f"{name} is listed in the manifest and not there")
        elif file_sha256(path) != entry.sha256:
            yield Fault(
                "file_changed", f"{name} is not the file that was hashed when the point ended"
            )
        elif entry.rows is not None and row_count(path) != entry.rows:
            yield Fault(
                "file_changed", f"{name} has {row_count(path)} rows, the manifest says {entry.rows}"
            )
    archived = run.archive.files if run.archive else {}
    for name, kept in sorted(archived.items()):
        path = run.path / name
        if not path.is_file():
            yield Fault("file_missing", f"{name} is listed in {ARCHIVE} and not there")
        elif file_sha256(path) != kept.sha256:
            yield Fault("file_changed", f"{name} is not the file that was archived")
    listed = {*run.manifest.files, *archived}
    for path in table_sources(run.path, "requests"):
        name = str(path.relative_to(run.path))
        if name not in listed:
            yield Fault("file_unlisted", f"{name} is there and not in the manifest")


def _backend(run: Run) -> Iterator[Fault]:
    server = run.manifest.server
    wanted = run.point.backend
    if server.requested_backend not in (wanted.name, wanted.label):
        yield Fault(
            "backend_mismatch",
            f"the config asks for {wanted.label}, the server was started for {server.requested_backend}",
        )
    if server.proof == "mismatch" or (server.proof == "proven" and not server.observed_backend):
        yield Fault(
            "backend_mismatch",
            f"{server.requested_backend} was asked for, {server.observed_backend or 'nothing'} was observed",
        )


def _usage(run: Run) -> Iterator[Fault]:
    good = run.requests[run.requests["error_type"].isna()]
    silent = int(good[["prompt_tokens", "output_tokens"]].isna().any(axis=1).sum())
    if silent:
        yield Fault("no_usage", f"{silent} good requests carry no token counts of the server")


def _prefix_cache(run: Run) -> Iterator[Fault]:
    if run.point.server.prefix_caching:
        return
    cached = run.requests["cached_tokens"].fillna(0).astype(float)
    hits = int((cached > 0).sum())
    if hits:
        yield Fault(
            "prefix_cache_hits",
            f"{hits} prompts were partly served from the prefix cache ({int(cached.sum())} tokens)",
        )
        return
    gained = counter_gain(run, "vllm:prefix_cache_hits_total")
    if gained:
        yield Fault("prefix_cache_hits", f"the server counted {gained:.0f} prefix cache hits")


def _good_requests(run: Run) -> Iterator[Fault]:
    measured = run.requests[run.requests["phase"] == "measure"]
    if not measured["error_type"].isna().any():
        yield Fault(
            "no_good_requests",
            f"none of the {len(measured)} requests of the measured phase succeeded",
        )


def _failed_requests(run: Run) -> Iterator[Fault]:
    """Most requests failed, or all from some moment to the end of the phase: the server was gone.

    What the load itself brings about (a timeout, a request cut at the drain or never sent) is a finding and
    no fault.
    """
    rows = run.requests[run.requests["phase"] == "measure"]
    if imported(run) or not len(rows):
        return
    failed = rows["error_type"].notna() & ~rows["error_type"].isin(OF_THE_LOAD)
    share = float(failed.mean())
    kinds = rows.loc[failed, "error_type"].value_counts()
    seen = ", ".join(f"{n} × {kind}" for kind, n in kinds.head(3).items())
    if share > MOST_FAILED:
        yield Fault(
            "mostly_failed",
            f"{int(failed.sum())} of {len(rows)} requests of the measured phase failed ({seen})",
        )
    order = rows[rows["sent_unix_ns"].notna()].sort_values("sent_unix_ns", kind="stable")
    gone = order["error_type"].isin(SERVER_GONE).to_numpy()
    count = len(gone) if gone.all() else int(gone[::-1].argmin())
    before = gone[: len(gone) - count]
    chance = ((before.sum() + 1) / (len(before) + 2)) ** count  # of so many by the share before
    if len(before) and count >= FEWEST_GONE and chance < GONE_BY_CHANCE:
        yield Fault(
            "server_gone",
            f"the last {count} of {len(gone)} requests of the measured phase all failed ({seen}): the "
            "server was gone",
        )


def _token_totals(run: Run) -> Iterator[Fault]:
    """Generated tokens that the server counted against those the clients were told of.

    Comparable only when every request ended well and the scrapes stand around all of them.
    """
    rows, server = run.requests, run.server
    name = "vllm:generation_tokens_total"
    samples = server[server["metric"] == name]
    if len(samples) < 2 or rows["error_type"].notna().any() or rows["sent_mono_ns"].isna().any():
        return
    ends = (rows["sent_mono_ns"] + rows["end_ns"]).max()
    if samples["mono_ns"].min() > rows["sent_mono_ns"].min() or samples["mono_ns"].max() < ends:
        return
    counted, told = counter_gain(run, name), int(rows["output_tokens"].sum())
    if counted != told:
        yield Fault(
            "token_totals_differ",
            f"the server counted {counted:.0f} generated tokens, the clients were told of {told}",
        )


Ask = Callable[[Run], Iterator[Fault]]
ALWAYS: tuple[Ask, ...] = (_backend, _good_requests, _failed_requests)
ASKED: tuple[Ask, ...] = (
    _usage,
    _prefix_cache,
    _token_totals,
    broken,
)


def _complete(run: Run) -> bool:
    return run.manifest.status == "complete"


def _only_acquitted(run: Run) -> bool:
    return run.manifest.only_acquitted


def superseded(runs: list[Run]) -> dict[Path, str]:
    """Runs whose point was measured again later: path -> run id of the run that stands for it.

    The same point is one of the same configuration, candidate, device, repeat and folder: what another folder
    holds is a replicate. Of several complete runs of one point the latest stands; where none is complete, the
    latest whose client is acquitted, since those count as well. A copy of a run is no replicate, wherever it
    lies: the first stands.
    """
    firsts: dict[str, Run] = {}
    for run in runs:
        firsts.setdefault(run.manifest.run_id, run)
    keys = {run.path: (run.manifest.config_hash, run.identity) for run in firsts.values()}
    standing: dict[tuple[str, Identity], Run] = {}
    for counts in (_only_acquitted, _complete):  # what is said last stands
        standing |= {keys[run.path]: run for run in firsts.values() if counts(run)}  # oldest first
    out: dict[Path, str] = {}
    for run in runs:
        first = firsts[run.manifest.run_id]
        stands = standing.get(keys[first.path], first)
        if stands is not run:
            out[run.path] = stands.manifest.run_id
    return out
