"""Joules a token, and a gigabyte that it must read: ours that decode alone beside ML.ENERGY's rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from analysis.model.work import ModelWork, model_work
from analysis.report.formats import significant
from scripts.markdown_table import table
from scripts.results_rows import Row, figure
from scripts.world.published import MlEnergy, Served

# ours by (context, users), theirs by (task, most sequences): those of nearly as many sequences
PAIRS = (
    ((8192, 8), ("lm-arena-chat", 8)),
    ((8192, 8), ("gpqa", 8)),
    ((8192, 119), ("lm-arena-chat", 128)),
    ((8192, 119), ("gpqa", 96)),
)


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


Own = dict[tuple[int, int], list[Energy]]  # by context and users
Others = dict[tuple[str, int], Energy]  # by task and most sequences


def our_energies(rows: Iterable[Row]) -> Own:
    """Of each run that has joules."""
    found: Own = {}
    for row in rows:
        if each := ours(row):
            found.setdefault((row.point.context_tokens, row.users), []).append(each)
    return found


def their_energies(published: MlEnergy) -> Others:
    models = {name: model_work(config) for name, config in published.models.items()}
    return {
        (row.task, row.max_sequences): theirs(row, model)
        for row in published.rows
        if (model := models[row.model])
    }


def energy_table(own: Own, others: Others) -> str:
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
        for each in (*chain.from_iterable(own.values()), *others.values())
    ]
    return table(head, lines)


def pair_table(own: Own, others: Others) -> str:
    """Ours over theirs in joules a token, and in joules a gigabyte."""
    lines: list[list[str]] = []
    tokens: list[float] = []
    moved: list[float] = []
    for (context, users), other in PAIRS:
        one, two = own[context, users][0], others[other]
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
