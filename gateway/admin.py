"""Pages of the gateway's own: its metrics, its pools, its policy; drain and restart of a pool."""

import asyncio
import ipaddress
import logging
from dataclasses import asdict, dataclass
from time import monotonic_ns
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.pools import Pool
from gateway.proxy import JSON, Exchange, Proxy, Refused, Scope
from gateway.request import api_error
from gateway.route import Router
from greenbench.contract.clock import NS_PER_S
from greenbench.contract.policy import dump_policy

log = logging.getLogger("gateway")
PAGES: Final = "/gateway/"


class Restarts:
    """At most one at a time a pool: drain it, wait, start it anew, wait until it is well, let requests in."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}
        self.phase: dict[str, str] = {}

    def begin(self, pool: Pool) -> bool:
        """False where one is under way."""
        if (task := self._running.get(pool.name)) is not None and not task.done():
            return False
        self._running[pool.name] = asyncio.create_task(self._restart(pool))
        return True

    async def _restart(self, pool: Pool) -> None:
        pool.draining = True
        self._say(pool, "draining")
        await pool.idle.wait()
        if pool.restart is not None:
            self._say(pool, "running the restart command")
            process = await asyncio.create_subprocess_shell(pool.restart)
            if code := await process.wait():
                self._say(pool, f"the restart command ended with {code}; it stays drained")
                return
            pool.down("is being restarted", monotonic_ns())
        else:
            self._say(pool, "drained; waiting for somebody to start it anew")
        pool.came_up.clear()
        await pool.came_up.wait()
        pool.draining = False
        self._say(pool, "restarted")

    def _say(self, pool: Pool, phase: str) -> None:
        self.phase[pool.name] = phase
        log.info("restart of pool %s: %s", pool.name, phase)


@dataclass(frozen=True, slots=True)
class Admin:
    """Every page here is for this machine alone."""

    proxy: Proxy
    router: Router
    restarts: Restarts

    def refuse_strangers(self, scope: Scope) -> None:
        """Other machines; and web pages that a person of this one has open, which carry an origin."""
        headers = dict(scope["headers"])
        client = scope.get("client")
        here = client is not None and _is_loopback(client[0])
        host = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname or ""
        if not here or b"origin" in headers or not (host == "localhost" or _is_loopback(host)):
            words = "this page is open to programs on the gateway's own machine alone"
            raise Refused(403, api_error(403, words, "loopback_only"))

    async def serve(self, exchange: Exchange, scope: Scope) -> None:
        self.refuse_strangers(scope)
        parts = exchange.path.removeprefix(PAGES).split("/")
        method = exchange.outgoing.method
        match (method, *parts):
            case ("GET", "pools"):
                await self._json(
                    exchange, 200, [self._shown(p) for p in self.router.pools.values()]
                )
            case ("GET", "policy"):
                held = self.router.policy
                text = dump_policy(held.now.policy)
                if held.fault is not None:
                    text = f"# the file is not in force: {held.fault}\n{text}"
                await exchange.whole(200, text.encode(), b"application/yaml")
            case ("POST", "policy", "reload"):
                await self.router.policy.reload(always=True)
                fault = self.router.policy.fault
                await self._json(exchange, 200 if fault is None else 422, {"fault": fault})
            case ("GET", "pools", name, "metrics"):
                pool = self._pool(name)
                exchange.outgoing = exchange.outgoing.at("/metrics")
                await self.proxy.pass_on(exchange, pool)
            case ("POST", "pools", name, "drain" | "undrain" | "restart" as what):
                await self._change(exchange, self._pool(name), what)
            case _:
                raise Refused(404, api_error(404, f"no page {method} {exchange.path}", "not_found"))

    async def _change(self, exchange: Exchange, pool: Pool, what: str) -> None:
        if what != "restart":
            pool.draining = what == "drain"
            log.info("pool %s: %s", pool.name, what)
        elif not self.restarts.begin(pool):
            words = f"pool {pool.name} is being restarted: {self.restarts.phase[pool.name]}"
            raise Refused(409, api_error(409, words, "restart_under_way"))
        await self._json(exchange, 202 if what == "restart" else 200, self._shown(pool))

    def _pool(self, name: str) -> Pool:
        if name not in self.router.pools:
            known = ", ".join(self.router.pools)
            raise Refused(404, api_error(404, f"no pool '{name}'; known: {known}", "not_found"))
        return self.router.pools[name]

    def _shown(self, pool: Pool) -> dict[str, Any]:
        now_ns = monotonic_ns()
        return {
            **asdict(pool.state(now_ns)),
            "url": pool.url,
            "why_down": pool.why_down,
            "in_flight": pool.in_flight,
            "ejected_s": pool.ejected_ns(now_ns) / NS_PER_S,
            "restart": self.restarts.phase.get(pool.name),
        }

    async def _json(self, exchange: Exchange, status: int, body: object) -> None:
        await exchange.whole(status, msgspec.json.encode(body), JSON)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
