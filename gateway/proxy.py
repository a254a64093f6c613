"""Carries a request to the pool that was chosen for it, and the answer back as it comes."""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from time import monotonic_ns
from typing import Any, Final

import aiohttp
import msgspec

from gateway.access_log import AccessLog, Entry
from gateway.metrics import Metrics, seconds
from gateway.pools import Pool
from gateway.request import GENERATES, Kind, Malformed, api_error, read_request
from gateway.route import Call, Router
from gateway.upstream import Incoming, Lost, Outgoing, TooSlow, Unreachable, sent
from gateway.watch import Watch
from greenbench.contract.clock import NS_PER_S
from greenbench.contract.policy import Choice

log = logging.getLogger("gateway")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BOOT_S: Final = 5  # Retry-After, where the policy does not know how long a pool takes to start
MODELS_ASKED_NS: Final = NS_PER_S  # at most once in this time for unknown models
BODY_S: Final = 60.0  # between two parts of a body
DROPPED_BYTES: Final = 2**28  # of a body that was refused, so that its sender comes to read why
DROPPED_S: Final = 10.0
REASON_CHARS: Final = 1_000  # of the header; clients take some 8,000 bytes a line
NO_RULE: Final = "default"
JSON: Final = b"application/json"
NOT_IN_HEADERS: Final = re.compile(r"[^ -~]")
EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")


