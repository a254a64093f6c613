"""The portable client: httpx, for hosts where the fast one cannot run, and as its cross-check.

Same requests, same parser, same outcome as `loadgen.wire.connection`; times are this program's, taken when a
read returns, and the record says so (``time_source: user``). Control calls use httpx as well.
Connection limits are lifted: httpx's default pool holds 100 and queues the rest unseen.
"""

import asyncio
import functools
import ssl
import time
from typing import Final

import httpx

from greenbench.contract.clock import Anchor
from loadgen.wire.http1 import ResponseParser
from loadgen.wire.response import RawReply, Request, Response, failed

NO_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None)


@functools.cache
def _tls() -> ssl.SSLContext:
    """One context for all clients: loading the certificates takes 20 ms and more."""
    return ssl.create_default_context()


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


def _split_head(head: bytes) -> list[tuple[bytes, bytes]]:
    lines = head.decode("ascii").split("\r\n")[1:-2]
    return [
        (name.encode(), value.encode())
        for name, _, value in (line.partition(": ") for line in lines)
    ]


class _Attempt:
    """One request through httpx: its reply, and the faults httpx raises, in our words."""

    def __init__(self, request: Request, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        self.reply = RawReply(request, self.deadline_ns)
        self.decoded = DecodedResponse()
        self.reply.parser = self.decoded
        self.reply.sent = Anchor.now()

    def on_head(self, response: httpx.Response) -> None:
        self.reply.stamp_head(time.monotonic_ns())
        self.decoded.begin(response)

    def on_body(self, data: bytes) -> bool:
        """True when the reading may stop."""
        if time.monotonic_ns() > self.deadline_ns:
            self.reply.error = ("timeout", f"no complete reply within {self.timeout_s:g} s")
            return True
        return self.reply.add(data, time.monotonic_ns(), None)

    def on_fault(self, error: Exception) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            self.reply.sent = None
            self.reply.error = ("connect", str(error))
        elif isinstance(error, httpx.TimeoutException | TimeoutError):
            self.reply.error = ("timeout", f"no complete reply within {self.timeout_s:g} s")
        elif isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error).lower():
            self.reply.error = ("bad_http", str(error))
        else:
            self.reply.error = ("cut_in_stream", str(error) or type(error).__name__)

    def outcome(self) -> Response:
        self.reply.ended_mono_ns = time.monotonic_ns()
        if self.reply.sent is None:
            return failed(*(self.reply.error or ("connect", "never sent")))
        return self.reply.result(Anchor.now())


class HttpxClient:
    """For greenlets and threads. One object a user keeps one connection open."""

    def __init__(self, base_url: str) -> None:
        self._url = base_url.rstrip("/") + "/v1/completions"
        self._client = httpx.Client(
            limits=NO_LIMITS, trust_env=False, follow_redirects=False, verify=_tls()
        )

    def send(self, request: Request, timeout_s: float) -> Response:
        attempt = _Attempt(request, timeout_s)
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=request.body,
                headers=_split_head(request.head),
                timeout=_timeout(timeout_s),
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
        return attempt.outcome()

    def close(self) -> None:
        self._client.close()


class AsyncHttpxClient:
    """For asyncio. One object serves every request; its pool has no limit."""

    def __init__(self, base_url: str) -> None:
        self._url = base_url.rstrip("/") + "/v1/completions"
        self._client = httpx.AsyncClient(
            limits=NO_LIMITS, trust_env=False, follow_redirects=False, verify=_tls()
        )

    async def send(self, request: Request, timeout_s: float) -> Response:
        attempt = _Attempt(request, timeout_s)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    "POST",
                    self._url,
                    content=request.body,
                    headers=_split_head(request.head),
                    timeout=_timeout(timeout_s),
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
        return attempt.outcome()

    async def close(self) -> None:
        await self._client.aclose()
