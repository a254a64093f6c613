"""A plain baseline: Locust's FastHttpUser, the stream read event by event, times of the program.

    PEER_TOKENS=64 PEER_REQUESTS=1024 PEER_OUT=rows.jsonl \
        locust -f locust_fasthttp.py --headless -u 256 -r 256 -H http://127.0.0.1:PORT
"""

import itertools
import json
import os
import time
from pathlib import Path

import gevent
from locust import FastHttpUser, events, task

TOKENS, REQUESTS = int(os.environ["PEER_TOKENS"]), int(os.environ["PEER_REQUESTS"])
numbers, rows = itertools.count(), []


class Plain(FastHttpUser):
    @task
    def complete(self) -> None:
        number = next(numbers)
        if number >= REQUESTS:
            gevent.sleep(3600)
        body = {"model": "golden", "prompt": "x", "max_tokens": TOKENS, "stream": True}
        headers = {"X-Request-Id": f"plain-{number}"}
        started, arrived = time.perf_counter_ns(), []
        with self.client.post(
            "/v1/completions", json=body, headers=headers, stream=True, catch_response=True
        ) as response:
            # raw reads: its own iter_lines waits for 1,024 bytes at a time
            while event := bytes(response.raw.readline(b"\n\n")):
                if event.startswith(b"data: {") and json.loads(event[6:])["choices"]:
                    arrived.append(time.perf_counter_ns() - started)
        rows.append({"request_id": f"plain-{number}", "chunk_ns": arrived})
        if len(rows) == REQUESTS:
            Path(os.environ["PEER_OUT"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
            gevent.spawn(self.environment.runner.quit)


@events.init.add_listener
def on_init(environment, **_) -> None:
    environment.process_exit_code = 0
