"""results/h200/world.md: what the runs beside it say next to figures that others publish.

    python -m scripts.world    # rewrites the tables between ``<!-- NAME: begin -->`` and its end

world.json holds the published figures that are used, and where each is from. Ours are layers.json of each
card and archived runs. MFU and MBU are by ``analysis.model.work`` over the spec sheet's peaks, of both sides.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path
from typing import Any, Literal

from analysis.bottleneck.classify import gather
from analysis.bottleneck.peaks import Ceiling, gpu_ceilings, run_ceilings
from analysis.bottleneck.roofline import PhaseName, PhaseUse, model_of, phase_uses
from analysis.model.layers import language_config
from analysis.model.source import model_source
from analysis.model.work import Attention, ModelWork, causal_pairs, model_work
from analysis.point.point import analyse
from analysis.point.tokens import count_context
from analysis.report.formats import DASH, significant
from analysis.runs.run import load_run
from greenbench.contract.config import StrictModel, parse
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.run_dir import read_json, write_atomic
from scripts.markdown_table import table
from scripts.results import PLACE, RESULTS
from scripts.results_rows import USUAL, USUAL_VLLM, Row, figure, shown
from servers.bench.arms import POINTS, Point

PAGE, PUBLISHED = RESULTS / "world.md", RESULTS / "world.json"
LAYERS = {"H200": RESULTS / "layers.json", "H100": RESULTS.parent / "h100" / "layers.json"}
NAMES = {"H200": "H200", "H100": "H100 80GB HBM3"}  # as configs/gpus.yaml has the cards
BF16 = 2  # bytes
HOSTS_US = 200.0  # a launched row below is the host's time: docs/backends.md
BEYOND = 1.1  # how far outside of a table its last rate is held; further there is no figure
WITHIN = 0.10
DECODE_ALONE = "llama-3.2-1b-decode/kv-full-1"
STEPS: tuple[tuple[str, PhaseName], ...] = (
    (DECODE_ALONE, "decode"),
    ("llama-3.2-1b/block-3", "decode"),
    ("qwen3-1.7b/block-1", "decode"),
    ("llama-3.2-1b/block-3", "prefill"),
    ("qwen3-1.7b/block-1", "prefill"),
)
# ours by (context, users), theirs by (task, most sequences): those of nearly as many sequences
PAIRS = (
    ((8192, 8), ("lm-arena-chat", 8)),
    ((8192, 8), ("gpqa", 8)),
    ((8192, 119), ("lm-arena-chat", 128)),
    ((8192, 119), ("gpqa", 96)),
)


# -- what others publish ------------------------------------------------------------------------------------


class Source(StrictModel):
    """``files`` of ``repository`` at ``commit``; ``read``: which of their rows, and what became of them."""

    repository: str
    commit: str
    licence: str
    files: list[str]
    read: str


class AttentionTimes(StrictModel):
    """``us[sequences][context]``: microseconds of one layer."""

    gpu: Literal["H200", "H100"]
    phase: PhaseName
    heads: int
    kv_heads: int
    head_size: int
    us: dict[int, dict[int, float]]

    @property
    def shape(self) -> Attention:
        return Attention(self.heads, self.kv_heads, self.head_size)


class LinearTimes(StrictModel):
    """``us[tokens]``: microseconds of one matrix of ``outputs`` × ``inputs``."""

    outputs: int
    inputs: int
    us: dict[int, float]


class Configurator(StrictModel):
    source: Source
    vllm: str
    attention: list[AttentionTimes]
    linear: list[LinearTimes]


class Served(StrictModel):
    model: str
    task: str
    max_sequences: int
    mean_sequences: float
    mean_output_tokens: float
    j_per_token: float  # of output
    watts: float
    tokens_per_s: float


class MlEnergy(StrictModel):
    """``models``: what of their config.json tells layers and heads."""

    source: Source
    gpu: str
    vllm: str
    rows: list[Served]
    models: dict[str, dict[str, Any]]


class World(StrictModel):
    aiconfigurator: Configurator
    ml_energy: MlEnergy

    def attention(
        self, gpu: str, phase: PhaseName, shape: Attention
    ) -> dict[int, dict[int, float]]:
        """Empty where the shape is not among them."""
        found = (
            each.us
            for each in self.aiconfigurator.attention
            if (each.gpu, each.phase, each.shape) == (gpu, phase, shape)
        )
        return next(found, {})

    def linear(self, outputs: int, inputs: int) -> dict[int, float]:
        for each in self.aiconfigurator.linear:
            if (each.outputs, each.inputs) == (outputs, inputs):
                return each.us
        raise UserError(f"world.json: no linear layer of {outputs} × {inputs}; add it")


def load_world() -> World:
    return parse(World, read_json(PUBLISHED), PUBLISHED.name)


def at(x: float, points: dict[int, float]) -> float | None:
    """Value at ``x`` on the straight lines through the points' logarithms.

    Up to BEYOND past the last point its rate is held, value / x; None outside.
    """
    xs = sorted(points)
    if not xs or not xs[0] <= x <= xs[-1] * BEYOND:
        return None
    if x >= xs[-1]:
        return points[xs[-1]] * x / xs[-1]
    right = next(each for each in xs if each > x)
    left = xs[xs.index(right) - 1]
    share = log(x / left) / log(right / left)
    return exp((1 - share) * log(points[left]) + share * log(points[right]))


def decode_us(times: dict[int, dict[int, float]], sequences: float, context: float) -> float | None:
    """One layer's attention in a decode step; None outside of the table."""
    of_context = {n: us for n, row in times.items() if (us := at(context, row)) is not None}
    return at(sequences, of_context)


