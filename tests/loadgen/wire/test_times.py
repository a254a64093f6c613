"""Times: what the client records against what the golden server sent, and clocks that misbehave."""

import asyncio
import struct
import time

import pytest

from greenbench.contract.clock import Anchor
from loadgen.wire.asyncio_loop import AsyncioLoop
from loadgen.wire.connection import Target, outcome
from loadgen.wire.pool import Pool
from loadgen.wire.response import RawReply, Request, Response
from tests.fakes.clients import CLIENTS, PROMPT, SLEW_NS, assert_in_order, request
from tests.fakes.openai_server import (
    END_CHUNK,
    OK_STREAM,
    GoldenServer,
    chunked,
    completion_events,
    sse,
    stream_script,
)
from tests.fakes.waiting import HUNG_S

SECOND = 10**9


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("ttft_s", "gap_s"), [(0.03, 0.004), (0.006, 0.015)])
def test_ttft_and_gaps_are_those_of_the_script(client: str, ttft_s: float, gap_s: float) -> None:
    """Two contrasting scripts, so that a wrong scale cannot hide."""
    events = completion_events(len(PROMPT), [1] * 12)
    with GoldenServer(lambda seen: stream_script(events, ttft_s, gap_s)) as server:
        (got,) = CLIENTS[client](server.url, [lambda t, n: request(t, 12)])
        over_ns = time.monotonic_ns()
        seen = server.seen[0]
    assert got.sent and got.chunk_ns and len(got.chunk_ns) == 12
    arrived = [got.sent.mono_ns + at for at in got.chunk_ns]
    assert got.sent.mono_ns < seen.received_ns
    assert got.chunk_ns[0] > ttft_s * SECOND
    assert arrived == sorted(arrived) and arrived[-1] < over_ns
    assert all(at >= out - SLEW_NS for at, out in zip(arrived, seen.sent_ns, strict=False))
    assert arrived[-1] - arrived[0] >= 4 * gap_s * SECOND  # of 11 gaps: not all at one moment
    assert got.kernel_times == (client == "fast")
    if client == "fast":  # by the kernel's time, however late the program was
        assert_in_order(arrived, seen.sent_ns)
        late = (at - out for at, out in zip(arrived, seen.sent_ns, strict=False))
        assert min(late) <= SECOND // 1000  # a busy machine does not delay each of the twelve


async def read_after_all_is_written(server: GoldenServer, writes: int) -> tuple[Response, int]:
    """A response whose program looked at no socket until the server had written it; and that moment."""
    target = Target.from_url(server.url)
    pool = Pool(target, AsyncioLoop(asyncio.get_running_loop()), HUNG_S)
    over: asyncio.Future[RawReply] = asyncio.get_running_loop().create_future()
    pool.start(request(target, writes), over.set_result)
    deadline = time.monotonic() + HUNG_S
    while not server.seen:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    while len(server.seen[0].written_ns) < writes:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # noqa: ASYNC251 - the loop is to be held up
    time.sleep(0.05)  # noqa: ASYNC251 - should the kernel put the last delivery off
    looked_ns = time.monotonic_ns()
    reply = await asyncio.wait_for(over, HUNG_S)
    pool.close()
    return outcome(reply), looked_ns


def test_tokens_that_came_while_the_program_looked_away_have_the_kernels_time() -> None:
    events = completion_events(len(PROMPT), [1] * 6)
    with GoldenServer(lambda seen: stream_script(events, 0.02, 0.01)) as server:
        got, looked_ns = asyncio.run(read_after_all_is_written(server, 6))
    assert got.kernel_times and got.sent and got.chunk_ns and len(got.chunk_ns) == 6
    assert all(got.sent.mono_ns + at < looked_ns for at in got.chunk_ns)
    assert min(got.delays_ns) > 0


def later(mono_ns: int, unix_ns: int) -> Anchor:
    """A moment so long after the sending, by each clock."""
    return Anchor(SENT.unix_ns + unix_ns, SENT.mono_ns + mono_ns)


