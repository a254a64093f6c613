"""`make demo-policy`: real vLLM servers behind the gateway, and whether a policy pays: at most 15 min.

    .venv/bin/python scripts/demo_policy.py [--out runs/demo-policy] [--rounds 2] [--requests N]

One small trained model, one server a core, two cores: `exact` (cpu_attn) and `window` (sink_window, sees
512 tokens). Each answers the same graded prompts at each length; a policy comes out of that, or none. Then
equal traffic of mixed lengths goes to two exact servers, to two window servers, and to one of each, at random
and by the policy, in shuffled order: always two servers, one a core. index.html says what each gave:
throughput, TTFT, right answers; what went where and why.
"""

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from analysis.report import document  # noqa: E402
from analysis.statistics.noninferiority import judge  # noqa: E402
from analysis.statistics.samples import wilson  # noqa: E402
from greenbench.contract.config import (  # noqa: E402
    PromptRequest,
    SloConfig,
    TaskConfig,
    load_model,
)
from greenbench.contract.errors import UserError, exit_on_user_error  # noqa: E402
from greenbench.contract.policy import (  # noqa: E402
    Barred,
    Policy,
    PolicyModel,
    Pool,
    Range,
    Rule,
    When,
    dump_policy,
)
from loadgen.make_prompts import make_files  # noqa: E402
from loadgen.prompts.prompt_file import Prompt, read_prompts  # noqa: E402
from loadgen.tasks.grading import grade_reply  # noqa: E402
from planning.curves import Curves, grid  # noqa: E402
from planning.fresh import REQUESTS, SHARE, Course, Fresh, every  # noqa: E402
from planning.playing import Fold  # noqa: E402

MODEL = "retriever-32k"
BACKENDS = {"exact": "cpu_attn", "window": "sink_window(window=512)"}
SECOND = "-2"  # a kind's other server
CORES = {
    "exact": 0,
    "exact-2": 1,
    "window-2": 0,
    "window": 1,
}  # of the two; one server of each serves
LENGTHS = (500, 2_000, 10_000)  # prompt tokens
DEPTH = 0.98  # where the record that is asked for stands: the window's 512 tokens hold it
LONGEST = 12_000  # tokens of a sequence
CALIBRATION_PROMPTS, TRAFFIC_PROMPTS = (
    30,
    64,
)  # a length; 29 are the fewest that the answer gate can judge
USERS = 8
BUSY = 0.1  # share of the cores that others may take in a turn before its figures are in doubt
ROUND_S = 45.0  # about what one round of the traffic takes the policy
BOOT_S = 300.0
STRATEGIES = {
    "exact": "two exact servers",
    "window": "two window servers",
    "random": "one of each, at random",
    "policy": "one of each, by the policy",
}
USED = {  # the servers that may take requests
    "exact": ("exact", "exact" + SECOND),
    "window": ("window", "window" + SECOND),
    "random": ("exact", "window"),
    "policy": ("exact", "window"),
}
SINGLE = ("exact", "window")  # strategies of one kind of server


def kind(name: str) -> str:
    """Of a server's name."""
    return name.removesuffix(SECOND)


@dataclass(frozen=True)
class Answer:
    """One request. Seconds since the round's start; ``why``: the gateway's reason without its figures."""

    strategy: str
    round: int
    user: int
    context: int
    index: int
    pool: str
    rule: str
    why: str
    sent_s: float
    first_s: float
    end_s: float
    right: bool

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s


@dataclass(frozen=True)
class Measured:
    """A kind of server at one length, one request at a time: medians. ``verdict``: against the exact server's
    answers on the same prompts.
    """

    pool: str
    context: int
    ttft_s: float
    e2e_s: float
    right: int
    count: int
    verdict: str


Ask = Callable[[Prompt], tuple[str, str]]  # (base address, pool; "" where the gateway decides)
Prompts = dict[int, list[Prompt]]


# --- servers --------------------------------------------------------------------------------------


