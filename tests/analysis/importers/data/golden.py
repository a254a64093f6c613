"""The server that the result files beside this one were measured against: every answer is scripted.

    python tests/analysis/importers/data/golden.py LOG.jsonl [ttft_s] [gap_s]

prints its URL. Answer n has its first event after ttft + 10 ms * (n % 4), every second one brings two
tokens an event, and number 5 is refused with HTTP 500. At the end LOG.jsonl holds one line a request:
when it was whole, when each event was handed to the kernel (CLOCK_MONOTONIC ns), tokens an event.
"""

import json
import signal
import sys
import threading
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))
from tests.fakes.openai_server import (
    GoldenServer,
    Script,
    Seen,
    event,
    json_script,
    stream_script,
)

REFUSED = 5


def steps_of(number: int, tokens: int) -> list[int]:
    """Tokens an event brings: one each, or (odd answers) one, then two at a time."""
    if number % 2 == 0:
        return [1] * tokens
    rest = tokens - 1
    return [1] + [2] * (rest // 2) + [1] * (rest % 2)


def events_of(steps: list[int], prompt_tokens: int) -> list[bytes]:
    """As vLLM streams by default: usage only in the last event, after the text."""
    texts = [
        event(" word" * step, None, prompt_tokens, "length" if i == len(steps) - 1 else None)
        for i, step in enumerate(steps)
    ]
    return [*texts, event(None, sum(steps), prompt_tokens), b"[DONE]"]


def main() -> None:
    log, ttft_s, gap_s = Path(sys.argv[1]), *(float(a) for a in [*sys.argv[2:], "0.03", "0.01"][:2])
    numbers = count()
    scripted: list[list[int]] = []

    def script(seen: Seen) -> Script:
        number = next(numbers)
        if number == REFUSED:
            scripted.append([])
            return json_script({"error": {"message": "refused", "code": 500}}, "500 Error")
        steps = steps_of(number, int(seen.body["max_tokens"]))
        scripted.append(steps)
        return stream_script(
            events_of(steps, len(seen.body["prompt"])), ttft_s + 0.01 * (number % 4), gap_s
        )

    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    with GoldenServer(script) as server:
        print(server.url, flush=True)
        done.wait()
        with log.open("w") as out:
            for seen, steps in zip(server.seen, scripted, strict=True):
                row = {
                    "prompt_tokens": len(seen.body["prompt"]),
                    "received_ns": seen.received_ns,
                    "sent_ns": seen.sent_ns[: len(steps)],
                    "tokens": steps,
                }
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
