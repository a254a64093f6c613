"""Drain, restart and the pages of the gateway's own."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.gateways import LONG, Gateway, gateway
from tests.fakes.pool_server import FakePool
from tests.fakes.waiting import wait_until


@pytest.fixture
def pools() -> Iterator[list[FakePool]]:
    with FakePool("short") as short, FakePool("long") as long:
        yield [short, long]


def change(gate: Gateway, pool: str, what: str) -> httpx.Response:
    return httpx.post(f"{gate.url}/gateway/pools/{pool}/{what}")


def phase(gate: Gateway, pool: str) -> str | None:
    told = httpx.get(f"{gate.url}/gateway/pools").json()
    return next(p["restart"] for p in told if p["name"] == pool)


def test_a_drained_pool_ends_what_it_has_and_gets_nothing_new(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    pools[0].hold = 1
    with gateway(tmp_path, pools) as gate:
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(gate.post(max_tokens=2, stream=True))
        )
        asking.start()
        wait_until(lambda: pools[0].completions, "the request")
        assert change(gate, "short", "drain").json()["draining"]
        assert gate.post(max_tokens=1).headers["x-greenbench-pool"] == "long"
        assert gate.app.pools["short"].in_flight == 1
        pools[0].go.set()
        asking.join(30)
        assert answers[0].text.endswith("[DONE]\n\n")
        assert not change(gate, "short", "undrain").json()["draining"]
        assert gate.post(max_tokens=1).headers["x-greenbench-pool"] == "short"
        change(gate, "short", "drain")
        change(gate, "long", "drain")
        refused = gate.post(max_tokens=1)
    assert refused.status_code == 503
    assert "short is draining" in refused.json()["error"]["message"]


def test_restart_without_a_command_waits_for_somebody_elses(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    with gateway(tmp_path, pools) as gate:
        assert change(gate, "long", "restart").status_code == 202
        wait_until(lambda: (phase(gate, "long") or "").startswith("drained"), "the drain")
        assert change(gate, "long", "restart").status_code == 409
        assert gate.post(prompt=[1] * LONG).headers["x-greenbench-pool"] == "short"
        pools[1].kill()
        wait_until(lambda: not gate.app.pools["long"].up, "the end")
        pools[1].start()
        wait_until(lambda: phase(gate, "long") == "restarted", "the restart")
        assert gate.post(prompt=[2] * LONG).headers["x-greenbench-pool"] == "long"


@pytest.mark.parametrize(
    ("code", "then"), [(0, "restarted"), (3, "the restart command ended with 3")]
)
def test_restart_runs_the_pools_command_once_it_is_idle(
    tmp_path: Path, pools: list[FakePool], code: int, then: str
) -> None:
    ran = tmp_path / "ran"
    script = f"open({str(ran)!r}, 'a').write('x'); raise SystemExit({code})"
    command = f"{sys.executable} -c {json.dumps(script)}"
    addresses = {"long": {"url": pools[1].url, "restart": command}, "short": pools[0].url}
    (tmp_path / "pools.yaml").write_text(json.dumps(addresses))
    pools[1].hold = 1
    with gateway(tmp_path, pools, f"--pools={tmp_path / 'pools.yaml'}") as gate:
        prompt = list(range(LONG))
        asking = threading.Thread(target=lambda: gate.post(prompt=prompt, max_tokens=2))
        asking.start()
        wait_until(lambda: pools[1].completions, "the request")
        change(gate, "long", "restart")
        assert phase(gate, "long") == "draining"
        assert not ran.exists()
        pools[1].go.set()
        asking.join(30)
        wait_until(lambda: (phase(gate, "long") or "").startswith(then), "the command")
        assert gate.app.pools["long"].draining == bool(code)
    assert ran.read_text() == "x"


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"host": "evil.example:8080"}, {"host": ""}]
)
def test_web_pages_of_others_change_nothing(
    tmp_path: Path, pools: list[FakePool], headers: dict[str, str]
) -> None:
    with gateway(tmp_path, pools) as gate:
        answer = httpx.post(f"{gate.url}/gateway/pools/short/drain", headers=headers)
        assert not gate.app.pools["short"].draining
    assert answer.status_code == 403


def test_a_forwarded_header_makes_nobody_local(tmp_path: Path, pools: list[FakePool]) -> None:
    with gateway(tmp_path, pools) as gate:
        forwarded = {"x-forwarded-for": "203.0.113.9"}
        answer = httpx.get(f"{gate.url}/gateway/pools", headers=forwarded)
    assert answer.status_code == 200  # the connection counts, not what it says


def test_pages_of_pools_and_of_the_gateway_stay_apart(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    with gateway(tmp_path, pools) as gate:
        gate.post(max_tokens=1)
        gate.entries(1)
        own = httpx.get(f"{gate.url}/metrics").text
        theirs = httpx.get(f"{gate.url}/gateway/pools/long/metrics").text
        unknown = httpx.get(f"{gate.url}/gateway/pools/third/metrics")
        other = httpx.get(f"{gate.url}/version?x=%20y")
        embed = httpx.post(f"{gate.url}/v1/embeddings", json={"input": "x"})
    assert (
        'greenbench_gateway_requests_total{ended="complete",pool="short",status="200"} 1.0' in own
    )
    assert 'greenbench_gateway_choices_total{pool="short",rule="default"} 1.0' in own
    assert theirs == pools[1].page.decode()
    assert unknown.status_code == 404
    assert other.text == embed.text == "short"  # paths and queries pass as they are


def test_models_of_all_pools_each_once(tmp_path: Path, pools: list[FakePool]) -> None:
    with gateway(tmp_path, pools) as gate:
        one = httpx.get(f"{gate.url}/v1/models").json()["data"]
        pools[1].model = "adapter"
        two = httpx.get(f"{gate.url}/v1/models").json()["data"]
        for pool in pools:
            pool.key = "sk-1"
        refused = httpx.get(f"{gate.url}/v1/models")
        keyed = httpx.get(f"{gate.url}/v1/models", headers={"authorization": "Bearer sk-1"})
    assert [card["id"] for card in one] == ["m"]
    assert [card["id"] for card in two] == ["m", "adapter"]
    assert refused.status_code == 401
    assert len(keyed.json()["data"]) == 2
