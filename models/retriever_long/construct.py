"""Initial weights with retrieval circuits built in; training polishes them, and finds the rest.

The residual stream is cut into blocks: a constant, the token's own random code, the codes of tokens some
places back, the code of the token to say next, and a flag of the first token. Built are

* layer 0: the codes of tokens 1, 2, 3, 4, 7 and 8 places back, by attention heads that look there by position
  alone, or (1 to 3) by the short convolution of a state-space mixer;
* heads that match content anywhere and say what stands there (``CIRCUITS``), the first token being their
  resting place;
* without attention: two associative memories, written where a record gives its code.

Everything else starts near zero, or as Mamba2 starts out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loadgen.prompts.encoder import Encoder
from models.retriever.construct import random_codes, slow_dimensions
from models.retriever.network import Shape
from models.retriever_long.network import Attention, Mixer, Network

NOISE = 0.02
FAST_PAIRS = 8  # the pairs that tell neighbours apart
OFFSET_SHARPNESS = 20.0  # score gap between the place looked at and its neighbours
MATCH_SHARPNESS = 24.0  # score of each matching token
SAY_GAIN = 4.0
LOGIT_GAIN = 8.0
GATE = 3.0  # of channels that pass codes on; silu(3) = 2.86
QUIET = -8.0  # bias of the time step where the state space is to add nothing at first
OFFSETS = {True: (1, 2, 3, 4, 7, 8), False: (1, 2, 3)}  # with attention, and without
CODE = {True: 36, False: 60}


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where things stand in the residual stream."""

    code: int  # length of a token's code
    offsets: tuple[int, ...]

    const = 0

    def _block(self, index: int) -> slice:
        return slice(1 + index * self.code, 1 + (index + 1) * self.code)

    @property
    def own(self) -> slice:
        return self._block(0)

    def back(self, offset: int) -> slice:
        return self._block(1 + self.offsets.index(offset))

    @property
    def say(self) -> slice:
        return self._block(1 + len(self.offsets))

    @property
    def resting(self) -> int:
        return 1 + (2 + len(self.offsets)) * self.code


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the builders share."""

    blocks: Blocks
    codes: Tensor  # [vocabulary, code]
    encoder: Encoder
    shape: Shape
    random: torch.Generator

    def code_of(self, text: str) -> Tensor:
        (token,) = self.encoder.encode([text])[0]
        return self.codes[token]

    def scale(self, blocks: int) -> float:
        """What the norm multiplies a block of norm 1 by, when so many stand in the stream."""
        return math.sqrt(self.shape.hidden_size / blocks)

    def orthogonal(self, rows: int, columns: int) -> Tensor:
        return torch.linalg.qr(torch.randn(rows, columns, generator=self.random)).Q


def construct(net: Network, seed: int, encoder: Encoder) -> None:
    """Fill a fresh network's weights."""
    generator = torch.Generator().manual_seed(seed)
    plan = net.plan
    blocks = Blocks(CODE[plan.attends], OFFSETS[plan.attends])
    codes = random_codes(plan.shape.vocab_size, blocks.code, generator)
    shop = Workshop(blocks, codes, encoder, plan.shape, generator)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, NOISE, generator=generator)
            if name.endswith(("down_proj.weight", "o_proj.weight", "out_proj.weight")):
                parameter.mul_(0.25)
        build_embedding(net, shop)
        for layer in net.model.layers:
            if layer.mamba is not None:
                start_mixer(layer.mamba, generator)
        first = net.model.layers[0]
        by_position = blocks.offsets
        if first.mamba is not None:
            by_position = tuple(o for o in by_position if o > 3)
            build_convolution(first.mamba, shop)
        if plan.attends:
            build_offset_heads(first.self_attn, by_position, shop)
            build_circuits(net, shop)
        else:
            build_memory(net.model.layers[1].mamba, shop, ((2, 1),), after=1)
            build_memory(net.model.layers[2].mamba, shop, ((1, 0), (3, 2)), after=2)


def build_embedding(net: Network, shop: Workshop) -> None:
    blocks = shop.blocks
    embedding = net.model.embed_tokens.weight
    embedding.mul_(0.1)
    embedding[:, blocks.const] = 1
    embedding[:, blocks.own] = shop.codes
    first = shop.encoder.opening[0]
    embedding[first, blocks.own] = 0  # who rests there says nothing
    embedding[first, blocks.resting] = 1
    net.lm_head.weight[:, blocks.say] = (
        shop.codes * LOGIT_GAIN / math.sqrt(shop.shape.hidden_size / 20)
    )


