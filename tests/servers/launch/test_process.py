"""The launcher against a stand-in for vLLM: every way to fail ends in a true server.json and no process."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from analysis.quality.standings import verification, verification_files
from greenbench.contract.config import BackendChoice, ModelConfig, ServerConfig, ServerRequest
from greenbench.contract.errors import UserError
from greenbench.contract.forms import RoundingFloor, StepsOff, Tolerance, VerifyFile
from servers.backends.host_facts import HostFacts
from servers.launch import probe, server, smoke
from servers.launch import process as servers_process
from servers.launch.process import ServerDied, ServerProcess, pick_port
from servers.launch.state_file import SERVER_JSON
from servers.models.store import weights_bytes
from servers.verify import run
from tests.fakes import vllm_server
from tests.fakes.waiting import HUNG_S, wait_until


@contextlib.contextmanager
def running(argv: list[str], env: Mapping[str, str], log: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(argv, env, log)
    process.start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def context(tmp_path: Path) -> server.LaunchContext:
    python = vllm_server.install(tmp_path)
    host = HostFacts(
        vllm_build="cpu", vllm_version="0.32.0", modules=frozenset(), vllm_python=python
    )
    env = {"PATH": os.environ["PATH"], "VLLM_ATTENTION_BACKEND": "stray"}
    return server.LaunchContext(host, python, tmp_path / "cache", env)


def request(
    tmp_path: Path, mode: str = "good", backend: str = "sdpa", **server: object
) -> ServerRequest:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"num_attention_heads": 4, "head_dim": 64}')
    extra = ["--fake", mode, "--fake-note", str(tmp_path / "child")]
    return ServerRequest(
        model=ModelConfig(name="m", path=str(model), max_model_len=4096, weights="random"),
        backend=BackendChoice(name=backend),
        server=ServerConfig(extra_args=extra, **{"boot_timeout_s": HUNG_S, **server}),
    )


def state(out: Path) -> dict:
    return json.loads((out / SERVER_JSON).read_text())


def assert_gone(out: Path) -> None:
    pid = state(out)["server"]["pid"]
    left = [p for p in psutil.process_iter() if group(p.pid) == pid and p.status() != "zombie"]
    assert left == []


def group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("die_booting", f"ended with code 1 while booting: {vllm_server.ROOT_CAUSE}"),
        ("killed", "ended with signal SIGKILL while booting"),
        ("die_on_request", "IndexError: index 8 is out"),
        ("error_on_request", "got HTTP 500"),
        ("short_answer", "asked for 8 tokens; the server counted 16 in, 7 out"),
        ("other_graphs", "execution 'eager' was asked for, and vLLM changed it to PIECEWISE"),
        ("mismatch", "sdpa builds SdpaImpl, and the server built CPUAttentionBackendImpl"),
    ],
)
def test_boot_faults_fail_with_a_sentence(
    mode: str, words: str, tmp_path: Path, context: server.LaunchContext, monkeypatch
):
    monkeypatch.setattr(server, "TIME_TO_DIE_S", 0.2)
    out = tmp_path / "out"
    assert server.serve(request(tmp_path, mode), out, context, lambda _: None) == 1
    found = state(out)
    assert found["state"] == "failed" and words in found["error"]
    assert "\n" not in found["error"]
    if mode == "mismatch":
        assert found["server"]["proof"] == "mismatch"
    assert_gone(out)


def test_never_healthy_ends_at_the_time_limit(tmp_path: Path, context: server.LaunchContext):
    out = tmp_path / "out"
    asked = request(tmp_path, "never_healthy", boot_timeout_s=1.0)
    assert server.serve(asked, out, context, lambda _: None) == 1
    assert "did not become healthy within the boot time limit" in state(out)["error"]
    assert_gone(out)


def test_a_server_that_dies_later(tmp_path: Path, context: server.LaunchContext):
    out = tmp_path / "out"
    assert server.serve(request(tmp_path, "die_later"), out, context, lambda _: None) == 3
    found = state(out)
    assert found["state"] == "failed"
    assert "code 7 while serving: torch.OutOfMemoryError: CUDA out of memory" in found["error"]
    assert found["server"]["proof"] == "proven" and found["server"]["ready_s"] > 0


def launch(tmp_path: Path, mode: str, backend: str = "sdpa") -> tuple[subprocess.Popen, Path]:
    out = tmp_path / "out"
    out.mkdir()
    file = tmp_path / "request.json"
    file.write_text(request(tmp_path, mode, backend).model_dump_json())
    env = {
        **os.environ,
        "VLLM_PYTHON": vllm_server.install(tmp_path),
        "VLLM_ATTENTION_BACKEND": "stray",
    }
    command = [sys.executable, "-m", "servers", "start", "--request", str(file), "--out", str(out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True), out


def wait_for(out: Path, wanted: str) -> dict:
    def reached() -> bool:
        return (out / SERVER_JSON).exists() and state(out).get("state") == wanted

    wait_until(reached, f"server.json that says {wanted}")
    return state(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, number: int, code: int):
    launcher, out = launch(tmp_path, "good")
    server = wait_for(out, "ready")["server"]
    assert server["proof"] == "proven" and server["observed_backend"] == "SdpaImpl x4"
    # 1 GiB on each card, and the server says that it has 8 of them in each of 2 stages
    assert server["kv_cache_tokens"] == 524288 and server["kv_cache_bytes"] == 8 * 2 * 2**30
    assert server["dtype"] == "bfloat16"
    assert server["pid_created_s"] == pytest.approx(psutil.Process(server["pid"]).create_time())
    assert server["proof_detail"]["log_offset_ready"] > 0
    assert (out / "model_inspection.txt").read_text().count("SdpaImpl") == 1
    assert json.loads((out / "server_info.json").read_text())
    log = (out / "server.log").read_text()
    assert "stray" not in log and "--attention-backend', 'GREENBENCH_SDPA'" in log
    launcher.send_signal(number)
    assert launcher.wait(HUNG_S) == code
    assert state(out)["state"] == "stopped" and state(out)["error"] is None
    assert_gone(out)


def test_a_worker_that_ignores_term_is_killed(
    tmp_path: Path, context: server.LaunchContext, monkeypatch
):
    """A hung worker in a session of its own would hold the GPU's memory for good."""
    monkeypatch.setattr(servers_process, "TERM_GRACE_S", 0.3)
    port, note = pick_port(None), tmp_path / "child"
    argv = [context.vllm_python, "-m", "x", "--port", str(port), "--fake", "stubborn"]
    with running([*argv, "--fake-note", str(note)], context.env, tmp_path / "log") as process:
        process.wait_healthy(f"http://127.0.0.1:{port}", time.monotonic() + HUNG_S)
        child = psutil.Process(int(note.read_text()))
        assert child.is_running()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_stopping_while_it_boots_leaves_nothing(tmp_path: Path):
    launcher, out = launch(tmp_path, "slow_boot")
    assert wait_for(out, "booting")["server"]["argv"]
    wait_until(lambda: state(out)["server"]["pid"], "a process")  # it comes after the folder
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(HUNG_S) == 130
    assert state(out)["state"] == "stopped"
    assert_gone(out)


