"""When the loop may leave its sockets alone: a played server, whose tokens come when the test says so."""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from greenbench.contract.clock import Anchor
from loadgen.driver.naps import FEW, LONGEST_NS, MANY, OFF_NS, REPLIES, Naps
from loadgen.wire.response import RawReply, Request, Response
from tests.fakes.openai_server import END_CHUNK, OK_STREAM, chunked, completion_events, sse

MS = 1_000_000
SECOND = 1_000 * MS
UNIX_NS = 1_795_000_000 * SECOND  # of the monotonic clock's zero
TOKENS = 16
OUT = Request("r", b"", b"", True, 9, TOKENS)
EVENTS = [chunked(sse(data)) for data in completion_events(9, [1] * TOKENS)]
READS = [
    OK_STREAM + EVENTS[0],
    *EVENTS[1 : TOKENS - 1],
    b"".join(EVENTS[TOKENS - 1 :]) + END_CHUNK,
]


def opened(now_ns: int, request: Request = OUT) -> RawReply:
    reply = RawReply(request, 0)
    reply.sent = Anchor(UNIX_NS + now_ns, now_ns)
    return reply


def read(reply: RawReply, at: int, arrived_ns: int, read_ns: int, kernel: bool = True) -> bool:
    stamp = struct.pack("qq", *divmod(UNIX_NS + arrived_ns, SECOND)) if kernel else None
    return reply.add(READS[at], read_ns, stamp)


def answer(
    gaps_ns: list[int], reads: list[bytes] = READS, kernel: bool = True
) -> tuple[Request, Response]:
    """A whole reply, its first token after 50 ms and then these gaps."""
    reply, at = opened(0), 50 * MS
    for data, gap_ns in zip(reads, [*gaps_ns, 0], strict=True):
        stamp = struct.pack("qq", *divmod(UNIX_NS + at, SECOND)) if kernel else None
        reply.add(data, at, stamp)
        at += gap_ns
    return OUT, reply.result(Anchor(UNIX_NS + at, at))


def under_way(count: int, read_tokens: int = 3) -> Callable[[], list[RawReply]]:
    """Open replies, each with some tokens; the last came at 1 s, those before it 20 ms apart."""
    replies = [opened(0) for _ in range(count)]
    for reply in replies:
        for at in range(read_tokens):
            moment = SECOND - (read_tokens - 1 - at) * 20 * MS
            read(reply, at, moment, moment)
    return lambda: replies


@dataclass
class Stream:
    """A user's reply in the making; ``due`` are the moments at which its tokens come."""

    reply: RawReply
    due: list[int]
    read: int = 0


@dataclass
class Played:
    """A closed loop against a server with these first and further gaps, by the rules of the hub's loop."""

    streams: list[Stream]
    gaps: Callable[[], tuple[int, list[int]]]
    naps: Naps = field(default_factory=Naps)
    now: int = 0
    sent: int = 0
    wakings: int = 0
    shared: int = 0
    held_up_ns: list[int] = field(default_factory=list)
    arrivals: set[int] = field(default_factory=set)

    def send(self, stream: Stream) -> None:
        first, gaps = self.gaps()
        moments = [self.now + first]
        for gap in gaps:
            moments.append(moments[-1] + gap)
        stream.reply, stream.due, stream.read = opened(self.now), moments, 0
        self.arrivals |= set(moments)
        self.sent += 1

    def run(self, requests: int) -> None:
        for stream in self.streams:
            self.send(stream)
        while self.sent < requests:
            until = self.naps.until_ns_of_few(
                self.now, self.sent, lambda: (stream.reply for stream in self.streams)
            )
            if until > self.now:
                self.now = until
                self.wakings += 1
            self.look()

    def look(self) -> None:
        first = min(stream.due[stream.read] for stream in self.streams)
        if first > self.now:
            self.now = first
            self.wakings += 1
        for stream in self.streams:
            ready = [at for at in stream.due[stream.read :] if at <= self.now]
            self.shared += len(ready) > 1
            for at in ready:
                if read(stream.reply, stream.read, at, self.now):
                    self.held_up_ns.append(self.now - at)
                    now = Anchor(UNIX_NS + self.now, self.now)
                    self.naps.learn(OUT, stream.reply.result(now), self.now, len(self.streams))
                    self.send(stream)
                    break
                stream.read += 1


def play(streams: int, gaps: Callable[[], tuple[int, list[int]]]) -> Played:
    played = Played([Stream(opened(0), []) for _ in range(streams)], gaps)
    played.run(40 * streams)
    return played


def in_step() -> Callable[[], tuple[int, list[int]]]:
    """A server that decodes all streams in one step of 20 ms; a reply's tokens come up to 1 ms after it."""
    chance = random.Random(7)
    return lambda: (50 * MS + chance.randrange(MS), [20 * MS] * (TOKENS - 1))


def apart() -> Callable[[], tuple[int, list[int]]]:
    """Gaps from 12 to 30 ms, each stream for itself."""
    chance = random.Random(7)
    return lambda: (
        chance.randrange(5 * MS, 80 * MS),
        [chance.randrange(12 * MS, 30 * MS) for _ in range(TOKENS - 1)],
    )


@pytest.mark.parametrize("streams", [FEW, 16, 31])
@pytest.mark.parametrize("server", [in_step, apart])
def test_no_send_is_held_up_and_no_two_tokens_share_a_read(
    server: Callable[[], Callable[[], tuple[int, list[int]]]], streams: int
) -> None:
    played = play(streams, server())
    assert len(played.held_up_ns) >= 39 * streams
    assert max(played.held_up_ns) == 0
    assert played.shared == 0


