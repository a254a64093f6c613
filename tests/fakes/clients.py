"""Both clients driven the same way against the golden server, one request after another."""

import asyncio
import ssl
import time
from collections.abc import Callable
from itertools import pairwise

from greenbench.contract.access import access
from loadgen.wire.asyncio_loop import AsyncioLoop
from loadgen.wire.connection import Target, outcome, whole_head
from loadgen.wire.httpx_client import AsyncHttpxClient
from loadgen.wire.pool import Pool
from loadgen.wire.response import RawReply, Request, Response

PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19]


def request(
    target: Target,
    output_tokens: int,
    *,
    streaming: bool = True,
    prompt: list[int] | None = None,
    path: str = "/v1/completions",
    number: int = 0,
) -> Request:
    ids = prompt or PROMPT
    body = (
        f'{{"model":"golden","prompt":{ids},"max_tokens":{output_tokens},'
        f'"stream":{"true" if streaming else "false"}}}'
    ).encode()
    accept = "text/event-stream" if streaming else "application/json"
    head = whole_head(target.head(path, len(body), accept), f"r-{number}")
    return Request(f"r-{number}", head, body, streaming, len(ids), output_tokens)


Make = Callable[[Target, int], Request]


def fast(
    url: str, makes: list[Make], timeout_s: float = 5.0, tls: ssl.SSLContext | None = None
) -> list[Response]:
    """The fast client on asyncio; requests one after another over one pool."""

    async def run() -> list[Response]:
        target = Target.from_url(url, tls)
        pool = Pool(target, AsyncioLoop(asyncio.get_running_loop()), timeout_s)
        results: list[Response] = []
        for number, make in enumerate(makes):
            over: asyncio.Future[RawReply] = asyncio.get_running_loop().create_future()
            pool.start(make(target, number), over.set_result)
            while not over.done():
                await asyncio.wait([over], timeout=0.02)
                pool.expire(time.monotonic_ns())
            results.append(outcome(over.result()))
            await asyncio.sleep(0.01)  # a close that follows the reply is seen before the next send
        pool.close()
        return results

    return asyncio.run(run())


def portable(url: str, makes: list[Make], timeout_s: float = 5.0) -> list[Response]:
    """httpx on asyncio."""

    async def run() -> list[Response]:
        target = Target.from_url(url)
        client = AsyncHttpxClient(access(url))
        results: list[Response] = []
        for number, make in enumerate(makes):
            results.append(await client.send(make(target, number), timeout_s))
            await asyncio.sleep(0.01)
        await client.close()
        return results

    return asyncio.run(run())


CLIENTS = {"fast": fast, "httpx": portable}

SLEW_NS = 50_000  # NTP slews by at most 500 ppm: the tenth of a second that a reply takes


def assert_in_order(arrived: list[int], sent: list[int]) -> None:
    """By the kernel's time chunks arrive after the server began to write them and before its next write.

    No limit of time: a busy machine delays both ends. Chunks that share a read have the time of the last
    of them, so only that one is held against the next write; and most of those, not all: the server may be
    held up between its clock and its write, and the kernel may put a delivery off.
    """
    assert all(at >= out - SLEW_NS for at, out in zip(arrived, sent, strict=False))
    own = [number for number, (at, after) in enumerate(pairwise(arrived)) if at < after]
    early = [number for number in own if arrived[number] < sent[number + 1]]
    assert 2 * len(early) >= len(own), (arrived, sent)