@contextmanager
def pool(name: str, core: int, folder: Path) -> Iterator[int]:
    """A proven vLLM server on one core; its process id. Ended at the end."""
    argv = [sys.executable, "-m", "servers", "--backend", BACKENDS[kind(name)], "--model", MODEL]
    argv += ["--kv-cache-gib", "0.5", "--max-model-len", str(LONGEST), "--out", str(folder)]
    env = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": str(core), "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "launcher.log").open("w") as log:
        launcher = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=log)
        os.sched_setaffinity(launcher.pid, {core})
        try:
            yield launcher.pid
        finally:
            launcher.terminate()
            launcher.wait(60)


def address(folder: Path) -> str:
    """Once the server is ready and proven."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        said = (folder / "launcher.log").read_text()
        if "\nready at" in said:
            return json.loads((folder / "server.json").read_text())["server"]["base_url"]
        if "error: " in said or "failed: " in said:
            break
        time.sleep(0.5)
    raise UserError(f"the server of {folder.name} did not start; see {folder / 'launcher.log'}")


@contextmanager
def gateway(folder: Path, urls: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    argv = [sys.executable, "-m", "gateway", f"--policy={folder / 'policy.yaml'}", "--port=0"]
    argv += [f"--access-log={folder / 'access.jsonl'}"]
    argv += [f"--pool={name}={url}" for name, url in urls.items()]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[2], process.pid
    finally:
        process.terminate()
        process.wait(30)


# --- requests -------------------------------------------------------------------------------------


async def ask(
    session: aiohttp.ClientSession, base: str, prompt: Prompt
) -> tuple[float, float, str, Any]:
    """(first, end) on the monotonic clock, the text, and the headers."""
    body = {
        "model": MODEL,
        "prompt": prompt.token_ids,
        "max_tokens": prompt.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    first, text, rest = 0.0, "", b""
    async with session.post(f"{base}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            first = first or time.monotonic()
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data != b"[DONE]":
                    choices = json.loads(data)["choices"]
                    text += choices[0]["text"] if choices else ""
        return first, time.monotonic(), text, answer.headers


async def closed_loop(
    users: int, work: Sequence[Any], do: Callable[[int, Any], Awaitable[None]]
) -> None:
    """Each user takes the next piece of work when the last one is done."""
    left = iter(work)

    async def user(number: int) -> None:
        for piece in left:
            await do(number, piece)

    await asyncio.gather(*(user(number) for number in range(users)))


async def traffic(
    strategy: str, number: int, prompts: Sequence[Prompt], users: int, where: Ask
) -> list[Answer]:
    """All prompts, in order, each once."""
    answers: list[Answer] = []
    # a server closes idle connections; one that it closes as it is taken again would fail a request
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    start = time.monotonic()

    async def one(user: int, prompt: Prompt) -> None:
        base, chosen = where(prompt)
        sent = time.monotonic()
        first, end, text, headers = await ask(session, base, prompt)
        answers.append(
            Answer(
                strategy=strategy,
                round=number,
                user=user,
                context=prompt.context_tokens,
                index=prompt.prompt_index,
                pool=chosen or headers["x-greenbench-pool"],
                rule=headers.get("x-greenbench-rule", ""),
                why=headers.get("x-greenbench-reason", "").partition(";")[0],
                sent_s=sent - start,
                first_s=first - start,
                end_s=end - start,
                right=bool(grade_reply(prompt, "", text, None).correct),
            )
        )

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await closed_loop(users, prompts, one)
    return answers


def make_prompts(folder: Path, seed: int, count: int) -> Prompts:
    path = load_model(MODEL).path
    assert path is not None
    files = {length: folder / f"{length}-{seed}.jsonl" for length in LENGTHS}
    task = TaskConfig(name="retrieve", params={"depth": DEPTH})
    make_files([
        (PromptRequest(model_path=path, task=task, context_tokens=n, count=count, seed=seed), file)
        for n, file in files.items()
    ])  # fmt: skip
    return {length: read_prompts(file) for length, file in files.items()}


# --- the policy -----------------------------------------------------------------------------------


async def calibrate(urls: dict[str, str], prompts: Prompts) -> list[Measured]:
    """Each kind on both cores, each server one request at a time, one length after the other."""
    told: dict[tuple[str, int], list[Answer]] = {}
    for name in BACKENDS:
        for length, each in prompts.items():
            halves = await asyncio.gather(*(
                traffic(name, 0, each[number::2], 1, lambda _, at=(urls[server], server): at)
                for number, server in enumerate(USED[name])
            ))  # fmt: skip
            told[name, length] = [answer for half in halves for answer in half]
    return [
        Measured(
            pool=name,
            context=length,
            ttft_s=statistics.median(a.ttft_s for a in answers),
            e2e_s=statistics.median(a.e2e_s for a in answers),
            right=sum(a.right for a in answers),
            count=len(answers),
            verdict="" if name == "exact" else verdict(told["exact", length], answers),
        )
        for (name, length), answers in told.items()
    ]


def verdict(reference: list[Answer], told: list[Answer]) -> str:
    """The project's answer gate on the same prompts: no worse, worse, or undecided."""
    right = {answer.index: answer.right for answer in reference}
    pairs = [(right[answer.index], answer.right) for answer in told]
    return judge(pairs.count((True, False)), pairs.count((False, True)), len(pairs))


