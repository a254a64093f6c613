"""The policy's file changes under a running gateway: a good one takes force, a bad one changes nothing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.policy_file import in_force
from greenbench.contract.config import ROOT
from greenbench.contract.policy import load_policy
from tests.fakes.gateways import Gateway, gateway, policy, write_policy
from tests.fakes.pool_server import FakePool
from tests.fakes.waiting import wait_until

NAMES = ["short", "long"]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gateway]:
    with (
        FakePool("short") as short,
        FakePool("long") as long,
        gateway(tmp_path, [short, long]) as gate,
    ):
        yield gate


def reload(gate: Gateway) -> httpx.Response:
    return httpx.post(f"{gate.url}/gateway/policy/reload")


def taker(gate: Gateway) -> str:
    return gate.post(max_tokens=1).headers["x-greenbench-pool"]


def test_a_changed_file_takes_force_by_itself(gate: Gateway) -> None:
    assert taker(gate) == "short"
    write_policy(gate.policy, policy(NAMES, default="long", rules=[]))
    wait_until(lambda: taker(gate) == "long", "the new policy")


OTHER_MODEL = {"model": {"name": "other"}}
OTHER_REVISION = {"model": {"name": "m", "revision": "r2"}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (OTHER_MODEL, "a policy of the model other, the one in force is of m at revision r1"),
        (OTHER_REVISION, "m at revision r2"),
        ({"schema": 0}, "a policy of schema 0, this program reads 1"),
        ({"schema": 2}, "a policy of schema 2, this program reads 1"),
        ({"default": "third"}, "no pool 'third'"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"pools": {"third": {"backend": "x"}}, "default": "third", "rules": []}, "has no address"),
    ],
)
def test_a_policy_that_cannot_hold_leaves_the_old_one_in_force(
    gate: Gateway, change: dict[str, Any], said: str
) -> None:
    write_policy(gate.policy, policy(NAMES) | {"default": "long"} | change)
    answer = reload(gate)
    assert answer.status_code == 422
    assert said in answer.json()["fault"]
    assert taker(gate) == "short"
    page = httpx.get(f"{gate.url}/metrics").text
    assert re.search(r"^greenbench_gateway_policy_stale 1", page, re.MULTILINE)
    assert said in httpx.get(f"{gate.url}/gateway/policy").text
    write_policy(gate.policy, policy(NAMES))  # and it is well again
    assert reload(gate).json() == {"fault": None}
    page = httpx.get(f"{gate.url}/metrics").text
    assert re.search(r"^greenbench_gateway_policy_stale 0", page, re.MULTILINE)


@pytest.mark.parametrize("content", [b"", b"rules: [", b"\xff\xfe\x00", b"[1, 2]"])
def test_a_file_that_is_no_policy_leaves_the_old_one_in_force(
    gate: Gateway, content: bytes
) -> None:
    gate.policy.write_bytes(content)
    assert reload(gate).status_code == 422
    assert taker(gate) == "short"


def test_a_file_that_is_gone_leaves_the_old_one_in_force(gate: Gateway) -> None:
    gate.policy.unlink()
    assert reload(gate).status_code == 422
    assert taker(gate) == "short"


def test_lengths_are_counted_where_rules_and_bars_end_dead_bands_included(tmp_path: Path) -> None:
    content = policy(NAMES, dead_band=1.25)
    content["pools"]["long"]["barred"] = [{"prompt_tokens": {"at_least": 64}, "why": "worse"}]
    write_policy(tmp_path / "p.yaml", content)
    assert in_force(load_policy(tmp_path / "p.yaml")).edges == (64, 800, 1000, 1250)


def test_as_a_program_it_reloads_at_sighup_and_ends_at_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with FakePool("short") as short, FakePool("long") as long:
        write_policy(path, policy(NAMES))
        argv = [sys.executable, "-m", "gateway", "--policy", str(path), "--port", "0"]
        argv += [f"--pool=short={short.url}", f"--pool=long={long.url}/v1"]
        program = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert program.stderr is not None and program.stdout is not None
            url = re.findall(r"http://127\.0\.0\.1:\d+", program.stderr.readline())[0]
            wait_until(lambda: answers(url), "the gateway")
            before = path.stat()
            write_policy(path, policy(NAMES, default="long", rules=[]))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            program.send_signal(signal.SIGHUP)
            body = {"prompt": [1], "max_tokens": 1}
            wait_until(
                lambda: (
                    httpx.post(f"{url}/v1/completions", json=body).headers["x-greenbench-pool"]
                    == "long"
                ),
                "the new policy",
            )
        finally:
            program.send_signal(signal.SIGTERM)
            assert program.wait(30) == 0
        assert '"path":"/v1/completions"' in program.stdout.read()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