def whole_prompt_us(times: dict[int, dict[int, float]], tokens: int) -> float | None:
    """One layer's causal attention of a prompt. Past the table the rate of its longest, a pair, is held."""
    row = times.get(1, {})
    longest = max((each for each in row if each <= tokens), default=None)
    if longest is None:
        return None
    return row[longest] * causal_pairs(tokens, 0) / causal_pairs(longest, 0)


# -- one layer's attention ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """Microseconds of one layer. ``held``: theirs past their table. ``launched``: ours is the host's time."""

    point: Point
    ours_us: float
    theirs_us: float | None
    held: bool
    launched: bool
    use: Callable[[float], float]  # MBU or MFU at so many microseconds

    @property
    def ratio(self) -> float | None:
        """Ours over theirs in MBU or MFU."""
        return self.theirs_us / self.ours_us if self.theirs_us else None

    @property
    def compared(self) -> bool:
        return self.theirs_us is not None and not self.held and not self.launched


def spec(gpu: str) -> Ceiling:
    return next(each for each in gpu_ceilings(NAMES[gpu]) if each.kind == "spec")


def used(point: Point, shape: Attention, ceiling: Ceiling) -> Callable[[float], float]:
    if point.kind == "decode":
        of_memory = shape.decode(point.context, BF16).bytes * point.batch / ceiling.bytes_per_s
        return lambda us: of_memory / (us / 1e6)
    of_compute = shape.prefill(point.context, 0, BF16).flops * point.batch / ceiling.flops_per_s
    return lambda us: of_compute / (us / 1e6)


def kernels(world: World, gpu: str) -> list[Kernel]:
    """The H200's file has launched calls of ``flash_attn3`` only, the H100's CUDA graphs as well."""
    body = read_json(LAYERS[gpu])
    sizes = body["shape"]
    shape = Attention(sizes["heads"], sizes["kv_heads"], sizes["head_size"])
    timed = (body if "results" in body else body["runs"][0])["results"][USUAL]
    found: list[Kernel] = []
    for point in POINTS["cuda"]:
        own = timed[point.label]
        graph = own.get("graph_us")
        ours = graph or own["median_us"]
        times = world.attention(gpu, point.kind, shape)
        theirs = times.get(point.batch, {}).get(point.context)
        held = theirs is None
        if held:
            theirs = past_the_table(point, times)
        launched = graph is None and ours < HOSTS_US
        found.append(Kernel(point, ours, theirs, held, launched, used(point, shape, spec(gpu))))
    return found


def past_the_table(point: Point, times: dict[int, dict[int, float]]) -> float | None:
    """By the rate at their longest context of as many sequences: what AIConfigurator itself assumes."""
    if point.kind == "prefill":
        return whole_prompt_us(times, point.context)
    row = times.get(point.batch, {})
    return row[max(row)] * point.context / max(row) if row else None


def kernel_table(gpu: str) -> str:
    found = kernels(load_world(), gpu)
    head = (
        "point | > ours, µs | > theirs, µs | of the peak | > ours | > theirs | "
        "> ours ÷ theirs | compared"
    )
    lines: list[list[str]] = []
    for each in found:
        said = "held from 16,384" if each.held else "no: launch time" if each.launched else "yes"
        theirs = each.theirs_us
        lines.append(
            [
                each.point.label,
                significant(each.ours_us),
                significant(theirs) if theirs else DASH,
                "MBU" if each.point.kind == "decode" else "MFU",
                significant(each.use(each.ours_us)),
                significant(each.use(theirs)) if theirs else DASH,
                significant(each.ratio) if each.ratio and not each.launched else DASH,
                said,
            ]
        )
    return table(head, lines) + "\n" + verdict(found)


