"""Start, plan, describe and build vLLM servers: ``python -m servers --backend sdpa --model tiny-llama``.

The only place of this package that reads os.environ. GREENBENCH_CACHE names where built models lie
(``greenbench.contract.installation``), VLLM_PYTHON the python that has vLLM (``greenbench.vllm_python``).
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from greenbench.contract.command_name import typed_as
from greenbench.contract.config import ServerConfig, ServerRequest, load_model, parse
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.installation import cache, results
from greenbench.contract.launch import LaunchPlan
from greenbench.contract.model_shape import ModelShape
from greenbench.contract.run_dir import slug
from greenbench.contract.terminal import visible
from greenbench.vllm_python import vllm_python
from servers.backends.choice import parse_choice, parse_choices
from servers.backends.host_facts import Device, other_host, this_host
from servers.backends.registry import (
    ALL_DTYPES,
    BACKENDS,
    GRAPHS,
    MODULES,
    common_dtype,
    default_backend,
    default_reference,
)
from servers.backends.requirements import Case, refusals
from servers.backends.table import as_json, as_table
from servers.launch.command import left_out
from servers.launch.probe import probe
from servers.launch.process import ServerDied
from servers.launch.server import (
    BOOT_FAILED,
    LaunchContext,
    Stopped,
    command_of,
    planned,
    serve,
    shapes_of,
)
from servers.models.store import ensure_model, model_path
from servers.verify.run import VERIFY_DIR, Comparison
from servers.verify.run import run as run_comparison

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERRUPTED = 130
RAISED_AGAIN_S = 0.05


def launch_context(asked: str | None = None) -> LaunchContext:
    """``asked``: the Python of another vLLM than VLLM_PYTHON's."""
    python = _python(asked)
    return LaunchContext(this_host(python, MODULES), python, cache(), dict(os.environ))


def _python(asked: str | None) -> str:
    return str(vllm_python(os.environ if asked is None else os.environ | {"VLLM_PYTHON": asked}))


def say(lines: str) -> None:
    print("\n".join(visible(line) for line in lines.split("\n")), flush=True)


def _read_request(path: str) -> ServerRequest:
    return parse(ServerRequest, _read_json(path), path)


def _read_json(path: str) -> Any:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        return json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error.msg} at line {error.lineno})") from error


def command_direct(args: argparse.Namespace) -> int:
    context = launch_context()
    request = ServerRequest(
        model=load_model(args.model),
        backend=parse_choice(args.backend or default_backend(context.host.device).name),
        server=_server_config(args),
    )
    out = _folder(args.out, "serve", request.backend.label, request.model.name)
    return _serve(request, out, context)


def _folder(given: str | None, kind: str, *names: str) -> Path:
    if given:
        return Path(given)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return results() / kind / "-".join([stamp, *(slug(name) for name in names)])


