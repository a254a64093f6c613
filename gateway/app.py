"""The ASGI application: which path is whose, and what runs beside the requests."""

import asyncio
import signal
from contextlib import suppress
from typing import Final

import aiohttp

from gateway.access_log import AccessLog
from gateway.admin import PAGES, Admin, Restarts
from gateway.counters import by_pool, by_tokenizer
from gateway.length import Counter, Lengths
from gateway.metrics import Metrics
from gateway.options import Options
from gateway.policy_file import PolicyFile
from gateway.pools import Pool
from gateway.proxy import JSON, Exchange, Limits, Proxy, Receive, Refused, Scope, Send
from gateway.request import GENERATES, api_error
from gateway.route import Router
from gateway.upstream import new_session
from gateway.watch import Watch

RELOAD_S: Final = 1.0
PROMETHEUS: Final = b"text/plain; version=0.0.4; charset=utf-8"


class App:
    """Reads policy and tokenizer at once (UserError); sockets open with the server's event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.pools = {
            name: Pool(name, given.url, given.restart) for name, given in options.pools.items()
        }
        self.policy = PolicyFile(options.policy, self.pools)
        self._counters: dict[str, Counter] = {}
        if options.tokenizer is not None:
            self._counters["tokenizer"] = by_tokenizer(options.tokenizer)
        self._probe_headers = options.probe_headers
        self._access_log = AccessLog(options.access_log)
        self._metrics = Metrics(self.pools.values(), self.policy)
        self._beside: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            exchange = Exchange(scope, receive, send, self._options.body_bytes)
            await self._proxy.serve(exchange, lambda: self._handle(exchange, scope))
        else:  # a websocket
            await send({"type": "websocket.close", "code": 1003})

    async def _handle(self, exchange: Exchange, scope: Scope) -> None:
        method, path = exchange.outgoing.method, exchange.path
        if not exchange.outgoing.target.startswith("/"):  # OPTIONS *
            words = f"a path is wanted, found '{path}'"
            raise Refused(400, api_error(400, words, "not_a_path"))
        if method == "POST" and path in GENERATES:
            await self._proxy.generate(exchange)
        elif path in ("/metrics", f"{PAGES}metrics"):
            await exchange.whole(200, self._metrics.page(), PROMETHEUS)
        elif path == "/health":
            await self._health(exchange)
        elif method == "GET" and path == "/v1/models":
            await self._proxy.models(exchange)
        elif path.startswith(PAGES):
            await self._admin.serve(exchange, scope)
        else:
            await self._proxy.pass_on(exchange)

    async def _health(self, exchange: Exchange) -> None:
        if not any(pool.up and not pool.draining for pool in self.pools.values()):
            raise Refused(503, api_error(503, "no pool is up", "no_pool"))
        await exchange.whole(200, b"", JSON)

    # --- start and end ------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._session = new_session()
        await self._start(self._session)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self._session.close()
        self._access_log.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self, session: aiohttp.ClientSession) -> None:
        options, pools = self._options, list(self.pools.values())
        watch = Watch(session, pools, self._probe_headers, options.probe_s, options.scrape_s)
        counters = self._counters | {"/tokenize": by_pool(session, pools)}
        router = Router(self.policy, self.pools, Lengths(counters))
        limits = Limits(options.body_bytes, options.first_byte_s)
        self._proxy = Proxy(session, router, watch, self._metrics, self._access_log, limits)
        self._admin = Admin(self._proxy, router, Restarts())
        await asyncio.gather(*(watch.probe(pool) for pool in pools))
        self._beside = [asyncio.create_task(watch.run()), asyncio.create_task(self._reload())]

    async def _reload(self) -> None:
        """At SIGHUP, and when the file has changed."""
        asked = asyncio.Event()
        with suppress(ValueError, RuntimeError):  # signals are the main thread's
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RELOAD_S):
                    await asked.wait()
            await self.policy.reload(always=asked.is_set())
            asked.clear()
