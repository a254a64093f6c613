"""Start one server, prove it, keep ``server.json`` true, and end it.

The order matters: everything a person can get wrong is checked before anything is built or started.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from greenbench.contract import hub
from greenbench.contract.config import ServerRequest
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from servers.backends.host_facts import HostFacts, model_facts
from servers.launch import boot_log, inspect, proof, smoke
from servers.launch.command import (
    CUDAGRAPH_MODES,
    Plan,
    child_env,
    kv_pool_bytes,
    plan,
    recorded_env,
)
from servers.launch.inspect import ServerSays
from servers.launch.process import ServerDied, ServerProcess, pick_port
from servers.launch.state_file import SERVER_LOG, StateFile
from servers.models.store import ensure_model, missing, model_path, weights_bytes

BOOT_FAILED = 1
DIED_SERVING = 3
TIME_TO_DIE_S = 3.0


class Stopped(SystemExit):
    """A signal told us to end, with this exit code.

    A SystemExit, because asyncio passes that on and swallows other exceptions a signal raises in it. Not
    KeyboardInterrupt: one that passes through an ``exec`` of text (a lazy import that makes a dataclass)
    marks the interpreter as interrupted, and it would end by SIGINT in place of its exit code.
    """

    code: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is read at the edge, once: nothing below looks at the machine or its environment."""

    host: HostFacts
    vllm_python: str
    cache: Path
    env: Mapping[str, str]


def planned(request: ServerRequest, around: Surroundings, port: int | str) -> Plan:
    path = model_path(request.model, around.cache)
    facts = model_facts(request.model)
    found = plan(request, around.host, facts, path, port, around.vllm_python, not hub.is_id(path))
    if reason := missing(request.model):
        found.refusals.append(reason)
    return found


class BootFailed(Exception):
    """The server ended while booting, or runs and may not be used. One sentence."""


def serve(
    request: ServerRequest, out: Path, around: Surroundings, say: Callable[[str], None]
) -> int:
    """Run one server until it is told to end. Returns the exit code; bad input raises UserError."""
    launch = Launch(request, out, around, say)
    try:
        with launch:
            launch.boot()
            launch.process.wait_ended()
    except BootFailed:
        return BOOT_FAILED
    except ServerDied:
        return DIED_SERVING
    except Stopped as stop:
        return stop.code
    raise AssertionError("wait_ended returns by raising only")


class Launch:
    """One server: checked when made, started on entering, proven by ``boot``, stopped on leaving.

    Start and boot are apart so that several servers can boot at the same time. Making and entering it
    raise UserError before anything was started; ``boot`` raises BootFailed.
    """

    def __init__(
        self, request: ServerRequest, out: Path, around: Surroundings, say: Callable[[str], None]
    ) -> None:
        self._request = request
        self._say = say
        port = pick_port(request.server.port)
        if refusals := planned(request, around, port).refusals:
            raise UserError("; ".join(refusals))
        ensure_model(request.model, around.cache, around.vllm_python, child_env(around.env, {}))
        self.plan = planned(request, around, port)  # a model of the hub has its folder only now
        self.state = StateFile(out, _described(request, self.plan, out, port, around))
        command = self.plan.command
        env = child_env(around.env, command.env)
        self.process = ServerProcess(command.argv, env, out / SERVER_LOG)
        self._started_s = 0.0

    def __enter__(self) -> Self:
        self.state.create()
        self._started_s = time.monotonic()
        name, log = self.plan.backend.name, self.process.log_path
        self._say(f"booting {name} with {self._request.model.name} in {self.plan.dtype}, log {log}")
        try:
            self.process.start()
            self.state.write("booting", pid=self.process.pid, pid_created_s=self.process.created_s)
        except BaseException as error:  # a signal here finds no __exit__ to stop the server
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.process.stop()
        if isinstance(error, ServerDied):
            self._fail(error)
        elif self.state.state != "failed":
            self.state.write("stopped")
            self._say("stopped")

    def failed_serving(self, what: str) -> str:
        """After a request that failed: stop the server; returns ``what``, or what the server died of."""
        error = ServerDied(what)
        try:
            _give_time_to_die(self.process)
        except ServerDied as died:
            error = died
        self.process.stop()
        self._fail(error)
        return str(error)

    def _fail(self, error: Exception) -> None:
        self.state.write("failed", error=str(error))
        self._say(f"failed: {error}")

    def boot(self) -> Server:
        """Wait until it answers, smoke-test it, prove the backend; returns what server.json then holds.

        A server that fails is stopped at once.
        """
        try:
            return self._boot()
        except (ServerDied, BootFailed) as error:
            self.process.stop()
            self._fail(error)
            raise BootFailed(str(error)) from error

    def _boot(self) -> Server:
        request, plan, process = self._request, self.plan, self.process
        deadline = self._started_s + request.server.boot_timeout_s
        base_url = self.state.server.base_url
        process.wait_healthy(base_url, deadline)
        healthy_s, healthy_unix_s = time.monotonic(), time.time()
        _smoke(request, plan, process, base_url, deadline)
        smoked_s = time.monotonic()
        says = _ask(process, base_url)
        says.save(self.state.folder)
        log = process.log()
        found = proof.judge(plan.backend, says.trees, boot_log.flash_attention_version(log))
        facts = _observed(request, plan, says, log, found)
        self.state.describe(**facts)
        if found.verdict == "mismatch":
            raise BootFailed(f"Another attention backend runs than was asked for: {found.sentence}")
        _check_execution(request.server.execution, boot_log.changed_cudagraph_mode(log))
        ready_s = time.monotonic()
        started_unix_s = healthy_unix_s - (healthy_s - self._started_s)
        stages = {
            **boot_log.boot_stages(log, started_unix_s, healthy_unix_s),
            "smoke": smoked_s - healthy_s,
            "proof": ready_s - smoked_s,
        }
        detail = {
            **found.detail,
            "operators": boot_log.operators(log),
            "log_offset_ready": process.log_path.stat().st_size,
        }
        self.state.write(
            "ready",
            proof_detail=detail,
            ready_s=ready_s - self._started_s,
            boot_stages_s=stages,
        )
        seconds = f"{ready_s - self._started_s:.1f} s"
        proven = "; ".join([found.sentence, *detail["operators"]])
        where = ", ".join(f"{stage} {took:.0f}" for stage, took in stages.items())
        self._say(f"ready at {base_url} in {seconds} ({where}); {found.verdict}: {proven}")
        return self.state.server