def by_place(measured: Sequence[Measured]) -> dict[tuple[str, int], Measured]:
    return {(each.pool, each.context): each for each in measured}


def served(measured: Sequence[Measured]) -> list[int]:
    """The lengths, from the shortest, up to which the window's answers are shown to be no worse."""
    at = by_place(measured)
    return list(takewhile(lambda n: at["window", n].verdict == "no worse", LENGTHS))


def quicker(measured: Sequence[Measured], length: int) -> str:
    """Of those that may serve the length."""
    at = by_place(measured)
    may = BACKENDS if length in served(measured) else ("exact",)
    return min(may, key=lambda name: at[name, length].e2e_s)


def policy_of(measured: Sequence[Measured]) -> Policy:
    """At each length the quicker kind, until it is so much more loaded than the other; between two lengths
    the rules meet at their geometric mean. The window takes nothing beyond where its answers are shown to be
    no worse.
    """
    at, lengths = by_place(measured), served(measured)
    rules = list[Rule]()
    low: int | None = None
    for name, group in groupby(lengths, key=lambda n: quicker(measured, n)):
        own = list(group)
        (other,) = set(BACKENDS) - {name}
        ratio = statistics.geometric_mean(at[other, n].e2e_s / at[name, n].e2e_s for n in own)
        rest = [n for n in lengths if n > own[-1]]
        high = round(math.sqrt(own[-1] * rest[0])) if rest else own[-1] + 1
        rules.append(
            Rule(
                name=f"{name}-from-{low or 0}",
                pool=name,
                when=When(uncached_prompt_tokens=Range(at_least=low, below=high)),
                spill={other: round(ratio, 3)},
                measured=Range(at_least=own[0], below=own[-1] + 1),
            )
        )
        low = high
    bars = [bar(at, lengths)]
    pools = {
        name: Pool(backend=backend, barred=bars if name == "window" else [])
        for name, backend in BACKENDS.items()
    }
    return plain_policy(rules, pools)


def bar(at: Mapping[tuple[str, int], Measured], lengths: Sequence[int]) -> Barred:
    """What the window may not take, and why."""
    first = next((at["window", n] for n in LENGTHS if n not in lengths), None)
    why = "its answers were not tested there"
    if first is not None:
        why = (
            f"its answers are {first.verdict} at {first.context} tokens: {first.right} of {first.count} "
            "right"
        )
    return Barred(prompt_tokens=Range(at_least=max(lengths, default=0) + 1), why=why)


