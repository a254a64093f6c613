"""A server that somebody else runs: what is said where it answers poorly, is not vLLM, or wants a key."""

import json
import socket
import sys
import time
from pathlib import Path

import pytest

from greenbench.contract.config import ServerRequest, parse
from greenbench.contract.errors import UserError
from greenbench.contract.fetch import Limits
from greenbench.contract.manifest import Server
from servers.__main__ import main
from servers.backends.host_facts import other_host
from servers.launch import inspect
from servers.launch.probe import probe as probe_at
from servers.launch.process import ServerDied
from servers.models.shapes import Place
from tests.fakes.plain_server import PlainServer, page, pages

MODELS = page(json.dumps({"data": [{"id": "m", "max_model_len": 4096, "root": "r"}]}).encode())
DONE = page(b'{"choices":[]}')
BARE = {"/v1/models": MODELS, "/v1/completions": DONE}
METRICS = page(b'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="800"} 1\n')


def request(url: str, **server: object) -> ServerRequest:
    model = {"name": "m", "path": "p", "max_model_len": 9}
    server = {"base_url": url, **server}
    return parse(
        ServerRequest, {"model": model, "backend": {"name": "sdpa"}, "server": server}, "test"
    )


def probe(asked: ServerRequest, out: Path) -> Server:
    """On a host whose Python has no vLLM, so that no model's shape is known."""
    return probe_at(asked, out, Place(other_host("h100"), sys.executable, out.parent / "cache"))


def test_a_server_that_is_not_vllm_is_taken_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    with PlainServer(pages(BARE)) as server:
        found = probe(request(server.url + "/v1"), tmp_path / "s")
    assert (found.base_url, found.served_model, found.proof) == (server.url, "m", "unproven")
    assert found.proof_detail["endpoint"] == "completions"
    assert [said.partition(":")[0] for said in found.proof_detail["lacks"]] == [
        "no /version",
        "no /metrics of vLLM's",
    ]


def test_pages_that_never_end_cost_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PAGE_LIMITS", "ANOTHERS_PAGE_LIMITS"):
        monkeypatch.setattr(inspect, name, Limits(10, 1000))
    endless = {name: page(b"x" * 2000) for name in ("/metrics", "/server_info", "/collective_rpc")}
    version = page(b'{"version":"0.32.0"}')
    with PlainServer(pages({**BARE, **endless, "/version": version})) as server:
        found = probe(request(server.url), tmp_path / "s")
    assert (found.vllm_version, found.kv_cache_tokens) == ("0.32.0", None)


def test_pages_of_one_byte_a_second_are_waited_for_for_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model inspection may take a minute; no other page of a stranger holds up the sweep so long."""
    assert inspect.ANOTHERS_PAGE_LIMITS.seconds <= 10
    monkeypatch.setattr(inspect, "ANOTHERS_PAGE_LIMITS", Limits(0.5, 1000))
    answer, dripped = pages(BARE), ("/metrics", "/server_info", "/version")

    def drip(connected: socket.socket, asked: bytes) -> None:
        if not asked.split(b" ", 2)[1].decode().startswith(dripped):
            return answer(connected, asked)
        connected.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            connected.sendall(b"x")
            time.sleep(0.1)

    began_s = time.monotonic()
    with PlainServer(drip) as server:
        found = probe(request(server.url), tmp_path / "s")
    assert time.monotonic() - began_s < inspect.PAGE_LIMITS.seconds
    assert (found.vllm_version, len(found.shown.lacks)) == (None, 2)


def test_a_vllm_lacks_nothing(tmp_path: Path) -> None:
    version = page(b'{"version":"0.32.0"}')
    with PlainServer(pages({**BARE, "/metrics": METRICS, "/version": version})) as server:
        found = probe(request(server.url), tmp_path / "s")
    assert (found.proof_detail["lacks"], found.kv_cache_tokens) == ([], 800)


def test_only_a_chat_is_refused_unless_a_chat_was_asked_for(tmp_path: Path) -> None:
    table = {"/v1/models": MODELS, "/v1/chat/completions": DONE}
    with PlainServer(pages(table)) as server:
        with pytest.raises(UserError, match="write 'endpoint: chat'"):
            probe(request(server.url), tmp_path / "s")
        found = probe(request(server.url, endpoint="chat"), tmp_path / "s")
    assert found.proof_detail["endpoint"] == "chat"


def test_nobody_there_is_said_and_leaves_no_folder(tmp_path: Path) -> None:
    with PlainServer(pages({})) as server:
        url = server.url
    with pytest.raises(
        ServerDied, match=rf"No vLLM server answers at {url} \(Connection refused\)"
    ):
        probe(request(url), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_sentence_stands_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with PlainServer(pages({})) as server:
        url = server.url
    (tmp_path / "r.json").write_text(request(url).model_dump_json())
    argv = ["servers", "probe", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "s")]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 1
    assert (
        capsys.readouterr().out == f"failed: No vLLM server answers at {url} (Connection refused)\n"
    )


def test_the_key_reaches_every_page_and_is_stored_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "sk-team")
    with PlainServer(pages({**BARE, "/metrics": METRICS})) as server:
        probe(request(server.url, api_key_env="TEAM_KEY"), tmp_path / "s")
    assert all(b"\r\nAuthorization: Bearer sk-team\r\n" in asked for asked in server.asked)
    assert not any(
        b"sk-team" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    )
    unauthorized = page(b'{"error":"Unauthorized"}', "401 Unauthorized")
    with (
        PlainServer(pages({"/v1/models": unauthorized})) as server,
        pytest.raises(UserError, match=r"wants a key .*api_key_env"),
    ):
        probe(request(server.url), tmp_path / "t")
    with (
        PlainServer(pages({"/v1/models": unauthorized})) as server,
        pytest.raises(UserError, match=r"refuses the key that it was given .*Unauthorized") as told,
    ):
        probe(request(server.url, api_key_env="TEAM_KEY"), tmp_path / "t")
    assert "sk-team" not in str(told.value)
