"""Start one server, prove it, keep ``server.json`` true, and end it.

The order matters: everything a person can get wrong is checked before anything is built or started.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from greenbench.contract import hub
from greenbench.contract.clock import Anchor
from greenbench.contract.config import ServerRequest
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.model_shape import ModelShape
from greenbench.contract.vllm_versions import warning
from servers.backends.host_facts import HostFacts
from servers.launch import boot_log, inspect, proof, smoke
from servers.launch.boot_talk import BootTalk
from servers.launch.command import (
    CUDAGRAPH_MODES,
    Command,
    Plan,
    child_env,
    command,
    kv_pool_bytes,
    left_out,
    plan,
    recorded_env,
    unset,
)
from servers.launch.inspect import ServerSays
from servers.launch.process import ServerDied, ServerProcess, pick_port
from servers.launch.state_file import SERVER_LOG, StateFile
from servers.models.shapes import Place, Wish, facts_of, model_shapes
from servers.models.store import ensure_model, missing, weights_bytes

BOOT_FAILED = 1
DIED_SERVING = 3
TIME_TO_DIE_S = 3.0
NS = 1_000_000_000


class Stopped(SystemExit):
    """A signal told us to end, with this exit code.

    A SystemExit, because asyncio passes that on and swallows other exceptions a signal raises in it. Not
    KeyboardInterrupt: one that passes through an ``exec`` of text (a lazy import that makes a dataclass)
    marks the interpreter as interrupted, and it would end by SIGINT in place of its exit code.
    """

    code: int


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """The machine and its environment, read once; nothing below looks at them again."""

    host: HostFacts
    vllm_python: str
    cache: Path
    env: Mapping[str, str]

    @property
    def place(self) -> Place:
        """Where models are resolved."""
        return Place(self.host, self.vllm_python, self.cache, child_env(self.env, {}))


def shapes_of(requests: Sequence[ServerRequest], context: LaunchContext) -> list[ModelShape]:
    """The shape of each request's model, as its server will have it; all are resolved at once."""
    wishes = [Wish(request.model, tuple(request.server.extra_args)) for request in requests]
    return model_shapes(wishes, context.place)


def planned(request: ServerRequest, context: LaunchContext, shape: ModelShape) -> Plan:
    """The plan of one server on this machine; that its model is missing is one of the refusals."""
    made = plan(request, context.host, facts_of(request.model.name, shape))
    absent = [*filter(None, [missing(request.model)]), *unset(context.env, request)]
    return replace(made, refusals=[*made.refusals, *absent]) if absent else made


def command_of(made: Plan, path: str, port: int | str, context: LaunchContext) -> Command:
    """The plan as argv and environment. ``path``: the model's folder, or an id that is not fetched yet."""
    return command(made, path, port, context.vllm_python, model_is_local=not hub.is_id(path))


class BootFailed(Exception):
    """The server ended while booting, or runs and may not be used. One sentence."""