def both_servers(name: str) -> Policy:
    """Two servers of a kind: the less busy one takes a request."""
    rule = Rule(name="less-busy", pool=name, spill={name + SECOND: 1.0})
    return plain_policy([rule], {each: Pool(backend=BACKENDS[kind(each)]) for each in CORES})


def plain_policy(rules: list[Rule], pools: dict[str, Pool]) -> Policy:
    model = PolicyModel(name=MODEL)
    return Policy(schema=1, objective="e2e", model=model, default="exact", pools=pools, rules=rules)


# --- the traffic, and what the policy should gain on it -------------------------------------------


def shares(measured: Sequence[Measured]) -> dict[int, float]:
    """Of the requests, by length: so many that both kinds have as much to do, each with those that it is
    quicker at, and as much at each of its lengths.
    """
    at = by_place(measured)
    best = {n: quicker(measured, n) for n in LENGTHS}
    counts = Counter(best.values())
    weights = {n: 1 / (counts[name] * at[name, n].e2e_s) for n, name in best.items()}
    return {n: weight / sum(weights.values()) for n, weight in weights.items()}


def requests_a_round(measured: Sequence[Measured]) -> int:
    """So that two servers, each with the lengths that it is quicker at, take about ROUND_S."""
    at = by_place(measured)
    mean_s = sum(share * at[quicker(measured, n), n].e2e_s for n, share in shares(measured).items())
    return max(USERS * 4, round(2 * ROUND_S / mean_s))


def mixed(prompts: Prompts, of: Mapping[int, float], count: int, seed: int) -> list[Prompt]:
    """The same traffic for all strategies of a round."""
    rng = random.Random(seed)
    lengths = [n for n, share in of.items() for _ in range(round(share * count))]
    rng.shuffle(lengths)
    return [rng.choice(prompts[length]) for length in lengths]


def expected(made: Policy, measured: Sequence[Measured]) -> list[Fresh]:
    """The trial of `greenbench policy`, on the measured times and this traffic: its gain over two servers of
    whichever kind does best alone.
    """
    tokens = 16  # of an answer of the task

    def curves(name: str) -> Curves:
        own = [each for each in measured if each.pool == name]
        ttft = grid({(1.0, each.context): each.ttft_s for each in own})
        tpot = grid(
            {(1.0, each.context): (each.e2e_s - each.ttft_s) / (tokens - 1) for each in own}
        )
        assert ttft is not None and tpot is not None, "every kind is measured"
        return Curves(ttft, tpot, None)

    of = shares(measured)
    lengths = np.repeat(list(of), [round(1000 * share) for share in of.values()])
    fold = Fold(made, {name: curves(name) for name in BACKENDS})
    return every(Course(fold, 2, "e2e", SloConfig(), lengths, tokens), 1)


def told_before(found: Sequence[Fresh]) -> str:
    """What was to be expected, before the servers were compared."""
    last = found[-1]
    gain = statistics.fmean(last.gains)
    how = f"{last.won} of {len(last.gains)} simulated traces of {REQUESTS} requests ({last.busy:.0%} busy)"
    if last.shown:
        each = ", ".join(f"{f.won} of {len(f.gains)} at {f.busy:.0%} busy" for f in found)
        return (
            f"Before the comparison, by the trial of greenbench policy on the measured times: it pays; it "
            f"is at least as good as two servers of the better kind in {each} (simulated traces of "
            f"{REQUESTS} requests)."
        )
    return (
        "Before the comparison, by the trial of greenbench policy on the measured times: no policy. It is "
        f"at least as good as two servers of the better kind in {how}, its mean gain there is {gain:+.1%}, "
        f"and {SHARE:.0%} must be shown."
    )


