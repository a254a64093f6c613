"""The portable client: httpx, for hosts where the fast one cannot run, and as its cross-check.

Same requests, same parser, same outcome as `loadgen.wire.connection`; times are this program's, taken when a
read returns, and the record says so (``time_source: user``). Control calls use httpx as well.
Connection limits are lifted: httpx's default pool holds 100 and queues the rest unseen.
"""

import asyncio
import ssl
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from greenbench.contract.access import Access
from greenbench.contract.clock import Anchor
from loadgen.wire.http1 import ResponseParser
from loadgen.wire.response import RawReply, Request, Response, failed

NO_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None)


def _verify(access: Access) -> ssl.SSLContext | bool:
    return access.tls or False  # of http nothing is verified


def _origin(access: Access) -> str:
    parts = urlsplit(access.base_url)
    return f"{parts.scheme}://{parts.netloc}"


class DecodedResponse(ResponseParser):
    """httpx has decoded the framing already: what is fed is the body, and `whole` says where it ends."""

    def begin(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.raw}
        self.started = True

    def feed(self, data: bytes) -> None:
        self.segments.append(data)

    def end_of_stream(self) -> None:
        """A close means a cut here: a body that ends by closing is ended by `whole`."""

    def whole(self) -> None:
        self._finish(reusable=True)


def _timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, pool=None)


def _path(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode("latin-1")


def _headers(head: bytes) -> list[tuple[bytes, bytes]]:
    lines = head.split(b"\r\n")[1:-2]
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


class _Attempt:
    """One request through httpx: its reply, and the faults httpx raises, in our words."""

    def __init__(self, request: Request, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        self.reply = RawReply(request, self.deadline_ns)
        self.decoded = DecodedResponse()
        self.reply.parser = self.decoded
        self.reply.sent = Anchor.now()
        self.opened = False  # a connection of its own
        self._response: httpx.Response | None = None

    def trace(self, event: str, _: Any) -> None:
        self.opened = self.opened or event == "connection.connect_tcp.started"

    async def trace_async(self, event: str, info: Any) -> None:
        self.trace(event, info)

    @property
    def met_a_closed_connection(self) -> bool:
        """It was sent on a connection that stood, and that ended before any byte of a reply."""
        cut = self.reply.error is not None and self.reply.error[0] == "cut_in_stream"
        return cut and not self.opened and not self.decoded.started

    def on_head(self, response: httpx.Response) -> None:
        self.reply.stamp_head(time.monotonic_ns())
        self.decoded.begin(response)
        self._response = response

    def on_body(self, data: bytes) -> bool:
        """True when the reading may stop."""
        if time.monotonic_ns() > self.deadline_ns:
            self.reply.error = ("timeout", f"no complete reply within {self.timeout_s:g} s")
            return True
        return self.reply.add(data, time.monotonic_ns(), None)

    def on_fault(self, error: Exception) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            self.reply.sent = None
            self.reply.error = ("connect", str(error) or type(error).__name__)
        elif isinstance(error, httpx.TimeoutException | TimeoutError):
            self.reply.error = ("timeout", f"no complete reply within {self.timeout_s:g} s")
        elif isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error).lower():
            self.reply.error = ("bad_http", str(error))
        else:
            self.reply.error = ("cut_in_stream", str(error) or type(error).__name__)

    def outcome(self) -> Response:
        self.reply.ended_mono_ns = time.monotonic_ns()
        self._let_go()
        if self.reply.sent is None:
            return failed(*(self.reply.error or ("connect", "never sent")))
        return self.reply.result(Anchor.now())

    def _let_go(self) -> None:
        """httpx's response and its stream hold each other, and with them this attempt and all of its reply.

        Untied they are freed at once. They would wait for the collector of cycles, which a session makes
        rare: 16 MiB of them at 1,200 requests.
        """
        response, self._response = self._response, None
        if response is not None:
            response.stream = httpx.ByteStream(b"")


class HttpxClient:
    """For greenlets and threads. One object a user keeps one connection open."""

    def __init__(self, access: Access) -> None:
        self._origin = _origin(access)
        self._client = httpx.Client(
            limits=NO_LIMITS, trust_env=False, follow_redirects=False, verify=_verify(access)
        )

    def send(self, request: Request, timeout_s: float) -> Response:
        attempt = self._try(request, timeout_s)
        if attempt.met_a_closed_connection:
            attempt = self._try(request, timeout_s)
            attempt.reply.sent_again = True
        return attempt.outcome()

    def _try(self, request: Request, timeout_s: float) -> _Attempt:
        attempt = _Attempt(request, timeout_s)
        try:
            with self._client.stream(
                "POST",
                self._origin + _path(request.head),
                content=request.body,
                headers=_headers(request.head),
                timeout=_timeout(timeout_s),
                extensions={"trace": attempt.trace},
            ) as response:
                attempt.on_head(response)
                for data in response.iter_raw():
                    if attempt.on_body(data):
                        break
                else:
                    attempt.decoded.whole()
        except (httpx.HTTPError, httpx.StreamError) as error:
            attempt.on_fault(error)
        except Exception:
            raise
        except BaseException:  # the greenlet is stopped in mid-reply: a row all the same
            attempt.reply.error = ("cut_at_drain", "still open when the drain ended")
        return attempt

    def close(self) -> None:
        self._client.close()


class AsyncHttpxClient:
    """For asyncio. One object serves every request; its pool has no limit."""

    def __init__(self, access: Access) -> None:
        self._origin = _origin(access)
        self._client = httpx.AsyncClient(
            limits=NO_LIMITS, trust_env=False, follow_redirects=False, verify=_verify(access)
        )

    async def send(self, request: Request, timeout_s: float) -> Response:
        attempt = await self._try(request, timeout_s)
        if attempt.met_a_closed_connection:
            attempt = await self._try(request, timeout_s)
            attempt.reply.sent_again = True
        return attempt.outcome()

    async def _try(self, request: Request, timeout_s: float) -> _Attempt:
        attempt = _Attempt(request, timeout_s)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    "POST",
                    self._origin + _path(request.head),
                    content=request.body,
                    headers=_headers(request.head),
                    timeout=_timeout(timeout_s),
                    extensions={"trace": attempt.trace_async},
                ) as response,
            ):
                attempt.on_head(response)
                async for data in response.aiter_raw():
                    if attempt.on_body(data):
                        break
                else:
                    attempt.decoded.whole()
        except (httpx.HTTPError, httpx.StreamError, TimeoutError) as error:
            attempt.on_fault(error)
        except asyncio.CancelledError:
            attempt.reply.error = ("cut_at_drain", "still open when the drain ended")
        return attempt

    async def close(self) -> None:
        await self._client.aclose()