class Refused(Exception):
    """An answer of the gateway's own."""

    def __init__(self, status: int, body: bytes, retry_after_s: int | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.retry_after_s = status, body, retry_after_s


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Limits:
    body_bytes: int
    first_byte_s: float


class Exchange:
    """One request of a client: its body, the sends back, and the record of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most_bytes: int) -> None:
        self._receive, self._send, self._most = receive, send, most_bytes
        self.began_ns = self.read_ns = monotonic_ns()
        query = scope["query_string"]
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.path: str = scope["path"]
        self.outgoing = Outgoing(
            method=scope["method"],
            target=(path + b"?" + query if query else path).decode("latin-1"),
            headers=scope["headers"],
            body=b"",
        )
        self.entry = Entry(scope["method"], self.path)
        self.started = False  # the client has got a status
        self._body: bytes | None = None

    async def read(self) -> bytes:
        """The whole body, kept for a second look. Raises Refused (413) and ClientGone."""
        if self._body is not None:
            return self._body
        for name, value in self.outgoing.headers:
            if name == b"content-length" and value.isdigit() and int(value) > self._most:
                raise self._too_large()
        parts, size, more = list[bytes](), 0, True
        while more:
            part, more = await self._part()
            size += len(part)
            if size > self._most:
                raise self._too_large()
            parts.append(part)
        self.entry.request_bytes = size
        self.read_ns = monotonic_ns()
        self._body = b"".join(parts)
        return self._body

    async def _part(self) -> tuple[bytes, bool]:
        """Of the body, and whether there is more. Raises ClientGone, and Refused (408)."""
        try:
            async with asyncio.timeout(BODY_S):
                message = await self._receive()
        except TimeoutError as error:
            said = f"no more of the body came within {BODY_S:g} s"
            raise Refused(408, api_error(408, said, "body_too_slow")) from error
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def drop_the_rest(self) -> None:
        """Of a body that was refused: a connection that is closed while bytes arrive is reset, and the reason
        with it. In bounds.
        """
        if self._body is not None or any(name == b"expect" for name, _ in self.outgoing.headers):
            return
        dropped, more = 0, True
        with suppress(TimeoutError, ClientGone, Refused):
            async with asyncio.timeout(DROPPED_S):
                while more and dropped < DROPPED_BYTES:
                    part, more = await self._part()
                    dropped += len(part)

    def _too_large(self) -> Refused:
        most = f"{self._most / 2**20:g} MiB"
        return Refused(413, api_error(413, f"the body is larger than {most}", "body_too_large"))

    async def gone(self) -> None:
        """Returns when the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.entry.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data: bytes) -> None:
        if self.entry.ttft_ms is None:
            self.entry.ttft_ms = _ms(monotonic_ns() - self.began_ns)
        self.entry.response_bytes += len(data)
        self.entry.chunks += 1
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(
        self, status: int, body: bytes, kind: bytes, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """An answer of the gateway's own."""
        length = b"%d" % len(body)
        await self.start(status, [(b"content-type", kind), (b"content-length", length), *more])
        if status == 413:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            body = b""
            await self.drop_the_rest()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self.entry.response_bytes = len(body)


class Proxy:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        router: Router,
        watch: Watch,
        metrics: Metrics,
        access_log: AccessLog,
        limits: Limits,
    ) -> None:
        self._session, self._router, self._watch = session, router, watch
        self._metrics, self._access_log, self.limits = metrics, access_log, limits
        self._models_asked_ns = -MODELS_ASKED_NS

    async def serve(self, exchange: Exchange, handle: Callable[[], Awaitable[None]]) -> None:
        """Run ``handle``, which may be cut short by the client, and write down how it ended."""
        entry = exchange.entry
        self._metrics.open.inc()
        try:
            await handle()
        except ClientGone:
            entry.ended = "client_gone"
        except Refused as refused:
            if entry.ended == "complete":
                entry.ended = "refused"
            after = refused.retry_after_s
            headers = _told(entry) + ([] if after is None else [(b"retry-after", b"%d" % after)])
            await exchange.whole(refused.status, refused.body, JSON, headers)
        except Exception:
            log.exception("a fault of the gateway's own at %s", entry.path)
            entry.ended = "fault"
            if not exchange.started:
                body = api_error(500, "the gateway has a fault; its log says which")
                await exchange.whole(500, body, JSON)
        finally:
            self._metrics.open.dec()
            self._write(exchange)

    async def generate(self, exchange: Exchange) -> None:
        """A completion, by the policy."""
        exchange.outgoing = replace(exchange.outgoing, body=await exchange.read())
        call = await self._measured(exchange, GENERATES[exchange.path])

        def following() -> Pool:
            choice = self._router.choose(call, monotonic_ns())
            self._note(exchange, call, choice)
            if choice.pool is None:
                raise self._nobody(call, choice)
            return self._router.pools[choice.pool]

        await self._with_client(exchange, self._carry(exchange, following, call))

    async def pass_on(self, exchange: Exchange, pool: Pool | None = None) -> None:
        """Any other request: to ``pool``, else the default pool, or one that is up where that is not."""
        exchange.outgoing = replace(exchange.outgoing, body=await exchange.read())
        default = self._router.policy.now.policy.default
        pools = sorted(self._router.pools.values(), key=lambda p: (p.name != default, p.name))
        target = pool or next((p for p in pools if p.up and not p.draining), pools[0])
        exchange.entry.pool = target.name

        def only() -> Pool:
            if target.name in exchange.entry.tried:
                why = target.why_down or "closes connections without an answer"
                raise self._unavailable(f"pool {target.name} {why}", [target])
            return target

        await self._with_client(exchange, self._carry(exchange, only, None))

    async def models(self, exchange: Exchange) -> None:
        """What all pools serve, each id once. Where none tells, what the default pool answers."""
        exchange.outgoing = replace(exchange.outgoing, body=await exchange.read())
        up = [pool for pool in self._router.pools.values() if pool.up]
        pages = await asyncio.gather(*(self._page(exchange, pool) for pool in up))
        if not any(pages):
            return await self.pass_on(exchange)
        await exchange.whole(200, msgspec.json.encode(merged_models(pages)), JSON)

    async def _page(self, exchange: Exchange, pool: Pool) -> bytes:
        """Empty where it cannot be had."""
        try:
            async with self._sent(exchange, pool) as answer:
                page = answer.first
                while piece := await answer.more():
                    page += piece
                return page if answer.status == 200 else b""
        except (Unreachable, Lost, TooSlow):
            return b""

    async def _measured(self, exchange: Exchange, kind: Kind) -> Call:
        """Raises Refused for what is no request, or one for a model that no pool serves."""
        try:
            asked = read_request(kind, exchange.outgoing.body)
        except Malformed as error:
            raise Refused(400, api_error(400, str(error), "malformed_body")) from error
        exchange.entry.model = asked.model
        exchange.entry.expected_output_tokens = asked.expected_output_tokens
        if not await self._served(asked.model):
            words = f"The model `{asked.model}` does not exist."
            raise Refused(404, api_error(404, words, "model_not_found", "model"))
        call = await self._router.measure(asked, exchange.outgoing.headers, monotonic_ns())
        self._metrics.lengths.labels(call.length.source.partition(",")[0]).inc()
        return call

    async def _served(self, model: str | None) -> bool:
        """Asks the pools anew before it says no: adapters come and go."""
        pools = list(self._router.pools.values())
        if any(pool.serves(model) for pool in pools):
            return True
        if monotonic_ns() - self._models_asked_ns >= MODELS_ASKED_NS:
            self._models_asked_ns = monotonic_ns()
            await asyncio.gather(*(self._watch.ask_models(pool) for pool in pools if pool.up))
        return any(pool.serves(model) for pool in pools)

    async def _with_client(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """``work`` is cut short when the client leaves, which closes the pool's side of it. ClientGone."""
        task, over, left = asyncio.current_task(), False, False

        def cut(_: asyncio.Task[None]) -> None:
            nonlocal left
            if task is not None and not over:
                left = task.cancel()

        leaving = asyncio.ensure_future(exchange.gone())
        leaving.add_done_callback(cut)
        try:
            await work
        except asyncio.CancelledError:
            if not left or task is None:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            over = True
            leaving.cancel()

    async def _carry(
        self, exchange: Exchange, following: Callable[[], Pool], call: Call | None
    ) -> None:
        """To the pool that ``following`` names, and to the next one where that one dies before it answers."""
        twice = call is not None or exchange.outgoing.method in ("GET", "HEAD")
        once_more = ""  # a pool that got the request a second time
        while True:
            pool = following()
            exchange.entry.own_ms = _ms(monotonic_ns() - exchange.read_ns)
            with pool.taking(call.kv_tokens if call else 0):
                try:
                    async with self._sent(exchange, pool) as answer:
                        await self._answer(exchange, pool, answer, call)
                    return
                except Unreachable as error:
                    pool.down(f"is not reached ({error})", monotonic_ns())
                except TooSlow as error:
                    pool.fault(monotonic_ns())
                    exchange.entry.ended = "too_slow"
                    said = api_error(504, f"pool {pool.name}: {error}", "too_slow")
                    raise Refused(504, said) from error
                except Lost:
                    pool.lost(monotonic_ns())
                    await self._watch.probe(pool)
                    if twice and pool.up and once_more != pool.name:
                        once_more = pool.name  # it closed an idle connection as we took it
                        continue
            exchange.entry.tried.append(pool.name)
            if call is not None:
                call.tried.add(pool.name)
            self._metrics.failovers.labels(pool.name).inc()

    def _sent(self, exchange: Exchange, pool: Pool) -> AbstractAsyncContextManager[Incoming]:
        return sent(self._session, pool, exchange.outgoing, self.limits.first_byte_s)

    async def _answer(
        self, exchange: Exchange, pool: Pool, answer: Incoming, call: Call | None
    ) -> None:
        """From here on the request is answered: it never goes to another pool."""
        if answer.status < 500:
            pool.success()
        else:
            pool.fault(monotonic_ns())
        if call is not None and answer.status == 200:
            pool.prefixes.add(call.digest)
        await exchange.start(answer.status, answer.headers + _told(exchange.entry))
        last = piece = answer.first
        try:
            while piece:
                await exchange.piece(piece)
                last, piece = piece, await answer.more()
        except Lost as error:
            pool.lost(monotonic_ns())
            exchange.entry.ended = "pool_lost"
            if not answer.is_events:
                return  # without an end: the server beneath closes the connection, so that the cut shows
            said = f"pool {pool.name} was lost in the middle of the answer ({error})"
            between = b"" if last.endswith(EVENT_ENDS) else b"\n\n"
            event = b"data: " + api_error(502, said, "pool_lost") + b"\n\n"
            await exchange.piece(between + event)
        await exchange.end()

    def _nobody(self, call: Call, choice: Choice) -> Refused:
        """503 where a pool that is out may come back; 400 where all are there and none is large enough."""
        if all(
            pool.up and not pool.draining and pool.name not in call.tried for pool in call.pools
        ):
            return Refused(400, api_error(400, choice.reason, "no_pool_can_take_it"))
        return self._unavailable(choice.reason, call.pools)

    def _unavailable(self, why: str, pools: list[Pool]) -> Refused:
        return Refused(503, api_error(503, why, "no_pool"), self._retry_after_s(pools))

    def _retry_after_s(self, pools: list[Pool]) -> int:
        """Until the first pool may be back: what its start took when measured, less what has passed."""
        now_ns, known = monotonic_ns(), self._router.policy.now.policy.pools
        left_s = [
            (known[pool.name].restart_s or BOOT_S) - seconds(now_ns - pool.down_since_ns)
            for pool in pools
            if pool.name in known and not pool.up and pool.down_since_ns
        ]
        return max(1, math.ceil(min(left_s, default=BOOT_S)))

    def _note(self, exchange: Exchange, call: Call, choice: Choice) -> None:
        entry = exchange.entry
        entry.pool, entry.rule, entry.reason = choice.pool, choice.rule or NO_RULE, choice.reason
        entry.prompt_tokens, entry.length_source = call.length.tokens, call.length.source
        entry.cached_tokens = call.cached_tokens
        self._metrics.choices.labels(choice.pool or "none", entry.rule).inc()

    def _write(self, exchange: Exchange) -> None:
        entry, metrics = exchange.entry, self._metrics
        entry.total_ms = _ms(monotonic_ns() - exchange.began_ns)
        pool = entry.pool or "none"
        metrics.requests.labels(pool, str(entry.status or 0), entry.ended).inc()
        metrics.body_bytes.labels(pool).inc(entry.response_bytes)
        if entry.ttft_ms is not None and entry.status == 200:
            metrics.ttft.labels(pool).observe(entry.ttft_ms / 1e3)
        if entry.own_ms is not None:
            metrics.own.observe(entry.own_ms / 1e3)
        self._access_log.write(entry)


def merged_models(pages: list[bytes]) -> dict[str, Any]:
    """A page that is no list of models counts for nothing."""
    cards: dict[str, Any] = {}
    for page in pages:
        with suppress(msgspec.DecodeError, KeyError, TypeError):
            for card in msgspec.json.decode(page)["data"]:
                cards.setdefault(card["id"], card)
    return {"object": "list", "data": list(cards.values())}


def _told(entry: Entry) -> Headers:
    """The choice and its reason, for whoever asked."""
    said = (("pool", entry.pool), ("rule", entry.rule), ("reason", entry.reason))
    return [
        (f"x-greenbench-{name}".encode(), NOT_IN_HEADERS.sub("?", value[:REASON_CHARS]).encode())
        for name, value in said
        if value is not None
    ]


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
