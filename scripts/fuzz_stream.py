"""Feed broken and odd streams to the reply parser: none may raise, hang or leave an error wordless.

    python scripts/fuzz_stream.py --count 1000000 --seed 7

Each input is a reply as a server might send it, with its head, cut into reads of any size: good streams
with pieces changed, repeated, cut or swapped, JSON of odd shapes, and noise. It goes through the same
`RawReply` that a connection fills. Prints counts by outcome and the peak of memory; ends with 1 at the
first fault, after writing that input's seed.
"""

import argparse
import copy
import json
import random
import re
import resource
import sys
import time
import traceback
from collections import Counter
from typing import Any, Final

import msgspec

from greenbench.contract.clock import Anchor
from greenbench.contract.schema import ERROR_TYPES
from loadgen.wire.connection import outcome
from loadgen.wire.response import RawReply, Request, Response

PROMPT, TOKENS = 9, 4
MOST_GROWTH_BYTES: Final = 64 * 2**20  # over the whole run
SLOW_S: Final = 2.0  # for one input of at most some ten kB
HEADS: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n",
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: Wed, 99 Nov 2026 07:48:12 GMT\r\n\r\n",
    b"HTTP/1.0 503 x\r\nretry-after: 1e9\r\nlocation: \xff\r\n\r\n",
)
FIELDS: Final = (
    "choices", "usage", "error", "object", "metrics", "message", "text", "delta", "content", "finish_reason",
    "reasoning_content", "reasoning", "tool_calls", "prompt_tokens", "completion_tokens", "cached_tokens",
    "prompt_tokens_details", "detail", "id",
)  # fmt: skip
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 16, 16.0, 16.5, 1e300, 2**70, -(2**70), "", " ", "x", "16", "\ud83d",
    "\ude00", "\x00", "\u2028", "é漢🚀", "error", "stop", "length", "abort", [], {}, [None], [[]], [{}],
    float("nan"), float("inf"),
)  # fmt: skip
PIECES: Final = (
    b"data: ", b"data:", b"data", b"event: ping\n", b"event: error\n", b"event:\n", b"id: 1\n", b": c\n",
    b"\n", b"\n\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"[DONE]", b"data: [DONE]\n\n",
    b"{", b"}", b"[" * 40, b"[" * 5000, b'"', b"\\", b"\\ud800", b"null", b"NaN", b"1e999", b"0\r\n\r\n",
    b"5\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
)  # fmt: skip
CHUNK_END: Final = re.compile(rb"(?<=\n\n\r\n)")  # of a chunk that holds an event
REQUEST: Final = Request("r-0", b"", b"", True, PROMPT, TOKENS)


def value(rng: random.Random, depth: int = 0) -> Any:
    """JSON of the fields that are read, and others, in any shape."""
    kind = rng.random()
    if depth > 4 or kind < 0.5:
        return copy.deepcopy(rng.choice(ODD))  # it may be changed: inputs share nothing
    if kind < 0.65:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(FIELDS): value(rng, depth + 1) for _ in range(rng.randrange(5))}


def event(rng: random.Random, count: int) -> dict[str, Any]:
    """A usual event, in which a field or two may be odd."""
    part = {"text": f" w{count}"} if rng.random() < 0.6 else {"delta": {"content": f" w{count}"}}
    finish = "length" if count == TOKENS else None
    usage: dict[str, Any] = {"prompt_tokens": PROMPT, "completion_tokens": count}
    whole: dict[str, Any] = {"choices": [{**part, "finish_reason": finish}], "usage": usage}
    while rng.random() < 0.25:
        place = rng.choice([whole, usage, whole["choices"][0] if whole.get("choices") else whole])
        if isinstance(place, dict):
            place[rng.choice(FIELDS)] = value(rng)
        if not isinstance(whole.get("choices"), list) or not whole["choices"]:
            break
    return whole


def body(rng: random.Random) -> bytes:
    newline = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r"))
    parts: list[bytes] = []
    for count in range(1, TOKENS + 1):
        data = json.dumps(event(rng, count), ensure_ascii=rng.random() < 0.5)
        parts.append(b"data: " + data.encode("utf-8", "surrogatepass") + newline + newline)
    parts.append(b"data: [DONE]" + newline + newline)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 6))):
        change(rng, parts)
    return b"".join(parts)


