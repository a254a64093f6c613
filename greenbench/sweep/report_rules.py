"""The report's own rules, asked as soon as a point ends, so that what is complete is also usable.

The rules belong to the analysis (docs/contract.md, "Validity rules"; docs/method.md, section 2), which is
asked as a process of its own: ``python -m analysis verdict``.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from greenbench.contract.clock import NS_PER_S
from greenbench.contract.config import StrictModel, parse
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import RunDir, list_runs
from greenbench.sweep.child_processes import StageError, call_json, python_module
from greenbench.sweep.enough import left_undone

SENTENCE_CHARS = 1000


class RuleFault(StrictModel):
    """One rule that a run breaks."""

    code: str
    sentence: str


class RuleVerdict(StrictModel):
    """What the report would say of a run; without faults it can be used."""

    path: str
    faults: list[RuleFault]


def ask_rules(runs: Iterable[Path]) -> dict[Path, list[RuleFault]]:
    """Run directory → its faults. StageError or UserError when the analysis cannot say."""
    paths = [str(path) for path in runs]
    if not paths:
        return {}
    said = call_json(python_module("analysis", "verdict"), paths)
    verdicts = [parse(RuleVerdict, one, "python -m analysis verdict") for one in said]
    return {Path(one.path): one.faults for one in verdicts}


def hold_to_rules(
    run: RunDir, manifest: Manifest, may_write: Callable[[], None] = lambda: None
) -> Manifest:
    """The manifest, made invalid where the report would not use the point. Without an answer as it was.

    ``may_write``: called before it is written; what it raises goes on.
    """
    try:
        faults = ask_rules([run.path])[run.path]
    except (StageError, UserError, KeyError):
        return manifest  # asked again by the report, and before the next resume
    if not faults:
        return manifest
    codes = dict.fromkeys([*manifest.invalid_reasons, *(fault.code for fault in faults)])
    sentences = "; ".join(dict.fromkeys(fault.sentence for fault in faults))
    judged = manifest.model_copy(
        update={
            "status": "invalid",
            "invalid_reasons": list(codes),
            "failure": sentences[:SENTENCE_CHARS],
        }
    )
    may_write()
    run.write_manifest(judged)
    return judged


def usable_hashes(
    out: Path, wanted: set[str], caps: Mapping[str, float] = MappingProxyType({})
) -> tuple[set[str], list[str]]:
    """Config hashes, of those wanted, that have a complete run which the report would use.

    ``caps``: how long an auto point may be measured now; one that ended at a shorter cap and lacks something
    is not usable. And sentences: of points that are measured again because it would not, and of runs that
    cannot be read.
    """
    complete: dict[Path, Manifest] = {}
    again: dict[Path, str] = {}
    notes: list[str] = []
    for run in list_runs(out):
        try:
            manifest = run.manifest()
        except UserError as error:
            notes.append(f"{error}; its point counts as not measured")
            continue
        if manifest.status == "complete" and manifest.config_hash in wanted:
            complete[run.path] = manifest
            if why := _cut_short(run, manifest, caps.get(manifest.config_hash, 0.0)):
                again[run.path] = why
    try:
        faults = ask_rules(complete)
    except (StageError, UserError) as error:
        notes.append(
            f"the report's rules could not be asked ({error}); complete points are taken as usable"
        )
        faults = {}
    again |= {path: found[0].sentence for path, found in faults.items() if found}
    usable = {m.config_hash for path, m in complete.items() if path not in again}
    for path, manifest in complete.items():
        if path in again and manifest.config_hash not in usable:
            notes.append(f"{manifest.run_id} is measured again: {again[path]}")
    return usable, notes


def _cut_short(run: RunDir, manifest: Manifest, cap_s: float) -> str | None:
    """Why a longer cap would give an auto point something that it lacks."""
    start, end = manifest.phases.get("measure", (0, 0))
    return left_undone(run) if cap_s > (end - start) / NS_PER_S + 1 else None
