"""What the gateway is told when it starts: flags, and the file of pools."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from pydantic import Field

from greenbench.contract.access import variable_fault
from greenbench.contract.address import address_fault
from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.flags import port, positive
from greenbench.contract.policy import Policy, load_policy
from greenbench.contract.strict import StrictModel
from greenbench.contract.yaml_files import load_yaml

MIB: Final = 2**20


class PoolAddress(StrictModel):
    """``restart``: a command for the shell that starts the pool anew and ends."""

    url: str
    restart: str | None = Field(default=None, min_length=1)


class PoolsFile(StrictModel):
    """pools.yaml. A pool may be given as its address alone."""

    pools: dict[str, PoolAddress] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Options:
    """Seconds, bytes. ``probe_headers`` hold a key: they are never shown."""

    policy: Path
    pools: dict[str, PoolAddress]
    host: str
    port: int
    tokenizer: Path | None
    access_log: Path | None
    body_bytes: int
    first_byte_s: float
    probe_s: float
    scrape_s: float
    api_key_env: str | None

    @property
    def probe_headers(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UserError(
                f"--api-key-env: the environment variable {self.api_key_env} is not set; export it, or "
                "leave the flag out where the pools want no key"
            )
        return {"Authorization": f"Bearer {key}"}


def read_options(argv: Sequence[str] | None) -> Options:
    """Raises UserError; a flag that is no flag ends the program with 2, as argparse does."""
    args = _parser().parse_args(argv)
    if args.api_key_env and (fault := variable_fault(args.api_key_env)):
        raise UserError(f"--api-key-env: {fault}")
    return Options(
        policy=args.policy,
        pools=_pools(args, load_policy(args.policy)),
        host=args.host,
        port=args.port,
        tokenizer=args.tokenizer,
        access_log=args.access_log,
        body_bytes=round(args.max_body_mib * MIB),
        first_byte_s=args.first_byte_s,
        probe_s=args.probe_s,
        scrape_s=args.scrape_s,
        api_key_env=args.api_key_env,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="An OpenAI-compatible gateway that sends each request to the pool that the policy names.",
    )
    add = parser.add_argument
    add("--policy", type=Path, required=True, help="policy.yaml; read anew when it changes")
    add(
        "--pool",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="address of a pool of the policy, e.g. exact=http://127.0.0.1:8000; once each",
    )
    add("--pools", type=Path, metavar="FILE", help="addresses and restart commands as YAML")
    add("--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1")
    add("--port", type=port, default=8080, help="default 8080; 0 takes a free one")
    add(
        "--tokenizer",
        type=Path,
        help="the model's folder or tokenizer.json; else /tokenize is asked",
    )
    add("--access-log", type=Path, metavar="FILE", help="default: standard output")
    add("--api-key-env", metavar="NAME", help="variable whose value probes send as their key")
    add("--max-body-mib", type=positive, default=32.0, help="of a request; default 32")
    add("--first-byte-s", type=positive, default=900.0, help="wait for an answer; default 900")
    add("--probe-s", type=positive, default=1.0, help="between two looks at /health; default 1")
    add("--scrape-s", type=positive, default=0.5, help="between two looks at /metrics; default 0.5")
    return parser


def _pools(args: argparse.Namespace, policy: Policy) -> dict[str, PoolAddress]:
    """From the policy, then the file, then the flags: the later one counts."""
    given = {n: PoolAddress(url=p.url) for n, p in policy.pools.items() if p.url is not None}
    if args.pools is not None:
        given |= _read_pools(args.pools)
    for text in args.pool:
        name, equals, url = text.partition("=")
        if not equals or not name:
            raise UserError(f"--pool: NAME=URL is wanted, found '{text}'")
        restart = given[name].restart if name in given else None
        given[name] = PoolAddress(url=url, restart=restart)
    for name, pool in given.items():
        if fault := address_fault(pool.url):
            raise UserError(f"pool {name}: {fault}")
        if name not in policy.pools:
            known = ", ".join(sorted(policy.pools))
            raise UserError(f"pool '{name}' is not in {args.policy}; its pools: {known}")
    return {name: pool.model_copy(update={"url": _root(pool.url)}) for name, pool in given.items()}


def _read_pools(path: Path) -> dict[str, PoolAddress]:
    data: object = load_yaml(path)
    if isinstance(data, dict):
        each = cast("dict[str, Any]", data).items()
        data = {name: {"url": value} if isinstance(value, str) else value for name, value in each}
    return parse(PoolsFile, {"pools": data}, str(path)).pools


def _root(url: str) -> str:
    """Paths of requests begin with /v1 themselves."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
