"""The compiled golden server of the client's benchmark: its log is the truth that errors count from."""

import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.clients import assert_in_order, fast, request
from tests.fakes.waiting import HUNG_S

SOURCE = Path(__file__).parents[2] / "fakes" / "golden.c"
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on this host")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("golden") / "golden"
    subprocess.run([str(COMPILER), "-O1", "-Wall", "-Werror", "-o", built, SOURCE], check=True)
    return built


@pytest.fixture
def server(program: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    log = tmp_path / "log"
    argv = [str(program), "--ttft-us", "20000", "--gap-us", "5000", "--log", str(log)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], HUNG_S)
    assert ready, "the server names no port"
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process, log
    process.kill()
    process.wait(HUNG_S)


def test_client_and_server_agree_on_every_time_and_count(
    server: tuple[str, subprocess.Popen[str], Path],
) -> None:
    url, process, log = server
    got = fast(url, [lambda t, n: request(t, 6, number=n)] * 2)
    reply = httpx.post(
        f"{url}/v1/completions", json={"prompt": [1], "max_tokens": 1, "stream": True}
    )
    process.send_signal(signal.SIGTERM)
    process.wait(HUNG_S)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == ["r-0", "r-1", "-"]
    assert '"id":"cmpl-0000000000000002"' in reply.text  # the third line, for clients without ids
    for response, (_, received, count, *sent) in zip(got, lines[:2], strict=True):
        assert response.facts.error_type is None and response.sent and response.chunk_ns
        assert (response.facts.prompt_tokens, int(count)) == (9, 6)
        arrived = [response.sent.mono_ns + at for at in response.chunk_ns]
        written = [int(moment) for moment in sent]
        assert response.sent.mono_ns <= int(received) <= arrived[0]
        assert_in_order(arrived, written)
        for i in range(6):  # the script's times, none too early
            assert written[i] - int(received) >= 20_000_000 + i * 5_000_000
