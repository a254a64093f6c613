"""The long retrievers in plain PyTorch: attention, state space (Mamba2), or both side by side.

Three families, each parameter for parameter what Hugging Face and vLLM load: ``llama``, ``falcon_h1`` (both
mixers in every layer) and ``mamba2`` (no attention, no MLP). Inside, parameters bear Falcon-H1's names;
``to_checkpoint`` and ``from_checkpoint`` translate. Nothing here serves a model: vLLM does.
"""

import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.retriever.network import MLP, RMSNorm, Shape, rotate

CHUNK = 128  # tokens of a block in which the state space is worked out as a matrix product


@dataclass(frozen=True, slots=True)
class Mamba:
    """Shape of the state-space mixer: ``heads`` × ``head_dim`` channels, ``state`` numbers for each."""

    heads: int
    head_dim: int = 64
    state: int = 128
    taps: int = 4  # of the short convolution
    gated_norm: bool = False

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        return self.inner + 2 * self.state


@dataclass(frozen=True, slots=True)
class Plan:
    """One model: its family, Llama's numbers (heads unused without attention) and the mixer's."""

    family: str  # llama, falcon_h1, mamba2
    shape: Shape
    mamba: Mamba | None = None
    tied: bool = False

    @property
    def attends(self) -> bool:
        return self.family != "mamba2"

    def hf_config(self) -> dict[str, object]:
        """config.json, as transformers and vLLM read it."""
        shape, mamba = self.shape, self.mamba
        if mamba is None:
            return shape.hf_config()
        common = {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": shape.max_position_embeddings,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "torch_dtype": "bfloat16",
        }
        if self.family == "mamba2":
            return {
                "architectures": ["Mamba2ForCausalLM"],
                "model_type": "mamba2",
                **common,
                "state_size": mamba.state,
                "num_heads": mamba.heads,
                "head_dim": mamba.head_dim,
                "n_groups": 1,
                "expand": mamba.inner // shape.hidden_size,
                "conv_kernel": mamba.taps,
                "chunk_size": 256,
                "use_bias": False,
                "use_conv_bias": True,
                "rms_norm": True,
                "layer_norm_epsilon": shape.rms_norm_eps,
                "residual_in_fp32": False,
            }
        return {
            "architectures": ["FalconH1ForCausalLM"],
            "model_type": "falcon_h1",
            **common,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "mamba_d_ssm": mamba.inner,
            "mamba_n_heads": mamba.heads,
            "mamba_d_head": mamba.head_dim,
            "mamba_d_state": mamba.state,
            "mamba_n_groups": 1,
            "mamba_d_conv": mamba.taps,
            "mamba_expand": 2,
            "mamba_chunk_size": 256,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "mamba_rms_norm": mamba.gated_norm,
            "projectors_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": shape.rms_norm_eps,
            "rope_theta": shape.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        }


@dataclass(slots=True)
class Memory:
    """What a layer keeps of the tokens read: keys and values, the last inputs of the convolution, states."""

    keys: Tensor | None = None  # [batch, kv heads, tokens, head_dim], rotated
    values: Tensor | None = None
    inputs: Tensor | None = None  # [batch, taps - 1, convolved]
    states: Tensor | None = None  # [batch, heads, state, head_dim], float32


@dataclass(slots=True)
class Cache:
    layers: list[Memory]
    tokens: int = 0


@dataclass(slots=True)
class Turns:
    """cos and sin of the positions of this call, each [tokens, head_dim / 2]."""

    cos: Tensor = field(default_factory=lambda: torch.empty(0))
    sin: Tensor = field(default_factory=lambda: torch.empty(0))


