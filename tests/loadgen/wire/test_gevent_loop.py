"""gevent's hub: reads come before what may wait, and naps save looks at the sockets."""

import socket
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from loadgen.wire import gevent_loop
from loadgen.wire.gevent_loop import NAP_S, GeventLoop
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


def test_what_may_wait_is_done_in_order_and_in_slices_between_reads(
    loop: GeventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 replies that end together must not hold up a token for 20 ms, only for a slice."""
    monkeypatch.setattr(gevent_loop, "SLICE_NS", 1_000_000)
    done: list[object] = []
    here, there = socket.socketpair()

    def slow(number: int) -> None:
        time.sleep(0.0006)  # blocks the hub, as work does
        done.append(number)
        if number == 0:
            there.send(b"x")

    watch = loop.watch_read(here.fileno(), lambda: done.append(here.recv(1)))
    for number in range(8):
        loop.later(lambda number=number: slow(number))
    spin(lambda: len(done) == 9)
    watch.stop()
    here.close()
    there.close()
    assert [one for one in done if one != b"x"] == list(range(8))
    assert done.index(b"x") <= 3  # after the first slice, not after all eight


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


def test_what_waits_when_the_loop_is_closed_is_done_all_the_same() -> None:
    loop = GeventLoop()
    done: list[int] = []
    loop.at_leisure(lambda: done.append(1))
    loop.close()
    loop.later(lambda: done.append(2))
    assert done == [1, 2]


def seconds_of(looks: int, loop: GeventLoop) -> float:
    """How long the hub takes to look at the sockets so often, while something goes on all the time."""
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    counter = gevent.get_hub().loop.prepare(ref=False)
    counter.start(count)
    started = time.perf_counter()
    while counted < looks:
        gevent.sleep(1e-6)
    counter.stop()
    counter.close()
    return time.perf_counter() - started


def test_a_nap_leaves_so_much_time_between_two_looks(loop: GeventLoop) -> None:
    looks = 20
    awake_s = min(seconds_of(looks, loop) for _ in range(50))  # one of them meets no other program
    sleepy = GeventLoop(lambda: True)
    napping_s = min(seconds_of(looks, sleepy) for _ in range(5))
    sleepy.close()
    assert napping_s >= (looks - 2) * NAP_S
    assert awake_s < napping_s / 2


def test_no_nap_while_something_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(gevent_loop, "_sleep", naps.append)
    loop = GeventLoop(lambda: True)
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
