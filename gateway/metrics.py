"""The gateway's own Prometheus metrics."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.policy_file import PolicyFile
from gateway.pools import Pool
from greenbench.contract.clock import NS_PER_S
from greenbench.contract.policy import PoolState

SPACE = "greenbench_gateway"
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
ADDED_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)

PoolFigure = Callable[[Pool, PoolState, int], float | None]  # the last: monotonic ns; None: unknown
POOL_GAUGES: tuple[tuple[str, str, PoolFigure], ...] = (
    ("pool_up", "1 where the last probe found the pool well", lambda p, s, _: s.up),
    ("pool_draining", "1 while no new request goes there", lambda p, s, _: s.draining),
    ("pool_ejected", "1 while it is out for its failures", lambda p, s, t: p.ejected_ns(t) > 0),
    ("pool_in_flight", "requests of this gateway open there", lambda p, s, _: p.in_flight),
    ("pool_running", "requests running there, as the rules see it", lambda p, s, _: s.running),
    ("pool_waiting", "requests waiting there, as the rules see it", lambda p, s, _: s.waiting),
    ("pool_free_kv_tokens", "tokens; absent: unknown", lambda p, s, _: s.free_kv_tokens),
    ("pool_kv_tokens", "tokens of its KV cache; absent: unknown", lambda p, s, _: s.total_kv_tokens),
    ("pool_starts", "how often it came up", lambda p, s, _: p.starts),
    ("pool_ejections", "how often it was ejected", lambda p, s, _: p.ejections),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pools(Collector):
    """Read when somebody asks."""

    pools: Iterable[Pool]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now_ns = time.monotonic_ns()
        states = [(pool, pool.state(now_ns)) for pool in self.pools]
        for name, words, figure in POOL_GAUGES:
            family = GaugeMetricFamily(f"{SPACE}_{name}", words, labels=["pool"])
            for pool, state in states:
                if (value := figure(pool, state, now_ns)) is not None:
                    family.add_metric([pool.name], float(value))
            yield family


@dataclass(frozen=True, slots=True)
class _Policy(Collector):
    file: PolicyFile

    def collect(self) -> Iterator[GaugeMetricFamily]:
        policy = self.file.now.policy
        labels = {
            "model": policy.model.name,
            "objective": policy.objective,
            "default": policy.default,
        }
        info = GaugeMetricFamily(f"{SPACE}_policy_info", "the policy in force", labels=list(labels))
        info.add_metric(list(labels.values()), 1)
        yield info
        for name, words, value in (
            ("policy_loads", "times a policy was read and took force", self.file.loads),
            ("policy_failures", "times the file was bad and the old policy stayed", self.file.failures),
            ("policy_stale", "1 while the file on disk is bad", self.file.fault is not None),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"{SPACE}_{name}", words, value=float(value))


class Metrics:
    """``status``: of HTTP. ``rule``: the rule's name, ``default`` where none held."""

    def __init__(self, pools: Iterable[Pool], policy: PolicyFile) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Pools(pools))
        registry.register(_Policy(policy))

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"{SPACE}_{name}", words, labels, registry=registry)

        def histogram(name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{SPACE}_{name}", words, labels, registry=registry, buckets=buckets)

        self.requests = counter("requests", "answers by pool", "pool", "status", "ended")
        self.choices = counter("choices", "requests that a rule sent to a pool", "pool", "rule")
        self.failovers = counter("failovers", "requests that went on to another pool", "from_pool")
        self.lengths = counter("lengths", "where a prompt's length came from", "source")
        self.body_bytes = counter("response_bytes", "body bytes passed on", "pool")
        self.ttft = histogram("ttft_seconds", "arrival to first body byte", TTFT_S, "pool")
        self.own = histogram("own_seconds", "arrival of the body to the send to a pool", ADDED_S)
        self.open = Gauge(f"{SPACE}_open_requests", "requests that are open", registry=registry)

    def page(self) -> bytes:
        return generate_latest(self._registry)


def seconds(ns: int) -> float:
    return ns / NS_PER_S
