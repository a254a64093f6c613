"""The initial weights, with the retrieval circuit built in; training polishes them.

The residual stream is cut into blocks: a constant, the token's own random code, the codes of the tokens
1, 2, 3 and 7 places back, and the code of the token to say next. Four things are built:

* layer 0, four heads that look 1, 2, 3 and 7 tokens back, by position alone, and copy the code there;
* layer 1, a matching head: it looks for the place whose three tokens before it are the last three read
  (an induction head over three tokens) and copies the token that stands there;
* layer 1, a list head: it looks for what follows the subject 7 places back in a list with commas;
* the first token as a resting place for both when nothing matches.

Everything else starts near zero.
"""

import math

import torch
from torch import Tensor

from models.retriever.network import Retriever, Shape

CODE = 48  # length of a token's code
CONST = 0
OWN = slice(1, 1 + CODE)
BACK = {1: slice(49, 97), 2: slice(97, 145), 3: slice(145, 193), 7: slice(193, 241)}
SAY = slice(241, 289)
RESTING = 289  # flags the first token
NOISE = 0.02
FAST_PAIRS = 8  # the pairs that turn fast enough to tell neighbours apart
SLOWEST_TURN = 0.25  # radians within the window, of the pairs used to match content
OFFSET_SHARPNESS = 20.0  # score gap between the place looked at and its neighbours
MATCH_SHARPNESS = 24.0  # score of each matching token
SAY_GAIN = 4.0
LOGIT_GAIN = 8.0


def construct(shape: Shape, seed: int, comma_id: int, bos_id: int) -> Retriever:
    generator = torch.Generator().manual_seed(seed)
    net = Retriever(shape)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, NOISE, generator=generator)
            if name.endswith("down_proj.weight") or name.endswith("o_proj.weight"):
                parameter.mul_(0.25)
        codes = random_codes(shape.vocab_size, CODE, generator)
        build_embedding(net, codes, bos_id)
        build_offset_heads(net)
        build_matching_heads(net, codes[comma_id], generator)
    return net


def random_codes(count: int, size: int, generator: torch.Generator) -> Tensor:
    codes = torch.randn(count, size, generator=generator)
    return codes / codes.norm(dim=1, keepdim=True)


def build_embedding(net: Retriever, codes: Tensor, bos_id: int) -> None:
    embedding = net.model.embed_tokens.weight
    embedding.mul_(0.1)
    embedding[:, CONST] = 1
    embedding[:, OWN] = codes
    embedding[bos_id, RESTING] = 1
    net.lm_head.weight[:, SAY] = codes * LOGIT_GAIN / math.sqrt(net.shape.hidden_size / 20)


def build_offset_heads(net: Retriever) -> None:
    """Layer 0: the four heads. Score at distance d: a sum of cos(f (d - offset)) over the fast pairs."""
    shape, attention = net.shape, net.model.layers[0].self_attn
    size, half = shape.head_dim, shape.head_dim // 2
    frequency = shape.rope_theta ** (-torch.arange(half) / half)[:FAST_PAIRS]
    # at layer 0 a token's stream is constant 1 and a code of norm 1: the norm scales both by this
    scale = math.sqrt(shape.hidden_size / 2)
    gap = (1 - torch.cos(frequency)).sum().item()
    amplitude = math.sqrt(OFFSET_SHARPNESS / gap * math.sqrt(size)) / scale
    group = shape.num_attention_heads // shape.num_key_value_heads
    for kv in range(shape.num_key_value_heads):
        rows = slice(kv * size, kv * size + CODE)
        attention.v_proj.weight[rows] = 0
        attention.v_proj.weight[rows, OWN] = torch.eye(CODE) / scale
        key = attention.k_proj.weight[kv * size : (kv + 1) * size]
        key.zero_()
        key[:FAST_PAIRS, CONST] = amplitude
    for head, (offset, block) in enumerate(BACK.items()):
        query = attention.q_proj.weight[head * size : (head + 1) * size]
        query.zero_()
        query[:FAST_PAIRS, CONST] = amplitude * torch.cos(-frequency * offset)
        query[half : half + FAST_PAIRS, CONST] = amplitude * torch.sin(-frequency * offset)
        attention.o_proj.weight[:, head * size : head * size + CODE] = 0
        attention.o_proj.weight[block, head * size : head * size + CODE] = torch.eye(CODE)
    assert group * shape.num_key_value_heads == len(BACK)


def build_matching_heads(net: Retriever, comma: Tensor, generator: torch.Generator) -> None:
    """Layer 1, heads 0 (three-token match) and 2 (next in the list), each with a key head of its own."""
    shape, attention = net.shape, net.model.layers[1].self_attn
    size = shape.head_dim
    slow = slow_dimensions(shape)
    maps = torch.linalg.qr(torch.randn(len(slow), len(slow), generator=generator)).Q
    rest = maps[:, 0]  # the direction in which queries meet the resting place
    spread = [
        torch.linalg.qr(torch.randn(len(slow) - 1, CODE, generator=generator)).Q for _ in range(3)
    ]
    spread = [maps[:, 1:] @ part for part in spread]
    # six blocks of norm 1 in the stream (the constant, own, four back)
    scale = math.sqrt(shape.hidden_size / 6)
    gain = math.sqrt(MATCH_SHARPNESS * math.sqrt(size)) / scale

    def put(weight: Tensor, head: int, columns: slice | int, value: Tensor) -> None:
        weight[[head * size + d for d in slow], columns] = value * gain

    for head, kv in ((0, 0), (2, 1)):
        attention.q_proj.weight[head * size : (head + 1) * size] = 0
        attention.k_proj.weight[kv * size : (kv + 1) * size] = 0
    for part, (asked, held) in zip(
        spread, ((OWN, BACK[1]), (BACK[1], BACK[2]), (BACK[2], BACK[3])), strict=True
    ):
        put(attention.q_proj.weight, 0, asked, part)
        put(attention.k_proj.weight, 0, held, part)
    put(attention.q_proj.weight, 0, CONST, rest)
    put(attention.k_proj.weight, 0, RESTING, rest * 2.4)
    put(attention.q_proj.weight, 2, BACK[7], spread[0])
    put(attention.k_proj.weight, 1, BACK[2], spread[0])
    put(attention.q_proj.weight, 2, CONST, rest * 1.5 + spread[1] @ comma)
    put(attention.k_proj.weight, 1, BACK[1], spread[1])
    put(attention.k_proj.weight, 1, RESTING, rest)
    for head, kv in ((0, 0), (2, 1)):
        rows = slice(kv * size, kv * size + CODE)
        attention.v_proj.weight[rows] = 0
        attention.v_proj.weight[rows, OWN] = torch.eye(CODE) / scale
        columns = slice(head * size, head * size + CODE)
        attention.o_proj.weight[:, columns] = 0
        attention.o_proj.weight[SAY, columns] = torch.eye(CODE) * SAY_GAIN


def slow_dimensions(shape: Shape) -> list[int]:
    """Dimensions of a head whose pairs turn by at most SLOWEST_TURN within the window."""
    half = shape.head_dim // 2
    turn = shape.max_position_embeddings * shape.rope_theta ** (-torch.arange(half) / half)
    pairs = [i for i in range(half) if turn[i] <= SLOWEST_TURN]
    return [*pairs, *(i + half for i in pairs)]