def _server_config(args: argparse.Namespace) -> ServerConfig:
    asked = {
        "port": args.port,
        "dtype": args.dtype,
        "execution": args.execution,
        "max_model_len": args.max_model_len,
        "kv_cache_gib": args.kv_cache_gib,
        "prefix_caching": args.prefix_caching,
        "extra_args": args.extra,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    return parse(ServerConfig, given, "command line")


def command_start(args: argparse.Namespace) -> int:
    request = _read_request(args.request)
    return _serve(request, Path(args.out), launch_context(request.server.vllm))


def _serve(request: ServerRequest, out: Path, context: LaunchContext) -> int:
    return _until_stopped(lambda: serve(request, out, context, say))


def _until_stopped(run: Callable[[], int]) -> int:
    """Run with signals that stop servers in order, once; a second one does not cut the stop short.

    Python drops what is raised in a finalizer. A stop that came there is raised again a moment later.
    """

    def end(number: int, _: object) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(INTERRUPTED if number == signal.SIGINT else 0)

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        stop = what.exc_value
        if isinstance(stop, Stopped):
            signal.signal(signal.SIGALRM, lambda *_: again(stop.code))
            signal.setitimer(signal.ITIMER_REAL, RAISED_AGAIN_S)
        else:
            sys.__unraisablehook__(what)

    def again(code: int) -> NoReturn:
        raise Stopped(code)

    sys.unraisablehook = dropped
    for each in STOP_SIGNALS:
        signal.signal(each, end)
    try:
        return run()
    except Stopped as stop:
        return stop.code


def command_probe(args: argparse.Namespace) -> int:
    try:
        server = probe(_read_request(args.request), Path(args.out), launch_context().place)
    except ServerDied as error:
        say(f"failed: {error}")
        return BOOT_FAILED
    detail = server.shown
    say(f"{server.base_url} serves {server.served_model}; {server.proof}: {detail.says}")
    for sentence in detail.lacks:
        say(sentence)
    return 0


def command_plan(_: argparse.Namespace) -> int:
    data = _read_json("-")
    if not isinstance(data, list):
        raise UserError("plan wants a JSON list of server requests on stdin")
    requests = [parse(ServerRequest, item, f"request {index}") for index, item in enumerate(data)]
    plans: dict[int, LaunchPlan] = {}
    for asked in dict.fromkeys(request.server.vllm for request in requests):
        context = launch_context(asked)
        own = {i: each for i, each in enumerate(requests) if each.server.vllm == asked}
        shapes = shapes_of(list(own.values()), context)
        for (index, request), shape in zip(own.items(), shapes, strict=True):
            plans[index] = _launch_plan(request, context, shape)
    listed = [plans[index].model_dump(mode="json") for index in range(len(requests))]
    print(json.dumps(listed, indent=1))
    return 0


def _launch_plan(request: ServerRequest, context: LaunchContext, shape: ModelShape) -> LaunchPlan:
    plan = planned(request, context, shape)
    path = model_path(request.model, context.cache)
    command = command_of(plan, path, request.server.port or "<free port>", context)
    return LaunchPlan(
        label=request.backend.label,
        argv=command.argv,
        env=command.env,
        model_path=path,
        dtype=plan.dtype,
        refusals=plan.refusals,
        env_left_out=tuple(left_out(context.env, command.env, request.server.env)),
        max_model_len=plan.max_model_len,
        unknown=shape.unknown,
    )


def command_build(args: argparse.Namespace) -> int:
    request = _read_request(args.request) if args.request else None
    model = load_model(args.model) if request is None else request.model
    asked = None if request is None else request.server.vllm
    print(ensure_model(model, cache(), _python(asked), os.environ))
    return 0


def command_backends(args: argparse.Namespace) -> int:
    host = other_host(args.gpu) if args.gpu else launch_context().host
    rows = [(row, refusals(Case(row, host))) for row in BACKENDS.values()]
    print(as_json(rows) if args.json else as_table(rows, host))
    return 0


def command_verify(args: argparse.Namespace) -> int:
    context = launch_context()
    comparison = _comparison(args, context.host.device)
    out = _folder(args.out, "verify", comparison.model.name)
    return _until_stopped(lambda: _verify(comparison, out, context))


def _comparison(args: argparse.Namespace, device: Device) -> Comparison:
    model = load_model(args.model)
    return Comparison(
        model=model,
        reference_model=load_model(args.reference_model) if args.reference_model else model,
        backends=parse_choices(args.backends),
        reference=parse_choice(args.reference or default_reference(device).name),
        dtype=args.dtype or common_dtype(device),
        reference_dtype=args.reference_dtype,
        execution=args.execution,
        kv_cache_gib=args.kv_cache_gib,
        parallel=args.parallel,
        skip_refused=args.skip_refused,
        tolerance_nats=args.tolerance,
    )


def _verify(comparison: Comparison, out: Path, context: LaunchContext) -> int:
    try:
        verdicts = run_comparison(comparison, out, context, say)
    except ServerDied as error:
        say(f"failed: {error}")
        return BOOT_FAILED
    say(f"written below {out / VERIFY_DIR}")
    return int(any(each.verdict == "fail" for each in verdicts))


def _parser() -> argparse.ArgumentParser:
    said = "Start a vLLM server with one attention backend, until Ctrl-C; or one of the commands below."
    parser = argparse.ArgumentParser(prog="python -m servers", description=said)
    parser.set_defaults(run=command_direct)
    _direct_arguments(parser)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        prog = typed_as(f"python -m servers {name}")
        command = commands.add_parser(name, prog=prog, help=help, description=help)
        command.set_defaults(run=run)
        return command

    start = add("start", command_start, "start the server of a request file")
    running = add("probe", command_probe, "describe a server that is already running")
    for command in (start, running):
        command.add_argument("--request", required=True, help="ServerRequest as JSON; - is stdin")
        command.add_argument("--out", required=True, help="folder for server.json, log and proof")
    add("plan", command_plan, "argv, env and refusals of a list of requests (JSON on stdin)")
    build = add(
        "build", command_build, "build or fetch a model unless it is there; prints its folder"
    )
    which = build.add_mutually_exclusive_group(required=True)
    which.add_argument("--request", help="ServerRequest as JSON; - is stdin")
    which.add_argument("--model", help="name, YAML file or folder")
    backends = add("backends", command_backends, "every backend, and whether this host can run it")
    backends.add_argument("--json", action="store_true", help="as JSON, for programs")
    backends.add_argument(
        "--for", dest="gpu", metavar="GPU", help="for another host, by its GPU: e.g. h100"
    )
    _verify_arguments(add("verify", command_verify, "compare backends with an exact reference"))
    return parser


def _verify_arguments(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("--backends", required=True, help="comma-separated, options in parentheses")
    verify.add_argument(
        "--reference",
        help=f"an exact backend; default {default_reference('cpu').name}, "
        f"on a GPU {default_reference('cuda').name}",
    )
    verify.add_argument("--model", default="tiny-llama", help="name, YAML file or folder")
    verify.add_argument("--reference-model", help="the same weights under another config")
    verify.add_argument(
        "--dtype",
        choices=ALL_DTYPES,
        help=f"default {common_dtype('cpu')}, on a GPU {common_dtype('cuda')}: what all backends compute in",
    )
    verify.add_argument(
        "--reference-dtype",
        default="float32",
        choices=ALL_DTYPES,
        help="of the reference; in float32 (default) it also runs in --dtype, to see what rounding does",
    )
    verify.add_argument(
        "--execution",
        default="eager",
        choices=GRAPHS,
        help="eager (default), or with CUDA graphs: piecewise or full",
    )
    verify.add_argument("--kv-cache-gib", type=float, default=1.0, help="KV pool of each server")
    verify.add_argument("--parallel", action="store_true", help="all servers at once")
    verify.add_argument(
        "--skip-refused", action="store_true", help="skip backends that this host cannot run"
    )
    verify.add_argument(
        "--tolerance",
        type=float,
        help="nats; default 0.001 in float32, else 0.1 or more by measured rounding",
    )
    verify.add_argument("--out", help="folder; verdicts land in verify/<backend>/verify.json below")


def _direct_arguments(parser: argparse.ArgumentParser) -> None:
    known = (
        f"one of {', '.join(BACKENDS)}, or the path of your own .yaml; "
        f"options in parentheses, e.g. {_written_with_an_option()}; "
        f"default {default_backend('cpu').name}, on a GPU {default_backend('cuda').name}"
    )
    parser.add_argument("--backend", help=known)
    parser.add_argument("--model", default="tiny-llama", help="name, YAML file or folder")
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument(
        "--dtype", help=f"auto, {', '.join(ALL_DTYPES)}; default: the model's, mostly auto"
    )
    parser.add_argument(
        "--execution",
        help=f"eager, or with CUDA graphs: piecewise or full; default {ServerConfig().execution}",
    )
    parser.add_argument(
        "--max-model-len", type=int, help="longest sequence, tokens; default: the model's"
    )
    parser.add_argument(
        "--kv-cache-gib", type=float, help="KV pool of the server; default: we choose by the host"
    )
    parser.add_argument(
        "--prefix-caching",
        action="store_true",
        default=None,
        help="serve equal beginnings of prompts from the cache; default: off",
    )
    parser.add_argument("--extra", action="append", metavar="FLAG", help="a further vLLM flag")
    parser.add_argument(
        "--out", help="folder for server.json, log and proof; default under runs/serve"
    )


def _written_with_an_option() -> str:
    """A backend of the table with one of its options, as a person would type it."""
    row = max(BACKENDS.values(), key=lambda row: (bool(row.options), len(row.devices)))
    option, value = next(iter(row.defaults.items()))
    return f"{row.name}({option}={value})"


def main() -> int:
    args = _parser().parse_args()
    return exit_on_user_error(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