# --- the comparison -------------------------------------------------------------------------------


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


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A strategy over all rounds. ``rates``: requests/s of each round. Times: seconds, by length (0: all)."""

    strategy: str
    words: str
    rates: list[float]
    ttft_p50: dict[int, float]
    ttft_p95: dict[int, float]
    e2e_p50: float
    right: dict[int, tuple[int, int]]
    span: tuple[float, float]  # 95 % interval of the share that is right
    taken: dict[str, int]  # requests by pool

    @property
    def rate(self) -> float:
        return statistics.fmean(self.rates)


def row(strategy: str, answers: list[Answer]) -> Row:
    own = [a for a in answers if a.strategy == strategy]
    rounds = sorted({a.round for a in own})
    lengths = (0, *LENGTHS)

    def at(length: int) -> list[Answer]:
        return [a for a in own if length in (0, a.context)]

    def ttft(share: float) -> dict[int, float]:
        return {n: quantile([a.ttft_s for a in at(n)], share) for n in lengths}

    right = {n: (sum(a.right for a in at(n)), len(at(n))) for n in lengths}
    return Row(
        strategy=strategy,
        words=STRATEGIES[strategy],
        rates=[
            len(each) / max(a.end_s for a in each)
            for each in ([a for a in own if a.round == number] for number in rounds)
        ],
        ttft_p50=ttft(0.5),
        ttft_p95=ttft(0.95),
        e2e_p50=quantile([a.e2e_s for a in own], 0.5),
        right=right,
        span=wilson(*right[0]),
        taken=dict(Counter(a.pool for a in own)),
    )


def quantile(values: list[float], share: float) -> float:
    """NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else math.nan


def sentences(
    rows: dict[str, Row], turns: list[Turn], measured: Sequence[Measured], found: Sequence[Fresh]
) -> list[str]:
    """What came out, whatever it is; first whether the policy is better than the best single kind."""
    most = max(turn.others for turn in turns)
    doubt = [
        f"Other programs took up to {100 * most:.0f} % of a serving core in a turn (what its server left "
        "idle, or more): rates and TTFT are in doubt. Answers are not."
    ]
    by = rows["policy"]
    best = max((rows[name] for name in SINGLE), key=lambda each: each.rate)
    others = [each for each in rows.values() if each not in (by, best)]
    return [
        f"{paid(best, ratios(by, best))} The policy served {by.rate:.2f} requests/s, {best.words} "
        f"{best.rate:.2f}: {over(by, best)}.",
        told_before(found),
        told_alone(measured),
        *(doubt if most > BUSY else []),
        "The others: "
        + "; ".join(
            f"{each.words} {each.rate:.2f} requests/s, of which the policy has {over(by, each)}"
            for each in others
        )
        + ".",
        "Right answers: "
        + "; ".join(f"{r.words} {r.right[0][0]} of {r.right[0][1]}" for r in rows.values())
        + ".",
        "TTFT p50 and p95, and E2E p50: "
        + "; ".join(
            f"{r.words} {1e3 * r.ttft_p50[0]:.0f} and {1e3 * r.ttft_p95[0]:.0f} ms, {r.e2e_p50:.2f} s"
            for r in rows.values()
        )
        + ".",
    ]


def told_alone(measured: Sequence[Measured]) -> str:
    at = by_place(measured)
    each = [
        f"{at['exact', n].e2e_s / at['window', n].e2e_s:.2f} at {n:,} tokens ({quicker(measured, n)} serves)"
        for n in LENGTHS
    ]
    return (
        f"E2E of an exact server over a window server's, one request at a time: {', '.join(each)}."
    )


def ratios(one: Row, other: Row) -> list[float]:
    """Of the rates, a round."""
    return [a / b for a, b in zip(one.rates, other.rates, strict=True)]


def over(one: Row, other: Row) -> str:
    each = ratios(one, other)
    rounds = f" ({', '.join(f'{r:.2f}' for r in each)} in the rounds)" if len(each) > 1 else ""
    return f"{statistics.fmean(each):.2f} times{rounds}"


def paid(best: Row, each: Sequence[float]) -> str:
    """Whether one server of each kind served more than two of the better one, by the ratio in each round."""
    if len(each) == 1:
        more = "served more" if each[0] > 1 else "did not serve more"
        return f"One round shows little: in it the policy {more} than {best.words}, the best single kind."
    if min(each) > 1:
        return f"In these {len(each)} rounds the policy served more than {best.words}, the best single kind."
    if max(each) < 1:
        return f"The policy did not pay: {best.words}, the best single kind, served more in each round."
    return (
        f"Whether the policy pays is not shown: against {best.words}, the best single kind, the rounds "
        "disagree."
    )