def turns(shape: Shape, start: int, tokens: int, device: torch.device) -> Turns:
    half = shape.head_dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=device) / half
    positions = torch.arange(start, start + tokens, dtype=torch.float64, device=device)
    angles = torch.outer(positions, shape.rope_theta**-exponents)
    return Turns(angles.cos().float(), angles.sin().float())


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, size = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(hidden, shape.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, shape.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(hidden, shape.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(shape.num_attention_heads * size, hidden, bias=False)

    def forward(self, x: Tensor, at: Turns, memory: Memory | None) -> Tensor:
        batch, length, _ = x.shape
        size = self.shape.head_dim

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, size).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), at.cos, at.sin)
        k = rotate(heads(self.k_proj(x)), at.cos, at.sin)
        v = heads(self.v_proj(x))
        if memory is not None:
            if memory.keys is not None and memory.values is not None:
                k, v = torch.cat((memory.keys, k), 2), torch.cat((memory.values, v), 2)
            memory.keys, memory.values = k, v
        # one token after a cache sees all; a first call is causal from its first token
        out = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mixer(nn.Module):
    """Mamba2: a short convolution, then a decaying sum of outer products of B and x, read with C."""

    def __init__(self, hidden: int, mamba: Mamba, eps: float) -> None:
        super().__init__()
        self.mamba = mamba
        projected = mamba.inner + mamba.convolved + mamba.heads
        self.in_proj = nn.Linear(hidden, projected, bias=False)
        self.conv1d = nn.Conv1d(
            mamba.convolved, mamba.convolved, mamba.taps, groups=mamba.convolved
        )
        self.dt_bias = nn.Parameter(torch.zeros(mamba.heads))
        self.A_log = nn.Parameter(torch.zeros(mamba.heads))
        self.D = nn.Parameter(torch.ones(mamba.heads))
        self.out_proj = nn.Linear(mamba.inner, hidden, bias=False)
        if mamba.gated_norm:
            self.norm = RMSNorm(mamba.inner, eps)

    def forward(self, hidden: Tensor, memory: Memory | None) -> Tensor:
        mamba = self.mamba
        batch, length, _ = hidden.shape
        gate, mixed, dt = self.in_proj(hidden).split(
            (mamba.inner, mamba.convolved, mamba.heads), dim=-1
        )
        mixed = F.silu(self.convolve(mixed, memory))
        x, b, c = mixed.split((mamba.inner, mamba.state, mamba.state), dim=-1)
        x = x.view(batch, length, mamba.heads, mamba.head_dim)
        dt = F.softplus(dt.float() + self.dt_bias)
        decay = -self.A_log.float().exp() * dt  # logarithm of a step's decay, at most 0
        before = None if memory is None else memory.states
        if length == 1 and before is not None:
            y, states = step(x, dt, decay, b, c, before)
        else:
            y, states = scan(x, dt, decay, b, c)
        if memory is not None:
            memory.states = states
        y = (y + self.D[:, None] * x.float()).reshape(batch, length, mamba.inner)
        y = y * F.silu(gate.float())
        if mamba.gated_norm:
            y = self.norm(y)
        return self.out_proj(y.to(hidden.dtype))

    def convolve(self, mixed: Tensor, memory: Memory | None) -> Tensor:
        """The depthwise convolution as a sum of shifted products: it stays in the input's layout."""
        taps, length = self.mamba.taps, mixed.shape[1]
        if memory is not None and memory.inputs is not None:
            padded = torch.cat((memory.inputs, mixed), 1)
        else:
            padded = F.pad(mixed, (0, 0, taps - 1, 0))
        if memory is not None:
            memory.inputs = padded[:, -(taps - 1) :]
        weight = self.conv1d.weight.to(mixed.dtype)
        bias = self.conv1d.bias
        assert bias is not None
        out = bias.to(mixed.dtype).expand_as(mixed)
        for tap in range(taps):
            out = torch.addcmul(out, padded[:, tap : tap + length], weight[:, 0, tap])
        return out


def step(
    x: Tensor, dt: Tensor, decay: Tensor, b: Tensor, c: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: the state decays, takes in B x, and is read with C. Shapes as ``scan`` has them."""
    taken = torch.einsum("bn,bhp,bh->bhnp", b[:, 0].float(), x[:, 0].float(), dt[:, 0])
    states = states * decay[:, 0, :, None, None].exp() + taken
    return torch.einsum("bn,bhnp->bhp", c[:, 0].float(), states).unsqueeze(1), states


def scan(x: Tensor, dt: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens from an empty state: products within blocks, then the states handed from block to block.

    ``x`` [batch, length, heads, head_dim], ``dt`` and ``decay`` (logarithms) [batch, length, heads],
    ``b``, ``c`` [batch, length, state]. Returns y as x, float32, and the last states.
    """
    batch, length, heads, size = x.shape
    short = -length % CHUNK
    if short:  # a padded token takes nothing in and lets nothing decay
        x, dt, decay = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, short)) for t in (x, dt, decay))
        b, c = F.pad(b, (0, 0, 0, short)), F.pad(c, (0, 0, 0, short))
    blocks = (length + short) // CHUNK
    x = x.view(batch, blocks, CHUNK, heads, size)
    b, c = (t.view(batch, blocks, CHUNK, -1) for t in (b, c))
    sums = decay.view(batch, blocks, CHUNK, heads).cumsum(2)
    taken = x * dt.view(batch, blocks, CHUNK, heads, 1).to(x.dtype)
    ordered = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril()
    by_head = sums.permute(0, 1, 3, 2)
    apart = by_head.unsqueeze(-1) - by_head.unsqueeze(-2)  # [batch, blocks, heads, to, from]
    kept = apart.masked_fill(~ordered, -torch.inf).exp().to(x.dtype)
    scores = torch.einsum("bkin,bkjn->bkij", c, b).unsqueeze(2) * kept
    y = torch.einsum("bkhij,bkjhp->bkihp", scores, taken)
    until_end = (sums[:, :, -1:] - sums).exp().to(x.dtype)
    gained = torch.einsum("bkjn,bkjhp->bkhnp", b, taken * until_end.unsqueeze(-1))
    whole = sums[:, :, -1].permute(0, 2, 1).cumsum(2)  # [batch, heads, blocks]
    # states before a block: what every earlier block gained, decayed by the blocks between
    before = F.pad(whole, (1, -1))
    between = before.unsqueeze(-1) - whole.unsqueeze(-2)  # [batch, heads, to, from]
    earlier = torch.ones(blocks, blocks, dtype=torch.bool, device=x.device).tril(-1)
    between = between.masked_fill(~earlier, -torch.inf).exp().to(x.dtype)
    carried = torch.einsum("bhkl,blhnp->bkhnp", between, gained)
    read = torch.einsum("bkin,bkhnp->bkihp", c, carried.to(x.dtype))
    y = y.float() + read.float() * sums.exp().unsqueeze(-1)
    last_decay = sums[:, -1, -1].exp()[..., None, None]
    states = carried[:, -1].float() * last_decay + gained[:, -1].float()
    return y.reshape(batch, blocks * CHUNK, heads, size)[:, :length], states


