"""Pages of a live /metrics while a small load runs: what the tests of deploy/ let Prometheus scrape.

    make serve BACKEND=cpu_attn PORT=8000
    python -m scripts.record_scrapes --base-url http://127.0.0.1:8000 --out tests/deploy/data/vllm-0.32.0

``--metrics-url`` records another page than the server's own, e.g. that of a gateway before it.
"""

import argparse
import asyncio
import gzip
from pathlib import Path

import httpx

PAGES = 4  # the first before the load, the others while it runs
APART_S = 4.0
LIMIT_S = 600.0


async def send(client: httpx.AsyncClient, model: str, number: int, stop: asyncio.Event) -> None:
    """One user: prompts of many lengths, streamed, some with a common beginning."""
    turn = 0
    while not stop.is_set():
        words = 20 + 160 * ((turn + number) % 4)
        body = {
            "model": model,
            "prompt": f"User {number % 2}. " + "The harbour is quiet tonight. " * (words // 5),
            "max_tokens": 24,
            "ignore_eos": True,
            "stream": True,
        }
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for _ in answer.aiter_bytes():
                pass
        turn += 1


async def record(base_url: str, metrics_url: str, out: Path, users: int) -> None:
    async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        stop = asyncio.Event()
        load: list[asyncio.Task[None]] = []
        for number in range(PAGES):
            page = (await client.get(metrics_url)).raise_for_status()
            (out / f"{number}.txt.gz").write_bytes(gzip.compress(page.content, mtime=0))
            if not load:
                load = [asyncio.create_task(send(client, model, n, stop)) for n in range(users)]
            await asyncio.sleep(APART_S)
        stop.set()
        await asyncio.gather(*load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--base-url", required=True, help="where requests go")
    parser.add_argument("--metrics-url", help="default: /metrics there")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pages")
    parser.add_argument("--users", type=int, default=6, help="requests at a time; default 6")
    args = parser.parse_args()
    metrics_url = args.metrics_url or f"{args.base_url}/metrics"
    args.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(record(args.base_url, metrics_url, args.out, args.users))


if __name__ == "__main__":
    main()