def verdict(found: list[Kernel]) -> str:
    ratios = {each.point.label: each.ratio for each in found if each.compared and each.ratio}
    beyond = [f"{label} ({signed(r)})" for label, r in ratios.items() if abs(r - 1) > WITHIN]
    near = [r for r in ratios.values() if abs(r - 1) <= WITHIN]
    said = (
        f"Of {len(ratios)} points that compare, {len(near)} lie within 10 %, "
        f"from {signed(min(near))} to {signed(max(near))}"
    )
    return f"{said}; beyond: {', '.join(beyond)}.\n" if beyond else f"{said}.\n"


def signed(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


# -- whole steps --------------------------------------------------------------------------------------------


def row_of(path: Path) -> Row | None:
    """A run as the H200 page has it, without the other runs of its report; None where it is not usable."""
    run = load_run(path)
    point = analyse(run)
    if point.window is None or not point.usable:
        return None
    uses = phase_uses(run, point.window, run_ceilings(run, None))
    return Row(
        piece=path.parent.relative_to(RESULTS).as_posix(),
        link=path.relative_to(RESULTS).as_posix(),
        point=point,
        run=run,
        uses={use.phase: use for use in uses},
        bounds={},
        engine_share=gather(run, point.window, point).engine_share,
    )


@cache
def rows_of(piece: str) -> tuple[Row, ...]:
    """First copies of ``flash_attn3`` with a plain cache, by context and users."""
    manifests = sorted((RESULTS / piece).glob(f"*-{USUAL}-*/manifest.json"))
    found = [row for path in manifests if usual(path) and (row := row_of(path.parent))]
    return tuple(sorted(found, key=lambda row: (row.point.context_tokens, row.users, row.link)))


def usual(manifest: Path) -> bool:
    body = read_json(manifest)
    server = body["server"]
    plain = (server["kv_cache_dtype"], server["vllm_version"]) == ("auto", USUAL_VLLM)
    return plain and load_run(manifest.parent).identity.replicate.arm == 0


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


@cache
def steps() -> tuple[Step, ...]:
    world = load_world()
    return tuple(step(world, row, phase) for piece, phase in STEPS for row in rows_of(piece))


def step_table(phase: PhaseName) -> str:
    peak = spec("H200")
    meter = "MBU" if phase == "decode" else "MFU"
    head = (
        "model | > context | run | > sequences that decode | > ours, ms | > their attention, ms | "
        f"> matrices and head | > sum | > sum ÷ ours | > {meter}, ours | > by their sum | "
        "> a kernel ran | > SM clock, MHz"
    )
    lines: list[list[str]] = []
    for each in of_phase(phase):
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
                or_dash(each.row.engine_share),
                shown(each.row, "SM clock"),
            ]
        )
    shares = [each.share for each in of_phase(phase) if each.share]
    near = sum(abs(share - 1) <= WITHIN for share in shares)
    return (
        f"{table(head, lines)}\nTheir sum is {significant(min(shares))} to {significant(max(shares))} "
        f"of our step; within 10 % in {near} of {len(shares)}.\n"
    )


def of_phase(phase: PhaseName) -> list[Step]:
    return [each for each in steps() if each.use.phase == phase]


def matrix_rates() -> str:
    """How fast their matrices are in the prefill steps, and what such a card holds out."""
    (held,) = (each for each in gpu_ceilings(NAMES["H200"]) if each.kind == "measured")
    rates = [
        each.linear_flops / each.linear_ms * 1e3 for each in of_phase("prefill") if each.linear_ms
    ]
    least, most, sustained = (
        significant(x / 1e12) for x in (min(rates), max(rates), held.flops_per_s)
    )
    return (
        f"Their matrices run at {least} to {most} TFLOP/s in these steps. A matmul of 8192³ on such a card "
        f"sustained {sustained} at its power limit (`configs/gpus.yaml`).\n"
    )


def or_dash(value: float | None) -> str:
    return DASH if value is None else significant(value)


# -- joules a token -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Energy:
    """``gb_per_token``: least bytes that cross the memory bus, over the tokens that they yield."""

    who: str
    gpu: str
    context: str
    sequences: float
    j_per_token: float
    watts: float
    gb_per_token: float

    @property
    def j_per_gb(self) -> float:
        return self.j_per_token / self.gb_per_token


