"""Every fetch ends: by its answer, at its size or at its time; and the reason can be shown."""

import itertools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from greenbench.contract.access import Access, access
from greenbench.contract.errors import UserError
from greenbench.contract.fetch import FetchError, Limits, fetch
from greenbench.contract.served import find_endpoint, served_models
from tests.fakes.certificates import make_certificate, server_context
from tests.fakes.plain_server import PlainServer, page, pages

BRIEF = Limits(seconds=1, bytes=2**20)
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


def drip(start: bytes, drop: bytes) -> Callable[[socket.socket, bytes], None]:
    def answer(connected: socket.socket, _: bytes) -> None:
        connected.sendall(start)
        for _ in itertools.count():
            connected.sendall(drop)
            time.sleep(0.05)

    return answer


def flood(start: bytes, piece: bytes) -> Callable[[socket.socket, bytes], None]:
    def answer(connected: socket.socket, _: bytes) -> None:
        connected.sendall(start)
        while True:
            connected.sendall(piece)

    return answer


def silent(connected: socket.socket, _: bytes) -> None:
    connected.recv(1)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (silent, "no whole answer to /v1/models within 1 s"),
        (drip(b"", b"H"), "(no whole answer|does not speak HTTP)"),
        (drip(HEAD, b"x: y\r\n"), "no whole answer to /v1/models within 1 s"),
        (drip(HEAD + b"content-length: 1000000\r\n\r\n", b"x"), "no whole answer to /v1/models within 1 s"),
        (drip(HEAD + b"\r\n", b"x"), "no whole answer to /v1/models within 1 s"),
        (drip(HEAD + CHUNKED, b"1\r\nx\r\n"), "no whole answer"),
        (flood(HEAD + b"\r\n", b"x" * 2**16), "to /v1/models is over 1 MiB"),
        (flood(HEAD + b"content-length: 226492416\r\n\r\n", b"x" * 2**16), "to /v1/models is over 1 MiB"),
        (flood(HEAD + CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"), "to /v1/models is over 1 MiB"),
        (flood(HEAD, b"x: y\r\n"), "does not speak HTTP"),
        (flood(b"", b"x" * 2**16), "does not speak HTTP"),
        (lambda c, _: c.sendall(page(b"half")[:-2]), "2 bytes of it are missing"),
        (lambda c, _: c.sendall(b"SSH-2.0-x\r\n"), "does not speak HTTP"),
        (lambda c, _: None, "closed connection without response"),
    ],
)  # fmt: skip
def test_what_never_ends_is_given_up_and_the_reason_said(
    answer: Callable[[socket.socket, bytes], None], why: str
) -> None:
    with PlainServer(answer) as server:
        started = time.monotonic()
        with pytest.raises(FetchError, match=why):
            fetch(access(server.url), "/v1/models", BRIEF)
        assert time.monotonic() - started < 20 * BRIEF.seconds  # a busy machine; not for ever


def test_a_port_where_nobody_listens_is_refused_in_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match="Connection refused"):
            fetch(access(f"http://127.0.0.1:{taken.getsockname()[1]}"), "/", BRIEF)


def test_an_answer_comes_with_status_headers_and_body_to_the_path_below_the_prefix() -> None:
    with PlainServer(pages({"/a/b/v1/x": page(b"hello", extra="X-Own: 1\r\n")})) as server:
        reply = fetch(access(server.url + "/a/b/v1/"), "/v1/x", BRIEF)
        assert (reply.status, reply.headers["x-own"], reply.body) == (200, "1", b"hello")
        posted = fetch(access(server.url), "/other", BRIEF, {"k": 1})
        assert (posted.status, posted.words) == (404, "Not Found")
    assert server.asked[1].startswith(b"POST /other HTTP/1.1\r\n")
    assert server.asked[1].endswith(b'{"k": 1}')


