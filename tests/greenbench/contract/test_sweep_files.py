"""What people write into a sweep file, in whatever editor: taken as it is meant, or one sentence."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from greenbench.contract.address import address_fault
from greenbench.contract.config import (
    LoadConfig,
    SweepConfig,
    check_files,
    load_model,
    load_sweep,
    points_of,
)
from greenbench.contract.errors import UserError
from greenbench.contract.yaml_files import MOST_BYTES, dump_yaml, load_yaml

LINES = {
    "name": "x",
    "models": "[retriever]",
    "backends": "[cpu_attn]",
    "contexts": "[256]",
    "tasks": "[retrieve]",
    "loads": "[{users: 1}]",
}
SWEEP = "".join(f"{key}: {value}\n" for key, value in LINES.items())


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def loaded(folder: Path, **changes: str) -> SweepConfig:
    text = "".join(f"{key}: {value}\n" for key, value in {**LINES, **changes}.items())
    return load_sweep(written(folder, text))


def refusal(folder: Path, text: str | bytes) -> str:
    path = written(folder, text)
    with pytest.raises(UserError) as raised:
        check_files(load_sweep(path))
    said = str(raised.value)
    assert "\n" not in said and len(said) < 500
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    text = SWEEP.replace("\n", "\r\n") + "# café 😀\n"
    assert load_sweep(written(tmp_path, text.encode(encoding))).contexts == [256]


def test_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    assert refusal(tmp_path, (SWEEP + "# café\n").encode("latin-1")) == (
        "not UTF-8 text (byte 0xE9 in line 7); save it as UTF-8"
    )
    assert "zero bytes, as UTF-16 without a byte order mark" in refusal(
        tmp_path, SWEEP.encode("utf-16-le")
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("contexts: [512]\n", "not valid YAML at line 7 (the key 'contexts' stands there twice)"),
        ("server: {port: 1, port: 1}\n", "the key 'port' stands there twice"),
        ("server: " + "[" * 10_000 + "\n", "nested deeper than 64 levels"),
        ("server: " + "{a: " * 70 + "1" + "}" * 70, "nested deeper than 64 levels"),
        ("server: &a [*a]\n", "an alias stands for what it is part of"),
        ("server: !!set {a}\n", "could not determine a constructor for the tag"),
        ("server: !!python/name:os.system\n", "could not determine a constructor for the tag"),
        ("seed: !!int two\n", "not valid YAML (invalid literal for int()"),
        ("seed: " + "9" * 5_000 + "\n", "not valid YAML (Exceeds the limit"),
        ("\tseed: 1\n", "not valid YAML at line 7"),
        ("# \x07\n", "not valid YAML (unacceptable character"),
        ("---\na: 1\n", "not valid YAML at line 7 (but found another document)"),
        ("[a]: 2\n", "found unhashable key"),
        ("1: 2\n", "Keys should be strings"),
        ("repeats: yes\n", "'repeats' wants a number, found yes (true)"),
        ("phases: {warmup_s: off}\n", "phases: 'warmup_s' wants a number, found no (false)"),
        ("slo: {ttft_s: on}\n", "slo: 'ttft_s' wants a number, found yes (true)"),
        ("#" * MOST_BYTES, "more than 1 MiB, which is no configuration"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(
    tmp_path: Path, more: str, sentence: str
) -> None:
    assert sentence in refusal(tmp_path, SWEEP + more)


def test_aliases_that_grow_are_counted_before_they_are_built(tmp_path: Path) -> None:
    """Nine levels of ten are a thousand million values in four hundred bytes."""
    names = "abcdefghij"
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(names)
    )
    assert "it holds more than 100,000 values" in refusal(tmp_path, text)


def test_an_anchor_merged_into_two_places_is_no_key_twice(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\nd: {<<: *b}\n"
    assert load_yaml(written(tmp_path, text)) == {
        "a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}, "d": {"x": 1, "y": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.5E3", 1500.0),
        ("-2", -2),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o10", 8),
        ("010", 10),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01 10:00:00", "2026-01-01 10:00:00"),
        ("yes", True),
        ("~", None),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("'1e5'", "1e5"),
    ],
)
def test_numbers_are_those_a_person_means(tmp_path: Path, text: str, value: object) -> None:
    found = load_yaml(written(tmp_path, f"a: {text}\n"))["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["1e5", "010", "1:30", "2026-01-01", "yes", "0o10", "~", "1_0", 10, 1e-5, 2e30, None]
)
def test_what_is_written_is_read_as_it_was(tmp_path: Path, value: object) -> None:
    class Held(BaseModel):
        a: Any

    assert load_yaml(written(tmp_path, dump_yaml(Held(a=value)))) == {"a": value}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_says_what_the_least_sweep_holds(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text) == (
        "keys and values are wanted, at least name, models, contexts, tasks, loads; it is empty"
    )


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("loads", "[{kind: open, rate_per_s: inf}]", "loads.0.rate_per_s: it should be a finite"),
        ("loads", "[{kind: open, rate_per_s: .inf}]", "loads.0.rate_per_s: it should be a finite"),
        ("phases", "{measure_s: .nan}", "phases.measure_s: it should be a finite number, found nan"),
        ("backends", "[{name: w, options: {a: .inf}}]", "backends.0.options.a: it should be a finite"),
        ("tasks", "[{name: t, params: {a: .nan}}]", "tasks.0.params.a: it should be a finite"),
        ("repeats", "100000000", "repeats: 1,000 at most (each starts every server anew), found 100,000,000"),
        ("loads", "[{users: 1000000000}]", "loads.0.users: 20,000 at most (each holds a connection"),
        ("contexts", f"[{2**70}]", "contexts.0: 100,000,000 at most ("),
        ("prompts_per_point", str(10**9), "prompts_per_point: 100,000 at most ("),
        ("server", f"{{seed: {2**70}}}", "server.seed: 4,294,967,295 at most ("),
        ("phases", "{measure_s: 1e9}", "phases.measure_s: 604,800 at most (a week"),
        ("contexts", "[-5]", "contexts.0: it should be greater than 0, found -5"),
        ("contexts", "[2026-01-01]", "contexts.0: it should be a valid integer"),
        ("contexts", "[256, 256]", "'contexts' has 256 twice"),
        ("tasks", "[retrieve, {name: retrieve}]", "'tasks' has entry 2 twice"),
        ("loads", "[{users: 1}, {users: 1}]", "'loads' has entry 2 twice"),
        ("server", "3", "server: keys and values are wanted, found 3"),
        ("backends", "[{name: 3}]", "backends.0.name: it should be a valid string, found 3"),
        ("backends", "[no]", "backends.0: it should be a valid string, found False"),
        ("server", "{base_url: '127.0.0.1:9101'}", "'127.0.0.1:9101' does not start with http://"),
        ("loads", "[{kind: open, trace: ~nobody-of-that-name/t}]", "no home folder of that name"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_one_sentence(
    tmp_path: Path, key: str, value: str, sentence: str
) -> None:
    text = "".join(f"{k}: {v}\n" for k, v in {**LINES, key: value}.items())
    said = refusal(tmp_path, text)
    assert sentence in said and "Config" not in said


def test_the_points_and_prompt_tokens_of_a_whole_sweep_are_bounded(tmp_path: Path) -> None:
    contexts = ", ".join(str(n) for n in range(1, 1002))
    many = {**LINES, "repeats": "100", "contexts": f"[{contexts}]"}  # 100 × 1,001
    text = "".join(f"{k}: {v}\n" for k, v in many.items())
    assert refusal(tmp_path, text).startswith("100,100 points (models × candidates")
    large = {**LINES, "contexts": "[1000000]", "prompts_per_point": "2001"}
    text = "".join(f"{k}: {v}\n" for k, v in large.items())
    assert "are 2,001,000,000 tokens in one file; 2,000,000,000 at most" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("http://127.0.0.1:8000", None),
        ("https://host.example/prefix/v1", None),
        ("http://[::1]:8000/v1/", None),
        ("127.0.0.1:9101", "does not start with http:// or https://"),
        ("localhost:8000", "does not start with http:// or https://"),
        ("http:/host", "does not start with http:// or https://"),
        ("ftp://host", "does not start with http:// or https://"),
        ("http://127.0.0.1:abc", "is no address"),
        ("http://127.0.0.1:99999", "is no address"),
        ("http://h:0", "names port 0"),
        ("http://[::1", "is no address"),
        ("http://", "names no host"),
        ("http://h /v1", "holds white space"),
        ("http://h\n", "holds white space"),
        ("http://h?key=1", "goes on after its path"),
        ("http://me:secret@h", "holds a user or password"),
    ],
)
def test_an_address_is_checked_where_it_is_read(address: str, fault: str | None) -> None:
    said = address_fault(address)
    assert (said is None) is (fault is None)
    if fault is not None and said is not None:
        assert fault in said and said.endswith("an address looks like http://127.0.0.1:8000")
        assert "secret" not in said


def test_one_running_server_is_one_candidate(tmp_path: Path) -> None:
    """Guards against a winner among names of one and the same server."""
    server = "{base_url: 'http://h:1'}"
    assert loaded(tmp_path, server=server, backends="[sdpa, sdpa]").repeats == 1
    for key, value in (("backends", "[sdpa, triton]"), ("models", "[retriever, tiny-llama]")):
        with pytest.raises(UserError, match=f"'{key}' has .* against one running server"):
            loaded(tmp_path, server=server, **{key: value})


def test_relative_paths_are_meant_from_the_files_folder_then_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, place, stand = tmp_path / "home", tmp_path / "sweeps", tmp_path / "stand"
    for folder in (home, place, stand):
        folder.mkdir()
        (folder / "both.jsonl").write_text("")
        (folder / f"{folder.name}.jsonl").write_text("")
    for folder in (place / "my" / "model", stand / "other" / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"max_position_embeddings": 99}')
    (place / "own.yaml").write_text("")
    monkeypatch.chdir(stand)
    monkeypatch.setenv("HOME", str(home))

    def trace(text: str) -> str | None:
        load = f"[{{kind: open, trace: {text}}}]"
        return loaded(place, loads=load, text_file=text).loads[0].trace

    assert trace("both.jsonl") == str(place / "both.jsonl")
    assert trace("stand.jsonl") == str(stand / "stand.jsonl")
    assert trace("~/home.jsonl") == str(home / "home.jsonl")
    assert trace("../home/home.jsonl") == str(home / "home.jsonl")
    assert trace("nowhere.jsonl") == "nowhere.jsonl"
    assert loaded(place, text_file="both.jsonl").text_file == str(place / "both.jsonl")
    secure = "{base_url: 'https://h', ca_file: both.jsonl}"
    assert loaded(place, server=secure).server.ca_file == str(place / "both.jsonl")
    assert loaded(place, backends="[own.yaml, sdpa]").backends == [str(place / "own.yaml"), "sdpa"]
    models = loaded(place, models="[my/model, other/model, org/elsewhere, retriever]").models
    mine, other = str(place / "my" / "model"), str(stand / "other" / "model")
    assert models == [mine, other, "org/elsewhere", "retriever"]


def test_a_file_that_is_not_there_is_said_before_a_start(tmp_path: Path) -> None:
    load = "[{kind: open, trace: gone.jsonl}]"
    text = "".join(f"{k}: {v}\n" for k, v in {**LINES, "loads": load}.items())
    assert "loads.0.trace: gone.jsonl is not there" in refusal(tmp_path, text)
    text = "".join(f"{k}: {v}\n" for k, v in {**LINES, "text_file": "."}.items())
    assert "text_file:" in refusal(tmp_path, text) and "is no file" in refusal(tmp_path, text)


def test_a_models_folder_is_meant_from_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never from the checkout: what lies there is not what a person's file names."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.chdir("/")
    file = tmp_path / "m.yaml"
    file.write_text("name: m\npath: weights\nmax_model_len: 8\n")
    assert load_model(str(file)).path == str(folder)
    file.write_text("name: m\npath: ./models/retriever/model\nmax_model_len: 8\n")
    with pytest.raises(UserError, match=r"path: no folder \./models/retriever/model, neither from"):
        load_model(str(file))


def test_a_sweep_as_json_is_a_sweep(tmp_path: Path) -> None:
    assert load_sweep(written(tmp_path, json.dumps(load_yaml(written(tmp_path, SWEEP))))).seed == 7


def test_a_load_may_name_the_contexts_that_it_is_measured_at(tmp_path: Path) -> None:
    sweep = loaded(
        tmp_path,
        contexts="[256, 512, 1024]",
        loads="[{users: 2}, {users: 1, contexts: [256, 1024]}]",
    )
    points = points_of(sweep, load_model("retriever"), sweep.contenders[0])
    assert sorted((p.context_tokens, p.load.users) for p in points) == [
        (256, 1),
        (256, 2),
        (512, 2),
        (1024, 1),
        (1024, 2),
    ]
    assert {type(p.load) for p in points} == {LoadConfig}  # what is compared has no such key


@pytest.mark.parametrize(
    ("loads", "says"),
    [
        ("[{users: 1, contexts: [256]}]", "at context 512 no load is measured"),
        ("[{users: 1}, {users: 2, contexts: [300]}]", "loads.1.contexts names 300"),
        ("[{users: 1, contexts: []}]", "loads.0.contexts"),
    ],
)
def test_contexts_of_a_load_that_do_not_fit_the_sweep(
    tmp_path: Path, loads: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, contexts="[256, 512]", loads=loads)


def test_users_of_a_prefix_cache_have_a_prompt_each(tmp_path: Path) -> None:
    def prompts(server: str) -> list[int]:
        sweep = loaded(
            tmp_path, prompts_per_point="30", loads="[{users: 2}, {users: 50}]", server=server
        )
        points = points_of(sweep, load_model("retriever"), sweep.contenders[0])
        return [point.prompts_per_point for point in points]

    assert prompts("{prefix_caching: true}") == [30, 50]
    assert prompts("{prefix_caching: false}") == [30, 30]
