"""Who counts the tokens of a text: the model's tokenizer in this process, or a pool's /tokenize."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import msgspec
from tokenizers import Tokenizer

from gateway.length import Counter, Headers
from gateway.page import read_page
from gateway.pools import Pool
from gateway.request import Asked
from greenbench.contract.errors import UserError

LIMIT_S: Final = 2.0  # a pool that takes longer is busy; the estimate is believed
MOST_BYTES: Final = (
    64 * 2**20
)  # of an answer, which lists the ids of a prompt of some millions of tokens
SENT_ON: Final = (b"authorization",)


class _Counted(msgspec.Struct):
    count: Annotated[int, msgspec.Meta(ge=1, le=2**40)]


COUNTED: Final = msgspec.json.Decoder(_Counted)


def by_tokenizer(folder: Path) -> Counter:
    """Of completions: a chat's template is the pool's. Raises UserError."""
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises this very class
        raise UserError(
            f"{file}: no tokenizer can be read ({error}); give the model's folder or its tokenizer.json"
        ) from error

    async def count(asked: Asked, headers: Headers) -> int | None:
        if asked.kind == "chat":
            return None
        text = msgspec.json.decode(asked.prompt.raw, type=str)
        encoded = await asyncio.to_thread(tokenizer.encode, text)
        return len(encoded.ids)

    return count


def by_pool(session: aiohttp.ClientSession, pools: Iterable[Pool]) -> Counter:
    """Asks the least loaded pool that is up and serves the model."""

    async def count(asked: Asked, headers: Headers) -> int | None:
        able = [p for p in pools if p.up and not p.draining and p.serves(asked.model)]
        if not able:
            return None
        pool = min(able, key=lambda p: p.in_flight)
        key = {n.decode(): v.decode("latin-1") for n, v in headers if n in SENT_ON}
        try:
            async with (
                asyncio.timeout(LIMIT_S),
                session.post(
                    f"{pool.url}/tokenize",
                    data=_question(asked),
                    headers={"Content-Type": "application/json", **key},
                ) as reply,
            ):
                if reply.status != 200:
                    return None
                return COUNTED.decode(await read_page(reply, MOST_BYTES) or b"").count
        except (TimeoutError, aiohttp.ClientError, OSError, msgspec.DecodeError):
            return None

    return count


def _question(asked: Asked) -> bytes:
    body: dict[str, Any] = {} if asked.model is None else {"model": asked.model}
    name = "messages" if asked.kind == "chat" else "prompt"
    body[name] = msgspec.Raw(asked.prompt.raw)
    if asked.tools:
        body["tools"] = msgspec.Raw(asked.tools)
    return msgspec.json.encode(body)
