"""A pool for the gateway's tests: a completions server on real sockets that dies, hangs and lies on demand.

Every token it sends names the pool and the request, so that a lost, doubled or mixed answer shows.
"""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.fakes.openai_server import chunked, sse

HEAD = (
    b"HTTP/1.1 %s\r\ncontent-type: %s\r\nx-pool-header: kept\r\n"
    b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n"
)
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 77.0
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}
vllm:cache_config_info{{enable_prefix_caching="{caching}",kv_cache_size_tokens="{tokens}"}} 1.0
"""


def metrics_page(
    running: float = 0.0,
    waiting: float = 0.0,
    usage: float = 0.0,
    tokens: int = 100_000,
    caching: bool = True,
) -> bytes:
    return METRICS.format(
        running=running, waiting=waiting, usage=usage, tokens=tokens, caching=caching
    ).encode()


class _ClosesAtEof(asyncio.StreamReaderProtocol):
    """A client that has left is seen, though nothing is read from it."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


@dataclass
class Asked:
    """One POST. ``cancelled``: the connection closed before the answer was whole."""

    path: str
    headers: dict[str, str]
    raw: bytes
    cancelled: bool = False
    done: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


@dataclass
class FakePool:
    """``with FakePool("a") as pool``. What a test sets on it holds from the next request on.

    ``dies``: at this token of an answer all connections break and nobody listens any more (0: before the
    first byte, −1: after the head of the answer and before a byte of its body). ``hold``: answers stop before
    this token until ``go`` is set. ``status``: of completions. ``tokenized``: what /tokenize counts.
    """

    name: str
    model: str = "m"
    gap_s: float = 0.0
    dies: int | None = None
    breaks: int | None = None  # the same for one connection, once: the server lives on
    hold: int | None = None
    status: bytes = b"200 OK"
    health: bytes = b"200 OK"
    key: str | None = None
    tokenized: int | None = None
    page: bytes = field(default_factory=metrics_page)
    page_limit: int | None = None  # /metrics hangs after so many bytes
    asked: list[Asked] = field(default_factory=list[Asked])
    port: int = 0

    def __post_init__(self) -> None:
        self.go = threading.Event()
        self.open = 0  # connections
        self._dead = True
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def completions(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.endswith("completions")]

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def start(self) -> None:
        """Listen, at the same port as before."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def kill(self) -> None:
        """As kill -9 does: every connection is reset and nobody listens."""
        self._on_loop(self._die)

    def drop_idle(self) -> None:
        """Close every connection, as a server does with idle ones; it goes on listening."""
        self._on_loop(lambda: [writer.close() for writer in self._writers])

    def _on_loop(self, act: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            act()
            self._loop.call_soon(done.set)

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    async def _listen(self) -> None:
        def protocol() -> asyncio.BaseProtocol:
            reader = asyncio.StreamReader(loop=self._loop, limit=2**26)
            return _ClosesAtEof(reader, self._connection, loop=self._loop)

        self._server = await self._loop.create_server(
            protocol, "127.0.0.1", self.port, backlog=2048, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._dead = False

    def _die(self) -> None:
        self._dead = True
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            _reset(writer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._dead:  # the kernel had taken it before
            return _reset(writer)
        self._writers.add(writer)
        self.open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")[:-2]
                method, path, _ = first.split(" ")
                pairs = (line.partition(": ") for line in lines)
                headers = {name.lower(): value for name, _, value in pairs}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "GET":
                    await self._get(path, headers, writer)
                else:
                    await self._post(Asked(path, headers, raw), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _get(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        cards = {"object": "list", "data": [{"id": self.model, "object": "model", "root": "/m"}]}
        keyed = self.key is None or headers.get("authorization") == f"Bearer {self.key}"
        pages = {
            "/health": (self.health, b""),
            "/metrics": (b"200 OK", self.page),
            "/v1/models": (b"200 OK", json.dumps(cards).encode())
            if keyed
            else (b"401 Unauthorized", b"{}"),
            "/version?x=%20y": (b"200 OK", self.name.encode()),
        }
        status, body = pages.get(path, (b"404 Not Found", b"no such page"))
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)))
        if path == "/metrics" and self.page_limit is not None:
            writer.write(body[: self.page_limit])
            await asyncio.sleep(60)
        writer.write(body)
        await writer.drain()

    async def _post(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.asked.append(asked)
        if asked.path == "/tokenize":
            said = (
                {"error": "no"}
                if self.tokenized is None
                else {"count": self.tokenized, "tokens": []}
            )
            status = b"404 Not Found" if self.tokenized is None else b"200 OK"
            self._whole(writer, status, json.dumps(said).encode())
        elif not asked.path.endswith("completions"):
            self._whole(writer, b"200 OK", self.name.encode())
        else:
            # shielded: cancelling it would cancel what the next request on this connection waits for
            leaving = asyncio.shield(asyncio.ensure_future(writer.wait_closed()))
            answering = asyncio.ensure_future(self._complete(asked, writer))
            await asyncio.wait((leaving, answering), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                asked.cancelled = True
                answering.cancel()
                raise ConnectionResetError
            answering.result()
            asked.done = True
            leaving.cancel()

    def _whole(self, writer: asyncio.StreamWriter, status: bytes, body: bytes) -> None:
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)

    async def _complete(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        body = asked.body
        events = bool(body.get("stream"))
        kind = b"text/event-stream; charset=utf-8" if events else b"application/json"
        await self._at(0, writer)
        writer.write(HEAD % (self.status, kind))
        await self._at(-1, writer)
        for token in range(body.get("max_tokens", 4)):
            await self._at(token, writer)
            said = json.dumps({"pool": self.name, "id": body.get("id"), "token": token}).encode()
            writer.write(chunked(sse(said) if events else said + b"\n"))
            if self.gap_s:
                await asyncio.sleep(self.gap_s)
        if events:
            writer.write(chunked(sse(b"[DONE]")))
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _at(self, token: int, writer: asyncio.StreamWriter) -> None:
        """What is to happen before this token."""
        if self.hold == token:
            await writer.drain()
            await asyncio.to_thread(self.go.wait)
        if token in (self.dies, self.breaks):
            await writer.drain()
            await asyncio.sleep(0.02)  # what was written reaches the peer before the reset
            if self.dies == token:
                self._die()
            else:
                self.breaks = None
                _reset(writer)
            raise ConnectionResetError


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as the kernel does for a process that was killed."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
