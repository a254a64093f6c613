"""One layer's attention alone: ours beside AIConfigurator's table, in MBU and MFU of the spec sheet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analysis.bottleneck.peaks import Ceiling
from analysis.model.work import Attention
from analysis.report.formats import DASH, significant
from scripts.markdown_table import or_dash, table
from scripts.results_rows import USUAL
from scripts.world.between_points import whole_prompt_us
from scripts.world.peaks import spec
from scripts.world.published import Card, World
from servers.bench.arms import POINTS, Point

BF16 = 2  # bytes
HOSTS_US = 200.0  # a launched row below is the host's time: docs/backends.md
WITHIN = 0.10


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


def used(point: Point, shape: Attention, ceiling: Ceiling) -> Callable[[float], float]:
    if point.kind == "decode":
        of_memory = shape.decode(point.context, BF16).bytes * point.batch / ceiling.bytes_per_s
        return lambda us: of_memory / (us / 1e6)
    of_compute = shape.prefill(point.context, 0, BF16).flops * point.batch / ceiling.flops_per_s
    return lambda us: of_compute / (us / 1e6)


def kernels(world: World, gpu: Card, body: dict[str, Any]) -> list[Kernel]:
    """``body``: of layers.json. The H200's has launched calls of ``flash_attn3`` only, the H100's CUDA graphs
    as well.
    """
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


def kernel_section(found: list[Kernel]) -> str:
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
                or_dash(theirs),
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
