"""Totals over a server's cards, from lines that each worker writes of its own."""

import pytest

from greenbench.contract.vllm_log import GIB, cards, total_bytes

LINE = r"took ([\d.]+) GiB"
ENGINE = (
    "1.0 (EngineCore pid=9) INFO Initializing a V1 LLM engine with config: tensor_parallel_size={}, "
    "pipeline_parallel_size={}, data_parallel_size={}, seed=0"
)


def log(*said: tuple[str, float], size: tuple[int, int, int] | None = None) -> str:
    lines = [f"2.0 ({worker}) INFO 03-01 Model loading took {gib} GiB" for worker, gib in said]
    return "\n".join([*([ENGINE.format(*size)] if size else []), *lines])


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        (log(("Worker_TP0 pid=1", 7.5), ("Worker_TP1 pid=2", 7.25)), 14.75),
        (log(("EngineCore pid=1", 7.5)), 7.5),
        ("2.0 INFO Model loading took 7.5 GiB", 7.5),
        # of one worker the last word counts, as after a second load
        (
            log(("Worker_TP0 pid=1", 7.0), ("Worker_TP1 pid=2", 7.0), ("Worker_TP0 pid=1", 8.0)),
            15.0,
        ),
        # newer versions: the first of four speaks for all
        (log(("Worker_TP0 pid=1", 2.5), size=(4, 1, 1)), 10.0),
        (log(("Worker_DP0_TP0 pid=1", 2.5), ("Worker_DP1_TP0 pid=2", 3.0), size=(2, 1, 2)), 11.0),
        (log(("EngineCore_DP0 pid=1", 5.0), ("EngineCore_DP1 pid=2", 5.0), size=(1, 1, 2)), 10.0),
        # stages of a pipeline hold unequal parts: all of them speak, or it is not known
        (log(("Worker_PP0 pid=1", 3.0), ("Worker_PP1 pid=2", 4.0), size=(1, 2, 1)), 7.0),
        (log(("Worker_PP0 pid=1", 3.0), size=(1, 2, 1)), None),
        ("nothing of the kind", None),
    ],
)
def test_workers_are_totalled(text: str, gib: float | None) -> None:
    assert total_bytes(text, LINE) == (None if gib is None else round(gib * GIB))


def test_ray_and_colours() -> None:
    ray = "\x1b[36m(RayWorkerWrapper pid=7, ip=10.0.0.2)\x1b[0m INFO took 4.0 GiB"
    assert total_bytes(f"{ray}\n(EngineCore pid=1) INFO took 3.0 GiB", LINE) == 7 * GIB


def test_the_engines_description_gives_the_cards() -> None:
    assert cards(ENGINE.format(4, 2, 3)) == (24, 2)
    assert cards("") == (1, 1)
