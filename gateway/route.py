"""Which pool takes a request: the policy's `choose`, asked with what is known of request and pools."""

from dataclasses import dataclass, field

from gateway.length import Headers, Length, Lengths
from gateway.policy_file import PolicyFile
from gateway.pools import Pool, states
from gateway.prefixes import Digest, digest
from gateway.request import Asked
from greenbench.contract.policy import Choice, PoolState, Request, choose

CONVERSATION = 0.5  # share of a prompt that one pool has seen, from which on it goes on there


@dataclass(slots=True)
class Call:
    """One request on its way. ``pools``: those that serve its model. ``tried``: those that failed it."""

    asked: Asked
    digest: Digest
    length: Length
    pools: list[Pool]
    cached_tokens: int = 0
    tried: set[str] = field(default_factory=set[str])

    @property
    def kv_tokens(self) -> int:
        """What it will take of a pool's KV cache beyond what lies there."""
        return self.length.tokens - self.cached_tokens + (self.asked.expected_output_tokens or 0)


@dataclass(slots=True)
class Router:
    policy: PolicyFile
    pools: dict[str, Pool]
    lengths: Lengths

    async def measure(self, asked: Asked, headers: Headers, now_ns: int) -> Call:
        """Count the prompt as exactly as the choice asks for."""
        key = digest(f"{asked.kind} {asked.model}", asked.prompt.raw)
        pools = [pool for pool in self.pools.values() if pool.serves(asked.model)]
        call = Call(asked, key, self.lengths.guess(asked.prompt, key), pools)
        if call.length.low != call.length.high and self._matters(call, now_ns):
            call.length = await self.lengths.count(asked, key, headers)
        return call

    def choose(self, call: Call, now_ns: int) -> Choice:
        """``reason`` also says how long the prompt is, how that is known, and what is taken for cached."""
        choice, call.cached_tokens = self._choose(call, call.length.tokens, now_ns)
        cached = f", some {call.cached_tokens} of them cached" if call.cached_tokens else ""
        return Choice(choice.pool, choice.rule, f"{choice.reason}; {call.length}{cached}")

    def _choose(self, call: Call, tokens: int, now_ns: int) -> tuple[Choice, int]:
        """The choice, and the cached tokens that it rests on.

        What is cached depends on the pool, and the pool on what is cached: a pool that has seen the prompt's
        beginning takes the request if the rules send it there for that reason; else it counts as new.
        """
        chooser = self.policy.now.chooser
        told = states(call.pools, now_ns, call.tried)
        output = call.asked.expected_output_tokens
        shares = self._shares(call.digest, told)
        last = None
        if shares and shares[0][0] >= CONVERSATION:
            last = Choice(shares[0][1].name, None, "where its beginning is")
        for share, pool in shares:
            cached = int(share * tokens) if pool.caches_prefixes(now_ns) else 0
            if cached:
                choice = choose(chooser, Request(tokens, cached, output), told, last)
                if choice.pool == pool.name:
                    return choice, cached
        return choose(chooser, Request(tokens, 0, output), told, last), 0

    def _shares(self, prompt: Digest, told: list[PoolState]) -> list[tuple[float, Pool]]:
        """Pools that have seen the beginning, with the share seen; the largest first."""
        found = [
            (share, pool)
            for state in told
            if state.up and (share := (pool := self.pools[state.name]).prefixes.matched(prompt))
        ]
        return sorted(found, key=lambda pair: -pair[0])

    def _matters(self, call: Call, now_ns: int) -> bool:
        """Whether the two ends of the estimate may go to different pools."""
        low, high = call.length.low, call.length.high
        told = states(call.pools, now_ns, call.tried)
        new = {1.0, *(1 - share for share, _ in self._shares(call.digest, told))}
        if any(low * part < edge <= high * part for edge in self.policy.now.edges for part in new):
            return True
        ends = [self._choose(call, tokens, now_ns)[0] for tokens in (low, high)]
        return ends[0].pool != ends[1].pool