def test_key_and_headers_go_out_and_are_shown_nowhere() -> None:
    keys = {
        "api_key_env": "MY_KEY",
        "headers": {"X-Route": "blue", "Host": "inner"},
        "headers_env": {"X-Org": "ORG"},
    }
    with PlainServer(pages({"/": page(b"")})) as server:
        reached = access(server.url, keys, {"MY_KEY": " sk-1\n", "ORG": "acme"})
        fetch(reached, "/", BRIEF)
    lines = server.asked[0].decode().split("\r\n")
    for line in ("Authorization: Bearer sk-1", "X-Route: blue", "X-Org: acme", "Host: inner"):
        assert lines.count(line) == 1
    assert len([line for line in lines if line.lower().startswith("host:")]) == 1
    assert "sk-1" not in repr(reached) and "acme" not in repr(reached)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_a_certificate_is_trusted_by_file_by_environment_or_not_at_all(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(certificate)
    ca_file = str(certificate / "cert.pem")
    with PlainServer(pages({"/": page(b"in")}), context) as server:
        with pytest.raises(FetchError, match=r"not trusted .*ca_file, or SSL_CERT_FILE.*insecure"):
            fetch(access(server.url), "/", BRIEF)
        for keys in ({"ca_file": ca_file}, {"insecure": True}):
            assert fetch(access(server.url, keys), "/", BRIEF).body == b"in"
        monkeypatch.setenv("SSL_CERT_FILE", ca_file)
        assert fetch(access(server.url), "/", BRIEF).body == b"in"
        monkeypatch.setenv("SSL_CERT_FILE", ca_file + "x")
        with pytest.raises(UserError, match=r"SSL_CERT_FILE: .* cannot be read"):
            fetch(access(server.url), "/", BRIEF)
        with pytest.raises(FetchError):
            fetch(access(server.url.replace("https", "http")), "/", BRIEF)
    with PlainServer(silent) as plain, pytest.raises(FetchError, match=r"TLS fails|no whole"):
        fetch(access(plain.url.replace("http:", "https:"), {"insecure": True}), "/", BRIEF)


def test_a_file_that_holds_no_certificates_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(UserError, match=r"x\.pem holds no certificates"):
        _ = Access("https://h", ca_file=str(tmp_path / "x.pem")).tls


MODELS = page(json.dumps({"data": [{"id": "m"}, {"name": "no id"}, 3]}).encode())
CHAT_ONLY = page(b'{"error":{"message":"chat only","code":422}}', "422 Unprocessable Entity")


def test_the_endpoint_is_where_one_token_is_completed() -> None:
    table = {
        "/v1/models": MODELS,
        "/v1/completions": CHAT_ONLY,
        "/v1/chat/completions": page(b"{}"),
    }
    with PlainServer(pages(table)) as server:
        reached = access(server.url)
        assert [model["id"] for model in served_models(reached)] == ["m"]
        assert find_endpoint(reached, "m", "auto") == "chat"
        assert find_endpoint(reached, "m", "chat") == "chat"
        with pytest.raises(UserError, match=r"/v1/completions answers HTTP 422: chat only; .*auto"):
            find_endpoint(reached, "m", "completions")
    with PlainServer(pages({"/v1/completions": page(b"{}")})) as server:
        assert find_endpoint(access(server.url), "m", "auto") == "completions"
    busy = page(b"", "503 Service Unavailable")  # which says nothing of what is there
    with PlainServer(pages({"/v1/completions": busy})) as server:
        assert find_endpoint(access(server.url), "m", "auto") == "completions"


@pytest.mark.parametrize(
    ("models", "error", "why"),
    [
        (page(b'{"error":"Unauthorized"}', "401 Unauthorized"), UserError, "wants a key.*Unauth"),
        (page(b"", "404 Not Found"), FetchError, "/v1/models: HTTP 404$"),
        (page(b"<html>hello</html>"), FetchError, "no list of models: <html>hello"),
        (page(b'{"data":null}'), FetchError, "no list of models"),
        (page(b"[" * 100_000), FetchError, "no list of models"),
        (page(b"", "308 Permanent Redirect", "Location: https://h/\r\n"), FetchError, "go to https://h/"),
    ],
)  # fmt: skip
def test_a_server_that_lists_no_models_is_described(
    models: bytes, error: type[Exception], why: str
) -> None:
    with PlainServer(pages({"/v1/models": models})) as server, pytest.raises(error, match=why):
        served_models(access(server.url))
