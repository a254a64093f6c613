"""Requests to a pool. Their bytes pass as they come; how they failed is told in three kinds."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from gateway.pools import Pool

warnings.filterwarnings("ignore", message="Sending a large body directly")  # it is in memory anyway

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
NOT_SENT_ON: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
OWN: Final = (
    "Accept",
    "Accept-Encoding",
    "Content-Type",
    "User-Agent",
)  # aiohttp adds none of them
CONNECT_S: Final = 5.0
KEEP_ALIVE_S: Final = 3.0  # vLLM closes an idle connection after 5 s


class Unreachable(Exception):
    """No connection: the request was not sent."""


class Lost(Exception):
    """The connection broke, or what came is no HTTP."""


class TooSlow(Exception):
    """No byte of a body within the time for it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """``target``: path and query as they came. ``headers``: lower-case names."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def at(self, target: str) -> "Outgoing":
        return replace(self, target=target)


@dataclass(slots=True)
class Incoming:
    """An answer whose first bytes are here. ``first`` empty: it has no body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    first: bytes
    _response: aiohttp.ClientResponse

    @property
    def is_events(self) -> bool:
        return self._response.content_type == "text/event-stream"

    async def more(self) -> bytes:
        """What came since the last look, as soon as anything has; empty at the end. Raises Lost."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(_words(error)) from error


def new_session() -> aiohttp.ClientSession:
    """For all pools. Call it inside the event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=OWN,
    )


@asynccontextmanager
async def sent(
    session: aiohttp.ClientSession, pool: Pool, request: Outgoing, first_byte_s: float
) -> AsyncIterator[Incoming]:
    """The answer, once the first byte of its body is here. Leaving before its end cancels it at the pool."""
    try:
        async with asyncio.timeout(first_byte_s):
            response = await session.request(
                request.method,
                URL(pool.url + request.target, encoded=True),
                data=request.body or None,
                headers=sent_on(request.headers),
                allow_redirects=False,
            )
            try:
                first = await response.content.readany()
            except BaseException:
                response.close()
                raise
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Unreachable(_words(error)) from error
    except TimeoutError as error:
        raise TooSlow(f"no answer within {first_byte_s:.0f} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Lost(_words(error)) from error
    try:
        yield Incoming(response.status, _passed_back(response), first, response)
    finally:
        response.close()  # keeps the connection where the body has ended


def sent_on(headers: Headers) -> CIMultiDict[str]:
    kept = CIMultiDict[str]()
    named = _named_by_connection(headers)
    for name, value in headers:
        if name not in NOT_SENT_ON and name not in named:
            kept.add(name.decode("latin-1"), _text(value))
    return kept


def _text(value: bytes) -> str:
    """aiohttp writes text as UTF-8: what is UTF-8 passes as it is, other bytes as those of Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _passed_back(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    headers = [(name.lower(), value) for name, value in response.raw_headers]
    named = _named_by_connection(headers)
    return [(n, value) for n, value in headers if n not in HOP_BY_HOP and n not in named]


def _named_by_connection(headers: Headers) -> set[bytes]:
    """Headers that the sender meant for the next hop alone."""
    lists = (value for name, value in headers if name == b"connection")
    return {name.strip().lower() for value in lists for name in value.split(b",")}


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
