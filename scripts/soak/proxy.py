"""A network that can be cut, and that notes each request that it carries.

Plain TCP to both sides. Of what goes to the server it reads HTTP/1.1 far enough to note the X-Request-Id of
each request, so its list is a count that owes nothing to the load generator or the server.
"""

import asyncio
import re
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Self

REQUEST_ID: Final = re.compile(rb"^x-request-id: *(\S+)", re.IGNORECASE | re.MULTILINE)
LENGTH: Final = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
PIECE: Final = 1 << 16


class Proxy:
    """``with Proxy(port) as proxy``: listens on ``proxy.port`` and connects to ``port``, both on loopback.

    ``seen``: (monotonic seconds, request id) of each POST in the order in which its head came.
    """

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.port = 0
        self.seen: list[tuple[float, str]] = []
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Every connection breaks, and a new one ends at once."""
        self._run(self._end_all(cut=True))

    def mend(self) -> None:
        self._cut = False

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        await self._end_all(cut=True)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_all(self, cut: bool) -> None:
        self._cut = cut
        for writer in list(self._open):
            writer.transport.abort()

    async def _carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._cut:
            return to_client.transport.abort()
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self.to_port)
        except OSError:
            return to_client.transport.abort()
        ends = {to_client, to_server}
        self._open |= ends
        ways = [
            asyncio.ensure_future(self._requests(client, to_server)),
            asyncio.ensure_future(_bytes(server, to_client)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open -= ends
            for writer in ends:
                with suppress(OSError, RuntimeError):
                    writer.close()

    async def _requests(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await client.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST ") and (said := REQUEST_ID.search(head)):
                    self.seen.append((time.monotonic(), said[1].decode("latin-1")))
                server.write(head)
                left = int(found[1]) if (found := LENGTH.search(head)) else 0
                while left:
                    piece = await client.read(min(PIECE, left))
                    if not piece:
                        return
                    left -= len(piece)
                    server.write(piece)
                await server.drain()


async def _bytes(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await source.read(PIECE):
            sink.write(piece)
            await sink.drain()
