"""A thousand streams through the gateway while a pool is killed and started anew: each answer is looked at.

    .venv/bin/python scripts/gateway_streams.py [--streams 1000] [--seconds 60] [--restart drained]

Two fake pools and the gateway, each in a process of its own. Every token names its pool, its request and its
place, so that an answer that is lost, doubled or mixed with another shows. Ends with 1 where one is.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.gateways import LONG, policy, write_policy  # noqa: E402

Servers = dict[str, "subprocess.Popen[str]"]
SHORT_PROMPT, GAP_S = 10, 0.5
NAMES = ("short", "long")


@dataclass
class Tally:
    """Requests by how they ended. ``said_lost``: an error event told that the pool was lost.

    ``silently_cut``: neither [DONE] nor an error. ``refused``: another status than 200. ``mixed``: tokens of
    another request or pool, or out of order. ``doubled``: a token twice.
    """

    whole: int = 0
    said_lost: int = 0
    silently_cut: int = 0
    refused: int = 0
    mixed: int = 0
    doubled: int = 0
    pools: set[str] = field(default_factory=set[str])

    @property
    def sound(self) -> bool:
        return not (self.silently_cut or self.refused or self.mixed or self.doubled)

    def judge(self, request: int, tokens: int, text: str) -> None:
        """``text``: the whole body of one answer."""
        data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        events: list[dict[str, Any]] = [json.loads(each) for each in data if each != "[DONE]"]
        errors = [event for event in events if "error" in event]
        said = [event for event in events if "error" not in event]
        places = [event["token"] for event in said]
        self.pools |= {event["pool"] for event in said}
        self.doubled += len(set(places)) < len(places)
        self.mixed += (
            any(event["id"] != request for event in said)
            or len({event["pool"] for event in said}) > 1
            or places != list(range(len(places)))
        )
        ended = text.endswith("data: [DONE]\n\n")
        if ended and not errors and len(said) == tokens:
            self.whole += 1
        elif errors and not ended and "error" in events[-1]:
            self.said_lost += 1
        else:
            self.silently_cut += 1


async def stream_all(
    url: str,
    streams: int,
    tokens: int,
    long: int,
    rounds: int | None = None,
    seconds: float | None = None,
) -> Tally:
    """``streams`` users; each sends its next request when the last answer has ended. Every other prompt has
    ``long`` tokens. Until each had ``rounds`` answers, or for ``seconds``.
    """
    tally, numbers = Tally(), itertools.count()
    end = None if seconds is None else time.monotonic() + seconds

    async def user(session: aiohttp.ClientSession) -> None:
        for turn in itertools.count():
            if turn == rounds or (end is not None and time.monotonic() > end):
                return
            number = next(numbers)
            size = (SHORT_PROMPT, long)[number % 2]
            body = {"id": number, "stream": True, "max_tokens": tokens, "prompt": [number] * size}
            try:
                async with session.post(f"{url}/v1/completions", json=body) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, OSError):
                tally.silently_cut += 1
                continue
            if answer.status == 200:
                tally.judge(number, tokens, text)
            else:
                tally.refused += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout()
    ) as session:
        await asyncio.gather(*(user(session) for _ in range(streams)))
    return tally


def pool(name: str, port: int) -> subprocess.Popen[str]:
    code = (
        "import threading; from tests.fakes.pool_server import FakePool\n"
        f"with FakePool({name!r}, gap_s={GAP_S}, port={port}) as pool:\n"
        "    print(pool.port, flush=True); threading.Event().wait()"
    )
    argv = [sys.executable, "-c", code]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def port_of(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    return int(server.stdout.readline())


async def drain(url: str, name: str) -> None:
    """Ask for a restart, and wait until nothing runs there."""
    async with aiohttp.ClientSession(url) as session:
        await session.post(f"/gateway/pools/{name}/restart")
        while True:
            async with session.get("/gateway/pools") as answer:
                told = {pool["name"]: pool for pool in await answer.json()}
            if not told[name]["in_flight"]:
                return
            await asyncio.sleep(0.1)


async def watch_all(options: argparse.Namespace, url: str, servers: Servers, port: int) -> Tally:
    """The streams, and in their midst the end of a pool and its return at the same port."""
    work = asyncio.ensure_future(
        stream_all(url, options.streams, options.tokens, LONG, seconds=options.seconds)
    )
    await asyncio.sleep(options.seconds / 3)
    if options.restart == "drained":
        await drain(url, "short")
    servers["short"].kill()
    await asyncio.sleep(options.seconds / 6)
    servers["short"] = await asyncio.to_thread(pool, "short", port)
    return await work


def run(options: argparse.Namespace, folder: Path) -> tuple[Tally, float]:
    """The tally, and the gateway's CPU seconds."""
    write_policy(folder / "policy.yaml", policy(list(NAMES)))
    servers = {name: pool(name, 0) for name in NAMES}
    ports = {name: port_of(server) for name, server in servers.items()}
    argv = [sys.executable, "-m", "gateway", f"--policy={folder / 'policy.yaml'}", "--port=0"]
    argv += [f"--pool={name}=http://127.0.0.1:{port}" for name, port in ports.items()]
    argv += [f"--access-log={folder / 'access.jsonl'}"]
    gate = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert gate.stderr is not None
        url = gate.stderr.readline().split()[2]
        tally = asyncio.run(watch_all(options, url, servers, ports["short"]))
        times = psutil.Process(gate.pid).cpu_times()
        return tally, times.user + times.system
    finally:
        for process in (gate, *servers.values()):
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--restart", choices=("killed", "drained"), default="killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally, cpu_s = run(options, Path(folder))
    print(f"{tally}\ngateway: {cpu_s:.1f} CPU s; {'sound' if tally.sound else 'NOT SOUND'}")
    return not tally.sound


if __name__ == "__main__":
    sys.exit(main())