def test_a_stop_that_falls_into_a_finalizer_is_not_lost():
    """Guards against a launcher that goes on, deaf to further signals: Python drops what is raised there."""
    code = (
        "import os, signal, sys, time\n"
        "from servers.__main__ import _until_stopped\n"
        "class Dying:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        sum(range(1000))\n"  # the signal is handled here
        "def run():\n"
        "    Dying()\n"
        "    print('goes on', flush=True)\n"
        f"    time.sleep({HUNG_S})\n"
        "    return 0\n"
        "sys.exit(_until_stopped(run))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HUNG_S, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "goes on\n", "")


def test_bad_input_starts_nothing(tmp_path: Path, context: server.LaunchContext):
    out = tmp_path / "out"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} is in use"):
            server.serve(request(tmp_path, port=port), out, context, print)
    asked = request(tmp_path)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(UserError, match=r"is a folder without config\.json"):
        server.serve(asked, out, context, print)
    none = server.LaunchContext(HostFacts(vllm_python="py"), "py", tmp_path, {})
    with pytest.raises(UserError, match="vLLM is not installed in py"):
        server.serve(request(tmp_path), out, none, print)
    with pytest.raises(UserError, match="max_model_len 9000 is longer"):
        long = request(tmp_path, max_model_len=9000)
        (tmp_path / "model" / "config.json").write_text(
            '{"head_dim": 64, "max_position_embeddings": 4096}'
        )
        server.serve(long, out, context, print)
    assert not out.exists()


