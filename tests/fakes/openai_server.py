"""The golden server: an OpenAI-compatible completions server whose every byte and time is scripted.

Each POST /v1/completions is answered by the script that ``script_for`` gives for it; the server records
when the request was whole and when each write was handed to the kernel, so that a test works its
expected TTFT, ITL, counts and errors out from these. Knows no model: tokens are made up.

As a program (for the sweep's tests):  python tests/fakes/openai_server.py --root MODEL_FOLDER
prints its URL and serves until killed.
"""

import argparse
import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

OK_STREAM = (
    b"HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 07:48:12 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
END_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Write:
    """``data`` is written ``after_s`` seconds after the write before it (or after the request)."""

    after_s: float
    data: bytes


@dataclass(frozen=True)
class Script:
    """What to answer. ``ending``: keep the connection, close it (fin), reset it (rst), or hang."""

    writes: list[Write]
    ending: str = "keep"
    before_body: bool = False  # answer after the head, without reading the body
    hang_s: float = 30.0


@dataclass
class Seen:
    """One request as the server saw it. Times are CLOCK_MONOTONIC ns."""

    request_id: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int
    received_ns: int
    sent_ns: list[int] = field(default_factory=list)  # just before each write …
    written_ns: list[int] = field(default_factory=list)  # … and just after


def event(
    text: str | None,
    completion_tokens: int | None,
    prompt_tokens: int,
    finish: str | None = None,
    **more: object,
) -> bytes:
    """The JSON of one streamed event as vLLM 0.32 shapes it; text None gives empty choices."""
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": finish}]
    whole: dict[str, object] = {"id": "cmpl-1", "object": "text_completion", "choices": choices}
    if completion_tokens is not None:
        whole["usage"] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
    return json.dumps(whole | more, separators=(",", ":"), ensure_ascii=False).encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(data: bytes, newline: bytes = b"\n") -> bytes:
    return b"data: " + data + newline + newline


def completion_events(
    prompt_tokens: int, steps: list[int], words: Callable[[int], str] = lambda i: f" w{i}"
) -> list[bytes]:
    """Events of a completion that brings ``steps[i]`` tokens in its i-th event, then usage, then done."""
    done, events = 0, []
    for i, step in enumerate(steps):
        done += step
        events.append(
            event(words(i), done, prompt_tokens, "length" if i == len(steps) - 1 else None)
        )
    return [*events, event(None, done, prompt_tokens), b"[DONE]"]


def stream_script(events: list[bytes], ttft_s: float = 0.0, gap_s: float = 0.0) -> Script:
    """One HTTP chunk an event: the head with the first, then one each ``gap_s``; the end follows."""
    writes = [Write(ttft_s, OK_STREAM + chunked(sse(events[0])))]
    writes += [Write(gap_s, chunked(sse(data))) for data in events[1:-2]]
    writes += [Write(0, chunked(sse(data))) for data in events[-2:]]
    return Script([*writes, Write(0, END_CHUNK)])


def json_script(
    body: object, status: str = "200 OK", after_s: float = 0.0, extra: str = ""
) -> Script:
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n{extra}\r\n"
    )
    return Script([Write(after_s, head.encode() + data)])


def logprob_body(prompt: list[int]) -> dict[str, Any]:
    """A reply with ``prompt_logprobs``: every token after the first has logprob -1."""
    rows: list[Any] = [None] + [{str(token): {"logprob": -1.0, "rank": 1}} for token in prompt[1:]]
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": rows}],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": 1,
            "total_tokens": len(prompt) + 1,
        },
    }


def well_behaved(ttft_s: float = 0.005, gap_s: float = 0.002) -> Callable[[Seen], Script]:
    """Answers every request as asked, streamed or scored."""

    def script(seen: Seen) -> Script:
        if not seen.path.endswith("/completions"):
            return json_script({"detail": "Not Found"}, "404 Not Found")
        prompt = seen.body["prompt"]
        if not seen.body.get("stream"):
            return json_script(logprob_body(prompt), after_s=ttft_s)
        events = completion_events(len(prompt), [1] * seen.body["max_tokens"])
        return stream_script(events, ttft_s, gap_s)

    return script


class GoldenServer:
    """``with GoldenServer(script_for) as server:`` runs it in a thread of its own; ``server.url``."""

    def __init__(
        self,
        script_for: Callable[[Seen], Script] | None = None,
        root: str = "golden",
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        window: int = 8192,
    ) -> None:
        self.script_for = script_for or well_behaved()
        self.seen: list[Seen] = []
        self.connections = 0
        self.open_connections = 0
        self._root, self._tls, self._port, self._window = root, tls, port, window
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", self._port, ssl=self._tls, backlog=1024
        )
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        number = self.connections
        try:
            while await self._request(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        method, path, _ = first.split(" ")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
        if method == "GET":
            writer.write(self._get(path))
            return True
        seen = Seen(headers.get("x-request-id", ""), path, headers, {}, number, 0)
        script: Script | None = None
        if "before_body" in path:
            seen.received_ns = time.monotonic_ns()
            script = self.script_for(seen)
        if script is None or not script.before_body:
            raw = await reader.readexactly(int(headers["content-length"]))
            seen.received_ns = time.monotonic_ns()
            seen.body = json.loads(raw)
            script = self.script_for(seen)
        self.seen.append(seen)
        return await self._play(script, seen, writer)

    async def _play(self, script: Script, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        due = time.monotonic()
        for write in script.writes:
            due += write.after_s
            if write.after_s:
                await asyncio.sleep(due - time.monotonic())
            seen.sent_ns.append(time.monotonic_ns())
            writer.write(write.data)
            seen.written_ns.append(time.monotonic_ns())
            if write.after_s or writer.transport.get_write_buffer_size() > 2**20:
                await writer.drain()
        if script.ending == "rst":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.005)  # what was written reaches the peer before the reset
            writer.transport.abort()
        elif script.ending == "hang":
            await asyncio.sleep(script.hang_s)
        return script.ending == "keep"

    def _get(self, path: str) -> bytes:
        pages: dict[str, tuple[str, str]] = {
            "/health": ("text/plain", ""),
            "/v1/models": ("application/json", json.dumps(self._models())),
            "/metrics": ("text/plain; version=0.0.4", self._metrics()),
        }
        status = "200 OK" if path in pages else "404 Not Found"
        kind, text = pages.get(path, ("text/plain", "no such page"))
        body = text.encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def _models(self) -> dict[str, Any]:
        model = {
            "id": "golden",
            "object": "model",
            "owned_by": "vllm",
            "root": self._root,
            "max_model_len": self._window,
        }
        return {"object": "list", "data": [model]}

    def _metrics(self) -> str:
        labels = '{engine="0",model_name="golden"}'
        prompt = sum(len(seen.body.get("prompt", [])) for seen in self.seen)
        return (
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} 0\n"
            "# TYPE vllm:prompt_tokens_total counter\n"
            f"vllm:prompt_tokens_total{labels} {prompt}\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="golden", help="the model folder that /v1/models names")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-s", type=float, default=0.02)
    parser.add_argument("--gap-s", type=float, default=0.005)
    options = parser.parse_args()
    script = well_behaved(options.ttft_s, options.gap_s)
    with GoldenServer(script, root=options.root, port=options.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