def build_offset_heads(attention: Attention, offsets: tuple[int, ...], shop: Workshop) -> None:
    """One head an offset. Score at distance d: a sum of cos(f (d - offset)) over the fast pairs."""
    shape, blocks = shop.shape, shop.blocks
    size, half = shape.head_dim, shape.head_dim // 2
    group = shape.num_attention_heads // shape.num_key_value_heads
    frequency = shape.rope_theta ** (-torch.arange(half) / half)[:FAST_PAIRS]
    scale = shop.scale(2)  # at layer 0: the constant and a code
    gap = (1 - torch.cos(frequency)).sum().item()
    amplitude = math.sqrt(OFFSET_SHARPNESS / gap * math.sqrt(size)) / scale
    for kv in range(math.ceil(len(offsets) / group)):
        rows = slice(kv * size, kv * size + blocks.code)
        attention.v_proj.weight[rows] = 0
        attention.v_proj.weight[rows, blocks.own] = torch.eye(blocks.code) / scale
        key = attention.k_proj.weight[kv * size : (kv + 1) * size]
        key.zero_()
        key[:FAST_PAIRS, blocks.const] = amplitude
    for head, offset in enumerate(offsets):
        query = attention.q_proj.weight[head * size : (head + 1) * size]
        query.zero_()
        query[:FAST_PAIRS, blocks.const] = amplitude * torch.cos(-frequency * offset)
        query[half : half + FAST_PAIRS, blocks.const] = amplitude * torch.sin(-frequency * offset)
        columns = slice(head * size, head * size + blocks.code)
        attention.o_proj.weight[:, columns] = 0
        attention.o_proj.weight[blocks.back(offset), columns] = torch.eye(blocks.code)


class MatchHead:
    """One query head with a key head of its own, in the dimensions that hardly turn."""

    def __init__(self, attention: Attention, kv: int, shop: Workshop) -> None:
        shape = shop.shape
        self.attention, self.shop, self.kv = attention, shop, kv
        self.head = kv * shape.num_attention_heads // shape.num_key_value_heads
        self.slow = slow_dimensions(shape)
        basis = shop.orthogonal(len(self.slow), len(self.slow))
        self.rest = basis[:, 0]  # the direction in which queries meet the resting place
        self.parts = [
            basis[:, 1:] @ shop.orthogonal(len(self.slow) - 1, shop.blocks.code) for _ in range(3)
        ]
        # the constant, own, and what stands back
        self.scale = shop.scale(2 + len(shop.blocks.offsets))
        self.gain = math.sqrt(MATCH_SHARPNESS * math.sqrt(shape.head_dim)) / self.scale
        size = shape.head_dim
        attention.q_proj.weight[self.head * size : (self.head + 1) * size] = 0
        attention.k_proj.weight[kv * size : (kv + 1) * size] = 0

    def ask(self, columns: slice | int, value: Tensor) -> None:
        self._add(self.attention.q_proj.weight, self.head, columns, value)

    def hold(self, columns: slice | int, value: Tensor) -> None:
        self._add(self.attention.k_proj.weight, self.kv, columns, value)

    def _add(self, weight: Tensor, head: int, columns: slice | int, value: Tensor) -> None:
        size = self.shop.shape.head_dim
        weight[[head * size + d for d in self.slow], columns] += value * self.gain

    def rests(self, score: float) -> None:
        """Where nothing scores so many matching tokens, the first token is looked at."""
        self.ask(self.shop.blocks.const, self.rest * score)
        # the first token has no codes, so the norm makes its flag that much larger
        self.hold(self.shop.blocks.resting, self.rest * self.scale / self.shop.scale(2))

    def says(self, block: slice, gain: float = SAY_GAIN) -> None:
        """What is found goes to the block of the token to say."""
        code, size = self.shop.blocks.code, self.shop.shape.head_dim
        rows = slice(self.kv * size, self.kv * size + code)
        self.attention.v_proj.weight[rows] = 0
        self.attention.v_proj.weight[rows, block] = torch.eye(code) / self.scale
        columns = slice(self.head * size, self.head * size + code)
        self.attention.o_proj.weight[:, columns] = 0
        self.attention.o_proj.weight[self.shop.blocks.say, columns] = torch.eye(code) * gain


