"""A run outside a sweep: ask the server which model it serves, make prompts, write a point directory.

The directory has the shape of a sweep's point (config.yaml, requests/, outputs/, events.jsonl) but no
manifest: it proves nothing about the server, and no report is made of it.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from greenbench.contract.access import Access, access
from greenbench.contract.config import (
    LivePoint,
    ModelConfig,
    PhaseConfig,
    PromptRequest,
    ServerConfig,
    SweepConfig,
    SweepLoad,
    TaskConfig,
    dump_yaml,
    parse,
    points_of,
)
from greenbench.contract.connection import Endpoint
from greenbench.contract.errors import UserError, system_sentence
from greenbench.contract.prompt_head import prompt_lines_sha256
from greenbench.contract.run_dir import file_sha256, write_atomic
from greenbench.contract.served import Served, find_endpoint, served_models
from loadgen.make_prompts import make_files

DEFAULT_URL = "http://127.0.0.1:8000"  # where `make serve` listens
DAY_S = 86_400.0  # measure until a person stops


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen for a run outside a sweep."""

    task: str
    context_tokens: int
    prompts: int
    seed: int
    model_path: str  # of the tokenizer; empty: where the server says its model is
    users: int = 1
    connection: dict[str, Any] = field(default_factory=dict[str, Any])  # keys of a sweep's `server`

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Options":
        return cls(
            task=options.task,
            context_tokens=options.context_tokens,
            prompts=options.prompts,
            seed=options.seed,
            model_path=options.model_path,
            users=getattr(options, "num_users", None) or 1,
            connection=_connection(options),
        )


def add_connection_arguments(parser: Any) -> None:
    """The flags of how the server is reached, the same for each tool: the keys of a sweep's `server`."""
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the server's key"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE", help="a further header"
    )
    parser.add_argument(
        "--header-env",
        action="append",
        default=[],
        metavar="NAME=VARIABLE",
        help="a further header whose value is in an environment variable",
    )
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to trust (PEM)")
    parser.add_argument("--insecure", action="store_true", help="trust any certificate")
    parser.add_argument(
        "--endpoint",
        choices=get_args(Endpoint),
        default="auto",
        help="auto: the first that answers a request of one token (default)",
    )


def _connection(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "endpoint": options.endpoint,
        "api_key_env": options.api_key_env,
        "headers": _pairs(options.header, "--header"),
        "headers_env": _pairs(options.header_env, "--header-env"),
        "ca_file": str(Path(options.ca_file).expanduser().resolve()) if options.ca_file else None,
        "insecure": options.insecure,
    }


def _pairs(given: list[str], flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"{flag}: NAME=VALUE is wanted, e.g. {flag} X-Route=blue")
        found[name.strip()] = value.strip()
    return found


def prepare(host: str | None, options: argparse.Namespace) -> Path:
    """Make the prompts and the directory of one run of the locustfile; the directory's path."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    run_path = Path(options.out) / f"{stamp}-{options.task}-{options.context_tokens}"
    try:
        write_point(run_path, host, Options.of(options))
    except OSError as error:
        raise UserError(f"{system_sentence(error)}; give another --out") from error
    return run_path


def write_point(run_path: Path, host: str | None, options: Options) -> None:
    """Write prompts and config.yaml for a server that runs. What is wrong raises UserError."""
    reached = access(host or DEFAULT_URL, options.connection)
    keys = {"base_url": reached.base_url, **options.connection}
    server = parse(ServerConfig, keys, "command line")
    served, root, window, endpoint = served_model(reached, server.endpoint)
    server = server.model_copy(update={"endpoint": endpoint})
    task = TaskConfig(name=options.task)
    request = PromptRequest(
        model_path=options.model_path or root,
        task=task,
        context_tokens=options.context_tokens,
        count=options.prompts,
        seed=options.seed,
        endpoint=endpoint,
    )
    prompts_path = run_path / "prompts.jsonl"
    make_files([(request, prompts_path)])
    sweep = SweepConfig(
        name="adhoc",
        seed=options.seed,
        models=[served],
        backends=["unknown"],
        contexts=[options.context_tokens],
        tasks=[task],
        loads=[SweepLoad(kind="closed", users=options.users)],
        server=server,
        phases=PhaseConfig(warmup_s=0, measure_s=DAY_S),
        prompts_per_point=options.prompts,
    )
    model = ModelConfig(name=served, path=root, max_model_len=window)
    [point] = points_of(sweep, model, sweep.contenders[0])
    live = LivePoint(
        point=point,
        run_id=run_path.name,
        base_url=reached.base_url,
        served_model=served,
        prompts_path=str(prompts_path.resolve()),
        prompts_sha256=file_sha256(prompts_path),
        prompt_lines_sha256=prompt_lines_sha256(prompts_path),
    )
    write_atomic(run_path / "config.yaml", dump_yaml(live))


def unanswered(host: str | None, options: argparse.Namespace) -> str | None:
    """Why no run can start against that address, as a sentence; None: a server there lists its models."""
    try:
        _first_model(access(host or DEFAULT_URL, _connection(options)))
    except UserError as error:
        return str(error)
    return None


def served_model(reached: Access, endpoint: str) -> tuple[str, str, int, Served]:
    """Of the first model that is served: name, path of its files, window in tokens, where it completes."""
    first = _first_model(reached)
    with _answering(reached):
        found = find_endpoint(reached, first["id"], endpoint)
    said = first.get("max_model_len")
    window = said if isinstance(said, int) and said > 0 else 1 << 20
    return first["id"], str(first.get("root") or first["id"]), window, found


def _first_model(reached: Access) -> dict[str, Any]:
    with _answering(reached):
        models = served_models(reached)
    if not models:
        raise UserError(f"{reached.base_url} serves no model; start it with one")
    return models[0]


@contextmanager
def _answering(reached: Access) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"no model server answers at {reached.base_url} ({error}); start one with `make serve`, "
            "or give its address: http://host:port"
        ) from error
