"""What goes wrong with pools and clients, on real sockets: nothing is lost, doubled, mixed or hidden."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.gateways import LONG, Gateway, gateway
from tests.fakes.pool_server import FakePool, metrics_page
from tests.fakes.waiting import wait_until


@pytest.fixture
def pools() -> Iterator[list[FakePool]]:
    with FakePool("short") as short, FakePool("long") as long:
        yield [short, long]


def events(answer: httpx.Response) -> list[Any]:
    """The data of each event, [DONE] as it is."""
    said = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [text if text == "[DONE]" else json.loads(text) for text in said]


def whole(pool: str, count: int, request: object = None) -> list[Any]:
    """What a pool says when nothing goes wrong."""
    return [*({"pool": pool, "id": request, "token": i} for i in range(count)), "[DONE]"]


def test_the_policy_decides_and_says_why(tmp_path: Path, pools: list[FakePool]) -> None:
    with gateway(tmp_path, pools) as gate:
        short = gate.post(stream=True, max_tokens=3)
        long = gate.post(stream=True, max_tokens=3, prompt=list(range(LONG)))
    assert events(short) == whole("short", 3)
    assert events(long) == whole("long", 3)
    assert short.headers["x-greenbench-pool"] == "short"
    assert short.headers["x-greenbench-rule"] == "default"
    assert long.headers["x-greenbench-pool"] == "long"
    assert long.headers["x-greenbench-rule"] == "long"
    assert f"{LONG} prompt tokens (token ids)" in long.headers["x-greenbench-reason"]
    assert long.headers["x-pool-header"] == "kept"


def test_a_pool_that_is_gone_is_passed_over(tmp_path: Path, pools: list[FakePool]) -> None:
    with gateway(tmp_path, pools, "--probe-s", "60") as gate:
        pools[0].kill()  # and no probe has seen it
        answer = gate.post(stream=True, max_tokens=2)
        (entry,) = gate.entries(1)
    assert events(answer) == whole("long", 2)
    assert "short is down" in answer.headers["x-greenbench-reason"]
    assert entry["tried"] == ["short"]
    assert entry["pool"] == "long"


@pytest.mark.parametrize("when", [0, -1])
def test_killed_before_the_first_byte_the_next_pool_answers(
    tmp_path: Path, pools: list[FakePool], when: int
) -> None:
    """−1: the head of the answer was there already, as vLLM sends it, and no byte of its body."""
    pools[0].dies = when
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(stream=True, max_tokens=5)
    assert answer.status_code == 200
    assert events(answer) == whole("long", 5)
    assert [len(pool.completions) for pool in pools] == [1, 1]


def test_killed_in_mid_stream_the_answer_ends_with_an_error_event(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    pools[0].dies = 3
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(stream=True, max_tokens=9)
        (entry,) = gate.entries(1)
    *tokens, last = events(answer)
    assert tokens == whole("short", 3)[:-1]
    assert last["error"]["code"] == "pool_lost"
    assert "short" in last["error"]["message"]
    assert pools[1].completions == []  # an answer that has begun goes nowhere else
    assert entry["ended"] == "pool_lost"


def test_killed_in_mid_answer_without_events_the_cut_shows(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    pools[0].dies = 3
    with gateway(tmp_path, pools) as gate, pytest.raises(httpx.RemoteProtocolError):
        gate.post(max_tokens=9)
    assert pools[1].completions == []


def test_an_idle_connection_that_the_pool_closed_costs_nothing(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    """The server lives: the same pool gets the request again, on a new connection."""
    pools[0].breaks = 0
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(stream=True, max_tokens=2)
    assert events(answer) == whole("short", 2)
    assert [len(pool.completions) for pool in pools] == [2, 0]


def test_all_pools_down_is_503_with_a_time(tmp_path: Path, pools: list[FakePool]) -> None:
    with gateway(tmp_path, pools) as gate:
        for pool in pools:
            pool.kill()
        wait_until(lambda: not any(p.up for p in gate.app.pools.values()), "the probes")
        answer = gate.post()
        health = httpx.get(f"{gate.url}/health")
        other = httpx.get(f"{gate.url}/version")
        pools[0].start()
        wait_until(lambda: gate.app.pools["short"].up, "the return")
        again = gate.post(stream=True, max_tokens=1)
    assert answer.status_code == health.status_code == other.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 7  # restart_s of the policy
    assert "short is down" in answer.json()["error"]["message"]
    assert "x-greenbench-pool" not in answer.headers
    assert events(again) == whole("short", 1)


def test_a_slow_pool_is_waited_for_and_a_stalled_one_given_up(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    pools[0].hold = pools[1].hold = 0
    with gateway(tmp_path, pools, "--first-byte-s", "0.3") as gate:
        given_up = gate.post(max_tokens=2)
        wait_until(lambda: pools[0].completions[0].cancelled, "the pool to see it")
        pools[0].hold, pools[0].gap_s = None, 0.2
        slow = gate.post(stream=True, max_tokens=4)  # 0.8 s in all: no limit on a stream
    assert given_up.status_code == 504
    assert pools[1].completions == []  # it may have been answering
    assert events(slow) == whole("short", 4)


def test_chunks_pass_at_once_and_bytes_stay_as_they_are(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    """The pool goes on only after the client has what came before."""
    pools[0].hold = 2
    body = {"prompt": [1], "max_tokens": 4, "stream": True}
    with (
        gateway(tmp_path, pools) as gate,
        gate.client() as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        seen, pieces = b"", answer.iter_raw()
        while seen.count(b"\n\n") < 2:
            seen += next(pieces)
        pools[0].go.set()
        seen += b"".join(pieces)
    with httpx.Client() as direct:
        assert seen == direct.post(f"{pools[0].url}/v1/completions", json=body).content


@pytest.mark.parametrize("token", [0, 2])
def test_a_client_that_leaves_cancels_the_pools_work(
    tmp_path: Path, pools: list[FakePool], token: int
) -> None:
    """Before the first byte, and in the middle."""
    pools[0].hold = token
    body = json.dumps({"prompt": [1], "max_tokens": 9, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with gateway(tmp_path, pools) as gate:
        with socket.create_connection(("127.0.0.1", int(gate.url.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + body)
            (asked,) = wait_until(lambda: pools[0].completions, "the request")
            if token:
                assert client.recv(100)
        wait_until(lambda: asked.cancelled, "the pool to see it")
        (entry,) = gate.entries(1)
        assert gate.app.pools["short"].in_flight == 0
    assert entry["ended"] == "client_gone"


def test_metrics_that_are_stale_or_garbage_are_unknown_and_not_zero(
    tmp_path: Path, pools: list[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(gate: Gateway) -> tuple[Any, ...]:
        state = next(
            s for s in httpx.get(f"{gate.url}/gateway/pools").json() if s["name"] == "short"
        )
        return (
            state["running"] + state["waiting"],
            state["free_kv_tokens"],
            state["total_kv_tokens"],
        )

    pools[0].page = metrics_page(running=3, waiting=2, usage=0.25, tokens=1000)
    monkeypatch.setattr("gateway.pools.STALE_NS", 10**9)
    with gateway(tmp_path, pools) as gate:
        assert told(gate) == (5, 750, 1000)
        pools[0].page = b"<html>\x00\xff" + metrics_page(
            running=float("nan"), usage=7.5, tokens=1000
        )
        wait_until(lambda: told(gate) == (0, None, 1000), "the garbage to be seen")
        pools[0].page = metrics_page(running=4, tokens=1000)
        wait_until(lambda: told(gate) == (4, 1000, 1000), "the good page")
        pools[0].page_limit = 40  # it hangs in the middle of the page
        wait_until(lambda: told(gate) == (0, None, None), "the page to grow stale")
        assert gate.post().status_code == 200
        page = httpx.get(f"{gate.url}/metrics").text
    assert 'pool_free_kv_tokens{pool="long"}' in page
    assert 'pool_free_kv_tokens{pool="short"}' not in page


def test_a_body_that_is_too_large_or_no_json_reaches_no_pool(
    tmp_path: Path, pools: list[FakePool]
) -> None:
    with gateway(tmp_path, pools, "--max-body-mib", "1") as gate, gate.client() as client:
        large = client.post("/v1/completions", content=b"x" * (2**20 + 1))

        def drips() -> Iterator[bytes]:  # without a length
            for _ in range(20):
                yield b"x" * 2**16

        chunked = client.post("/v1/completions", content=drips())
        bodies = [
            b"",
            b"{",
            b"[1]",
            b"null",
            b'{"prompt": "\xff"}',
            b"[" * 100_000,
            b'{"messages": 3}',
        ]
        answers = [client.post("/v1/completions", content=body) for body in bodies]
        fits = client.post("/v1/completions", json={"user": "x" * (2**20 - 100), "prompt": [1]})
    assert large.status_code == chunked.status_code == 413
    assert [answer.status_code for answer in answers] == [400] * 6 + [200]
    assert all(answer.json()["error"]["code"] == "malformed_body" for answer in answers[:6])
    assert fits.status_code == 200
    assert len(pools[0].completions) + len(pools[1].completions) == 2


def test_a_body_of_32_mib_passes_whole(tmp_path: Path, pools: list[FakePool]) -> None:
    body = b'{"prompt":[1],"max_tokens":1,"user":"' + b"ab" * (2**24 - 20) + b'"}'
    assert 2**25 - 100 < len(body) <= 2**25
    with gateway(tmp_path, pools) as gate, gate.client() as client:
        assert client.post("/v1/completions", content=body).status_code == 200
    (asked,) = pools[0].completions + pools[1].completions
    assert asked.raw == body


def test_a_model_that_nobody_serves_is_404(tmp_path: Path, pools: list[FakePool]) -> None:
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(model="gpt-9")
        pools[1].model = "adapter"  # loaded since
        later = wait_until(
            lambda: (found := gate.post(model="adapter", stream=True)).status_code == 200 and found,
            "the new model",
        )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "gpt-9" in answer.json()["error"]["message"]
    assert later.headers["x-greenbench-pool"] == "long"  # the default pool does not have it
    assert pools[0].completions == []


def test_a_pool_that_fails_again_and_again_is_ejected_and_returns(
    tmp_path: Path, pools: list[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.pools.EJECTED_NS", 10**9)
    pools[0].status = b"500 Internal Server Error"
    with gateway(tmp_path, pools) as gate:
        statuses = [gate.post(max_tokens=1).status_code for _ in range(6)]
        pools[0].status = b"200 OK"
        back = wait_until(
            lambda: (
                (found := gate.post(max_tokens=1)).headers["x-greenbench-pool"] == "short" and found
            ),
            "the return",
        )
    assert statuses == [500] * 5 + [200]  # a 5xx is an answer: it is passed on and not repeated
    assert back.status_code == 200


def test_a_pool_whose_engine_is_dead_gets_nothing(tmp_path: Path, pools: list[FakePool]) -> None:
    pools[0].health = b"503 Service Unavailable"
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(max_tokens=1)
    assert answer.headers["x-greenbench-pool"] == "long"


def test_a_request_that_no_pool_can_hold_is_400(tmp_path: Path, pools: list[FakePool]) -> None:
    for pool in pools:
        pool.page = metrics_page(tokens=4096)
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(prompt=list(range(5000)))
    assert answer.status_code == 400
    assert "4096" in answer.json()["error"]["message"]


@pytest.mark.parametrize("said", [-5, 0, 10**30])
def test_a_count_of_a_pool_that_cannot_be_is_not_believed(
    said: int, tmp_path: Path, pools: list[FakePool]
) -> None:
    for pool in pools:
        pool.tokenized = said
    with gateway(tmp_path, pools) as gate:
        answer = gate.post(prompt="word " * LONG, max_tokens=1)  # it may be either pool's
        (entry,) = gate.entries(1)
    assert answer.status_code == 200
    assert any(asked.path == "/tokenize" for pool in pools for asked in pool.asked)
    assert entry["length_source"].startswith("estimate") and entry["prompt_tokens"] > 0


def test_keys_pass_and_neither_they_nor_prompts_are_logged(
    tmp_path: Path,
    pools: list[FakePool],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POOLS_KEY", "sk-secret-of-pools")
    pools[0].key = "sk-secret-of-pools"
    flags = ("--api-key-env", "POOLS_KEY")
    with gateway(tmp_path, pools, *flags) as gate, gate.client() as client:
        headers = {"authorization": "Bearer sk-secret"}
        body = {"model": "m", "prompt": "a private prompt", "max_tokens": 1, "stream": True}
        client.post("/v1/completions", json=body, headers=headers)
        client.post("/v1/completions", content=b'{"prompt": "a private prompt"', headers=headers)
        pools[0].kill()
        pools[1].kill()
        client.post("/v1/completions", json=body, headers=headers)
        page = client.get("/gateway/pools", headers=headers).text
        gate.entries(4)
        page += client.get("/metrics").text
    (asked,) = pools[0].completions
    assert asked.headers["authorization"] == "Bearer sk-secret"
    said = gate.log.read_text() + "".join(capfd.readouterr()) + page
    assert "sk-secret" not in said
    assert "private" not in said