def change(rng: random.Random, parts: list[bytes]) -> None:
    """One fault: something put in, left out, doubled, swapped, cut, or a byte flipped."""
    at = rng.randrange(len(parts) + 1)
    kind = rng.randrange(6)
    if kind == 0 or not parts:
        parts.insert(at, b"".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 4))))
        return
    at = min(at, len(parts) - 1)
    part = parts[at]
    where = rng.randrange(len(part) + 1)
    if kind == 1:
        del parts[at]
    elif kind == 2:
        parts.insert(at, part)
    elif kind == 3:
        parts[at] = part[:where]
    elif kind == 4:
        parts[at] = part[:where] + rng.choice(PIECES) + part[where:]
    elif part:
        where = min(where, len(part) - 1)
        parts[at] = part[:where] + bytes([rng.randrange(256)]) + part[where + 1 :]


def chunked(rng: random.Random, data: bytes) -> bytes:
    """Usually a chunk an event, sometimes cut anywhere; at times without the end."""
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        end = data.find(b"\n\n", at) + 2 if rng.random() < 0.7 else at + rng.randrange(1, 60)
        end = end if end > at + 1 else len(data)
        pieces.append(b"%x\r\n%b\r\n" % (len(data[at:end]), data[at:end]))
        at = end
    return b"".join(pieces) + (b"0\r\n\r\n" if rng.random() < 0.9 else b"")


def reads(rng: random.Random, raw: bytes) -> list[bytes]:
    """The bytes as reads: at once, by chunks, or cut at random."""
    how = rng.random()
    if how < 0.2:
        return [raw]
    if how < 0.6:
        return [piece for piece in CHUNK_END.split(raw) if piece]
    most = rng.choice((1, 7, 64, 700)) if len(raw) < 2000 else 700
    pieces: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + rng.randrange(1, most + 1)
        pieces.append(raw[at:end])
        at = end
    return pieces


def reply_to(rng: random.Random) -> Response:
    """One input through the parser, as a connection would hand it over."""
    head = HEADS[0] if rng.random() < 0.6 else rng.choice(HEADS)
    data = body(rng) if rng.random() < 0.95 else rng.randbytes(rng.randrange(400))
    raw = head + (chunked(rng, data) if b"chunked" in head else data)
    if rng.random() < 0.05:
        where = rng.randrange(len(raw))
        raw = raw[:where] + rng.choice(PIECES) + raw[where:]
    reply = RawReply(REQUEST, deadline_ns=2**63)
    reply.sent = Anchor.now()
    for number, piece in enumerate(reads(rng, raw)):
        if reply.add(piece, reply.sent.mono_ns + number + 1, None):
            break
    else:
        reply.closed_by_peer()
    return outcome(reply)


def fault_of(response: Response) -> str | None:
    """What is wrong with an outcome, whatever the input was."""
    facts = response.facts
    if (facts.error_type is None) != (facts.error_message is None):
        return f"error type {facts.error_type!r} with message {facts.error_message!r}"
    if facts.error_type is not None and facts.error_type not in ERROR_TYPES:
        return f"an unknown error type {facts.error_type!r}"
    if facts.error_message is not None and not facts.error_message.strip():
        return "an error without words"
    if facts.error_type is None:
        if (facts.prompt_tokens, facts.output_tokens) != (PROMPT, TOKENS):
            return f"called good with {facts.prompt_tokens} and {facts.output_tokens} tokens"
        if response.chunk_ns is not None and response.chunk_ns != sorted(response.chunk_ns):
            return "chunks out of order"
    msgspec.json.encode([response.text, facts.error_message, facts.finish_reason])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000, help="inputs")
    parser.add_argument("--seed", type=int, default=7, help="of the first; the others follow")
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    base = 0
    started = time.process_time()
    for number in range(options.count):
        seed = options.seed + number
        before = time.process_time()
        try:
            response = reply_to(random.Random(seed))
            fault = fault_of(response)
        except Exception:
            traceback.print_exc()
            fault = "it raised"
        else:
            outcomes[response.facts.error_type or "good"] += 1
        if fault is None and time.process_time() - before > SLOW_S:
            fault = f"it took over {SLOW_S:g} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if number == min(1000, options.count - 1):
            base = peak
        if base and peak - base > MOST_GROWTH_BYTES:
            fault = f"memory grew by {(peak - base) / 2**20:.0f} MiB"
        if fault is not None:
            print(f"input {seed}: {fault}", file=sys.stderr)
            return 1
    seconds = time.process_time() - started
    for name, count in outcomes.most_common():
        print(f"{count:9,} {name}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    grown = peak - base / 2**20
    print(
        f"{options.count:,} inputs, no fault, {seconds:.0f} s of CPU, peak {peak:.0f} MiB, grown {grown:.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
