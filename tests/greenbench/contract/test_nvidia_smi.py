"""nvidia-smi's answers: any cell may hold a reason in place of a value, any card may be lost."""

import pytest

from greenbench.contract.nvidia_smi import FIELDS, SmiCard, ask, number, parse

H200 = "0, GPU-1, NVIDIA H200, 143771, 700.00, 9.0, Disabled, 580.1"
T4 = "1, GPU-2, Tesla T4, 15360, [N/A], 7.5, [N/A], 580.1"


def test_cells_in_base_units_and_missing_where_a_reason_stands() -> None:
    first, second = parse(f"{H200}\n{T4}\n").cards
    assert first == SmiCard(
        0, "GPU-1", "NVIDIA H200", 143771 * 2**20, 700.0, (9, 0), False, "580.1"
    )
    assert (second.memory_bytes, second.power_limit_w, second.mig) == (15360 * 2**20, None, None)


@pytest.mark.parametrize(
    "reason",
    ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[GPU requires reset]", "ERR!", ""],
)
def test_a_reason_in_any_column_costs_that_column(reason: str) -> None:
    """A GB10 has the host's memory and no limit; others lack other things."""
    cells = ["0", "GPU-1", "NVIDIA GB10", "1024", "60.00", "12.1", "Enabled", "580.1"]
    whole = parse(", ".join(cells)).cards[0]
    columns = ["memory_bytes", "power_limit_w", None, "mig", "driver"]
    for place, column in zip(range(3, 8), columns, strict=True):
        [card] = parse(", ".join([*cells[:place], reason, *cells[place + 1 :]])).cards
        if column is None:  # the capability follows from the model
            assert card == whole
            continue
        assert getattr(card, column) is None and getattr(whole, column) is not None


def test_a_lost_card_is_said_and_the_others_stand() -> None:
    lost = "Unable to determine the device handle for GPU1: 0000:3B:00.0: GPU is lost. Reboot the system"
    row = ", ".join(["1", *["[GPU is lost]"] * 7])
    for told in (f"{H200}\n{lost}\n", f"{H200}\n{row}\n"):
        found = parse(told)
        assert [card.uuid for card in found.cards] == ["GPU-1"]
        assert len(found.faults) == 1 and "GPU is lost" in found.faults[0]
        assert found.shown({"CUDA_VISIBLE_DEVICES": "0"}).uuids == ("GPU-1",)


def test_what_is_no_row_is_no_card() -> None:
    said = (
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.1\n"
    )
    found = parse(said)
    assert found.cards == () and len(found.faults) == 2
    assert parse("").cards == parse("No devices were found").cards == ()


def test_a_field_that_an_older_driver_does_not_know_is_left_out_of_the_question() -> None:
    asked: list[str] = []

    def driver_470(argv: list[str]) -> str:
        query = argv[1].removeprefix("--query-gpu=").split(",")
        asked.append(argv[1])
        for field in ("compute_cap", "mig.mode.current"):
            if field in query:
                return f'Field "{field}" is not a valid field to query.\n'
        values = dict(zip(FIELDS, H200.split(", "), strict=True))
        return ", ".join(values[field] for field in query)

    [card] = ask(driver_470).cards
    assert (card.capability, card.mig, card.memory_bytes) == ((9, 0), None, 143771 * 2**20)
    assert len(asked) == 3
    assert ask(lambda argv: 'Field "x" is not a valid field to query.').cards == ()


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("700.00 W", 700.0), ("400,10 W", 400.1), ("90 %", 90.0), ("81559", 81559.0), ("-1", -1.0),
        ("[N/A]", None), ("1,000 MiB", None), ("1.2.3", None), ("lots", None), (None, None),
    ],
)  # fmt: skip
def test_a_number_is_whole_or_none(cell: str | None, value: float | None) -> None:
    """Never a part of it: 400 for 400,10 would be a reading that nobody made."""
    assert number(cell) == value
