"""`make demo-policy`: two real vLLM servers behind the gateway, and whether a policy pays: at most 15 min.

    .venv/bin/python scripts/demo_policy.py [--out runs/demo-policy] [--rounds 2] [--requests N]

Two single-core pools of one small trained model: `exact` (cpu_attn) and `window` (sink_window, sees 1,024
tokens). Each answers the same graded prompts at each length; a policy comes out of that. Then equal traffic
of mixed lengths goes to the exact pool alone, to the window pool alone, to a random one, by the policy, and
to two exact pools (as many servers as the policy has), in shuffled order. index.html says what each gave:
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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis.report import document  # noqa: E402
from analysis.statistics.noninferiority import judge  # noqa: E402
from analysis.statistics.samples import wilson  # noqa: E402
from greenbench.contract.config import PromptRequest, TaskConfig, load_model  # noqa: E402
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

MODEL = "retriever"
BACKENDS = {"exact": "cpu_attn", "window": "sink_window(window=1024)"}
SECOND = "exact-2"  # on the window pool's core, which idles while this one serves
SERVED = {**BACKENDS, SECOND: BACKENDS["exact"]}
LENGTHS = {512: 0.6, 1000: 0.3, 4096: 0.1}  # prompt tokens → share of the traffic
CALIBRATION_PROMPTS, TRAFFIC_PROMPTS = 32, 64  # a length
CALIBRATION_USERS, USERS = 2, 6
BUSY = 0.1  # share of the cores that others may take in a turn before its figures are in doubt
EXACT_ALONE_S = 45.0  # about what one round of the traffic takes the exact pool
BOOT_S = 300.0
STRATEGIES = {
    "exact": "exact pool alone",
    "window": "window pool alone",
    "random": "random pool",
    "policy": "by the policy",
    "two": "two exact pools",
}
USED = {  # the pools that may take requests
    "exact": ("exact",),
    "window": ("window",),
    "random": ("exact", "window"),
    "policy": ("exact", "window"),
    "two": ("exact", SECOND),
}


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
    """A pool by itself at one length. ``verdict``: against the exact pool's answers on the same prompts."""

    pool: str
    context: int
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
    argv = [sys.executable, "-m", "servers", "--backend", SERVED[name], "--model", MODEL]
    argv += ["--kv-cache-gib", "0.5", "--out", str(folder)]
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
    connector = aiohttp.TCPConnector(limit=0)
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
    task = TaskConfig(name="retrieve")
    make_files([
        (PromptRequest(model_path=path, task=task, context_tokens=n, count=count, seed=seed), file)
        for n, file in files.items()
    ])  # fmt: skip
    return {length: read_prompts(file) for length, file in files.items()}


# --- the policy -----------------------------------------------------------------------------------


async def calibrate(urls: dict[str, str], prompts: Prompts) -> list[Measured]:
    """Both pools at once, each on its core, one length after the other."""
    found: list[Measured] = []
    for length, each in prompts.items():
        told = await asyncio.gather(*(
            traffic(name, 0, each, CALIBRATION_USERS, lambda _, at=(url, name): at)
            for name, url in urls.items()
        ))  # fmt: skip
        by_pool = dict(zip(urls, told, strict=True))
        found += [
            Measured(
                pool=name,
                context=length,
                e2e_s=statistics.median(a.e2e_s for a in answers),
                right=sum(a.right for a in answers),
                count=len(answers),
                verdict="" if name == "exact" else verdict(by_pool["exact"], answers),
            )
            for name, answers in by_pool.items()
        ]
    return found


def verdict(reference: list[Answer], told: list[Answer]) -> str:
    """The project's answer gate on the same prompts: no worse, worse, or undecided."""
    right = {answer.index: answer.right for answer in reference}
    pairs = [(right[answer.index], answer.right) for answer in told]
    return judge(pairs.count((True, False)), pairs.count((False, True)), len(pairs))


