"""TLS over the same reads: the kernel's times stay, and every way it can fail is a row."""

import ssl
from pathlib import Path

import pytest

from tests.fakes.certificates import make_certificate, server_context
from tests.fakes.clients import PROMPT, assert_in_order, fast, request
from tests.fakes.openai_server import (
    GoldenServer,
    Script,
    completion_events,
    json_script,
    stream_script,
)

EVENTS = completion_events(len(PROMPT), [1] * 8)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_streams_over_tls_are_whole_timed_by_the_kernel_and_reuse_their_connection(
    certificate: Path, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    trusting.maximum_version = version
    script = stream_script(EVENTS, 0.02, 0.005)
    with GoldenServer(lambda seen: script, tls=server_context(certificate)) as server:
        got = fast(server.url, [lambda t, n: request(t, 8, number=n)] * 3, tls=trusting)
        seen = list(server.seen)
    for response, truth in zip(got, seen, strict=True):
        assert (response.facts.error_type, response.facts.output_tokens) == (None, 8)
        assert response.kernel_times and response.chunk_ns and response.sent
        assert_in_order([response.sent.mono_ns + at for at in response.chunk_ns], truth.sent_ns)
    assert {truth.connection for truth in seen} == {1}


def test_a_large_prompt_and_a_large_reply_pass_through_tls(
    certificate: Path, trusting: ssl.SSLContext
) -> None:
    prompt = list(range(200_000))
    with GoldenServer(tls=server_context(certificate)) as server:
        make = lambda t, n: request(t, 1, streaming=False, prompt=prompt)  # noqa: E731
        (got,) = fast(server.url, [make], 20, tls=trusting)
        assert server.seen[0].body["prompt"] == prompt
    assert (got.facts.error_type, got.facts.prompt_tokens) == (None, 200_000)


def test_an_untrusted_certificate_is_a_connect_error(certificate: Path) -> None:
    with GoldenServer(tls=server_context(certificate)) as server:
        (got,) = fast(server.url, [lambda t, n: request(t, 8)], tls=ssl.create_default_context())
    assert got.facts.error_type == "connect"
    assert "TLS" in (got.facts.error_message or "")


def test_a_server_without_tls_is_a_connect_error(trusting: ssl.SSLContext) -> None:
    with GoldenServer(lambda seen: json_script({})) as server:
        url = server.url.replace("http:", "https:")
        (got,) = fast(url, [lambda t, n: request(t, 8)], 1, tls=trusting)
    assert got.facts.error_type in ("connect", "timeout")


def test_a_close_in_the_body_is_a_cut_over_tls_too(
    certificate: Path, trusting: ssl.SSLContext
) -> None:
    script = Script(stream_script(EVENTS, 0.005, 0.005).writes[:3], "fin")
    with GoldenServer(lambda seen: script, tls=server_context(certificate)) as server:
        (got,) = fast(server.url, [lambda t, n: request(t, 8)], tls=trusting)
    assert (got.facts.error_type, len(got.chunk_ns or [])) == ("cut_in_stream", 3)
