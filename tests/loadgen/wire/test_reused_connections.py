"""Connections that servers and proxies close as they like: opened again, sent once more, and counted."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from loadgen.driver.client_audit import Audit
from loadgen.wire.asyncio_loop import AsyncioLoop
from loadgen.wire.connection import Connection, Target, outcome
from loadgen.wire.response import RawReply, Response
from tests.fakes.clients import CLIENTS, PROMPT, fast, request
from tests.fakes.openai_server import (
    GoldenServer,
    Script,
    Seen,
    completion_events,
    sse,
    stream_script,
)

EVENTS = completion_events(len(PROMPT), [1, 1, 1])
MAKE: Callable[[Target, int], Any] = lambda target, number: request(target, 3, number=number)  # noqa: E731


def answers(*scripts: Script) -> Callable[[Seen], Script]:
    """The scripts in turn, the last one for ever."""
    left = list(scripts)
    return lambda seen: left.pop(0) if len(left) > 1 else left[0]


GOOD = stream_script(EVENTS)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_a_standing_connection_that_ends_unanswered_is_opened_again_once(
    client: str, ending: str
) -> None:
    """The server's timer ran out as the request came: it is read, and nobody answers."""
    with GoldenServer(answers(GOOD, Script([], ending), GOOD)) as server:
        first, second = CLIENTS[client](server.url, [MAKE, MAKE])
        connections = [seen.connection for seen in server.seen]
        ids = [seen.request_id for seen in server.seen]
    assert [got.facts.error_type for got in (first, second)] == [None, None]
    assert (first.sent_again, second.sent_again) == (False, True)
    assert connections == [1, 1, 2]
    assert ids == ["r-0", "r-1", "r-1"]


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_sent_no_third_time(client: str) -> None:
    with GoldenServer(answers(GOOD, Script([], "fin"))) as server:
        _, second = CLIENTS[client](server.url, [MAKE, MAKE])
        assert len(server.seen) == 3
    assert (second.facts.error_type, second.sent_again) == ("cut_in_stream", True)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_first_request_and_one_that_was_being_answered_are_not_sent_again(client: str) -> None:
    begun = Script(GOOD.writes[:2], "fin")
    with GoldenServer(answers(Script([], "fin"), GOOD, begun)) as server:
        got = CLIENTS[client](server.url, [MAKE, MAKE, MAKE])
        assert len(server.seen) == 3
    assert [each.facts.error_type for each in got] == ["cut_in_stream", None, "cut_in_stream"]
    assert not any(each.sent_again for each in got)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_proxy_that_closes_after_every_reply_costs_no_row(client: str) -> None:
    """With ``connection: close`` and without."""
    said = [
        Script([type(write)(write.after_s, write.data.replace(b"server:", b"connection: close\r\nx:"))
                for write in GOOD.writes], "fin")
    ]  # fmt: skip
    for script in (*said, Script(GOOD.writes, "fin"), Script(GOOD.writes, "rst")):
        with GoldenServer(answers(script)) as server:
            got = CLIENTS[client](server.url, [MAKE] * 4)
        assert [each.facts.error_type for each in got] == [None] * 4


def test_a_large_request_that_meets_a_closed_connection_is_sent_whole_again() -> None:
    big = list(range(10, 400_010))
    events = completion_events(len(big), [1, 1, 1])
    make: Any = lambda t, n: request(t, 3, number=n, prompt=big if n else None)  # noqa: E731
    scripts = answers(GOOD, Script([], "rst"), stream_script(events))
    with GoldenServer(scripts) as server:
        first, second = fast(server.url, [make, make])
        assert server.seen[-1].body["prompt"] == big
    assert (first.facts.error_type, second.facts.error_type) == (None, None)
    assert second.sent_again


def test_the_audit_counts_what_was_sent_again() -> None:
    audit = Audit()
    with GoldenServer(answers(GOOD, Script([], "fin"), GOOD)) as server:
        target = Target.from_url(server.url)
        for number, got in enumerate(fast(server.url, [MAKE, MAKE])):
            audit.add(request(target, 3, number=number), got)
    assert audit.report()["figures"]["sent_again"] == 1


def named(monkeypatch: pytest.MonkeyPatch, *places: tuple[str, int]) -> str:
    """A URL whose name has these addresses, in this order."""
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    return "http://several:1"


def closed_port() -> tuple[str, int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()


def place_of(server: GoldenServer) -> tuple[str, int]:
    return ("127.0.0.1", int(server.url.rpartition(":")[2]))


def test_when_the_first_address_of_a_name_refuses_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GoldenServer(answers(GOOD)) as server:
        target = Target.from_url(named(monkeypatch, closed_port(), place_of(server)))
        assert target.addresses[0].place == place_of(server)  # it answers, so it stands in front


def test_an_address_that_falls_silent_later_is_left_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looked up when the first address answered; it refuses when it comes to sending."""

    async def one(target: Target) -> Response:
        over: asyncio.Future[RawReply] = asyncio.get_running_loop().create_future()
        connection = Connection(target, AsyncioLoop(asyncio.get_running_loop()))
        connection.start(MAKE(target, 0), 5, over.set_result)
        reply = await over
        connection.close()
        return outcome(reply)

    with GoldenServer(answers(GOOD)) as gone, GoldenServer(answers(GOOD)) as stays:
        places = place_of(gone), place_of(stays)
        target = Target.from_url(named(monkeypatch, *places))
        assert [address.place for address in target.addresses] == list(places)
        assert asyncio.run(one(target)).facts.error_type is None
        gone.__exit__(None, None, None)
        assert asyncio.run(one(target)).facts.error_type is None
        assert len(stays.seen) == 1
    with_none = asyncio.run(one(target))
    assert with_none.facts.error_type == "connect"
    assert "refused" in (with_none.facts.error_message or "")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_an_ipv6_address_is_reached_and_named_in_brackets() -> None:
    heads: list[bytes] = []
    body = b"".join(sse(data) for data in EVENTS)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"

    def serve(listener: socket.socket) -> None:
        taken, _ = listener.accept()
        heads.append(taken.recv(65536))
        taken.sendall(head % len(body) + body)
        taken.recv(1)
        taken.close()

    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no ::1 here")
    with listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        (got,) = fast(f"http://[::1]:{port}/some/prefix", [MAKE])
        thread.join(10)
    assert got.facts.error_type is None
    assert heads[0].startswith(
        b"POST /some/prefix/v1/completions HTTP/1.1\r\nHost: [::1]:%d\r\n" % port
    )