def test_an_override_of_the_config_lengthens_the_window(
    tmp_path: Path, context: server.LaunchContext
):
    asked = request(tmp_path, max_model_len=9000)
    (tmp_path / "model" / "config.json").write_text(
        '{"head_dim": 64, "max_position_embeddings": 4096}'
    )
    longer = asked.server.model_copy(
        update={"extra_args": ["--hf-overrides", '{"max_position_embeddings": 16384}']}
    )
    overridden = asked.model_copy(update={"server": longer})
    shapes = server.shapes_of([asked, overridden], context)
    assert [shape.window_tokens for shape in shapes] == [4096, 16_384]
    refusals = [
        server.planned(one, context, shape).refusals
        for one, shape in zip((asked, overridden), shapes, strict=True)
    ]
    assert refusals[0][0].startswith("max_model_len 9000 is longer") and refusals[1] == []


def test_what_a_server_runs_is_what_it_says(tmp_path: Path, context: server.LaunchContext):
    """It was asked for 2048 tokens, one card and a KV cache as the weights; it says otherwise."""
    launch = server.Launch(request(tmp_path, max_model_len=2048), tmp_path / "out", context, print)
    with launch:
        found = launch.boot()
    assert (found.max_model_len, found.kv_cache_dtype) == (4096, "fp8_e4m3")
    assert (found.tensor_parallel, found.pipeline_parallel, found.data_parallel) == (8, 2, 1)
    assert found.shape is not None and found.shape.head_size == 64


def test_an_unwritable_folder_is_said_before_a_start(tmp_path: Path, context: server.LaunchContext):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        server.serve(request(tmp_path), blocked / "out", context, print)


def test_a_running_server_is_described(tmp_path: Path, context: server.LaunchContext):
    port = pick_port(None)
    argv = [
        context.vllm_python,
        "-m",
        "x",
        "--port",
        str(port),
        "--attention-backend",
        "GREENBENCH_SDPA",
    ]
    for mode, verdict in (("good", "proven"), ("no_inspection", "unproven")):
        log = tmp_path / f"{mode}.log"
        with running(
            [*argv, "--served-model-name", "m", "--fake", mode], context.env, log
        ) as process:
            url = f"http://127.0.0.1:{port}"
            process.wait_healthy(url, time.monotonic() + HUNG_S)
            asked = request(tmp_path, base_url=f"{url}/v1")
            server = probe.probe(asked, tmp_path / mode, context.place)
            with pytest.raises(UserError, match="serves m, not 'other'"):
                other = request(tmp_path, base_url=url, served_model="other")
                probe.probe(other, tmp_path / "no", context.place)
        assert (server.proof, server.served_model, server.pid) == (verdict, "m", None)
        assert (server.max_model_len, server.kv_cache_tokens) == (4096, 524288)
        assert (server.kv_cache_dtype, server.tensor_parallel) == ("fp8_e4m3", 8)
        assert server.shape is not None and server.shape.head_size == 64
        assert state(tmp_path / mode)["state"] == "ready"
    with pytest.raises(ServerDied, match="No vLLM server answers"):
        probe.probe(asked, tmp_path / "dead", context.place)


def verdict_file(out: Path, backend: str) -> VerifyFile:
    return VerifyFile.model_validate_json((out / "verify" / backend / "verify.json").read_text())