def _check_execution(execution: str, changed_to: str | None) -> None:
    wanted = CUDAGRAPH_MODES.get(execution)
    if changed_to is not None and changed_to != wanted:
        raise BootFailed(
            f"execution '{execution}' was asked for, and vLLM changed it to {changed_to}; "
            "ask for one that all arms can run"
        )


def _smoke(
    request: ServerRequest, plan: Plan, process: ServerProcess, base_url: str, deadline: float
) -> None:
    left_s = max(1.0, deadline - time.monotonic())
    try:
        smoke.run(
            base_url,
            request.model.name,
            smoke.prompt_lengths(
                plan.max_model_len, request.server.max_num_batched_tokens, plan.device
            ),
            left_s,
        )
    except smoke.SmokeFailure as failure:
        _give_time_to_die(process)
        cause = boot_log.last_error(process.log())
        raise BootFailed(f"The server is up, but {failure}; its log: {cause}") from failure


def _ask(process: ServerProcess, base_url: str) -> ServerSays:
    try:
        return inspect.ask(base_url)
    except httpx.HTTPError as error:
        _give_time_to_die(process)
        raise BootFailed(
            f"The server answers requests, but not what it is ({type(error).__name__}: {error})"
        ) from error


def _give_time_to_die(process: ServerProcess) -> None:
    """An engine that failed takes its API server down a moment later; then the log names the cause."""
    end = time.monotonic() + TIME_TO_DIE_S
    while time.monotonic() < end:
        process.check_alive("on a request")
        time.sleep(0.1)


def _observed(
    request: ServerRequest, plan: Plan, says: ServerSays, log: str, found: proof.Proof
) -> dict[str, Any]:
    dtype = says.dtype or plan.dtype.name
    fixed_pool = request.server.num_gpu_blocks is not None
    pool_bytes = kv_pool_bytes(request, plan.device)
    return {
        "observed_backend": found.observed_backend,
        "proof": found.verdict,
        "proof_detail": found.detail,
        "dtype": dtype,
        "vllm_version": says.version,
        "async_scheduling": says.async_scheduling,
        # without attention a request's state has one size at any length: tokens say nothing then
        "kv_cache_tokens": says.kv_cache_tokens if found.detail["attention_layers"] != {} else None,
        "kv_cache_bytes": None if fixed_pool else pool_bytes or boot_log.kv_memory_bytes(log),
        "weights_bytes": boot_log.weights_bytes(log) or weights_bytes(Path(plan.model_path), dtype),
    }


def _described(
    request: ServerRequest, plan: Plan, out: Path, port: int, around: Surroundings
) -> Server:
    return Server(
        server_id=out.name,
        requested_backend=request.backend.name,
        backend_options=plan.options,
        exactness=plan.backend.exactness,
        model=request.model.name,
        model_path=plan.model_path,
        weights=request.model.weights,
        dtype=plan.dtype.name,
        dtype_why=plan.dtype.why,
        kv_cache_dtype=request.server.kv_cache_dtype,
        execution=request.server.execution,
        tensor_parallel=request.server.tensor_parallel,
        max_model_len=plan.max_model_len,
        base_url=f"http://127.0.0.1:{port}",
        served_model=request.model.name,
        argv=plan.command.argv,
        env=recorded_env(around.env, plan.command.env),
        vllm_version=around.host.vllm_version,
    )