def timespec(unix_ns: int) -> bytes:
    return struct.pack("qq", unix_ns // SECOND, unix_ns % SECOND)


SENT = Anchor(1_795_000_000 * SECOND + 5, 700 * SECOND)
OUT = Request("r", b"", b"", True, 9, 2)
EVENTS = completion_events(9, [1, 1])
READS = [
    OK_STREAM + chunked(sse(EVENTS[0])),
    chunked(sse(EVENTS[1])),
    chunked(sse(EVENTS[2])) + chunked(sse(EVENTS[3])) + END_CHUNK,
]


def reply(kernel_at: list[int | None], user_at: list[int]) -> RawReply:
    """A reply whose reads came at these offsets, by the kernel's clock and by the program's."""
    made = RawReply(OUT, 0)
    made.sent = SENT
    for data, kernel, user in zip(READS, kernel_at, user_at, strict=True):
        made.add(
            data, SENT.mono_ns + user, None if kernel is None else timespec(SENT.unix_ns + kernel)
        )
    return made


def test_the_kernels_time_wins_over_a_late_program() -> None:
    """Python read all three 30 ms late: the record holds the true times, the audit the delay."""
    made = reply([50_000_000, 70_000_000, 71_000_000], [80_000_000, 100_000_000, 101_000_000])
    got = made.result(later(102_000_000, 102_000_000))
    assert got.chunk_ns == [50_000_000, 70_000_000]
    assert (got.headers_ns, got.end_ns, got.kernel_times) == (50_000_000, 71_000_000, True)
    assert got.delays_ns == [30_000_000]
    assert not got.clock_stepped


def test_without_a_kernel_time_for_every_chunk_the_programs_are_used() -> None:
    made = reply([50_000_000, None, 71_000_000], [51_000_000, 71_000_000, 72_000_000])
    got = made.result(later(72_000_000, 72_000_000))
    assert (got.chunk_ns, got.kernel_times) == ([51_000_000, 71_000_000], False)
    assert got.delays_ns == []


@pytest.mark.parametrize("step_ns", [2 * SECOND, -2 * SECOND, 5_000_000])
def test_a_step_of_the_wall_clock_is_seen_and_moves_no_number(step_ns: int) -> None:
    made = reply(
        [50_000_000, 70_000_000 + step_ns, 71_000_000 + step_ns],
        [50_100_000, 70_100_000, 71_100_000],
    )
    got = made.result(later(72_000_000, 72_000_000 + step_ns))
    assert got.clock_stepped
    assert (got.chunk_ns, got.kernel_times) == ([50_100_000, 70_100_000], False)


def test_a_slewed_clock_is_straightened() -> None:
    """NTP slews by up to 500 ppm: 20 s of wall clock were 20.01 s."""
    at = [10 * SECOND, 19 * SECOND, 20 * SECOND]
    made = reply([round(x * 1.0005) for x in at], [x + 100 for x in at])
    got = made.result(later(20 * SECOND, 20 * SECOND + SECOND // 100))
    assert not got.clock_stepped
    assert got.chunk_ns == pytest.approx(at[:2], abs=1000)


def test_a_chunk_that_shares_its_read_may_be_as_early_as_the_program_was_late() -> None:
    """Read 1 us after the kernel's stamp: the first chunk came at most 1 us before the second."""
    made = RawReply(OUT, 0)
    made.sent = SENT
    made.add(b"".join(READS), SENT.mono_ns + 5_000, timespec(SENT.unix_ns + 4_000))
    got = made.result(later(6_000, 6_000))
    assert (got.chunk_ns, got.shared_bounds_ns) == ([4_000, 4_000], [1_000])
    assert got.facts.error_type is None


def test_the_read_before_bounds_a_shared_chunk_too() -> None:
    """Read 9 ms late, but the read before came 2 ms earlier: it cannot be earlier than that."""
    made = RawReply(Request("r", b"", b"", True, 9, 3), 0)
    made.sent = SENT
    events = [chunked(sse(data)) for data in completion_events(9, [1, 1, 1])]
    made.add(OK_STREAM + events[0], SENT.mono_ns + 8_000_000, timespec(SENT.unix_ns + 8_000_000))
    rest = b"".join(events[1:]) + END_CHUNK
    made.add(rest, SENT.mono_ns + 19_000_000, timespec(SENT.unix_ns + 10_000_000))
    got = made.result(later(20_000_000, 20_000_000))
    assert got.shared_bounds_ns == [2_000_000]


def test_a_long_stream_parsed_in_parts_keeps_each_chunks_own_time() -> None:
    """Parsing ahead of the end (bounded memory) must not shift marks against times."""
    count = 5000
    events = completion_events(9, [1] * count)
    made = RawReply(Request("r", b"", b"", True, 9, count), 0)
    made.sent = SENT
    made.add(OK_STREAM, SENT.mono_ns + 1, timespec(SENT.unix_ns + 1))
    for i, data in enumerate(events):
        made.add(chunked(sse(data)), SENT.mono_ns + 10 * i, timespec(SENT.unix_ns + 10 * i))
    made.add(END_CHUNK, SENT.mono_ns + 10 * count, timespec(SENT.unix_ns + 10 * count))
    got = made.result(later(60_000, 60_000))
    assert got.chunk_ns == [10 * i for i in range(count)]
    assert (got.headers_ns, got.facts.error_type) == (1, None)
