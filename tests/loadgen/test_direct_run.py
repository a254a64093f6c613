"""A run outside a sweep: whether a server answers, asked before the page is shown."""

import argparse

import pytest

from loadgen.direct_run import add_connection_arguments, unanswered
from tests.fakes.openai_server import GoldenServer


@pytest.fixture
def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_connection_arguments(parser)
    return parser.parse_args([])


def test_of_a_server_that_answers_nothing_is_said(options: argparse.Namespace) -> None:
    with GoldenServer() as server:
        assert unanswered(server.url, options) is None
    assert not server.seen  # no completion was asked for


def test_an_address_without_a_server_is_said_with_what_to_do(options: argparse.Namespace) -> None:
    assert unanswered("http://127.0.0.1:9", options) == (
        "no model server answers at http://127.0.0.1:9 (Connection refused); start one with `make serve`, "
        "or give its address: http://host:port"
    )


def test_an_address_that_is_none_is_said(options: argparse.Namespace) -> None:
    why = unanswered("localhost:8000", options)
    assert why is not None
    assert why.startswith("base URL 'localhost:8000' does not start with http://")