class Layer(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        shape = plan.shape
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape) if plan.attends else None
        self.mamba = (
            Mixer(shape.hidden_size, plan.mamba, shape.rms_norm_eps) if plan.mamba else None
        )
        if plan.attends:
            self.pre_ff_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
            self.feed_forward = MLP(shape)

    def forward(self, x: Tensor, at: Turns, memory: Memory | None) -> Tensor:
        normed = self.input_layernorm(x)
        if self.self_attn is not None:
            x = x + self.self_attn(normed, at, memory)
        if self.mamba is not None:
            x = x + self.mamba(normed, memory)
        if self.self_attn is not None:
            x = x + self.feed_forward(self.pre_ff_layernorm(x))
        return x


class Trunk(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        shape = plan.shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(plan) for _ in range(shape.num_hidden_layers))
        self.final_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Network(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.model = Trunk(plan)
        self.lm_head = nn.Linear(plan.shape.hidden_size, plan.shape.vocab_size, bias=False)
        if plan.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def new_cache(self) -> Cache:
        return Cache([Memory() for _ in self.model.layers])

    def hidden(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """[batch, length] ids to [batch, length, hidden_size], after the last norm.

        With a cache, these tokens follow those read before: all of a prompt first, then one by one.
        """
        start = cache.tokens if cache else 0
        assert not start or token_ids.shape[1] == 1
        at = Turns()
        if self.plan.attends:
            at = turns(self.plan.shape, start, token_ids.shape[1], token_ids.device)
        x = self.model.embed_tokens(token_ids)
        if torch.is_autocast_enabled(x.device.type):
            x = (
                x.bfloat16()
            )  # a server keeps the residual stream in bfloat16: train with its rounding
        for index, layer in enumerate(self.model.layers):
            x = layer(x, at, cache.layers[index] if cache else None)
        if cache:
            cache.tokens += token_ids.shape[1]
        return self.model.final_layernorm(x)


NAMES: dict[str, list[tuple[str, str]]] = {
    "falcon_h1": [],
    "llama": [
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."),
        (r"\.feed_forward\.", ".mlp."),
        (r"\.final_layernorm\.", ".norm."),
    ],
    "mamba2": [
        (r"^model\.embed_tokens\.", "backbone.embeddings."),
        (r"^model\.final_layernorm\.", "backbone.norm_f."),
        (r"^model\.layers\.", "backbone.layers."),
        (r"\.input_layernorm\.", ".norm."),
        (r"\.mamba\.", ".mixer."),
    ],
}


def checkpoint_name(family: str, name: str) -> str:
    for pattern, replacement in NAMES[family]:
        name = re.sub(pattern, replacement, name)
    return name


def to_checkpoint(net: Network) -> dict[str, Tensor]:
    """The parameters in bfloat16 under the names of the family."""
    return {
        checkpoint_name(net.plan.family, name): p.detach().to("cpu", torch.bfloat16).contiguous()
        for name, p in net.state_dict().items()
        if not (net.plan.tied and name == "lm_head.weight")
    }


def from_checkpoint(net: Network, state: dict[str, Tensor]) -> None:
    own = {checkpoint_name(net.plan.family, name): name for name in net.state_dict()}
    found = {own[name]: tensor.float() for name, tensor in state.items()}
    if net.plan.tied:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    net.load_state_dict(found)
