"""The pools behind the gateway: whether each is up, how loaded it is, and whether requests may go there.

All times are monotonic nanoseconds that the caller gives.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.prefixes import Prefixes
from gateway.scrape import Scrape
from greenbench.contract.clock import NS_PER_S
from greenbench.contract.policy import PoolState

STALE_NS: Final = 5 * NS_PER_S  # a page of /metrics older than this says nothing of now
MISSED_PROBES: Final = 3  # in a row, without an answer: a busy server may take its time for one
OUTLIER_FAULTS: Final = 5  # requests in a row that ended in 5xx or without an answer
EJECTED_NS: Final = 5 * NS_PER_S  # the first time; twice as long each time, to the most below
EJECTED_MOST_NS: Final = 60 * NS_PER_S


@dataclass(slots=True)
class Pool:
    """One server. ``restart``: a command that starts it anew, None: somebody else does."""

    name: str
    url: str
    restart: str | None = None
    up: bool = False
    why_down: str = "is not probed yet"
    down_since_ns: int = 0  # 0: it was never seen down
    draining: bool = False
    in_flight: int = 0
    models: frozenset[str] | None = None  # ids and roots that it serves, None: it does not tell
    prefixes: Prefixes = field(default_factory=Prefixes)
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while nothing is in flight
    came_up: asyncio.Event = field(default_factory=asyncio.Event)  # whoever waits clears it before
    suspected: asyncio.Event = field(default_factory=asyncio.Event)  # set: probe it at once
    starts: int = 0  # how often it came up
    ejections: int = 0  # in all
    _missed: int = 0
    _faults: int = 0
    _ejected_in_a_row: int = 0
    _ejected_until_ns: int = 0
    _scrape: Scrape | None = None
    _scraped_ns: int = 0
    _most_in_flight: int = 0  # since the scrape was asked for
    _others: int | None = None  # requests there that are not this gateway's; None: unknown
    _sent_tokens: int = 0  # of requests that went there since the scrape

    def __post_init__(self) -> None:
        self.idle.set()

    # --- health -------------------------------------------------------------------------------

    def answered(self) -> None:
        """A probe found it well."""
        self._missed = 0
        if not self.up:
            self.up, self.why_down = True, ""
            self.starts += 1
            self.came_up.set()
            self.prefixes.clear()

    def missed(self, why: str, now_ns: int) -> None:
        """A probe got no answer in its time."""
        self._missed += 1
        if self._missed >= MISSED_PROBES:
            self.down(why, now_ns)

    def down(self, why: str, now_ns: int) -> None:
        if self.up or not self.down_since_ns:
            self.down_since_ns = now_ns
        self.up, self.why_down, self._scrape = False, why, None

    def lost(self, now_ns: int) -> None:
        """A connection broke in the middle of a request: whether the server died is asked at once."""
        self.fault(now_ns)
        self.suspected.set()

    def serves(self, model: str | None) -> bool:
        """As far as it tells; a request without a model takes the server's own."""
        return model is None or self.models is None or model in self.models

    # --- outliers -----------------------------------------------------------------------------

    def fault(self, now_ns: int) -> None:
        """A request ended in 5xx or without an answer."""
        self._faults += 1
        if self._faults < OUTLIER_FAULTS:
            return
        length = min(EJECTED_NS << self._ejected_in_a_row, EJECTED_MOST_NS)
        self._faults, self._ejected_until_ns = 0, now_ns + length
        self._ejected_in_a_row = min(self._ejected_in_a_row + 1, 8)
        self.ejections += 1

    def success(self) -> None:
        self._faults = self._ejected_in_a_row = 0

    def ejected_ns(self, now_ns: int) -> int:
        """How much longer it is out; 0: it is not."""
        return max(0, self._ejected_until_ns - now_ns)

    # --- load ---------------------------------------------------------------------------------

    @contextmanager
    def taking(self, tokens: int) -> Iterator[None]:
        """One request of ``tokens`` KV tokens is at this pool."""
        self.in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self.in_flight)
        self._sent_tokens += tokens
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    def asked_page(self) -> None:
        """A page of /metrics is on its way: what is open here until it comes may be in it or not."""
        self._most_in_flight = self.in_flight

    def scraped(self, scrape: Scrape | None, now_ns: int) -> None:
        """``scrape``: None where the page could not be had."""
        if scrape is None:
            return  # what was known before grows stale
        self._scrape, self._scraped_ns = scrape, now_ns
        self._sent_tokens = 0
        self._others = None
        if scrape.running is not None and scrape.waiting is not None:
            self._others = max(0, scrape.running + scrape.waiting - self._most_in_flight)
        self.prefixes.fit(scrape.total_kv_tokens)

    def fresh(self, now_ns: int) -> Scrape | None:
        """What it told last, unless that is too old."""
        return self._scrape if now_ns - self._scraped_ns <= STALE_NS else None

    def caches_prefixes(self, now_ns: int) -> bool:
        scrape = self.fresh(now_ns)
        return scrape is not None and scrape.prefix_caching is True

    def state(self, now_ns: int) -> PoolState:
        """As the rules see it: what this gateway has open there, and what others had by the last page.

        Without a page others are unknown, and free KV tokens are.
        """
        scrape = self.fresh(now_ns)
        plain = PoolState(self.name, self.up, running=self.in_flight, draining=self.draining)
        if scrape is None:
            return plain
        free = scrape.free_kv_tokens
        load = self.in_flight + (self._others or 0)
        running = load if scrape.running is None else min(scrape.running, load)
        return replace(
            plain,
            running=running,
            waiting=load - running,
            free_kv_tokens=None if free is None else max(0, free - self._sent_tokens),
            total_kv_tokens=scrape.total_kv_tokens,
        )


def states(pools: list[Pool], now_ns: int, tried: set[str]) -> list[PoolState]:
    """``tried``: pools that failed this request. An ejected pool is out while another is in."""
    told = [pool.state(now_ns) for pool in pools]
    told = [replace(state, up=False) if state.name in tried else state for state in told]
    out = {pool.name for pool in pools if pool.ejected_ns(now_ns)}
    if any(state.up and not state.draining and state.name not in out for state in told):
        return [replace(state, up=False) if state.name in out else state for state in told]
    return told
