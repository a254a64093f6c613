"""xFormers' operators replaced by arithmetic on the materialised mask, so that a CPU can check metadata.

It lives in the tests so that no server can reach it: what it computes is never a measurement.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from servers.plugins import xformers_attn


def masked_attention(query, keys, values, bias, impl, op):
    """[1, tokens, kv_heads, group, D] from the bias as xFormers itself writes it out, in float64."""
    assert op in (None, "emulated"), "a real operator has no place in an emulation"
    assert query.shape[3] == impl.group
    assert keys.stride(3) == 0 or impl.group == 1, "the group must share its keys"
    num_keys = bias.k_seqinfo.seqstart_py[-1] if hasattr(bias, "block_tables") else keys.shape[1]
    mask = bias.materialize((query.shape[1], num_keys), dtype=torch.float64)
    keys, values = (side[:, : mask.shape[-1]].double() for side in (keys, values))
    scores = torch.einsum("bqhgd,bkhgd->bhgqk", query.double(), keys) * impl.scale
    hidden = torch.isinf(mask)
    share = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    # the operators never load a key outside the mask; here it must be kept from becoming 0 x NaN
    reached = ~hidden.all(dim=-2)
    values = torch.where(reached[..., :, None, None, None], values, 0)
    return torch.einsum("bhgqk,bkhgd->bqhgd", share, values).to(query.dtype)


class Named:
    """Stands for an operator class: only its name is read."""

    NAME = "emulated"

    def __eq__(self, other: object) -> bool:
        return other == "emulated"

    __hash__ = None


@contextmanager
def emulated_xformers() -> Iterator[None]:
    table = {"prefill": {"flash": Named()}, "decode": {"split_k": Named()}}
    with (
        patch.object(xformers_attn, "why_not_here", lambda: None),
        patch.object(xformers_attn, "operators", lambda: table),
        patch.object(xformers_attn.XformersImpl, "call", staticmethod(masked_attention)),
    ):
        yield