@pytest.mark.parametrize(
    ("mode", "parallel", "verdict", "words"),
    [
        ("good", False, "pass", None),
        ("good", True, "pass", None),
        (
            "custom_differs",
            True,
            "fail",
            "alone-1: log-probabilities differ by 2.5 nats at position 1",
        ),
        ("custom_dies", False, "fail", "ended with code 9 on a request: AssertionError: page 7"),
        ("custom_nan", True, "fail", 'HTTP 400: {"error": {"message": "Out of range float'),
        ("custom_unbiased", True, "fail", "alone-1 was answered with tokens"),
    ],
)
def test_a_backend_is_compared_with_the_reference(
    mode: str,
    parallel: bool,
    verdict: str,
    words: str | None,
    tmp_path: Path,
    context: server.LaunchContext,
):
    model = request(tmp_path).model.model_copy(update={"server_args": ["--fake", mode]})
    comparison = run.Comparison(
        model=model,
        backends=[BackendChoice(name="sdpa")],
        reference=BackendChoice(name="cpu_attn"),
        reference_model=model,
        dtype="float32",
        reference_dtype="float32",
        parallel=parallel,
    )
    out = tmp_path / "out"
    [body] = run.run(comparison, out, context, lambda _: None)
    assert body == verdict_file(out, "sdpa")
    assert body.verdict == verdict and (body.label, body.reference) == ("sdpa", "cpu_attn")
    assert words is None or words in body.reasons[0]
    if mode == "good":
        assert body.compared == body.requests >= 20
        assert body.same_choice == body.steps == 48 * body.requests
    died = mode in ("custom_dies", "custom_nan", "custom_unbiased")
    for folder, ended in (
        ("sdpa", "failed" if died else "stopped"),
        ("reference-cpu_attn", "stopped"),
    ):
        assert state(out / "verify" / folder)["state"] == ended
        assert_gone(out / "verify" / folder)


def test_against_a_float32_reference_rounding_is_measured_first(
    tmp_path: Path, context: server.LaunchContext
):
    model = request(tmp_path).model
    sdpa, cpu_attn = BackendChoice(name="sdpa"), BackendChoice(name="cpu_attn")
    comparison = run.Comparison(
        model, [sdpa], cpu_attn, model, "bfloat16", "float32", parallel=True
    )
    said: list[str] = []
    [body] = run.run(comparison, tmp_path / "out", context, said.append)
    # nothing is off by rounding: of 28 first and 28 x 47 decoded tokens two and a hundredth may be
    assert body.tolerance == Tolerance(0.1, 0.1, StepsOff(first=2, decode=13))
    assert body.rounding_floor == RoundingFloor(0.0, 0.0, StepsOff(first=0, decode=0))
    assert body.verdict == "pass"
    told = "cpu_attn in bfloat16 is off by 0 nats typically and 0 at worst, from rounding alone"
    assert told in said
    argv = state(tmp_path / "out" / "verify" / "rounded-reference-cpu_attn")["server"]["argv"]
    assert argv[argv.index("--dtype") + 1] == "bfloat16"


def test_backends_that_agree_against_the_reference_are_told_with_their_verdicts(
    tmp_path: Path, context: server.LaunchContext
):
    """Guards against right backends disqualified by a wrong reference without a word of doubt beside them."""
    model = request(tmp_path).model
    odd = model.model_copy(update={"server_args": ["--fake", "custom_differs"]})
    sdpa, cpu_attn = BackendChoice(name="sdpa"), BackendChoice(name="cpu_attn")
    gather = BackendChoice(name="sdpa_gather")
    comparison = run.Comparison(
        odd, [sdpa, gather], cpu_attn, model, "float32", "float32", parallel=True
    )
    said: list[str] = []
    out = tmp_path / "out"
    verdicts = run.run(comparison, out, context, said.append)
    told = "alone-1: sdpa, sdpa_gather differ from the reference and agree with each other"
    assert [line for line in said if line.startswith(told)]
    for body in verdicts:
        assert body.verdict == "fail" and len(body.doubts) == 28
        assert body.doubts[0].startswith(told)
        assert body == verdict_file(out, body.label)
    (found, _) = map(verification, verification_files(out))
    assert found.doubts == verdicts[0].doubts


