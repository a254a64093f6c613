"""Asks each pool, again and again, whether it is well, how loaded it is, and which models it serves."""

import asyncio
import contextlib
import itertools
import logging
from time import monotonic_ns
from typing import Final

import aiohttp
import msgspec

from gateway.page import read_page
from gateway.pools import Pool
from gateway.scrape import read_metrics

log = logging.getLogger("gateway")
PROBE_LIMIT_S: Final = 5.0
SCRAPE_LIMIT_S: Final = 3.0
MODELS_EVERY: Final = 10  # probes
MOST_BYTES: Final = 16 * 2**20  # of a page; one of vLLM's has 100 kB
HEADERS: Final = {"Accept-Encoding": "identity"}


class _Card(msgspec.Struct):
    id: str = ""
    root: str | None = None


class _Models(msgspec.Struct):
    data: list[_Card]


MODELS: Final = msgspec.json.Decoder(_Models)


class Watch:
    """``headers``: sent with every question, e.g. a key for /v1/models."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pools: list[Pool],
        headers: dict[str, str],
        probe_s: float,
        scrape_s: float,
    ) -> None:
        self._session, self._pools = session, pools
        self._headers = HEADERS | headers
        self._probe_s, self._scrape_s = probe_s, scrape_s

    async def run(self) -> None:
        """Until cancelled. The first look at each pool is the caller's."""
        async with asyncio.TaskGroup() as tasks:
            for pool in self._pools:
                tasks.create_task(self._probe_always(pool))
                tasks.create_task(self._scrape_always(pool))

    async def probe(self, pool: Pool) -> None:
        """Any answer below 500 is one of a server that is there; not every server has /health."""
        was = pool.up, pool.why_down
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                async with self._session.get(f"{pool.url}/health", headers=self._headers) as reply:
                    status = reply.status
        except TimeoutError:
            pool.missed(f"does not answer /health within {PROBE_LIMIT_S:.0f} s", monotonic_ns())
        except (aiohttp.ClientError, OSError) as error:
            pool.down(f"is not reached ({error or type(error).__name__})", monotonic_ns())
        else:
            if status < 500:
                pool.answered()
            else:
                pool.down(f"answers /health with {status}", monotonic_ns())
        if (pool.up, pool.why_down) != was:
            log.warning("pool %s %s", pool.name, "is up" if pool.up else pool.why_down)
            if pool.up:
                await self.ask_models(pool)
                await self.scrape(pool)

    async def scrape(self, pool: Pool) -> None:
        pool.asked_page()
        page = await self._page(pool, "/metrics", SCRAPE_LIMIT_S)
        pool.scraped(None if page is None else read_metrics(page), monotonic_ns())

    async def ask_models(self, pool: Pool) -> None:
        """A server that does not tell (it wants a key) is taken to serve what is asked for."""
        page = await self._page(pool, "/v1/models", PROBE_LIMIT_S)
        try:
            cards = MODELS.decode(page or b"").data
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pool.models = None
            return
        names = {name for card in cards for name in (card.id, card.root) if name}
        pool.models = frozenset(names) or None

    async def _page(self, pool: Pool, path: str, limit_s: float) -> bytes | None:
        """None where it cannot be had."""
        try:
            async with asyncio.timeout(limit_s):
                async with self._session.get(pool.url + path, headers=self._headers) as reply:
                    if reply.status != 200:
                        return None
                    return await read_page(reply, MOST_BYTES)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None

    async def _probe_always(self, pool: Pool) -> None:
        for count in itertools.count(1):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._probe_s):
                    await pool.suspected.wait()
            pool.suspected.clear()
            try:
                await self.probe(pool)
                if pool.up and count % MODELS_EVERY == 0:
                    await self.ask_models(pool)
            except Exception:  # one page that nobody thought of ends no watch
                log.exception("the probe of pool %s has a fault", pool.name)

    async def _scrape_always(self, pool: Pool) -> None:
        while True:
            await asyncio.sleep(self._scrape_s)
            try:
                if pool.up:
                    await self.scrape(pool)
            except Exception:
                log.exception("the scrape of pool %s has a fault", pool.name)