def after_three_tokens(head: MatchHead, shop: Workshop) -> None:
    """What followed the last three tokens where they stood before."""
    own, back = shop.blocks.own, shop.blocks.back
    pairs = ((own, back(1)), (back(1), back(2)), (back(2), back(3)))
    for part, (asked, held) in zip(head.parts, pairs, strict=True):
        head.ask(asked, part)
        head.hold(held, part)
    head.rests(2.4)
    head.says(own)


def next_in_list(head: MatchHead, shop: Workshop) -> None:
    """What follows the subject 7 places back, and a comma, in a list."""
    head.ask(shop.blocks.back(7), head.parts[0])
    head.hold(shop.blocks.back(2), head.parts[0])
    head.ask(shop.blocks.const, head.parts[1] @ shop.code_of(","))
    head.hold(shop.blocks.back(1), head.parts[1])
    head.rests(1.5)
    head.says(shop.blocks.own)


def subject_of_code(head: MatchHead, shop: Workshop) -> None:
    """The subject whose code stands 4 and 3 places back."""
    head.ask(shop.blocks.back(3), head.parts[0])
    head.hold(shop.blocks.own, head.parts[0])
    head.ask(shop.blocks.back(4), head.parts[1])
    head.hold(shop.blocks.back(1), head.parts[1])
    head.rests(1.5)
    head.says(shop.blocks.back(3))


def handed_on_to(head: MatchHead, shop: Workshop) -> None:
    """The subject whose code is said to be the same as that of the subject 1 place back."""
    head.ask(shop.blocks.back(1), head.parts[0])
    head.hold(shop.blocks.own, head.parts[0])
    head.ask(shop.blocks.const, head.parts[1] @ shop.code_of(" as"))
    head.hold(shop.blocks.back(4), head.parts[1])
    head.rests(1.5)
    head.says(shop.blocks.back(8))


def counted_most(head: MatchHead, shop: Workshop) -> None:
    """After 'often is the': the mean of all that follows 'One'."""
    asked = torch.outer(shop.code_of(" One"), shop.code_of(" often"))
    head.ask(shop.blocks.back(2), 2 * head.parts[0] @ asked)
    head.hold(shop.blocks.back(1), head.parts[0])
    head.rests(1.0)
    head.says(shop.blocks.own, gain=4 * SAY_GAIN)


CIRCUITS: tuple[Callable[[MatchHead, Workshop], None], ...] = (
    after_three_tokens,
    next_in_list,
    subject_of_code,
    handed_on_to,
    counted_most,
)


def build_circuits(net: Network, shop: Workshop) -> None:
    """A circuit a key head, from layer 1 on."""
    for index, circuit in enumerate(CIRCUITS):
        layer, kv = divmod(index, shop.shape.num_key_value_heads)
        attention = net.model.layers[1 + layer].self_attn
        circuit(MatchHead(attention, kv, shop), shop)


def start_mixer(mixer: Mixer, generator: torch.Generator) -> None:
    """As Mamba2 starts out, but with decays that reach from a few tokens to all of the window."""
    mamba = mixer.mamba
    mixer.in_proj.weight.normal_(0, 1 / math.sqrt(mixer.in_proj.in_features), generator=generator)
    mixer.conv1d.weight.uniform_(-0.5, 0.5, generator=generator)
    assert mixer.conv1d.bias is not None
    mixer.conv1d.bias.zero_()
    uniform = torch.rand(2, mamba.heads, generator=generator)
    mixer.A_log.copy_(math.log(1e-4) + uniform[0] * math.log(8 / 1e-4))
    dt = torch.exp(math.log(1e-3) + uniform[1] * math.log(100))
    mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt


