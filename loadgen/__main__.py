"""``python -m loadgen tasks`` prints the task table; ``python -m loadgen prompts`` makes prompt files;
``python -m loadgen traces`` reads recorded loads, so that a bad one is said before a server starts.

Loads are driven by ``locust -f loadgen/longctx.py`` and ``python -m loadgen.openloop``, not here.
Example: ``echo '[{"request": {…}, "out": "prompts.jsonl"}]' | python -m loadgen prompts``
"""

import argparse
import json
import sys
from pathlib import Path

from greenbench.contract.config import LoadConfig, PromptRequest, StrictModel, parse
from greenbench.contract.errors import UserError, exit_on_user_error
from loadgen.driver.traces import read_trace
from loadgen.make_prompts import describe_tasks, make_files


class PromptOrder(StrictModel):
    request: PromptRequest
    out: Path


class PromptOrders(StrictModel):
    orders: list[PromptOrder]


class TraceOrder(StrictModel):
    load: LoadConfig
    context_tokens: int


class TraceOrders(StrictModel):
    orders: list[TraceOrder]


def print_tasks() -> None:
    print(json.dumps(describe_tasks(), indent=1))


def make_ordered_prompts() -> None:
    orders = parse(PromptOrders, {"orders": _listed("{request, out}")}, "stdin").orders
    for path in make_files([(order.request, order.out) for order in orders]):
        print(path)


def read_traces() -> None:
    orders = parse(TraceOrders, {"orders": _listed("{load, context_tokens}")}, "stdin").orders
    for order in orders:
        read_trace(order.load, order.context_tokens)


def _listed(what: str) -> object:
    try:
        return json.load(sys.stdin)
    except ValueError as error:
        raise UserError(
            f"stdin: a JSON list of {what} was wanted, found no valid JSON ({error})"
        ) from error


COMMANDS = {"tasks": print_tasks, "prompts": make_ordered_prompts, "traces": read_traces}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadgen", description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="'prompts' and 'traces' read from stdin")
    chosen = parser.parse_args().command
    return exit_on_user_error(COMMANDS[chosen])


if __name__ == "__main__":
    sys.exit(main())