def ours(row: Row) -> Energy | None:
    joules, watts, use = figure(row, "J/output token"), figure(row, "power"), row.uses["decode"]
    if joules is None or watts is None:
        return None
    return Energy(
        who=f"ours: [{row.point.model}]({row.link})",
        gpu="H200",
        context=row.context,
        sequences=row.users,
        j_per_token=joules,
        watts=watts,
        gb_per_token=use.bytes_per_s * use.seconds / use.decode_tokens / 1e9,
    )


def theirs(row: Served, model: ModelWork) -> Energy:
    """Context: half the mean output, which the mean over tokens is not below; prompts are not told."""
    context = row.mean_output_tokens / 2
    n = row.mean_sequences
    moved = model.step_weights(n) + model.decode_token(context) * n
    return Energy(
        who=f"{row.model.split('/')[1]}, {row.task}",
        gpu="H100",
        context=f"≥ {significant(context)}",
        sequences=n,
        j_per_token=row.j_per_token,
        watts=row.watts,
        gb_per_token=moved.bytes / n / 1e9,
    )


@cache
def our_energies() -> tuple[tuple[int, int, Energy], ...]:
    """Context and users of each run that decodes alone and has joules."""
    found = ((row, ours(row)) for row in rows_of(DECODE_ALONE))
    return tuple((row.point.context_tokens, row.users, each) for row, each in found if each)


def their_energies() -> dict[tuple[str, int], Energy]:
    """By task and most sequences."""
    published = load_world().ml_energy
    models = {name: model_work(config) for name, config in published.models.items()}
    return {
        (row.task, row.max_sequences): theirs(row, model)
        for row in published.rows
        if (model := models[row.model])
    }


def energy_table() -> str:
    head = (
        "who | card | > context | > sequences | > J / output token | > W | "
        "> GB a token, at least | > J / GB"
    )
    lines = [
        [
            each.who,
            each.gpu,
            each.context,
            significant(each.sequences),
            significant(each.j_per_token),
            significant(each.watts),
            significant(each.gb_per_token),
            significant(each.j_per_gb),
        ]
        for each in (*(own for _, _, own in our_energies()), *their_energies().values())
    ]
    return table(head, lines)


def pair_table() -> str:
    """Ours over theirs in joules a token, and in joules a gigabyte."""
    lines: list[list[str]] = []
    tokens: list[float] = []
    moved: list[float] = []
    for (context, users), other in PAIRS:
        one = next(each for c, n, each in our_energies() if (c, n) == (context, users))
        two = their_energies()[other]
        tokens.append(one.j_per_token / two.j_per_token)
        moved.append(one.j_per_gb / two.j_per_gb)
        name = f"{users} users at {context:,} ÷ {two.who}, {significant(two.sequences)}"
        lines.append([name, significant(tokens[-1]), significant(moved[-1])])
    return (
        table("ours ÷ theirs | > J / output token | > J / GB", lines)
        + f"\nWithin 2× a token: {within_twice(tokens)}; within 2× a gigabyte: {within_twice(moved)}.\n"
    )


def within_twice(ratios: list[float]) -> str:
    return f"{sum(0.5 <= ratio <= 2 for ratio in ratios)} of {len(ratios)}"


def sources() -> str:
    world = load_world()
    told = {
        "AIConfigurator": world.aiconfigurator.source,
        "ML.ENERGY": world.ml_energy.source,
    }
    return "".join(
        f"* **{name}**: [{each.repository.removeprefix('https://github.com/')}]({each.repository}), "
        f"commit `{each.commit[:12]}`; licence {each.licence}.\n"
        for name, each in told.items()
    )


# -- the page -----------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], str]] = {
    "kernels-h200": lambda: kernel_table("H200"),
    "kernels-h100": lambda: kernel_table("H100"),
    "steps-decode": lambda: step_table("decode"),
    "steps-prefill": lambda: step_table("prefill") + matrix_rates(),
    "energy": energy_table,
    "pairs": pair_table,
    "sources": sources,
}


def filled(text: str) -> str:
    """The page with its tables as the files have them. UserError for a table that is none of TABLES."""

    def one(place: re.Match[str]) -> str:
        if place["name"] not in TABLES:
            raise UserError(
                f"{PAGE.name}: no table '{place['name']}'; there are {', '.join(TABLES)}"
            )
        return f"{place[1]}{TABLES[place['name']]()}{place[3]}"

    return PLACE.sub(one, text)


def main() -> int:
    write_atomic(PAGE, filled(PAGE.read_text()))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
