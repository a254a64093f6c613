"""What ``greenbench choose`` plans: from a person's words and the table of backends."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from greenbench import choose, cli
from greenbench.choose import (
    answer,
    best_of,
    common_execution,
    default_contexts,
    parse_backends,
    parse_contexts,
)
from greenbench.cli import parse_duration
from greenbench.contract.config import BackendChoice, SweepConfig, parse
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Host
from greenbench.contract.slo import parse_slo
from greenbench.sweep.child_processes import StageError
from greenbench.sweep.runner import Outcome
from tests.fakes.launch_plans import launch_plan


def row(name: str, vllm_name: str, **changes: Any) -> dict[str, Any]:
    base = {
        "name": name, "vllm_name": vllm_name, "ours": False, "exact": True,
        "flash_attn_version": None, "executions": ["eager", "piecewise", "full"],
    }  # fmt: skip
    return {**base, **changes}


ROWS = [
    row("flash_attn", "FLASH_ATTN"),
    row("flash_attn2", "FLASH_ATTN", flash_attn_version=2),
    row("flash_attn3", "FLASH_ATTN", flash_attn_version=3),
    row("flashinfer", "FLASHINFER"),
    row("sdpa", "CUSTOM", ours=True, executions=["eager", "piecewise"]),
    row("gather", "CUSTOM", ours=True, executions=["eager"]),
    row("sink", "CUSTOM", ours=True, exact=False),
]


def choices(*names: str) -> list[BackendChoice]:
    return [BackendChoice(name=name) for name in names]


def names(found: list[BackendChoice]) -> list[str]:
    return [choice.name for choice in found]


def test_vllms_own_exact_backends_are_compared_each_version_once() -> None:
    everything = choices(*(each["name"] for each in ROWS))
    assert names(best_of(everything, ROWS)) == ["flash_attn2", "flash_attn3", "flashinfer"]


def test_without_a_version_of_its_own_the_row_that_leaves_it_to_vllm_stays() -> None:
    assert names(best_of(choices("flash_attn", "flashinfer"), ROWS)) == ["flash_attn", "flashinfer"]


def test_a_lone_backend_of_vllm_is_compared_with_one_of_ours() -> None:
    assert names(best_of(choices("flashinfer", "sdpa", "gather", "sink"), ROWS)) == [
        "flashinfer",
        "sdpa",
    ]
    assert best_of(choices("sink"), ROWS) == []


def test_the_execution_is_one_that_all_can_run() -> None:
    assert common_execution(choices("flash_attn3", "flashinfer"), ROWS, gpus=True) == "full"
    assert common_execution(choices("flash_attn3", "sdpa"), ROWS, gpus=True) == "piecewise"
    assert common_execution(choices("sdpa", "gather"), ROWS, gpus=True) == "eager"
    assert common_execution(choices("flash_attn3", "own.yaml"), ROWS, gpus=True) == "eager"
    assert common_execution(choices("flash_attn3"), ROWS, gpus=False) == "eager"


@pytest.mark.parametrize(
    ("window", "contexts"),
    [
        (None, (2048, 8192, 32768)),
        (131_072, (2048, 8192, 32768)),
        (32_768, (2048, 8192)),  # an answer has no room after 32,768 tokens
        (2048 + 512, (2048,)),
        (1024, (512,)),
    ],
)
def test_default_contexts_leave_room_for_the_answer(
    window: int | None, contexts: tuple[int, ...]
) -> None:
    assert default_contexts(window) == contexts


def test_lengths_bounds_and_times_are_read_as_people_write_them() -> None:
    assert parse_contexts("8k, 2k,2048,32768") == (2048, 8192, 32768)
    slo = parse_slo("ttft=2,tpot=50ms,e2e=1.5s")
    assert (slo.ttft_s, slo.tpot_s, slo.e2e_s) == (2.0, 0.05, 1.5)
    assert [parse_duration(text) for text in ("30m", "1h30m", "90s", "2H")] == [
        1800,
        5400,
        90,
        7200,
    ]
    assert names(list(parse_backends("a,own.yaml(tile=64)"))) == ["a", "own.yaml"]


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (parse_contexts, "2k,long", "found 'long'"),
        (parse_contexts, "0", "found '0'"),
        (parse_slo, "ttft", "found 'ttft'"),
        (parse_slo, "ttft=fast", "found 'ttft=fast'"),
        (parse_slo, "ttft=0", "ttft_s"),
        (parse_slo, "ttft=1,tpot=1,TTFT=2", "once, found two of ttft in 'ttft=1,tpot=1,TTFT=2'"),
        (parse_duration, "30", "found '30'"),
        (parse_duration, "0m", "found '0m'"),
        (parse_backends, "a(b", "'a(b' is no backend"),
    ],
)
def test_what_cannot_be_read_is_said(read: Any, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        read(text)


def test_a_wish_beyond_what_a_sweep_may_ask_for_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans = [launch_plan(max_model_len=8192).model_dump(mode="json")] * 2
    monkeypatch.setattr(choose, "call_json", lambda argv, asked=None: plans if asked else ROWS)
    wish = choose.Wish("retriever", (10**11,), tuple(choices("flash_attn3", "flashinfer")))
    with pytest.raises(
        UserError, match=r"choose: contexts\.0: 100,000,000 at most .*, found 100,000,000,000"
    ):
        choose.plan_choice(wish, True, lambda _: None)
    found = choose.plan_choice(replace(wish, contexts=(2048,)), True, lambda _: None)
    assert (found.contexts, found.server.execution) == ([2048], "full")


def test_the_answer_is_the_reports_first_three_sentences_as_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    told = {"headline": ["Use `a`."], "sentences": ["Use `a`.", "It costs **2 %**.", "c", "d"]}
    file.write_text(json.dumps(told))
    assert answer(file) == ["Use a.", "It costs 2 %.", "c"]
    file.write_text(json.dumps(told | {"headline": []}))
    assert answer(file) == []
    file.write_text("{")
    with pytest.raises(UserError, match="no summary of a report can be read"):
        answer(file)


SWEEP = parse(
    SweepConfig,
    {
        "name": "choose-m", "models": ["m"], "backends": ["a", "b"], "contexts": [4],
        "tasks": ["retrieve"], "loads": [{"users": 1}],
    },
    "test",
)  # fmt: skip
MEASURED = Outcome(complete=2)


@pytest.mark.parametrize(
    ("outcome", "ceilings", "report", "headline", "code", "done"),
    [
        (MEASURED, None, 0, ["Use a."], 0, ["ceilings", "report"]),
        (MEASURED, StageError("no torch"), 0, ["Use a."], 0, ["ceilings", "report"]),
        (MEASURED, UserError("no torch"), 0, ["Use a."], 0, ["ceilings", "report"]),
        (MEASURED, None, 0, [], 1, ["ceilings", "report"]),  # one candidate alone is no answer
        (MEASURED, None, 2, ["Use a."], 2, ["ceilings", "report"]),
        (Outcome(failures=["it did not boot"]), None, 0, [], 1, []),
    ],
)
def test_what_fails_on_the_way_costs_no_more_than_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: Outcome,
    ceilings: Exception | None,
    report: int,
    headline: list[str],
    code: int,
    done: list[str],
) -> None:
    ran: list[str] = []

    def run_stage(argv: list[str]) -> int:
        ran.append(argv[argv.index("analysis") + 1])
        if ran[-1] == "ceilings" and ceilings is not None:
            raise ceilings
        return report

    (tmp_path / "summary.json").write_text(
        json.dumps({"headline": headline, "sentences": [*headline, "and more"]})
    )
    machine = Host(cpu="c", cores=1, ram_bytes=1, kernel="k")
    monkeypatch.setattr(cli, "plan_choice", lambda *_: SWEEP)
    monkeypatch.setattr(cli, "host", lambda: machine)
    monkeypatch.setattr(cli, "run_sweep", lambda *_, **__: outcome)
    monkeypatch.setattr(cli, "call", run_stage)
    monkeypatch.setattr(cli, "passthrough", run_stage)
    with pytest.raises(typer.Exit) as ended:
        cli.choose("m", out=tmp_path, within="5m")
    assert (ended.value.exit_code, ran) == (code, done)
    printed = capsys.readouterr().out
    assert ("the report has no roofline: no torch" in printed) is (ceilings is not None)
    assert ("Use a." in printed) is (code == 0)
    assert ("No answer yet" in printed) is (code == 1 and outcome is MEASURED)


def test_the_ceilings_of_a_folder_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ceilings.json").write_text("{}")
    monkeypatch.setattr(cli, "call", lambda *_: pytest.fail("measured again"))
    cli.measure_ceilings(tmp_path)
