"""Which cards CUDA shows: each rule by hand, and numbers against a second reading of the same rules."""

import itertools
from collections.abc import Sequence

import pytest

from greenbench.contract.cuda_devices import CudaCard, capability_of, model_of, shown

T4 = CudaCard("GPU-aa-1", "Tesla T4", (7, 5), 16 << 30)
H100 = CudaCard("GPU-bb-1", "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
OTHER_H100 = CudaCard("GPU-bc-2", "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
RTX = CudaCard("GPU-cc-1", "NVIDIA GeForce RTX 4060", (8, 9), 8 << 30)
A100 = CudaCard("GPU-dd-1", "NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30)
BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def chosen(cards: Sequence[CudaCard | None], visible: str | None, **environ: str) -> object:
    """UUIDs in CUDA's order; None where it cannot be told."""
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return shown(cards, given | environ).uuids


def test_the_fastest_is_device_0_unless_the_bus_order_is_asked_for() -> None:
    cards = [T4, H100]
    for order in ({}, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}):
        assert chosen(cards, "0", **order) == (H100.uuid,)
        assert chosen(cards, "1", **order) == (T4.uuid,)
        assert chosen(cards, None, **order) == (H100.uuid, T4.uuid)
    assert chosen(cards, "0", **BUS) == (T4.uuid,)
    assert chosen(cards, None, **BUS) == (T4.uuid, H100.uuid)
    # what is neither is not documented: of two unequal cards 0 may be any
    assert chosen(cards, "0", CUDA_DEVICE_ORDER="pci") is None


def test_where_the_order_cannot_be_told_only_uuids_and_the_whole_set_can() -> None:
    """A newer card with less memory may be the slower one; past the fastest CUDA promises no order."""
    assert chosen([RTX, A100], "0") is None
    assert chosen([RTX, A100], "0", **BUS) == (RTX.uuid,)
    assert chosen([RTX, A100], A100.uuid) == (A100.uuid,)
    assert set(chosen([RTX, A100], None)) == {RTX.uuid, A100.uuid}  # type: ignore[call-overload]
    three = [T4, H100, RTX]
    assert chosen(three, "0") == (H100.uuid,)
    assert chosen(three, "1") is None
    assert set(chosen(three, "2,1")) == {T4.uuid, RTX.uuid}  # type: ignore[call-overload]
    assert chosen([T4, H100, OTHER_H100], "0") is None  # one of the two, which is not promised


def test_equal_cards_keep_the_order_of_the_bus() -> None:
    assert chosen([H100, OTHER_H100], "1") == (OTHER_H100.uuid,)
    assert chosen([H100, OTHER_H100], "1,0") == (OTHER_H100.uuid, H100.uuid)


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),  # as Slurm writes it
        ("0,-1,1", (H100.uuid,)),
        ("0,7,1", (H100.uuid,)),
        ("0,,1", (H100.uuid,)),
        (" 0 , 1 ", (H100.uuid, OTHER_H100.uuid)),
        ("1x", (OTHER_H100.uuid,)),  # as strtoul reads it
        ("0,0", ()),
        ("GPU-bb", (H100.uuid,)),
        ("GPU-b", ()),  # two begin so
        ("GPU-bb,GPU-zz,GPU-bc", (H100.uuid,)),
        ("GPU-bc, GPU-bb", (OTHER_H100.uuid, H100.uuid)),
        ("GPU-bb,GPU-bb-1", ()),
        ("all", ()),
    ],
)
def test_the_list_is_read_up_to_the_first_entry_that_is_no_device(
    visible: str, uuids: tuple[str, ...]
) -> None:
    assert chosen([H100, OTHER_H100], visible) == uuids


def by_hand(visible: list[int], count: int) -> tuple[int, ...]:
    """Numbers as the programming guide puts it: up to the first invalid one; the same twice leaves none."""
    valid = list(itertools.takewhile(lambda n: 0 <= n < count, visible))
    return tuple(valid) if len(set(valid)) == len(valid) else ()


def test_numbers_against_a_second_reading() -> None:
    cards = [CudaCard(f"GPU-{n}", "NVIDIA H200") for n in range(3)]
    for visible in itertools.product(range(-1, 4), repeat=3):
        expected = tuple(f"GPU-{n}" for n in by_hand(list(visible), 3))
        assert chosen(cards, ",".join(map(str, visible))) == expected


def test_behind_a_card_that_cannot_be_read_numbers_are_not_told() -> None:
    """CUDA may count it or not. Before it they mean the same either way."""
    assert chosen([H100, None], "0") == (H100.uuid,)
    third = CudaCard("GPU-ee-3", H100.name)
    cards = [H100, None, OTHER_H100, third]
    assert chosen(cards, "0") == (H100.uuid,)
    assert chosen(cards, "1") is None
    assert chosen(cards, third.uuid) == (third.uuid,)
    assert set(chosen(cards, None)) == {H100.uuid, OTHER_H100.uuid, third.uuid}  # type: ignore[call-overload]


def test_one_mig_device_is_shown_and_no_whole_card_beside_it() -> None:
    parted = CudaCard("GPU-aa", "NVIDIA H200", mig=True, mig_uuids=("MIG-1111", "MIG-2222"))
    whole = CudaCard("GPU-bb", "NVIDIA H200")
    assert chosen([whole, parted], None) == ("GPU-aa",)
    assert chosen([whole, parted], "MIG-22") == ("GPU-aa",)
    assert chosen([whole, parted], "MIG-GPU-aa/1/0") == ("GPU-aa",)
    assert chosen([whole, parted], "MIG-33") == ()
    assert chosen([whole, parted], "GPU-bb") == ("GPU-bb",)
    second = CudaCard("GPU-cc", "NVIDIA H200", mig=True, mig_uuids=("MIG-3333",))
    assert chosen([parted, second], None) is None
    empty = CudaCard("GPU-dd", "NVIDIA H200", mig=True, mig_uuids=())
    assert chosen([empty, whole], None) == ("GPU-bb",)
    unlisted = CudaCard(
        "GPU-ee", "NVIDIA H200", mig=True
    )  # nvidia-smi says that MIG is on, and no more
    assert chosen([whole, unlisted], "MIG-99") == ("GPU-ee",)


def test_what_a_driver_does_not_say_follows_from_the_model() -> None:
    assert capability_of("NVIDIA H100 80GB HBM3", "9.0") == (9, 0)
    assert capability_of("Tesla T4", "[N/A]") == capability_of("NVIDIA Tesla T4") == (7, 5)
    assert capability_of("A100-SXM4-80GB") == (8, 0)  # as drivers before 470 write it
    assert capability_of("NVIDIA GB200") == (10, 0)
    assert capability_of("NVIDIA H1000") is None and capability_of("") is None
    named = [CudaCard("GPU-1", "Tesla T4"), CudaCard("GPU-2", "NVIDIA H200")]
    assert chosen(named, "0") == ("GPU-2",)
    assert (
        model_of("NVIDIA H200 NVL") == "H200 NVL"
        and model_of("Tesla V100-SXM2-16GB") == "V100-SXM2-16GB"
    )
