"""A plain baseline: asyncio and httpx.AsyncClient, lines as httpx splits them, times of the program.

python plain_httpx.py URL STREAMS TOKENS REQUESTS OUT
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


async def user(
    http: httpx.AsyncClient, url: str, tokens: int, numbers: Iterator[int], out: list[dict]
) -> None:
    for number in numbers:
        body = {"model": "golden", "prompt": "x", "max_tokens": tokens, "stream": True}
        started, arrived = time.perf_counter_ns(), []
        headers = {"X-Request-Id": f"plain-{number}"}
        async with http.stream(
            "POST", f"{url}/v1/completions", json=body, headers=headers
        ) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                    arrived.append(time.perf_counter_ns() - started)
        out.append({"request_id": f"plain-{number}", "chunk_ns": arrived})


async def main(url: str, streams: int, tokens: int, requests: int, path: str) -> None:
    numbers, out = iter(range(requests)), []
    async with httpx.AsyncClient(limits=NO_LIMITS, timeout=None, trust_env=False) as http:  # noqa: S113  as others do
        await asyncio.gather(*(user(http, url, tokens, numbers, out) for _ in range(streams)))
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in out))  # noqa: ASYNC240


if __name__ == "__main__":
    url, streams, tokens, requests, path = sys.argv[1:]
    asyncio.run(main(url, int(streams), int(tokens), int(requests), path))
