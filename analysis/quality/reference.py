"""Whose answers the others are held to: the most exact candidate that is there, else the best answering one.

How exact a backend is stands in the manifest, written from the table of backends (``Server.exactness``).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from analysis.quality.answers import Answered
from analysis.runs.identity import Candidate
from analysis.statistics.noninferiority import judge

Basis = Literal["most exact", "best answering"]
UNQUANTISED = frozenset({"auto", "float32", "float16", "bfloat16"})  # of the KV cache


def exactness(told: Answered) -> int | None:
    """The table's rank: 0 approximate by design, more is more exact; None where no manifest says."""
    found = [run.manifest.server.exactness for run in told.runs]
    known = [rank for rank in found if rank is not None]
    return min(known) if known else None


def is_exact(told: Answered) -> bool:
    """Known to compute the model's own attention: by the table, proven to run, on an unquantised cache."""
    proven = all(run.manifest.server.proof == "proven" for run in told.runs)
    unquantised = told.candidate.kv_cache_dtype in UNQUANTISED
    return proven and unquantised and (exactness(told) or 0) > 0


def reference_order(
    told: Mapping[Candidate, Answered], names: Mapping[Candidate, str]
) -> tuple[list[Answered], Basis]:
    """The candidates that may be held up as a reference, the first first, of those that answered a question.

    The most exact goes by dtype (float32 first), the table's rank, then answers. One that is shown to answer
    worse than another of them goes last: an exact design can be broken. Where no candidate is known to be
    exact, the best answering comes first, and those known to be approximate only where there is no other.
    One that answered fewer than half as many prompts as another holds nobody up.
    """
    most = max(map(_prompts, told.values()))
    enough = [each for each in told.values() if _prompts(each) * 2 >= most]
    exact = [each for each in enough if is_exact(each)]
    eligible = exact or [each for each in enough if exactness(each) != 0] or enough

    def rank(each: Answered) -> tuple[bool, bool, int, float, str]:
        beaten = any(_loses(each, peer) for peer in eligible)
        by_answers = -_quality(each), names[each.candidate]
        if not exact:
            return beaten, False, 0, *by_answers
        return beaten, each.candidate.dtype != "float32", -(exactness(each) or 0), *by_answers

    return sorted(eligible, key=rank), "most exact" if exact else "best answering"


def held_to(told: Answered, order: Sequence[Answered]) -> Answered | None:
    """The first in order that answered a prompt of its too; None for one that comes first itself."""
    for reference in order:
        if reference is told:
            return None
        if told.by_prompt.keys() & reference.by_prompt.keys():
            return reference
        if told.logprobs.keys() & reference.logprobs.keys():
            return reference
    return None


def _prompts(told: Answered) -> int:
    return len(told.by_prompt) or len(told.logprobs)


def _quality(told: Answered) -> float:
    """Share right; without graded answers the mean log-probability of a prompt's tokens."""
    if told.right_share is not None:
        return told.right_share
    means = [float(each.mean()) for own in told.logprobs.values() for each in own]
    return sum(means) / len(means) if means else float("-inf")


def _loses(one: Answered, other: Answered) -> bool:
    """Whether ``one`` is shown to answer worse than ``other``."""
    lost, gained, shared = discordant(one, other)
    return bool(shared) and judge(lost, gained, len(shared)) == "worse"


def discordant(one: Answered, other: Answered) -> tuple[int, int, list[str]]:
    """Prompts that ``one`` lost against ``other`` and gained over it, and all that both answered."""
    mine, theirs = one.by_prompt, other.by_prompt
    shared = sorted(mine.keys() & theirs.keys())
    lost = sum(theirs[key].right and not mine[key].right for key in shared)
    gained = sum(mine[key].right and not theirs[key].right for key in shared)
    return lost, gained, shared
