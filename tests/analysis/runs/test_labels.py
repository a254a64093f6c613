"""Words that tell apart what is apart, and no more of them."""

from analysis.runs.identity import DeviceKind
from analysis.runs.labels import device_words

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