def policy_of(measured: list[Measured]) -> Policy:
    """The quicker pool takes what both may serve, until it is so much more loaded; the exact one the rest.

    A pool may not serve a length where its answers are not shown to be no worse.
    """
    at = {(each.pool, each.context): each for each in measured}
    lengths = sorted(LENGTHS)
    served = [n for n in lengths if at["window", n].verdict == "no worse"]
    longest = max(served, default=0)
    worse = [at["window", n] for n in lengths if n > longest]
    bars = [
        Barred(
            prompt_tokens=Range(at_least=longest + 1),
            why=f"its answers are {worse[0].verdict} there: {worse[0].right} of {worse[0].count} right at "
            f"{worse[0].context} tokens",
        )
    ] if worse else []  # fmt: skip
    rules = []
    if served:
        cost = {
            name: statistics.geometric_mean(at[name, n].e2e_s for n in served) for name in BACKENDS
        }
        quick, other = sorted(cost, key=cost.__getitem__)
        rules.append(
            Rule(
                name="both-may-serve",
                pool=quick,
                when=When(uncached_prompt_tokens=Range(below=longest + 1)),
                spill={other: round(cost[other] / cost[quick], 3)},
                measured=Range(at_least=min(served), below=longest + 1),
            )
        )
    return plain_policy("exact", bars, rules)


def two_exact() -> Policy:
    """The less busy one takes a request."""
    pools = {name: Pool(backend=backend) for name, backend in SERVED.items()}
    rule = Rule(name="less-busy", pool="exact", spill={SECOND: 1.0})
    return plain_policy("exact", [], []).model_copy(update={"pools": pools, "rules": [rule]})


def plain_policy(default: str, bars: list[Barred], rules: list[Rule]) -> Policy:
    pools = {
        name: Pool(backend=backend, barred=bars if name == "window" else [])
        for name, backend in BACKENDS.items()
    }
    model = PolicyModel(name=MODEL)
    return Policy(schema=1, objective="e2e", model=model, default=default, pools=pools, rules=rules)


# --- the comparison -------------------------------------------------------------------------------


def mixed(prompts: Prompts, count: int, seed: int) -> list[Prompt]:
    """The same traffic for all strategies of a round."""
    rng = random.Random(seed)
    lengths = rng.choices(list(LENGTHS), weights=list(LENGTHS.values()), k=count)
    return [rng.choice(prompts[length]) for length in lengths]


def requests_a_round(measured: list[Measured]) -> int:
    """So that the exact pool alone takes about EXACT_ALONE_S."""
    mean_s = sum(
        share * each.e2e_s / CALIBRATION_USERS
        for length, share in LENGTHS.items()
        for each in measured
        if (each.pool, each.context) == ("exact", length)
    )
    return max(USERS * 4, round(EXACT_ALONE_S / mean_s))


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
    folder: Path, servers: Servers, made: Policy, prompts: Prompts, count: int, rounds: int
) -> tuple[list[Answer], list[Turn]]:
    policies = {
        "exact": plain_policy("exact", [], []),
        "window": plain_policy("window", [], []),
        "policy": made,
        "two": two_exact(),
    }
    answers, turns = list[Answer](), list[Turn]()
    for number in range(1, rounds + 1):
        work = mixed(prompts, count, number)
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


