"""Equal traffic to each strategy in turn, and what other programs took of the cores meanwhile."""

import json
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import psutil

from greenbench.contract.policy import Policy, dump_policy
from scripts.demo_policy.choice import both_servers
from scripts.demo_policy.experiment import SINGLE, STRATEGIES, USED, USERS, Answer, Prompts, say
from scripts.demo_policy.gain import mixed
from scripts.demo_policy.traffic import Ask, traffic


@dataclass(frozen=True)
class Turn:
    """``others``: share of a serving core that other programs took meanwhile; the worst of the cores used."""

    strategy: str
    round: int
    seconds: float
    others: float


@dataclass(frozen=True)
class Home:
    """Where a pool runs."""

    core: int
    pid: int

    def others_s(self) -> float:
        """CPU seconds of its core so far that are not the pool's."""
        core = psutil.cpu_times(percpu=True)[self.core]
        idle = core.idle + getattr(core, "iowait", 0.0) + getattr(core, "guest", 0.0)
        return sum(core) - idle - tree_s(self.pid)


@dataclass(frozen=True)
class Servers:
    urls: dict[str, str]
    homes: dict[str, Home]
    gateway: str
    gateway_pid: int


def tree_s(pid: int) -> float:
    """CPU seconds of a process and all below it."""
    own = psutil.Process(pid)
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def taken_by_others(homes: list[Home], gateway_pid: int) -> list[float]:
    """Of each core, CPU seconds of others so far. Client and gateway may run on any: they are not others."""
    mine = psutil.Process().cpu_times()
    ours = tree_s(gateway_pid) + mine.user + mine.system
    return [home.others_s() - ours for home in homes]


async def compare(
    folder: Path,
    servers: Servers,
    made: Policy,
    prompts: Prompts,
    of: Mapping[int, float],
    count: int,
    rounds: int,
) -> tuple[list[Answer], list[Turn]]:
    policies = {name: both_servers(name) for name in SINGLE} | {"policy": made}
    answers, turns = list[Answer](), list[Turn]()
    for number in range(1, rounds + 1):
        work = mixed(prompts, of, count, number)
        for strategy in random.Random(number).sample(list(STRATEGIES), len(STRATEGIES)):
            if strategy in policies:
                (folder / "policy.yaml").write_text(dump_policy(policies[strategy]))
                await reload(servers.gateway)
            where = (
                by_gateway(servers.gateway)
                if strategy in policies
                else at_random({name: servers.urls[name] for name in USED[strategy]}, number)
            )
            used = [servers.homes[name] for name in USED[strategy]]
            begun, before = time.monotonic(), taken_by_others(used, servers.gateway_pid)
            answers += await traffic(strategy, number, work, USERS, where)
            took_s, after = time.monotonic() - begun, taken_by_others(used, servers.gateway_pid)
            others = max(now - then for now, then in zip(after, before, strict=True)) / took_s
            others = max(0.0, others)
            turns.append(Turn(strategy, number, took_s, others))
            (folder / "answers.json").write_text(json.dumps([asdict(a) for a in answers]))
            say(
                f"round {number}, {STRATEGIES[strategy]}: {took_s:.0f} s, others {others:.0%} of a core"
            )
    return answers, turns


def by_gateway(url: str) -> Ask:
    return lambda _: (url, "")


def at_random(urls: dict[str, str], seed: int) -> Ask:
    """Past the gateway, which costs a millisecond of some hundreds."""
    rng, pools = random.Random(seed), [(url, name) for name, url in urls.items()]
    return lambda _: rng.choice(pools)


async def reload(url: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/gateway/policy/reload") as answer,
    ):
        answer.raise_for_status()
