"""Words that tell apart what is apart, and no more of them."""

from analysis.runs.identity import DeviceKind
from analysis.runs.labels import apart_words, device_words

H200 = DeviceKind("Xeon", 32, ("NVIDIA H200",), "580.1")


def test_one_card_beside_another_needs_no_processor() -> None:
    h100 = DeviceKind("Xeon", 16, ("NVIDIA H100",), "580.1")
    told = device_words([H200, h100])
    assert told == {H200: "NVIDIA H200 (driver 580.1)", h100: "NVIDIA H100 (driver 580.1)"}


def test_the_same_card_in_two_hosts_is_named_with_them() -> None:
    half = DeviceKind("Xeon", 16, ("NVIDIA H200",), "580.1")
    assert device_words([H200, half, H200]) == {
        H200: "NVIDIA H200 (driver 580.1), Xeon (32 cores)",
        half: "NVIDIA H200 (driver 580.1), Xeon (16 cores)",
    }


def test_beside_a_load_stands_only_what_is_apart() -> None:
    half, other = (DeviceKind(cpu, 16, ("NVIDIA H200",), "580.1") for cpu in ("Xeon", "EPYC"))
    h100 = DeviceKind("Xeon", 16, ("NVIDIA H100",), "580.1")
    assert apart_words([H200, half]) == {H200: "32 CPU cores", half: "16 CPU cores"}
    assert apart_words([H200, other]) == {H200: "Xeon (32 cores)", other: "EPYC (16 cores)"}
    assert apart_words([H200, h100]) == device_words([H200, h100])