def sentences(rows: dict[str, Row], turns: list[Turn]) -> list[str]:
    """What came out, whatever it is."""
    most = max(turn.others for turn in turns)
    doubt = [
        f"Other programs took up to {100 * most:.0f} % of a serving core in a turn: rates and TTFT are in "
        "doubt. Answers are not."
    ]
    by, exact, window, at_random, two = (
        rows[n] for n in ("policy", "exact", "window", "random", "two")
    )

    def share(each: Row) -> str:
        return f"{each.right[0][0]} of {each.right[0][1]} answers right"

    def ratios_to(other: Row) -> list[float]:
        return [a / b for a, b in zip(by.rates, other.rates, strict=True)]

    def over(other: Row) -> str:
        ratios = ratios_to(other)
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        return f"{statistics.fmean(ratios):.2f} times the throughput ({each} in the rounds)"

    def ttft(of: str) -> str:
        return ", ".join(
            f"{1e3 * getattr(each, of)[0]:.0f} ms {how}"
            for each, how in (
                (by, "by the policy"),
                (two, "with two exact pools"),
                (exact, "with the exact pool alone"),
                (window, "with the window pool alone"),
                (at_random, "at random"),
            )
        )

    return (doubt if most > BUSY else []) + [
        f"By the policy: {by.rate:.2f} requests/s, {share(by)}. The exact pool alone: {exact.rate:.2f} "
        f"requests/s, {share(exact)}. The policy has {over(exact)}, with two cores in place of one.",
        f"Two exact pools, as many servers as the policy has: {two.rate:.2f} requests/s, {share(two)}. "
        f"The policy has {over(two)}. {paid(ratios_to(two))}",
        f"The window pool alone: {window.rate:.2f} requests/s, {share(window)}. A random pool: "
        f"{at_random.rate:.2f} requests/s, {share(at_random)}.",
        f"TTFT p50: {ttft('ttft_p50')}. p95: {ttft('ttft_p95')}.",
    ]


def paid(ratios: list[float]) -> str:
    """Whether the second server was worth more than another exact one, by the ratio in each round."""
    if min(ratios) > 1:
        return "So the window pool paid for its server in these rounds."
    if max(ratios) < 1:
        return "So the window pool did not pay for its server: a second exact one serves more."
    return "So whether the window pool pays for its server is not shown: the rounds disagree."


def page(
    made: Policy,
    measured: list[Measured],
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
        title="Does a policy pay? Two pools behind the gateway",
        sentences=sentences(rows, turns),
        turns=turns,
        words=STRATEGIES,
        rows=list(rows.values()),
        lengths=list(LENGTHS),
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
            name: Home(core, stack.enter_context(pool(name, core, out / name)))
            for name, core in zip(SERVED, (cores[0], cores[1], cores[1]), strict=True)
        }
        say("starting three vLLM servers on two cores, of which two serve at a time (two minutes)")
        asked = make_prompts(out / "prompts", 1, CALIBRATION_PROMPTS)
        traffic_prompts = make_prompts(out / "prompts", 2, TRAFFIC_PROMPTS)
        urls = {name: address(out / name) for name in SERVED}
        say(f"ready after {time.monotonic() - begun:.0f} s; measuring each pool by itself")
        measured = asyncio.run(calibrate({name: urls[name] for name in BACKENDS}, asked))
        for each in measured:
            say(
                f"  {each.pool} at {each.context}: {each.e2e_s:.2f} s, {each.right} of {each.count} right"
                f"{f' ({each.verdict})' if each.verdict else ''}"
            )
        made = policy_of(measured)
        (out / "policy.yaml").write_text(dump_policy(two_exact()))  # it names every pool
        count = options.requests or requests_a_round(measured)
        say(f"{count} requests a round, {options.rounds} rounds")
        url, pid = stack.enter_context(gateway(out, urls))
        servers = Servers(urls, homes, url, pid)
        answers, turns = asyncio.run(
            compare(out, servers, made, traffic_prompts, count, options.rounds)
        )
        (out / "policy.yaml").write_text(dump_policy(made))
    facts = {
        "model": MODEL,
        "pools": "; ".join(
            f"{name}: {SERVED[name]}, core {home.core}" for name, home in homes.items()
        ),
        "traffic": ", ".join(f"{100 * s:.0f} % of {n} tokens" for n, s in LENGTHS.items()),
        "load": f"closed loop, {USERS} users, {count} requests a round, {options.rounds} rounds",
        "took": f"{(time.monotonic() - begun) / 60:.1f} minutes",
    }
    (out / "index.html").write_text(page(made, measured, answers, turns, facts))
    (out / "answers.json").write_text(json.dumps([asdict(a) for a in answers]))
    for sentence in sentences({s: row(s, answers) for s in STRATEGIES}, turns):
        say(sentence)
    say(f"{out / 'index.html'} ({facts['took']})")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-policy"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--requests", type=int, help="a round; default: by how fast the exact pool is"
    )
    options = parser.parse_args()
    return exit_on_user_error(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
