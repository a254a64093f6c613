"""Exact batches that ``vllm bench forward`` timed (vLLM 0.33, on a GPU), from its ``--output-json``.

It builds a batch without the scheduler and times the model's forward as one CUDA graph. So it tells the terms
apart that few loads leave mixed, and it lacks what a step takes beyond: sampling and the host's work.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from planning.batches import Batch, Timed

LEAST_CASES = 8  # more than there are terms


class _Request(BaseModel):
    """``kv_len``: tokens in the cache after the step, those of the query included."""

    query_len: int = Field(ge=1)
    kv_len: int = Field(ge=1)
    num_draft_tokens: int = 0


class _Rank(BaseModel):
    num_tokens: int


class _Case(BaseModel):
    case: str
    requests: list[_Request] = Field(min_length=1)
    median_us: float = Field(gt=0, allow_inf_nan=False)
    ranks: list[_Rank] = Field(min_length=1)


class _File(BaseModel):
    cases: list[_Case]


def read_forward(path: Path) -> Timed:
    """Its batches with the median time of a replay, seconds. UserError in one sentence."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON; the --output-json of `vllm bench forward` is wanted"
        ) from error
    if not isinstance(data, list):
        raise UserError(
            f"{path}: a list of cases is wanted, as `vllm bench forward --output-json` writes it"
        )
    cases = parse(_File, {"cases": data}, str(path)).cases
    found = [_batch(path, case) for case in cases]
    decoding = {len(batch.contexts) for batch in found if not batch.chunks}
    prompts = sum(bool(batch.chunks) for batch in found)
    if len(found) < LEAST_CASES or len(decoding) < 2 or not prompts:
        raise UserError(
            f"{path}: at least {LEAST_CASES} cases are wanted, a prompt and decodes of two numbers of "
            f"requests among them, found {len(found)}, {prompts} of them with a prompt, and decodes of "
            f"{len(decoding)} numbers of requests"
        )
    seconds = np.array([case.median_us / 1e6 for case in cases])
    return Timed(path.name, tuple(found), seconds, 0)


def _batch(path: Path, case: _Case) -> Batch:
    if any(one.num_draft_tokens for one in case.requests):
        raise UserError(
            f"{path}: case '{case.case}' verifies drafts, which a plan does not model; leave it out"
        )
    odd = next((one for one in case.requests if one.kv_len < one.query_len), None)
    if odd is not None:
        raise UserError(
            f"{path}: case '{case.case}': kv_len counts the query's tokens too, so at least "
            f"{odd.query_len} is wanted, found {odd.kv_len}; leave it out"
        )
    tokens = sum(one.query_len for one in case.requests)
    if any(rank.num_tokens != tokens for rank in case.ranks):
        raise UserError(
            f"{path}: case '{case.case}' computed {case.ranks[0].num_tokens} tokens, its requests have "
            f"{tokens}; mark a prompt's prefix as its earlier chunks (c), or leave it out"
        )
    decodes = [one for one in case.requests if one.query_len == 1 < one.kv_len]
    return Batch(
        tuple((r.query_len, r.kv_len - r.query_len) for r in case.requests if r not in decodes),
        tuple(one.kv_len for one in decodes),
    )
