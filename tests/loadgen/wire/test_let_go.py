"""A reply is freed when it has been read, not when a collector of cycles comes by: that is rare here."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenbench.contract.access import access
from loadgen.wire.connection import Target
from loadgen.wire.httpx_client import HttpxClient
from loadgen.wire.response import RawReply, Response
from tests.fakes.clients import CLIENTS, PROMPT, Make, request
from tests.fakes.openai_server import GoldenServer, Script, completion_events, stream_script

MAKE: Make = lambda target, number: request(target, 3, number=number)  # noqa: E731
GOOD = stream_script(completion_events(len(PROMPT), [1, 1, 1]))
CUT = Script(GOOD.writes[:2], "fin")


def threaded(url: str, makes: list[Make]) -> list[Response]:
    """httpx as Locust's users call it."""
    client = HttpxClient(access(url))
    target = Target.from_url(url)
    results = [client.send(make(target, number), 5) for number, make in enumerate(makes)]
    client.close()
    return results


@pytest.fixture
def uncollected() -> Iterator[Callable[[], list[Any]]]:
    """Replies that live, while nobody looks for cycles."""
    gc.collect()
    gc.disable()
    yield lambda: [each for each in gc.get_objects() if isinstance(each, RawReply)]
    gc.enable()


@pytest.mark.parametrize("send", [*CLIENTS.values(), threaded])
@pytest.mark.parametrize("script", [GOOD, CUT])
def test_no_reply_outlives_its_reading(
    send: Callable[[str, list[Make]], list[Response]],
    script: Script,
    uncollected: Callable[[], list[Any]],
) -> None:
    before = len(uncollected())
    with GoldenServer(lambda seen: script) as server:
        got = send(server.url, [MAKE] * 8)
    assert len(got) == 8
    assert len(uncollected()) - before <= 1  # the pool of the fast client may know its last