def test_a_comparison_that_is_cut_short_keeps_its_verdicts(
    tmp_path: Path, context: server.LaunchContext
):
    """Guards against nine judged servers lost with the tenth, which was still booting."""
    model, out = request(tmp_path).model, tmp_path / "out"
    sdpa, cpu_attn = BackendChoice(name="sdpa"), BackendChoice(name="cpu_attn")
    gather = BackendChoice(name="sdpa_gather")
    comparison = run.Comparison(model, [sdpa, gather], cpu_attn, model, "float32", "float32")

    def stop_at_the_third(line: str) -> None:
        if line.startswith("booting sdpa_gather"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(comparison, out, context, stop_at_the_third)
    assert verdict_file(out, "sdpa").verdict == "pass"
    assert not (out / "verify" / "sdpa_gather" / "verify.json").exists()
    for folder in ("sdpa", "sdpa_gather", "reference-cpu_attn"):
        assert_gone(out / "verify" / folder)


def test_what_the_host_cannot_run_may_be_left_out(tmp_path: Path, context: server.LaunchContext):
    model = request(tmp_path).model
    sdpa, triton = BackendChoice(name="sdpa"), BackendChoice(name="triton")
    cpu_attn = BackendChoice(name="cpu_attn")
    comparison = run.Comparison(
        model, [triton, sdpa], cpu_attn, model, "float32", "float32", skip_refused=True
    )
    said: list[str] = []
    [body] = run.run(comparison, tmp_path / "out", context, said.append)
    assert (body.label, body.verdict) == ("sdpa", "pass")
    assert any(line.startswith("skipped triton: triton needs an NVIDIA GPU") for line in said)


def test_a_refused_comparison_writes_nothing(tmp_path: Path, context: server.LaunchContext):
    model = request(tmp_path).model
    sdpa, triton = BackendChoice(name="sdpa"), BackendChoice(name="triton")
    comparison = run.Comparison(model, [triton], sdpa, model, "float32", "float32")
    with pytest.raises(UserError, match="triton needs an NVIDIA GPU"):
        run.run(comparison, tmp_path / "out", context, print)
    assert not (tmp_path / "out").exists()


def test_smoke_prompts_share_no_prefix_and_have_exact_lengths():
    tokens = list(range(50))
    prompts = [smoke._prompt(tokens, 130, shift) for shift in range(6)]
    assert {len(prompt) for prompt in prompts} == {130}
    assert len({prompt[0] for prompt in prompts}) == 6
    assert smoke.prompt_lengths(8192, 2048, "cpu") == [16, 130, 700, 2112]
    assert smoke.prompt_lengths(512, 2048, "cpu") == [16, 130, 504]
    assert smoke.prompt_lengths(65536, 2048, "cuda") == [16, 130, 700, 2_000, 2112, 8_000, 32_000]


def test_weights_are_counted_in_the_served_dtype(tmp_path: Path):
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]},
        "b": {"dtype": "BF16", "shape": [10], "data_offsets": [40, 60]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 60)
    assert weights_bytes(tmp_path, "bfloat16") == 20 * 2
    assert weights_bytes(tmp_path, "float32") == 20 * 4
    assert weights_bytes(tmp_path / "none", "float32") is None


def test_plan_command_lists_argv_and_refusals(tmp_path: Path):
    requests = [
        request(tmp_path, backend=name).model_dump(mode="json") for name in ("sdpa", "triton")
    ]
    env = {**os.environ, "VLLM_PYTHON": vllm_server.install(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "servers", "plan"],
        input=json.dumps(requests), env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = json.loads(done.stdout)
    assert first["label"] == "sdpa" and first["refusals"] == []
    assert first["env"]["GREENBENCH_ATTENTION_CLASS"].endswith("SdpaBackend")
    assert "TRITON_ATTN" in second["argv"] and "GPU" in second["refusals"][0]
