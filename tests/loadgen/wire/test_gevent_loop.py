"""gevent's hub: reads come before what may wait, and naps save looks at the sockets."""

import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import gevent
import pytest

from loadgen.wire import gevent_loop
from loadgen.wire.gevent_loop import SLICE_NS, GeventLoop
from tests.fakes.waiting import HUNG_S


@pytest.fixture
def loop() -> Iterator[GeventLoop]:
    made = GeventLoop()
    yield made
    made.close()


def spin(true: Callable[[], object]) -> None:
    """Let the hub go round until something is so; the limit is for what hangs."""
    deadline = time.monotonic() + HUNG_S
    while not true():
        assert time.monotonic() < deadline
        gevent.sleep(0.001)


def each_ms(looked_ns: int) -> int:
    """A look at the sockets once a millisecond."""
    return looked_ns + 1_000_000


class Clock:
    """The clocks that the loop reads; time goes on only when the test, or a nap, says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 10**12
        self.naps_ns: list[int] = []
        read = SimpleNamespace(monotonic_ns=lambda: self.ns)
        monkeypatch.setattr(gevent_loop, "time", read)
        monkeypatch.setattr(gevent_loop, "_sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.naps_ns.append(round(seconds * 1e9))
        self.ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_what_may_wait_is_done_in_order_and_in_slices_between_reads(
    clock: Clock, loop: GeventLoop
) -> None:
    """256 replies that end together must not hold up a token for 20 ms, only for a slice."""
    done: list[object] = []
    here, there = socket.socketpair()

    def work(number: int) -> None:
        clock.ns += SLICE_NS * 6 // 10
        done.append(number)
        if number == 0:
            there.send(b"x")

    watch = loop.watch_read(here.fileno(), lambda: done.append(here.recv(1)))
    for number in range(8):
        loop.later(lambda number=number: work(number))
    spin(lambda: len(done) == 9)
    watch.stop()
    here.close()
    there.close()
    # two of them are more than a slice; then the socket, which became readable meanwhile, comes first
    assert done == [0, 1, b"x", 2, 3, 4, 5, 6, 7]


def test_more_may_be_asked_for_by_what_waited(loop: GeventLoop) -> None:
    done: list[int] = []
    loop.later(lambda: (done.append(1), loop.later(lambda: done.append(2))))
    spin(lambda: len(done) == 2)
    assert done == [1, 2]


def test_what_is_for_leisure_comes_after_all_that_is_put_off(loop: GeventLoop) -> None:
    """Also after what is put off meanwhile: sends are never behind the parsing."""
    done: list[str] = []
    loop.at_leisure(lambda: (done.append("parse 1"), loop.later(lambda: done.append("send 2"))))
    loop.at_leisure(lambda: done.append("parse 2"))
    loop.later(lambda: done.append("send 1"))
    spin(lambda: len(done) == 4)
    assert done == ["send 1", "parse 1", "send 2", "parse 2"]


def test_a_fault_in_what_waited_does_not_hold_up_the_rest(
    loop: GeventLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []
    loop.later(lambda: 1 // 0)
    loop.later(lambda: done.append(1))
    spin(lambda: done)
    assert done == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_rest_comes_when_all_that_waited_is_done_and_only_then() -> None:
    done: list[str] = []
    loop = GeventLoop(at_rest=lambda: done.append("rest"))
    loop.later(lambda: loop.at_leisure(lambda: done.append("parse")))
    loop.later(lambda: done.append("send"))
    spin(lambda: "rest" in done)
    assert done[:3] == ["send", "parse", "rest"]
    done.clear()
    loop.later(lambda: done.append("send"))
    spin(lambda: "rest" in done[1:])
    loop.close()
    assert done[done.index("send") :][:2] == ["send", "rest"]


def test_what_waits_when_the_loop_is_closed_is_done_all_the_same() -> None:
    loop = GeventLoop()
    done: list[int] = []
    loop.at_leisure(lambda: done.append(1))
    loop.close()
    loop.later(lambda: done.append(2))
    assert done == [1, 2]


def look(times: int, each_look: Callable[[], object] = lambda: None) -> None:
    """Let the hub look at the sockets so often; something goes on all the time."""
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1
        each_look()

    counter = gevent.get_hub().loop.prepare(ref=False)
    counter.start(count)
    deadline = time.monotonic() + HUNG_S
    while counted < times:
        assert time.monotonic() < deadline
        gevent.sleep(1e-6)
    counter.stop()
    counter.close()


def test_a_nap_leaves_so_much_time_between_two_looks(clock: Clock) -> None:
    def busy() -> None:
        clock.ns += 400_000  # what a look's callbacks take

    awake = GeventLoop()
    look(20, busy)
    awake.close()
    assert clock.naps_ns == []
    sleepy = GeventLoop(each_ms)
    look(20, busy)
    sleepy.close()
    assert len(clock.naps_ns) >= 18
    assert {600_000} == set(clock.naps_ns[1:-1])


def test_a_callback_that_takes_longer_than_a_nap_leaves_none(clock: Clock) -> None:
    sleepy = GeventLoop(each_ms)

    def slow() -> None:
        clock.ns += 1_500_000

    look(20, slow)
    sleepy.close()
    assert len(clock.naps_ns) <= 2  # before the first of them, and after the last


def test_a_nap_stops_the_thread_and_not_the_greenlet_alone() -> None:
    """gevent's own sleep would let the hub look again meanwhile."""
    looks = 20
    sleepy = GeventLoop(each_ms)
    started = time.perf_counter()
    look(looks)
    sleepy.close()
    assert time.perf_counter() - started >= (looks - 2) * 0.001


def test_no_nap_while_something_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(gevent_loop, "_sleep", naps.append)
    loop = GeventLoop(each_ms)
    naps_before: list[int] = []

    def again(left: int) -> None:
        naps_before.append(len(naps))
        if left:
            loop.later(lambda: again(left - 1))

    loop.later(lambda: again(2000))
    spin(lambda: len(naps_before) == 2001)
    spin(lambda: len(naps) > naps_before[-1])  # and it naps once nothing waits
    loop.close()
    assert naps_before[0] == naps_before[-1]