def pass_codes(
    mixer: Mixer, channel: int, block: slice, tap: int, shop: Workshop, scale: float
) -> None:
    """``2 × code`` channels from ``channel`` on: silu of a block's code and of its negative.

    silu(c) - silu(-c) = c: their difference is the code itself. ``tap`` tokens back.
    """
    inner, code = mixer.mamba.inner, shop.blocks.code
    taps = mixer.mamba.taps
    for sign in (1, -1):
        rows = slice(inner + channel, inner + channel + code)
        mixer.in_proj.weight[rows] = 0
        mixer.in_proj.weight[rows, block] = sign * torch.eye(code) / scale
        mixer.conv1d.weight[channel : channel + code] = 0
        mixer.conv1d.weight[channel : channel + code, 0, taps - 1 - tap] = 1
        gates = slice(channel, channel + code)
        mixer.in_proj.weight[gates] = 0
        mixer.in_proj.weight[gates, shop.blocks.const] = GATE / scale
        channel += code


def build_convolution(mixer: Mixer, shop: Workshop) -> None:
    """Layer 0: the codes 1, 2 and 3 places back, past the state space (by D)."""
    code, scale = shop.blocks.code, shop.scale(2)
    gate = GATE / (1 + math.exp(-GATE))
    if mixer.mamba.gated_norm:
        # the norm divides by the root mean square of what passes: three codes, half each by silu
        gate = math.sqrt(mixer.mamba.inner / 1.5)
        others = slice(mixer.mamba.inner + 6 * code, 2 * mixer.mamba.inner)
        mixer.in_proj.weight[others] *= 0.1
    mixer.D.fill_(1)
    mixer.dt_bias.fill_(QUIET)
    for offset in (1, 2, 3):
        channel = (offset - 1) * 2 * code
        pass_codes(mixer, channel, shop.blocks.own, offset, shop, scale)
        columns = mixer.out_proj.weight[:, channel : channel + 2 * code]
        columns.zero_()
        columns[shop.blocks.back(offset), :code] = torch.eye(code) / gate
        columns[shop.blocks.back(offset), code:] = -torch.eye(code) / gate


def build_memory(
    mixer: Mixer, shop: Workshop, pairs: tuple[tuple[int, int], ...], after: int
) -> None:
    """Heads 0 and 1 write a token's code where ' is' stands ``after`` places back, and keep it.

    ``pairs``: (offset of a key's token where it is written, offset where it is asked for).
    """
    mamba, blocks = mixer.mamba, shop.blocks
    scale, code, size = shop.scale(2 + len(blocks.offsets)), blocks.code, mamba.head_dim
    mixer.D[:2] = 0
    mixer.A_log[:2] = math.log(1e-6)
    # written only there: 12 - 10 where the code of ' is' stands, -10 elsewhere
    mixer.dt_bias[:2] = -10
    steps = slice(mamba.inner + mamba.convolved, mamba.inner + mamba.convolved + 2)
    mixer.in_proj.weight[steps] = 0
    mixer.in_proj.weight[steps, blocks.back(after)] = 12 * shop.code_of(" is") / scale
    keys = 2 * mamba.inner
    queries = keys + mamba.state
    for rows, channel in ((keys, mamba.inner), (queries, mamba.inner + mamba.state)):
        mixer.in_proj.weight[rows : rows + mamba.state] = 0
        mixer.conv1d.weight[channel : channel + mamba.state] = 0
        mixer.conv1d.weight[channel : channel + mamba.state, 0, mamba.taps - 1] = 1
    for written, asked in pairs:
        part = shop.orthogonal(mamba.state, code)
        held = blocks.own if written == 0 else blocks.back(written)
        wanted = blocks.own if asked == 0 else blocks.back(asked)
        mixer.in_proj.weight[keys : keys + mamba.state, held] += 2 * part / scale
        mixer.in_proj.weight[queries : queries + mamba.state, wanted] += 6 * part / scale
    for head, sign in ((0, 1), (1, -1)):
        rows = slice(mamba.inner + head * size, mamba.inner + (head + 1) * size)
        mixer.in_proj.weight[rows] = 0
        mixer.in_proj.weight[rows.start : rows.start + code, blocks.own] = (
            sign * torch.eye(code) / scale
        )
        channels = slice(head * size, (head + 1) * size)
        mixer.conv1d.weight[channels] = 0
        mixer.conv1d.weight[channels, 0, mamba.taps - 1] = 1
        mixer.in_proj.weight[channels] = 0
        mixer.in_proj.weight[channels, blocks.const] = GATE / scale
        columns = mixer.out_proj.weight[:, channels]
        columns.zero_()
        columns[blocks.say, :code] = sign * torch.eye(code) * 0.2
