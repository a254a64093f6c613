"""The gateway in a thread of its own, before fake pools, with a policy file to write."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from gateway.__main__ import listen, server
from gateway.app import App
from gateway.options import read_options
from tests.fakes.pool_server import FakePool
from tests.fakes.waiting import wait_until

LONG = 1000  # uncached prompt tokens from which the pool "long" of `policy` takes a request


def policy(pools: list[str], **more: Any) -> dict[str, Any]:
    """The first pool is the default one; the second takes prompts of LONG tokens and more."""
    rules = [
        {"name": "long", "pool": pools[1], "when": {"uncached_prompt_tokens": {"at_least": LONG}}}
    ]
    return {
        "schema": 1,
        "objective": "ttft",
        "model": {"name": "m", "revision": "r1"},
        "default": pools[0],
        "pools": {name: {"backend": "fake", "restart_s": 7} for name in pools},
        "rules": rules if len(pools) > 1 else [],
        **more,
    }


def write_policy(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content))


@dataclass
class Gateway:
    app: App
    url: str
    log: Path
    policy: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def entries(self, count: int) -> list[dict[str, Any]]:
        """The access log once it has ``count`` lines, which are written as requests end."""
        lines = wait_until(
            lambda: len(found := self.log.read_bytes().splitlines()) >= count and found,
            "access log",
        )
        return [msgspec.json.decode(line) for line in lines]

    def post(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json={"model": "m", "prompt": [1, 2, 3]} | body)


@contextmanager
def gateway(folder: Path, pools: list[FakePool], *flags: str, **more: Any) -> Iterator[Gateway]:
    """``more``: keys of the policy."""
    path, log = folder / "policy.yaml", folder / "access.jsonl"
    write_policy(path, policy([pool.name for pool in pools]) | more)
    argv = [
        "--policy",
        str(path),
        "--access-log",
        str(log),
        "--probe-s",
        "0.1",
        "--scrape-s",
        "0.05",
    ]
    argv += [f"--pool={pool.name}={pool.url}" for pool in pools]
    app = App(read_options([*argv, *flags]))
    with running_app(app) as url:
        yield Gateway(app, url, log, path)


@contextmanager
def running_app(app: App) -> Iterator[str]:
    """Its address."""
    listener = listen("127.0.0.1", 0)
    running = server(app)
    thread = threading.Thread(target=lambda: running.run(sockets=[listener]), daemon=True)
    thread.start()
    wait_until(lambda: running.started, "the gateway's start")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
