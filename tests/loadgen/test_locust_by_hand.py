"""Locust as the README starts it: who can reach its page, what its help says, what its summary holds."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from greenbench.contract.schema import RequestRecord
from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import (
    GoldenServer,
    Script,
    Seen,
    json_script,
    logprob_body,
    well_behaved,
)
from tests.fakes.ports import free_port
from tests.fakes.waiting import HUNG_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "http://127.0.0.1:9"
LOCUST = [sys.executable, "-m", "locust", "-f", "loadgen/longctx.py"]


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*argv],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("more", "address"),
    [([], "127.0.0.1"), (["--master"], "127.0.0.1"), (["--web-host", "*"], "0.0.0.0")],
    ids=["by itself", "master", "opened"],
)
def test_nothing_listens_beyond_this_machine_unless_asked(
    more: list[str], address: str, tmp_path: Path
) -> None:
    ports = {free_port(), *([free_port()] if "--master" in more else [])}
    page, *master = ports
    argv = [*LOCUST, "--web-port", str(page), "--host", NOBODY, *more]
    argv += [word for port in master for word in ("--master-bind-port", str(port))]
    said = tmp_path / "said"
    with said.open("w") as out:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out)

    def listening() -> dict[int, str]:
        found = psutil.Process(process.pid).net_connections("inet")
        return {c.laddr.port: c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}

    try:
        wait_until(lambda: set(listening()) >= ports, "Locust listens", HUNG_S)
        assert {ip.replace("::", "0.0.0.0") for ip in listening().values()} == {address}
        warned = "Locust's page listens on *: everyone who reaches this machine" in said.read_text()
        assert warned is (address == "0.0.0.0")
        told = f"no model server answers at {NOBODY} (Connection refused); start one with"
        wait_until(lambda: told in said.read_text(), "it says that nothing answers", HUNG_S)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(HUNG_S)


@pytest.mark.parametrize("argv", [[*LOCUST], [sys.executable, "-m", "loadgen.longctx"]])
def test_a_page_on_a_port_that_is_in_use_is_one_sentence_and_two(argv: list[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = run(*argv, "--host", NOBODY, "--web-port", str(port))
    said = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
    assert said == [
        f"error: Locust's page cannot listen on 127.0.0.1, port {port} (Address already in use); "
        "give another --web-port or --web-host"
    ]
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr + ended.stdout


def test_the_help_names_every_option_of_the_locustfile_with_what_it_is_for() -> None:
    said = run(sys.executable, "-m", "loadgen.longctx", "--help")
    assert said.returncode == 0
    own = said.stdout.partition("\ngreenbench:\n")[2].partition("\nExamples:")[0]
    for name in (
        "run-dir",
        "client",
        "endpoint",
        "task",
        "context-tokens",
        "prompts",
        "seed",
        "out",
    ):
        option = re.search(rf"^  --{name}\b[^\n]*\n?((?!  --)[^\n]*\n)", own, flags=re.MULTILINE)
        assert option, name
        assert len(re.sub(r"--\S+|\{.*?\}|[A-Z_]{3,}", "", option[0]).split()) >= 2, option[0]
    assert "--headless" in said.stdout  # Locust's own are there too


def test_the_file_runs_locust_with_itself(tmp_path: Path) -> None:
    with GoldenServer() as server:
        point = make_run(tmp_path, server.url)
        argv = ["--headless", "--run-dir", str(point), "--only-summary"]
        ended = run(sys.executable, "-m", "loadgen.longctx", *argv)
        sent = len(server.seen)
    assert ended.returncode == 0, ended.stderr
    assert sent > 4


def summary(said: str) -> dict[str, list[int]]:
    """Name → requests, and average, least, most and median ms, of the table at the end."""
    pattern = r"^\w*\s+(TTFT|TPOT|E2E|Aggregated)\s+(\d+)\s+\S+ \|\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)"
    return {
        m[1]: [int(n) for n in m.groups()[1:]] for m in re.finditer(pattern, said, re.MULTILINE)
    }


def test_locusts_summary_has_ttft_and_tpot_as_the_rows_have_them(tmp_path: Path) -> None:
    with GoldenServer() as server:
        point = make_run(tmp_path, server.url)
        ended = run(*LOCUST, "--headless", "--run-dir", str(point), "--only-summary")
    table = summary(ended.stderr + ended.stdout)
    files = point.glob("requests/*.jsonl")
    records = [RequestRecord.from_dict(json.loads(line)) for f in files for line in f.open()]
    tpot_ms = [
        (r.last_token_ns - r.first_token_ns) / 7 / 1e6  # 8 tokens, one a chunk
        for r in records
        if r.last_token_ns is not None and r.first_token_ns is not None
    ]
    assert table["TPOT"][0] == table["TTFT"][0] == table["E2E"][0] == len(tpot_ms) == len(records)
    assert table["Aggregated"][0] == len(records)  # a request counts once
    cut = 1.5  # ms: each time is rounded to whole ones, and the table cuts fractions off
    assert table["TPOT"][1] == pytest.approx(sum(tpot_ms) / len(tpot_ms), abs=cut)
    assert table["TPOT"][2] == pytest.approx(min(tpot_ms), abs=cut)
    assert table["TPOT"][3] == pytest.approx(max(tpot_ms), abs=cut)


def test_a_servers_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    def hostile(_: Seen) -> object:
        return json_script({"error": {"message": "no \x1b[2J\x1b]0;owned\x07 model"}}, "400 Bad")

    with GoldenServer(hostile) as server:  # type: ignore[arg-type]
        point = make_run(tmp_path, server.url)
        ended = run(*LOCUST, "--headless", "--run-dir", str(point), "--only-summary")
    said = ended.stderr + ended.stdout
    assert "\x1b[2J" not in said and "\x07" not in said
    assert r"no \x1b[2J" in said


MODEL = ["--model-path", str(ROOT / "models" / "retriever" / "model")]
SHORT = [*MODEL, "--context-tokens", "256", "--prompts", "2"]


def test_the_time_limit_is_of_the_load_and_not_of_what_is_made_before_it(tmp_path: Path) -> None:
    """Guards against 0 requests and exit 0: prompts of a slow machine took the 6 seconds of `-t 6s`."""
    usual = well_behaved()

    def slow_before_the_load(seen: Seen) -> Script:
        first = not server.seen
        return json_script(logprob_body(seen.body["prompt"]), after_s=2.0) if first else usual(seen)

    with GoldenServer(slow_before_the_load) as server:
        argv = [*LOCUST, "--headless", "-t", "1s", "--host", server.url, *SHORT]
        ended = run(*argv, "--out", str(tmp_path), "--only-summary")
        sent = len(server.seen) - 1
    assert ended.returncode == 0, ended.stderr
    assert summary(ended.stderr + ended.stdout)["Aggregated"][0] > 1
    assert sent > 1


@pytest.mark.parametrize("out", ["file/runs", "/proc/runs"])
def test_a_place_that_cannot_be_written_is_one_sentence_before_any_request(
    out: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with GoldenServer() as server:
        argv = [*LOCUST, "--headless", "-t", "1s", "--host", server.url, *SHORT]
        ended = run(*argv, "--out", str(tmp_path / out))
        loaded = [seen for seen in server.seen if seen.body.get("stream")]
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2 and not loaded
    assert last.startswith("error: ") and last.endswith("; give another --out")
    assert "Traceback" not in ended.stderr


def test_a_run_by_hand_in_which_no_request_ends_is_no_success(tmp_path: Path) -> None:
    usual = well_behaved(ttft_s=HUNG_S)

    def never(seen: Seen) -> Script:
        return usual(seen) if seen.body.get("stream") else json_script(logprob_body([1, 2]))

    with GoldenServer(never) as server:
        argv = [*LOCUST, "--headless", "-t", "1s", "--host", server.url, *SHORT]
        ended = run(*argv, "--out", str(tmp_path), "--only-summary")
    assert ended.returncode == 1
    assert "error: no request came to its end; give a longer --run-time" in ended.stderr


def test_a_disk_that_fails_ends_the_run_and_it_is_no_success(tmp_path: Path) -> None:
    """Guards against a run without ticks, which went on for ever: a file may be 2 kB long and no longer."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    with GoldenServer() as server:
        point = make_run(tmp_path, server.url, phases={"measure_s": HUNG_S, "warmup_s": 0})
        argv = [*LOCUST, "--headless", "--run-dir", str(point), "--only-summary"]
        ended = subprocess.run(
            argv, cwd=ROOT, preexec_fn=limited, capture_output=True, text=True,
            timeout=HUNG_S, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert "the run cannot go on: [Errno 27] File too large" in ended.stderr


SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "argv",
    [
        [*LOCUST, "--headless", "-u", "1", "-t", "1s", "--host"],
        [sys.executable, "-m", "loadgen.search", "--over", "users", "--ttft-s", "1", "--base-url"],
    ],
    ids=["locust", "search"],
)
def test_a_password_in_an_address_is_refused_and_stored_nowhere(
    argv: list[str], tmp_path: Path
) -> None:
    given = f"http://me:{SECRET}@127.0.0.1:9/v1"
    ended = run(*argv, given, "--out", str(tmp_path / "out"))
    assert ended.returncode == 2
    assert "user or password" in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET in p.read_text()]
