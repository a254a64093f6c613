"""Which of the cards that a reader lists a server can use: by the server's own environment, not by ours."""

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import psutil

from greenbench.contract.access import Access
from telemetry.sensors.gpu import Reader, shown_gpus

# Programs that listen for a server which runs elsewhere: whose cards it uses cannot be told here.
FORWARDERS = frozenset((
    "ssh", "sshd", "autossh", "kubectl", "nginx", "haproxy", "envoy", "caddy", "traefik", "socat",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """The process of a server at an address, as far as it can be seen from here."""

    pid: int | None = None
    environ: Mapping[str, str] | None = None  # of that process
    elsewhere: str | None = None  # why the server is not on this machine, or may not be


class Machine(Protocol):
    """What is asked of the operating system."""

    def environ(self, pid: int) -> Mapping[str, str] | None: ...
    def listeners(self, port: int) -> list[int]: ...
    def program(self, pid: int) -> str | None: ...
    def parent(self, pid: int) -> int | None: ...
    def is_here(self, host: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Cards:
    """UUIDs of the cards that may be the server's. ``certain``: it can use each of them; ``why`` says why not
    so, or why none is its own.
    """

    uuids: frozenset[str]
    certain: bool = True
    why: str | None = None


def find_server(pid: int | None, base_url: str | None, machine: Machine) -> Found:
    """The server by its pid, else by who listens at its address."""
    if pid is not None:
        return Found(pid, machine.environ(pid))
    if base_url is None:
        return Found()
    address = Access(base_url)
    if not machine.is_here(address.host):
        return Found(elsewhere=f"the server runs at {address.host}, not on this machine")
    listening = machine.listeners(address.port)
    first = next((each for each in listening if machine.parent(each) not in listening), None)
    if first is None:
        return Found()
    program = machine.program(first)
    if program in FORWARDERS:
        where = urlsplit(base_url).netloc
        return Found(
            elsewhere=f"at {where} listens {program}, which passes on to a server elsewhere"
        )
    return Found(first, machine.environ(first))


def server_cards(reader: Reader, found: Found, attached: bool) -> Cards:
    """``attached``: somebody else started the server, so our environment need not be its own."""
    listed = frozenset(gpu.uuid for gpu in reader.gpus())
    if found.elsewhere and reader.host is None:
        return Cards(frozenset(), why=found.elsewhere)
    shown = shown_gpus(reader, os.environ if found.environ is None else found.environ)
    if shown.uuids is None:
        why = "CUDA's order of unequal cards cannot be told; set CUDA_DEVICE_ORDER=PCI_BUS_ID or give UUIDs"
        return Cards(shown.possible & listed, False, why)
    if found.environ is None and attached and reader.host is None:
        return Cards(frozenset(shown.uuids), False, "the environment of the server cannot be read")
    why = None if shown.uuids else "CUDA_VISIBLE_DEVICES leaves no card"
    return Cards(frozenset(shown.uuids), why=why)


class ThisMachine:
    """The operating system, by psutil; what it refuses is None or empty."""

    def environ(self, pid: int) -> Mapping[str, str] | None:
        try:
            # empty where a process wrote its title over it, as vLLM's do
            return psutil.Process(pid).environ() or None
        except (psutil.Error, OSError):
            return None

    def listeners(self, port: int) -> list[int]:
        try:
            found = psutil.net_connections(kind="tcp")
        except (psutil.Error, OSError):
            return []
        here = [each for each in found if each.status == psutil.CONN_LISTEN and each.pid]
        return sorted({each.pid for each in here if each.laddr and each.laddr[1] == port})  # type: ignore[misc]

    def program(self, pid: int) -> str | None:
        try:
            return psutil.Process(pid).name()
        except psutil.Error:
            return None

    def parent(self, pid: int) -> int | None:
        try:
            return psutil.Process(pid).ppid()
        except psutil.Error:
            return None

    def is_here(self, host: str) -> bool:
        """Whether the name means an address of this machine. One that cannot be looked up does not."""
        try:
            meant = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        except (OSError, UnicodeError):
            return False
        return bool(meant & _own_addresses()) or any(each.startswith("127.") for each in meant)


def _own_addresses() -> set[str]:
    listed: Iterable[str] = (
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
    )
    return {*listed, "::1", "0.0.0.0", "::"}  # noqa: S104  compared with