def page(
    made: Policy,
    measured: list[Measured],
    found: Sequence[Fresh],
    answers: list[Answer],
    turns: list[Turn],
    facts: dict[str, str],
) -> str:
    rows = {strategy: row(strategy, answers) for strategy in STRATEGIES}
    decided = [a for a in answers if a.strategy == "policy"]
    last = [a for a in decided if a.round == max(a.round for a in decided)]
    switched = Counter((a.context, a.pool, a.rule, a.why) for a in decided)
    template = document.environment(Path(__file__).parent).get_template("demo_policy.html.j2")
    return template.render(
        **document.frame(None, document.TEXT),
        title="Does a policy pay? Two servers behind the gateway",
        sentences=sentences(rows, turns, measured, found),
        turns=turns,
        words=STRATEGIES,
        rows=list(rows.values()),
        lengths=LENGTHS,
        depth=DEPTH,
        measured=measured,
        policy_yaml=dump_policy(made),
        timeline=last,
        end_s=max(a.end_s for a in last),
        users=USERS,
        switched=sorted(switched.items(), key=lambda item: (item[0][0], -item[1])),
        facts=facts,
    )


def say(words: str) -> None:
    print(words, flush=True)


def run(options: argparse.Namespace) -> int:
    begun = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise UserError("the demo wants two cores, one for each pool; this process may use one")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        homes = {
            name: Home(cores[at], stack.enter_context(pool(name, cores[at], out / name)))
            for name, at in CORES.items()
        }
        say("starting four vLLM servers on two cores, of which two serve at a time (two minutes)")
        asked = make_prompts(out / "prompts", 1, CALIBRATION_PROMPTS)
        traffic_prompts = make_prompts(out / "prompts", 2, TRAFFIC_PROMPTS)
        urls = {name: address(out / name) for name in CORES}
        say(f"ready after {time.monotonic() - begun:.0f} s; measuring each kind by itself")
        measured = asyncio.run(calibrate(urls, asked))
        for each in measured:
            say(
                f"  {each.pool} at {each.context}: {each.e2e_s:.2f} s, {each.right} of {each.count} right"
                f"{f' ({each.verdict})' if each.verdict else ''}"
            )
        made, of = policy_of(measured), shares(measured)
        found = expected(made, measured)
        say(told_before(found))
        (out / "policy.yaml").write_text(dump_policy(both_servers("exact")))  # it names every pool
        count = options.requests or requests_a_round(measured)
        say(f"{count} requests a round, {options.rounds} rounds")
        url, pid = stack.enter_context(gateway(out, urls))
        servers = Servers(urls, homes, url, pid)
        answers, turns = asyncio.run(
            compare(out, servers, made, traffic_prompts, of, count, options.rounds)
        )
        (out / "policy.yaml").write_text(dump_policy(made))
    facts = {
        "model": MODEL,
        "servers": "; ".join(
            f"{name}: {BACKENDS[kind(name)]}, core {home.core}" for name, home in homes.items()
        ),
        "traffic": ", ".join(f"{share:.0%} of {n:,} tokens" for n, share in of.items()),
        "load": f"closed loop, {USERS} users, {count} requests a round, {options.rounds} rounds",
        "took": f"{(time.monotonic() - begun) / 60:.1f} minutes",
    }
    (out / "index.html").write_text(page(made, measured, found, answers, turns, facts))
    for sentence in sentences({s: row(s, answers) for s in STRATEGIES}, turns, measured, found):
        say(sentence)
    say(f"{out / 'index.html'} ({facts['took']})")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-policy"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--requests", type=int, help="a round; default: by how fast the servers are"
    )
    options = parser.parse_args()
    return exit_on_user_error(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
