"""The commands of the images, as they stand in deploy/, in an empty environment that holds the wheel alone.

No engine for containers is needed: an image of ours is that environment and a command. What the commands
would write outside their home and /tmp, a read-only root would refuse: nothing may be written there.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from greenbench.contract.installation import ROOT
from tests.fakes.deploy_files import COMPOSE, KUBERNETES, pods
from tests.fakes.openai_server import GoldenServer
from tests.fakes.ports import free_port
from tests.fakes.waiting import HUNG_S, wait_until
from tests.fakes.wheel import installed, installed_files

pytestmark = pytest.mark.e2e
SERVICES = COMPOSE["services"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds what /opt/greenbench holds in an image; read-only there, so unchanged here."""
    venv = installed(tmp_path_factory.mktemp("image"))
    before = installed_files(venv)
    yield venv
    assert installed_files(venv) == before


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """A command with what Compose or Kubernetes would put in, and free ports; all of ``values`` is used."""
    assert all(any(key in word for word in words) for key in values), (words, values)
    for key, value in values.items():
        words = [word.replace(key, value) for word in words]
    assert not [word for word in words if "$" in word]
    return list(words)


def environment(image: Path, home: Path) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VLLM", "GREENBENCH"))
    }
    path = f"{image / 'bin'}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def started(image: Path, home: Path, words: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Ends by SIGTERM, as an engine ends a container."""
    with (home / f"{words[-1].strip('-').replace('/', '_')}.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=home, env=environment(image, home), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(HUNG_S)


def page(url: str) -> str | None:
    try:
        answer = httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None
    return answer.text if answer.status_code == 200 else None


def container(name: str) -> list[str]:
    pod = dict(pods())[name]
    (only,) = pod["containers"]
    return [*only["command"], *only.get("args", [])]


def stage_command(stage: str) -> list[str]:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    of_stage = re.split(r"^FROM ", text, flags=re.M)
    (block,) = [part for part in of_stage if re.match(rf"\S+ AS {stage}\n", part)]
    return json.loads(re.findall(r"^CMD (\[.*\])$", block, flags=re.M)[0])


def test_bench_says_what_it_can_do(image: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        stage_command("bench"), cwd=tmp_path, env=environment(image, tmp_path), check=False,
        capture_output=True, text=True, timeout=HUNG_S,
    )  # fmt: skip
    assert done.returncode == 0 and "Usage: greenbench" in done.stdout


@pytest.mark.parametrize(
    "words", [SERVICES["exporter"]["command"], container("exporter")], ids=["compose", "kubernetes"]
)
def test_the_exporter_serves_its_page(words: list[str], image: Path, tmp_path: Path) -> None:
    port = str(free_port())
    with started(image, tmp_path, filled(words, {"9400": port})) as process:
        url = f"http://127.0.0.1:{port}/metrics"
        text = wait_until(lambda: page(url) or process.poll() is not None, "the exporter's page")
        assert "greenbench_host_memory_used_bytes" in text
    assert process.returncode == 0


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_a_worker_joins_its_master(where: str, image: Path, tmp_path: Path) -> None:
    """The master's page counts it; both commands as they stand, but for names of hosts and ports."""
    web, bind = str(free_port()), str(free_port())
    with GoldenServer() as server:
        if where == "compose":
            master = filled(
                SERVICES["locust-master"]["command"],
                {
                    "http://server:8000": server.url,
                    "${CONTEXT_TOKENS:-8192}": "256",
                    "/runs": str(tmp_path),
                },
            )
            worker = filled(SERVICES["locust-worker"]["command"], {"=locust-master": "=127.0.0.1"})
        else:
            master = filled(
                container("locust-master"),
                {"$(TARGET)": server.url, "$(CONTEXT_TOKENS)": "256", "/runs": str(tmp_path)},
            )
            worker = filled(container("locust-worker"), {"=locust-master": "=127.0.0.1"})
        master += [f"--web-port={web}", f"--master-bind-port={bind}"]
        with (
            started(image, tmp_path, master),
            started(image, tmp_path, [*worker, f"--master-port={bind}"]),
        ):

            def workers() -> int:
                text = page(f"http://127.0.0.1:{web}/stats/requests")
                return len(json.loads(text)["workers"]) if text else 0

            wait_until(lambda: workers() == 1, "a worker on the master's page", every_s=0.5)


@pytest.mark.skipif(not (ROOT / "gateway").is_dir(), reason="this checkout has no gateway")
@pytest.mark.parametrize("where", ["image", "kubernetes"])
def test_the_gateway_is_ready_when_a_pool_is(where: str, image: Path, tmp_path: Path) -> None:
    words = stage_command("gateway") if where == "image" else container("gateway")
    with GoldenServer() as server:
        example = (KUBERNETES / "gateway" / "policy.yaml").read_text()
        urls = ("http://server-flash-attn3:8000", "http://server-sdpa:8000")
        assert all(url in example for url in urls)
        for url in urls:
            example = example.replace(url, server.url)
        (tmp_path / "policy.yaml").write_text(example)
        port = str(free_port())
        words = filled(words, {"/etc/greenbench": str(tmp_path)})
        words = filled(words, {"8080": port}) if "8080" in words else [*words, "--port", port]
        with started(image, tmp_path, words) as process:
            url = f"http://127.0.0.1:{port}/metrics"
            text = wait_until(lambda: page(url) or process.poll() is not None, "the gateway's page")
            assert 'greenbench_gateway_pool_up{pool="flash_attn3"}' in text
