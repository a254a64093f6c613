"""What is due does not wait for every socket that is readable."""

import asyncio
import socket

from loadgen.wire.asyncio_loop import AsyncioLoop, Checking

READABLE, DUE_AFTER = 30, 5


async def reads_before_it_is_done() -> int:
    """Sockets that are all readable at once; something is due after the fifth read."""
    read = done_at = 0
    all_read = asyncio.Event()

    def check() -> None:
        nonlocal done_at
        if read >= DUE_AFTER and not done_at:
            done_at = read

    def take(here: socket.socket) -> None:
        nonlocal read
        read += len(here.recv(1))
        if read == READABLE:
            all_read.set()

    loop = Checking(AsyncioLoop(asyncio.get_running_loop()), check)
    pairs = [socket.socketpair() for _ in range(READABLE)]
    watches = [loop.watch_read(here.fileno(), lambda h=here: take(h)) for here, _ in pairs]
    for _, there in pairs:
        there.send(b"x")
    await asyncio.wait_for(all_read.wait(), 10)
    for watch in watches:
        watch.stop()
    for pair in pairs:
        for end in pair:
            end.close()
    return done_at


def test_a_look_after_each_read_keeps_what_is_due_punctual() -> None:
    assert asyncio.run(reads_before_it_is_done()) == DUE_AFTER
