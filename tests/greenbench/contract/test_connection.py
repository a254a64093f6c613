"""One setting says how a running server is reached; no secret stands in it, and what is odd is refused."""

import pytest
import yaml

from greenbench.contract.access import access, root_of
from greenbench.contract.config import PointConfig, ServerConfig, dump_yaml, parse
from greenbench.contract.connection import DEFAULTS, NO_MEASUREMENT
from greenbench.contract.errors import UserError
from greenbench.contract.new_run import point_hash

SECRET = "sk-do-not-show"


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("http://h/llm/v1", "http://h/llm"),
        ("http://h/llm", "http://h/llm"),
        ("https://h/openai/v1/chat/completions", "https://h/openai"),
        ("https://h/v1/completions", "https://h"),
        ("https://h/v1/models/", "https://h"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://v1:80/v1", "http://v1:80"),
        ("http://h/v10", "http://h/v10"),
    ],
)
def test_an_address_is_taken_with_and_without_what_clients_add(given: str, root: str) -> None:
    assert root_of(given) == access(given).base_url == root


@pytest.mark.parametrize(
    ("url", "host", "port", "line"),
    [
        ("http://h", "h", 80, "h"),
        ("https://h", "h", 443, "h"),
        ("http://[::1]:90/x", "::1", 90, "[::1]:90"),
        ("http://[fe80::1%25eth0]:90", "fe80::1%eth0", 90, "[fe80::1]:90"),
    ],
)
def test_host_port_and_the_host_line(url: str, host: str, port: int, line: str) -> None:
    reached = access(url)
    assert (reached.host, reached.port, reached.head_lines()) == (host, port, [("Host", line)])


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000", "localhost", "ftp://h", "http://", "http://h:abc", "http://h:99999", "http://h:0",
        "http://[::1", "http://h/ x", "http://h?x=1", "http://h#f", "http:/h", "http://h/é", "",
        "http://" + "a" * 300, f"http://user:{SECRET}@h",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(UserError) as refused:
        access(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"api_key": SECRET}, "api_key_env: OPENAI_API_KEY"),
        ({"api_key_env": SECRET}, "name of an environment variable is wanted"),
        ({"headers": {"Authorization": f"Bearer {SECRET}"}}, "headers_env: {Authorization: MY_VARIABLE}"),
        ({"headers": {"X-Api-Key": SECRET}}, "headers_env: {X-Api-Key: MY_VARIABLE}"),
        ({"headers": {"Cookie": SECRET}}, "would be stored in each run"),
        ({"headers": {"X-A": f"Bearer {SECRET}"}}, "would be stored in each run"),
        ({"headers": {"X-A": f"{SECRET}\r\nX-B: 1"}}, "characters that a header cannot have"),
        ({"headers": {"X A": "1"}}, "no name of a header"),
        ({"headers": {"Content-Length": "1"}}, "set by the client itself"),
        ({"headers_env": {"X-A": SECRET}}, "name of an environment variable is wanted"),
        ({"headers_env": {"Transfer-Encoding": "A"}}, "set by the client itself"),
        ({"endpoint": "responses"}, "'auto', 'completions' or 'chat'"),
        ({"insecure": "perhaps"}, "insecure"),
        ({"ca_fil": "x"}, "did you mean 'ca_file'"),
    ],
)  # fmt: skip
def test_secrets_and_odd_keys_are_refused_without_showing_them(
    keys: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        parse(ServerConfig, {"base_url": "http://h", **keys}, "sweep.yaml")
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "MY_KEY is not set, or is empty"),
        ({"MY_KEY": "  "}, "MY_KEY is not set, or is empty"),
        ({"MY_KEY": f"{SECRET}\nX: 1"}, "characters that a header cannot have"),
        ({"MY_KEY": f"{SECRET}\u2026"}, "characters that a header cannot have"),
    ],
)
def test_a_variable_without_a_usable_key_is_said(env: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        access("http://h", {"api_key_env": "MY_KEY"}, env)
    assert said in str(refused.value) and SECRET not in str(refused.value)


def test_a_key_given_for_a_name_is_not_shown() -> None:
    with pytest.raises(UserError) as refused:
        access("http://h", {"api_key_env": "hf_abcdef"}, {})
    assert "hf_abcdef" not in str(refused.value)


def point(**server: object) -> PointConfig:
    given = {
        "sweep": "s", "seed": 1, "repeat": 0, "model": {"name": "m", "path": "p", "max_model_len": 9},
        "backend": {"name": "sdpa"}, "server": server, "task": {"name": "retrieve"}, "context_tokens": 8,
        "load": {"kind": "closed", "users": 1}, "phases": {}, "slo": {}, "telemetry": {},
        "prompts_per_point": 1,
    }  # fmt: skip
    return parse(PointConfig, given, "test")


def test_how_a_server_is_reached_is_no_other_measurement_and_what_is_asked_there_is() -> None:
    plain = point(base_url="http://h")
    there = point(
        base_url="http://h", api_key_env="K", headers={"X-R": "1"}, headers_env={"X-O": "O"},
        ca_file="c.pem", insecure=True,
    )  # fmt: skip
    assert point_hash(plain) == point_hash(there)
    assert point_hash(plain) != point_hash(point(base_url="http://h", endpoint="chat"))
    assert not set(DEFAULTS) & set(plain.identity()["server"])  # as before there were these keys
    assert set(DEFAULTS) == NO_MEASUREMENT | {"endpoint"}


def test_the_keys_come_back_from_a_stored_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    stored = dump_yaml(point(base_url="http://h", api_key_env="MY_KEY", headers={"X-R": 7}))
    assert SECRET not in stored
    server = parse(PointConfig, yaml.safe_load(stored), "test").server
    assert access("http://h", server.connection).headers == (
        ("X-R", "7"),
        ("Authorization", f"Bearer {SECRET}"),
    )