def serve(
    request: ServerRequest, out: Path, context: LaunchContext, say: Callable[[str], None]
) -> int:
    """Run one server until it is told to end. Returns the exit code; bad input raises UserError."""
    launch = Launch(request, out, context, say)
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
        self,
        request: ServerRequest,
        out: Path,
        context: LaunchContext,
        say: Callable[[str], None],
        shape: ModelShape | None = None,
    ) -> None:
        """``shape``: of the request's model, where it is known already."""
        self._say = say
        port = pick_port(request.server.port)
        self.shape = shape or shapes_of([request], context)[0]
        self.plan = planned(request, context, self.shape)
        if self.plan.refusals:
            raise UserError("; ".join(self.plan.refusals))
        env = child_env(context.env, {})
        self.model_path = ensure_model(request.model, context.cache, context.vllm_python, env)
        ours = command_of(self.plan, self.model_path, port, context)
        server = _described(self.plan, ours, self.model_path, port, out, context).model_copy(
            update={"shape": self.shape}
        )
        self.state = StateFile(out, server)
        env = child_env(context.env, ours.env, request.server.env)
        self.process = ServerProcess(ours.argv, env, out / SERVER_LOG)
        self._started = Anchor.now()

    def __enter__(self) -> Self:
        self.state.create()
        self._started = Anchor.now()
        plan, log = self.plan, self.process.log_path
        model = plan.request.model.name
        if dropped := self.state.server.env_left_out:
            self._say(
                f"not passed on to vLLM: {', '.join(dropped)}; server.env in a sweep passes more"
            )
        if doubt := warning(self.state.server.vllm_version):
            self._say(doubt)
        self._say(f"booting {plan.backend.name} with {model} in {plan.dtype}, log {log}")
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
        plan, process, base_url = self.plan, self.process, self.state.server.base_url
        deadline_s = self._started.mono_ns / NS + plan.request.server.boot_timeout_s
        talk, began_ns = BootTalk(self._say, process.log), self._started.mono_ns
        process.wait_healthy(
            base_url, deadline_s, lambda: talk.look((time.monotonic_ns() - began_ns) / NS)
        )
        healthy = Anchor.now()
        self._say("  answering; smoke requests and the proof of the backend")
        _smoke(plan, process, base_url, deadline_s)
        smoked_ns = time.monotonic_ns()
        says = _ask(process, base_url)
        says.save(self.state.folder)
        log = process.log()
        proven = proof.judge(plan.backend, says.trees, boot_log.kernels(log))
        self.state.describe(**self._observed(says, log, proven))
        if proven.verdict == "mismatch":
            raise BootFailed(
                f"Another attention backend runs than was asked for: {proven.sentence}"
            )
        _check_execution(plan.request.server.execution, boot_log.changed_cudagraph_mode(log))
        ready_ns = time.monotonic_ns()
        stages = {
            **boot_log.boot_stages(
                log, healthy.to_unix_ns(self._started.mono_ns) / NS, healthy.unix_ns / NS
            ),
            "smoke": (smoked_ns - healthy.mono_ns) / NS,
            "proof": (ready_ns - smoked_ns) / NS,
        }
        self._ready(proven, boot_log.operators(log), ready_ns, stages)
        return self.state.server

    def _ready(
        self, proven: proof.Proof, operators: list[str], ready_ns: int, stages_s: dict[str, float]
    ) -> None:
        ready_s = (ready_ns - self._started.mono_ns) / NS
        self.state.write(
            "ready",
            proof_detail={
                **proven.detail,
                "operators": operators,
                "log_offset_ready": self.process.log_path.stat().st_size,
            },
            ready_s=ready_s,
            boot_stages_s=stages_s,
        )
        took = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in stages_s.items())
        sentence = "; ".join([proven.sentence, *operators])
        self._say(
            f"ready at {self.state.server.base_url} in {ready_s:.1f} s ({took}); "
            f"{proven.verdict}: {sentence}"
        )

    def _observed(self, says: ServerSays, log: str, proven: proof.Proof) -> dict[str, Any]:
        dtype = says.dtype or self.plan.dtype.name
        server = self.state.server
        fixed_pool = says.fixed_blocks or self.plan.request.server.num_gpu_blocks
        running = server.model_copy(update=says.settings(server))
        told_bytes = says.kv_pool_bytes_a_card or kv_pool_bytes(self.plan)
        pool_bytes = told_bytes * running.cards if told_bytes else boot_log.kv_memory_bytes(log)
        has_attention = proven.detail["attention_layers"] != {}
        return {
            "observed_backend": proven.observed_backend,
            "proof": proven.verdict,
            "proof_detail": proven.detail,
            "dtype": dtype,
            **says.settings(server),
            "vllm_version": says.version,
            "async_scheduling": says.async_scheduling,
            # without attention a request's state has one size at any length: tokens say nothing then
            "kv_cache_tokens": says.kv_cache_tokens if has_attention else None,
            "kv_cache_bytes": None if fixed_pool else pool_bytes,
            "weights_bytes": boot_log.weights_bytes(log)
            or weights_bytes(Path(self.model_path), dtype),
        }


def _check_execution(execution: str, changed_to: str | None) -> None:
    wanted = CUDAGRAPH_MODES.get(execution)
    if changed_to is not None and changed_to != wanted:
        raise BootFailed(
            f"execution '{execution}' was asked for, and vLLM changed it to {changed_to}; "
            "ask for one that all backends can run"
        )


def _smoke(plan: Plan, process: ServerProcess, base_url: str, deadline_s: float) -> None:
    left_s = max(1.0, deadline_s - time.monotonic())
    step_tokens = plan.request.server.max_num_batched_tokens
    try:
        window = inspect.served_window(base_url, plan.request.model.name)
        lengths = smoke.prompt_lengths(window or plan.max_model_len, step_tokens, plan.device)
        smoke.run(base_url, plan.request.model.name, lengths, left_s)
    except (smoke.SmokeFailure, OSError) as failure:
        _give_time_to_die(process)
        cause = boot_log.last_error(process.log())
        raise BootFailed(f"The server is up, but {failure}; its log: {cause}") from failure


def _ask(process: ServerProcess, base_url: str) -> ServerSays:
    try:
        return inspect.ask(base_url)
    except OSError as error:
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


def _described(
    plan: Plan, command: Command, model_path: str, port: int, out: Path, context: LaunchContext
) -> Server:
    request = plan.request
    return Server(
        server_id=out.name,
        requested_backend=request.backend.name,
        backend_options=plan.options,
        exactness=plan.backend.exactness,
        model=request.model.name,
        model_path=model_path,
        weights=request.model.weights,
        dtype=plan.dtype.name,
        dtype_why=plan.dtype.why,
        kv_cache_dtype=plan.server.kv_cache_dtype,
        execution=request.server.execution,
        tensor_parallel=plan.server.tensor_parallel,
        max_model_len=plan.max_model_len,
        base_url=f"http://127.0.0.1:{port}",
        served_model=request.model.name,
        argv=command.argv,
        env=recorded_env(context.env, command.env, request.server.env),
        env_left_out=left_out(context.env, command.env, request.server.env),
        vllm_version=context.host.vllm_version,
    )
