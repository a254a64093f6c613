"""Clients that speak HTTP oddly, slowly or without end: each is answered in kind, and nobody else waits."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

import gateway.connection
import gateway.proxy
from tests.fakes.gateways import gateway as running
from tests.fakes.pool_server import FakePool

BODY = json.dumps({"model": "m", "prompt": [1, 2, 3], "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, FakePool]]:
    patch = pytest.MonkeyPatch()
    patch.setattr(gateway.proxy, "BODY_S", 1.0)
    patch.setattr(gateway.connection, "HEAD_S", 1.0)
    folder = tmp_path_factory.mktemp("odd")
    with (
        FakePool("short") as pool,
        FakePool("long") as other,
        running(folder, [pool, other], "--max-body-mib", "1") as gate,
    ):
        yield int(gate.url.rpartition(":")[2]), pool
    patch.undo()


def said(port: int, *parts: bytes) -> bytes:
    """All that the gateway answers until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for part in parts:
            client.sendall(part)
        while part := client.recv(2**16):
            answer += part
    return answer


def post(length: int, *more: bytes) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"host: x", b"connection: close"]
    return b"\r\n".join([*lines, b"content-length: %d" % length, *more, b"", b""])


def test_an_endless_head_is_refused(port: tuple[int, FakePool]) -> None:
    """It took uvicorn seconds in which no stream went on."""
    began = time.monotonic()
    try:
        answer = said(port[0], post(0)[:-2] + b"x-endless: ", b"v" * 20_000_000)
    except ConnectionError:  # closed while it was still sending
        answer = b""
    assert answer[9:12] in (b"", b"431")
    assert time.monotonic() - began < 5


def test_a_long_head_within_the_bound_passes(port: tuple[int, FakePool]) -> None:
    lines = [b"x-%d: %s" % (n, b"v" * 4000) for n in range(25)]
    assert said(port[0], post(len(BODY), *lines), BODY)[9:12] == b"200"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(9)[:-2], b""),  # a head that does not end
        (post(9) + b"{", b"408"),  # a body that does not
        (b"", b""),  # nothing at all
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"400"),
        (post(len(BODY), b"content-length: 3") + BODY, b"400"),
        (post(len(BODY), b"transfer-encoding: chunked") + BODY, b"400"),
        (post(len(BODY), b"x-request-id: a\nx-evil: 1") + BODY, b"400"),
    ],
    ids=["head", "body", "nothing", "no path", "two lengths", "length and chunks", "bare LF"],
)
def test_what_is_slow_or_no_request_ends(
    port: tuple[int, FakePool], sent: bytes, status: bytes
) -> None:
    before = len(port[1].asked)
    assert said(port[0], sent)[9:12] == status
    assert len(port[1].asked) == before


def test_who_sends_too_much_comes_to_read_why(port: tuple[int, FakePool]) -> None:
    """Closed with bytes on the way, the connection is reset, and the reason is lost."""
    answer = said(port[0], post(2**23), b"x" * 2**23)
    assert answer[9:12] == b"413" and b"larger than 1 MiB" in answer


@pytest.mark.parametrize("value", ["café".encode(), b"caf\xe9"])
def test_headers_pass_as_text_whatever_they_are(port: tuple[int, FakePool], value: bytes) -> None:
    """UTF-8 as it is; Latin-1, which aiohttp cannot write, as UTF-8."""
    assert said(port[0], post(len(BODY), b"x-request-id: " + value), BODY)[9:12] == b"200"
    assert port[1].asked[-1].headers["x-request-id"].encode("latin-1") == "café".encode()
