"""Many streams while a pool is killed and started anew: each answer is whole, or says that it is not."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from scripts.gateway_streams import stream_all
from tests.fakes.gateways import LONG, gateway
from tests.fakes.pool_server import FakePool
from tests.fakes.waiting import wait_until

STREAMS, TOKENS, ROUNDS = 100, 20, 3


@pytest.mark.parametrize("what", ["nothing", "drained", "killed"])
def test_no_answer_is_lost_doubled_or_mixed(tmp_path: Path, what: str) -> None:
    """A pool that the gateway drains before its restart loses nothing; one that is killed says what."""
    short, long = FakePool("short", gap_s=0.02), FakePool("long", gap_s=0.02)

    def disturb() -> None:
        wait_until(lambda: len(short.completions) >= STREAMS, "streams in their midst")
        pool = gate.app.pools["short"]
        if what == "drained":
            httpx.post(f"{gate.url}/gateway/pools/short/restart")
            wait_until(lambda: pool.draining and pool.idle.is_set(), "the drain")
        short.kill()
        wait_until(lambda: not pool.up, "the gateway to see it")
        short.start()
        wait_until(lambda: pool.up and not pool.draining, "the return")

    with short, long, gateway(tmp_path, [short, long]) as gate:
        other = threading.Thread(target=disturb if what != "nothing" else lambda: None)
        other.start()
        tally = asyncio.run(stream_all(gate.url, STREAMS, TOKENS, LONG, rounds=ROUNDS))
        other.join(60)
        entries = gate.entries(ROUNDS * STREAMS)
    assert tally.sound
    assert tally.whole + tally.said_lost == ROUNDS * STREAMS
    assert bool(tally.said_lost) == (what == "killed")
    assert sum(entry["ended"] == "pool_lost" for entry in entries) == tally.said_lost
    assert tally.pools == {"short", "long"}
