"""Whole steps of the engine: what AIConfigurator's tables add up to, beside the mean step of a phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.bottleneck.roofline import PhaseName, PhaseUse, model_of
from analysis.model.layers import language_config
from analysis.model.source import model_source
from analysis.model.work import Attention
from analysis.point.tokens import count_context
from analysis.report.formats import significant
from greenbench.contract.errors import UserError
from scripts.markdown_table import or_dash, table
from scripts.results_rows import Row, shown
from scripts.world.between_points import at, decode_us, whole_prompt_us
from scripts.world.kernels import WITHIN
from scripts.world.peaks import spec, sustained
from scripts.world.published import World
from scripts.world.runs import DECODE_ALONE

STEPS: dict[PhaseName, tuple[str, ...]] = {
    "decode": (DECODE_ALONE, "llama-3.2-1b/block-3", "qwen3-1.7b/block-1"),
    "prefill": ("llama-3.2-1b/block-3", "qwen3-1.7b/block-1"),
}  # pieces
PIECES = tuple(dict.fromkeys(piece for pieces in STEPS.values() for piece in pieces))


@dataclass(frozen=True)
class Step:
    """A mean step of one phase of a run; their parts of it in ms, None outside of their tables."""

    row: Row
    use: PhaseUse
    sequences: float  # that decode in it
    ours_ms: float
    attention_ms: float | None
    linear_ms: float | None  # of the layers' matrices
    linear_flops: float
    head_ms: float | None

    @property
    def theirs_ms(self) -> float | None:
        parts = (self.attention_ms, self.linear_ms, self.head_ms)
        return None if None in parts else sum(part or 0.0 for part in parts)

    @property
    def share(self) -> float | None:
        """Their sum over our step."""
        return self.theirs_ms / self.ours_ms if self.theirs_ms else None


def linear_shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    """(outputs, inputs) of a layer's matrices as vLLM fuses them: QKV, output, gate and up, down."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    queries = heads * size
    return [
        (queries + 2 * kv_heads * size, hidden),
        (hidden, queries),
        (2 * inner, hidden),
        (hidden, inner),
    ]


def step(world: World, row: Row, phase: PhaseName) -> Step:
    """Theirs: attention and matrices of all layers, and the output head for each sequence.

    A chunk's attention is its share of the whole prompt's; sequences that decode beside it come on top. Their
    head's time is that of 65,536 outputs times the vocabulary's share of it.
    """
    use, model, window = row.uses[phase], model_of(row.run), row.point.window
    config = model_source(row.run.manifest.server, row.run.point.model.build).config
    if model is None or window is None or config is None:
        raise UserError(f"{row.link}: its model is not known")
    layers, config = len(model.layers), language_config(config)
    (shape,) = {mixer for layer in model.layers for mixer in layer.mixers}
    assert isinstance(shape, Attention)
    prompt, decoded = use.prefill_tokens / use.steps, use.decode_tokens / use.steps
    tokens, summed = count_context(row.run, window.start_unix_ns, window.end_unix_ns)
    parts = [decode_us(world.attention("H200", "decode", shape), decoded, summed / tokens)]
    if phase == "prefill":
        context = row.point.context_tokens
        whole = whole_prompt_us(world.attention("H200", "prefill", shape), context)
        parts.append(None if whole is None else whole * prompt / context)
    matrices = [at(prompt + decoded, world.linear(*each)) for each in linear_shapes(config)]
    wide = max(each.outputs for each in world.aiconfigurator.linear)
    head = at(max(1.0, decoded), world.linear(wide, model.hidden))
    return Step(
        row=row,
        use=use,
        sequences=decoded,
        ours_ms=1e3 * use.seconds / use.steps,
        attention_ms=total_ms(parts, layers),
        linear_ms=total_ms(matrices, layers),
        linear_flops=model.linear(prompt + decoded).flops,
        head_ms=total_ms([head], model.vocab / wide),
    )


def total_ms(parts_us: list[float | None], times: float) -> float | None:
    """ms of ``times`` their sum in µs; None where a part is not known."""
    return None if None in parts_us else times * sum(part or 0.0 for part in parts_us) / 1e3


def steps(world: World, runs: Mapping[str, Sequence[Row]], phase: PhaseName) -> list[Step]:
    return [step(world, row, phase) for piece in STEPS[phase] for row in runs[piece]]


def step_section(found: list[Step], phase: PhaseName) -> str:
    peak = spec("H200")
    meter = "MBU" if phase == "decode" else "MFU"
    head = (
        "model | > context | run | > sequences that decode | > ours, ms | > their attention, ms | "
        f"> matrices and head | > sum | > sum ÷ ours | > {meter}, ours | > by their sum | "
        "> a kernel ran | > SM clock, MHz"
    )
    lines: list[list[str]] = []
    for each in found:
        use, share = each.use, each.share
        of_peak = (
            use.bytes_per_s / peak.bytes_per_s
            if phase == "decode"
            else use.flops_per_s / peak.flops_per_s
        )
        matrices = total_ms([each.linear_ms, each.head_ms], 1e3)
        lines.append(
            [
                each.row.point.model,
                each.row.context,
                f"[{each.row.piece.split('/')[-1]}]({each.row.link})",
                significant(each.sequences),
                significant(each.ours_ms),
                *map(or_dash, (each.attention_ms, matrices, each.theirs_ms, share)),
                significant(of_peak),
                or_dash(of_peak / share if share else None),
                or_dash(each.row.kernel_share),
                shown(each.row, "SM clock"),
            ]
        )
    shares = [each.share for each in found if each.share]
    near = sum(abs(share - 1) <= WITHIN for share in shares)
    return (
        f"{table(head, lines)}\nTheir sum is {significant(min(shares))} to {significant(max(shares))} "
        f"of our step; within 10 % in {near} of {len(shares)}.\n"
    )


def matrix_rates(found: list[Step]) -> str:
    """How fast their matrices are in the prefill steps, and what such a card holds out."""
    rates = [each.linear_flops / each.linear_ms * 1e3 for each in found if each.linear_ms]
    held = sustained("H200").flops_per_s
    least, most, known = (significant(x / 1e12) for x in (min(rates), max(rates), held))
    return (
        f"Their matrices run at {least} to {most} TFLOP/s in these steps. A matmul of 8192³ on such a card "
        f"sustained {known} at its power limit (`configs/gpus.yaml`).\n"
    )
