"""A small page of a pool's, up to a limit."""

import aiohttp


async def read_page(reply: aiohttp.ClientResponse, most: int) -> bytes | None:
    """The whole body; None where it is longer than ``most`` bytes."""
    page = bytearray()
    while piece := await reply.content.readany():
        page += piece
        if len(page) > most:
            return None
    return bytes(page)
