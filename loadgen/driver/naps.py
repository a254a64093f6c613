"""How long a closed loop may leave its sockets alone. Moments are handed in, monotonic ns.

The kernel stamps what comes during a nap, so a nap moves no time that is kept. It saves wakings: 16 streams,
20 ms a token, woke the process 560 times a second, and each costs 30 to 50 µs, most of it cold cache. A nap
is right while no two tokens of one reply can fall into it, and no reply can end in it, whose user would send
late.

With many streams some reply may end at any moment; a nap of a millisecond holds up little then and serves
many reads. With few streams it lasts a quarter of the smallest gap that was seen, and ends before the last
token of any reply can come.
"""

from collections import deque
from collections.abc import Callable, Iterable
from operator import sub
from typing import Final

from loadgen.wire.response import RawReply, Request, Response

MANY: Final = 32  # streams
NAP_OF_MANY_NS: Final = 1_000_000  # from one look at the sockets to the next
FEW: Final = 4  # with fewer, one waking has too few reads to serve
SHARE_OF_GAP: Final = 4
LONGEST_NS: Final = 5_000_000
SHORTEST_NS: Final = 300_000  # a shorter one costs what it saves
REPLIES: Final = 64  # whose gaps are remembered
OFF_NS: Final = 1_000_000_000  # after tokens that shared a read


class Naps:
    """What was seen of the server, and how long a nap it allows."""

    def __init__(self) -> None:
        self._from_ns: int | None = None  # none before this moment; None: not at all
        self._gaps_ns: deque[int] = deque(maxlen=REPLIES)  # the smallest of each reply
        self._gap_ns = 0  # the smallest of those
        self._napped = False  # before the last look
        self._sent = 0  # requests, when was worked out …
        self._none_ends_before_ns = 0  # … that no open reply can end sooner

    def learn(self, request: Request, response: Response, now_ns: int, in_flight: int) -> None:
        """Naps want the kernel's times, and end when tokens share a read. Few streams' want the gaps too."""
        if not response.kernel_times:
            self._from_ns = None
        elif response.shared_bounds_ns:
            self._from_ns = now_ns + OFF_NS
        elif self._from_ns is None:
            self._from_ns = now_ns
        if in_flight < MANY:
            self._gaps_ns.append(_smallest_gap_ns(request, response))
            self._gap_ns = min(self._gaps_ns)
            self._none_ends_before_ns = 0

    def until_ns(self, now_ns: int, looked_ns: int) -> int:
        """With many streams: when to look again after a look at ``looked_ns``."""
        return looked_ns + NAP_OF_MANY_NS if self._allowed(now_ns) else now_ns

    def until_ns_of_few(
        self, now_ns: int, sent: int, replies: Callable[[], Iterable[RawReply]]
    ) -> int:
        """With few streams, the open ``replies``: when to look again; ``now_ns`` for no nap.

        ``sent``: requests so far. A nap follows what woke the loop and no other nap: a server's step brings
        all streams' tokens within a moment, and then nothing for a gap.
        """
        nap_ns = min(self._gap_ns // SHARE_OF_GAP, LONGEST_NS)
        self._napped = not self._napped and nap_ns >= SHORTEST_NS and self._allowed(now_ns)
        if not self._napped:
            return now_ns
        if sent != self._sent or now_ns + nap_ns > self._none_ends_before_ns:
            self._sent = sent
            ends_ns = (self._end_ns(now_ns, reply) for reply in replies())
            self._none_ends_before_ns = min(ends_ns, default=now_ns)
        return min(now_ns + nap_ns, self._none_ends_before_ns)

    def _allowed(self, now_ns: int) -> bool:
        return self._from_ns is not None and now_ns >= self._from_ns

    def _end_ns(self, now_ns: int, reply: RawReply) -> int:
        """The earliest moment at which a reply may end, should tokens come twice as fast as any did.

        Its next token may be there already; those after it are a gap apart each.
        """
        gap_ns = self._gap_ns // 2
        left = reply.request.output_tokens - reply.chunks
        if left > 1:
            return now_ns + (left - 1) * gap_ns
        arrived_ns = reply.arrived_mono_ns
        return now_ns if left < 1 or arrived_ns is None else arrived_ns + gap_ns


def _smallest_gap_ns(request: Request, response: Response) -> int:
    """Between two reads of the reply; 0 where a chunk is not a token, or the reply not as asked for."""
    chunk_ns = response.chunk_ns or []
    if response.facts.error_type is not None or len(chunk_ns) != request.output_tokens:
        return 0
    return min(filter(None, map(sub, chunk_ns[1:], chunk_ns)), default=0)