@pytest.mark.parametrize(("server", "share"), [(in_step, 0.3), (apart, 0.9)])
def test_one_waking_serves_several_streams(
    server: Callable[[], Callable[[], tuple[int, list[int]]]], share: float
) -> None:
    """Without naps each moment at which a token comes is a waking."""
    played = play(16, server())
    assert len(played.arrivals) > 9_000  # hardly two at one moment
    assert played.wakings < share * len(played.arrivals)


def learned(gap_ms: int = 20) -> Naps:
    naps = Naps()
    naps.learn(*answer([gap_ms * MS] * (TOKENS - 1)), SECOND, 4)
    return naps


def test_a_nap_is_a_quarter_of_the_smallest_gap_and_five_ms_at_most() -> None:
    assert learned(8).until_ns_of_few(SECOND, 4, under_way(4)) == SECOND + 2 * MS
    assert learned(400).until_ns_of_few(SECOND, 4, under_way(4)) == SECOND + LONGEST_NS
    naps = learned(20)
    naps.learn(*answer([20 * MS] * 7 + [6 * MS] + [20 * MS] * 7), SECOND, 4)
    assert naps.until_ns_of_few(SECOND, 4, under_way(4)) == SECOND + 1_500_000


def test_tokens_too_close_for_a_nap_leave_none() -> None:
    assert learned(1).until_ns_of_few(SECOND, 4, under_way(4)) == SECOND


def test_a_nap_does_not_follow_a_nap() -> None:
    naps, replies = learned(), under_way(4)
    lengths = [naps.until_ns_of_few(SECOND, 4, replies) - SECOND for _ in range(4)]
    assert lengths == [5 * MS, 0, 5 * MS, 0]


def test_no_nap_before_a_reply_was_parsed() -> None:
    assert Naps().until_ns_of_few(SECOND, 4, under_way(4)) == SECOND


@pytest.mark.parametrize(
    ("read_tokens", "now_ms", "nap_ms"),
    [
        (TOKENS - 3, 0, 5.0),
        (TOKENS - 2, 0, 5.0),
        (TOKENS - 1, 0, 5.0),  # the last came now: the next comes in 10 ms at the soonest
        (TOKENS - 1, 7, 3.0),
        (TOKENS - 1, 12, 0.0),
    ],
)
def test_a_nap_ends_before_the_last_token_can_come(
    read_tokens: int, now_ms: int, nap_ms: float
) -> None:
    now = SECOND + now_ms * MS
    until = learned().until_ns_of_few(now, 4, under_way(4, read_tokens))
    assert max(until - now, 0) == nap_ms * MS


def test_a_new_request_is_looked_at_though_no_open_reply_could_end_soon() -> None:
    naps, replies = learned(), under_way(3)()
    assert naps.until_ns_of_few(SECOND, 3, lambda: replies) > SECOND
    naps.until_ns_of_few(SECOND, 3, lambda: replies)
    one_token = Request("one", b"", b"", True, 9, 1)
    replies = [*replies, opened(SECOND, one_token)]
    assert naps.until_ns_of_few(SECOND, 4, lambda: replies) == SECOND


def test_a_server_that_sends_several_tokens_a_chunk_or_ends_early_gets_no_nap() -> None:
    """Its replies end when no count of chunks says so; until so many others have come."""
    several = completion_events(9, [1] * (TOKENS - 2) + [2])
    early = completion_events(9, [1] * (TOKENS - 1))
    for events in (several, early):
        chunks = [chunked(sse(data)) for data in events]
        reads = [
            OK_STREAM + chunks[0],
            *chunks[1 : TOKENS - 2],
            b"".join(chunks[TOKENS - 2 :]) + END_CHUNK,
        ]
        naps = learned()
        naps.learn(*answer([20 * MS] * (TOKENS - 2), reads), SECOND, 4)
        assert naps.until_ns_of_few(SECOND, 4, under_way(4)) == SECOND
        for _ in range(REPLIES):
            naps.learn(*answer([20 * MS] * (TOKENS - 1)), SECOND, 4)
        assert naps.until_ns_of_few(SECOND, 4, under_way(4)) == SECOND + 5 * MS


def test_tokens_that_shared_a_read_end_naps_for_a_second_and_are_no_gap() -> None:
    naps = learned()
    naps.learn(*answer([20 * MS] * 7 + [0] + [20 * MS] * 7), SECOND, 4)
    assert naps.until_ns_of_few(SECOND, 4, under_way(4)) == SECOND
    later = SECOND + OFF_NS
    assert naps.until_ns(later - 1, later - 1) == later - 1
    assert naps.until_ns(later, later) == later + MS
    assert naps.until_ns_of_few(later, 4, under_way(4)) == later + 5 * MS


def test_gaps_are_those_seen_with_few_streams() -> None:
    """With many some reply is always about to end, and its parsing is not to cost more."""
    naps = Naps()
    naps.learn(*answer([20 * MS] * (TOKENS - 1)), SECOND, MANY)
    assert naps.until_ns(SECOND, SECOND) == SECOND + MS
    assert naps.until_ns_of_few(SECOND, 4, under_way(4)) == SECOND


def test_times_of_the_program_allow_no_nap() -> None:
    naps = learned()
    naps.learn(*answer([20 * MS] * (TOKENS - 1), kernel=False), SECOND, 4)
    assert naps.until_ns_of_few(SECOND, 4, under_way(4)) == SECOND
    assert naps.until_ns(SECOND, SECOND) == SECOND
