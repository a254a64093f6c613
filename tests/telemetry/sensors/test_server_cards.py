"""Which cards are a server's: by its own process and environment, told by a machine that plays a part."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
import pytest

from telemetry.sensors.server_cards import Found, ThisMachine, find_server, server_cards
from tests.fakes.nvml import FakeGpu, FakeReader, constant

SLOW = FakeGpu(constant(60), 0, "GPU-a", "Tesla T4")
FAST = FakeGpu(constant(400), 1, "GPU-b", "NVIDIA H100 80GB HBM3")


def reader(*cards: FakeGpu, host: str | None = None) -> FakeReader:
    return FakeReader(list(cards), lambda: 0, host=host)


@dataclass
class Machine:
    """Processes by pid: (parent, program, environment or None where it is refused)."""

    processes: Mapping[int, tuple[int, str, Mapping[str, str] | None]] = field(
        default_factory=dict[int, tuple[int, str, "Mapping[str, str] | None"]]
    )
    ports: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    here: tuple[str, ...] = ("127.0.0.1", "localhost")

    def environ(self, pid: int) -> Mapping[str, str] | None:
        return self.processes[pid][2]

    def listeners(self, port: int) -> list[int]:
        return self.ports.get(port, [])

    def program(self, pid: int) -> str | None:
        return self.processes[pid][1]

    def parent(self, pid: int) -> int | None:
        return self.processes[pid][0]

    def is_here(self, host: str) -> bool:
        return host in self.here


BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_the_servers_own_environment_decides_and_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    machine = Machine({7: (1, "python", BUS | {"CUDA_VISIBLE_DEVICES": "1"})}, {8000: [7]})
    found = find_server(None, "http://127.0.0.1:8000", machine)
    assert found.pid == 7
    assert server_cards(reader(SLOW, FAST), found, attached=True).uuids == {"GPU-b"}


def test_of_several_listeners_the_first_process_is_the_server() -> None:
    processes = {n: (parent, "python", {"X": "1"}) for n, parent in ((9, 8), (8, 1), (12, 8))}
    assert (
        find_server(None, "http://localhost:8000", Machine(processes, {8000: [9, 8, 12]})).pid == 8
    )


def test_no_card_of_this_host_is_a_server_elsewhere_s() -> None:
    """Guards against joules of the card in the laptop that the load is sent from."""
    machine = Machine({5: (1, "ssh", {"X": "1"})}, {8000: [5]})
    for url, words in (("http://gpu-box:8000", "gpu-box"), ("http://127.0.0.1:8000", "ssh")):
        cards = server_cards(reader(FAST), find_server(None, url, machine), attached=True)
        assert cards.uuids == frozenset() and words in (cards.why or "")
    # unless the readings come from over there too
    found = find_server(None, "http://gpu-box:8000", machine)
    assert server_cards(reader(FAST, host="gpu-box"), found, attached=True).uuids == {"GPU-b"}


def test_a_server_whose_environment_cannot_be_read_may_use_any_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = find_server(None, "http://127.0.0.1:8000", Machine())
    cards = server_cards(reader(SLOW, FAST), found, attached=True)
    assert (cards.uuids, cards.certain) == ({"GPU-a", "GPU-b"}, False)
    # one that was started here got ours
    ours = server_cards(reader(SLOW, FAST), Found(7, None), attached=False)
    assert (ours.uuids, ours.certain) == ({"GPU-a", "GPU-b"}, True)


def test_where_cudas_order_cannot_be_told_it_is_said() -> None:
    odd = FakeGpu(constant(100), 0, "GPU-x", "NVIDIA Unheard Of")
    cards = server_cards(reader(odd, FAST), Found(7, {"CUDA_VISIBLE_DEVICES": "0"}), attached=False)
    assert (cards.uuids, cards.certain) == ({"GPU-x", "GPU-b"}, False)
    assert "CUDA_DEVICE_ORDER" in (cards.why or "")
    none = server_cards(reader(FAST), Found(7, {"CUDA_VISIBLE_DEVICES": ""}), attached=False)
    assert (none.uuids, none.why) == (frozenset(), "CUDA_VISIBLE_DEVICES leaves no card")


def test_the_real_machine_finds_this_process() -> None:
    import socket

    machine = ThisMachine()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert os.getpid() in machine.listeners(listening.getsockname()[1])
    assert machine.parent(os.getpid()) == os.getppid()
    assert machine.program(os.getpid()) == psutil.Process().name()
    assert (machine.environ(os.getpid()) or {}).get("PATH")
    assert machine.is_here("127.0.0.1") and machine.is_here("localhost")
    assert not machine.is_here("192.0.2.1") and not machine.is_here("no-such-host.invalid")
