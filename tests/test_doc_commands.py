"""Every command that README, docs/ and the other pages show is read by its own parser, and run.

Parsers take long to import, so all lines are asked of one process. Python has none for `make`, `kubectl` and
the like; of those the targets, variables and files that a line names are looked up.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.fakes.doc_commands import PROGRAMS, Command, commands, is_program, read

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md"),
    *sorted((ROOT / "results").glob("*/README.md")),
    *sorted((ROOT / "models").glob("*/README.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")),
]
PARSED = ("greenbench", "python", "locust")
OTHERS_MODULES = ("venv", "pip", "pytest")
EXAMPLE = "20260921T141320Z-alpha-retrieve-16-closed2-9b8ba45f"
RESULT = "tests/analysis/importers/data/vllm-bench-serve-0.32.0.json"

# Commands of blocks that take minutes, a server, a GPU or a cluster: what runs them, or why nothing does
RUN = {
    "greenbench doctor": "tests/greenbench/test_doctor.py",
    "greenbench report RUNS OTHER_RUNS": "tests/analysis/report/test_first_screen.py",
    "greenbench report runs/my": "tests/analysis/importers/test_convert.py",
    "greenbench run my.yaml --dry-run": "tests/test_wheel_e2e.py",
    "greenbench choose": "tests/greenbench/test_choose.py",
    "greenbench run": "tests/greenbench/sweep/test_runner_e2e.py",
    "greenbench verify": "tests/loadgen/tasks/test_tasks_e2e.py",
    "greenbench policy": "tests/planning/test_main.py",
    "greenbench plan runs/my": "tests/planning/test_plan.py",
    "greenbench plan results/h200/llama-3.2-1b": "two minutes; its core: tests/planning/test_plan.py",
    "greenbench energy-selftest": "tests/telemetry/selftest/test_selftest.py",
    "python -m gateway": "tests/gateway/test_real_e2e.py",
    "python -m loadgen.search": "tests/loadgen/test_search.py",
    "python -m telemetry serve": "tests/telemetry/exporter/test_exporter.py",
    "python -m pytest": "make check",
    "python -m venv": "tests/test_wheel_e2e.py",
    "python scripts/backtest.py score": "tests/planning/test_back_test.py",
    "python scripts/backtest.py explain": "a quarter of a minute; its core: tests/planning/test_simulator.py",
    "python scripts/claim_rates.py": "an hour; its core: tests/analysis/statistics/test_rates.py",
    "locust -f loadgen/longctx.py": "tests/loadgen/test_locust_by_hand.py",
    "make setup": "every other target",
    "make check": "make test",
    "make test": ".ci/run",
    "make demo": "nine minutes; what it starts: tests/greenbench/test_choose.py",
    "make demo-policy": "a quarter of an hour; its core: tests/scripts/test_demo_policy.py",
    "make serve": "tests/servers/launch/test_server_e2e.py",
    "make load": "tests/loadgen/test_locust_by_hand.py",
    "make gateway": "tests/gateway/test_real_e2e.py",
    "make format": "make check",
    "make docs": "make test",
    "make soak": "an hour; its judgement: tests/scripts/test_soak.py",
    "make bench-": "minutes on a quiet machine; their cores: tests/scripts/test_bench_client.py",
    "make sbom": "before a release; half a minute",
    "make licences": "tests/test_supply_chain.py",
    "make audit": "before a release; asks PyPI",
    "pip install": "tests/test_wheel_e2e.py",
    "curl -X POST": "tests/gateway/test_admin.py",
    "cd ": "the folder is looked up",
    "docker compose": "a container engine; its files: tests/deploy/test_validators.py",
    "kubectl": "a cluster; its files: tests/deploy/test_validators.py",
    "deploy/kubernetes/monitoring/rules.sh": "tests/deploy/test_validators.py",
    "sbatch": "Slurm; its command: tests/deploy/test_sweep_e2e.py",
}  # fmt: skip


@cache
def shown() -> list[Command]:
    return [command for page in PAGES for command in commands(page, ROOT)]


def of(*programs: str) -> list[Command]:
    return [command for command in shown() if command.program in programs]


def line(command: Command) -> str:
    return " ".join(command.words)


def test_each_line_is_read_by_its_parser() -> None:
    asked = [
        c
        for c in of(*PARSED)
        if c.words[:2] != ("python", "-m") or c.words[2] not in OTHERS_MODULES
    ]
    broken = [*read("greenbench run my.yaml --whithin 40m", "a typing error", whole=True)]
    told = [{"words": c.words, "whole": c.whole} for c in asked + broken]
    argv = [sys.executable, "-W", "ignore", "-m", "scripts.command_lines", "--faults"]
    ended = subprocess.run(argv, cwd=ROOT, input=json.dumps(told), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    *found, typing_error = json.loads(ended.stdout)
    faults = [f"{c.page}: {c.typed}: {why}" for c, why in zip(asked, found, strict=True) if why]
    assert faults == []
    assert "--whithin" in typing_error
    assert len(asked) > 100


def test_make_has_each_target_and_variable() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=|\$\(([A-Z]+)\)", makefile, flags=re.MULTILINE))
    known = {name for pair in variables for name in pair} | {"ADD", "ROUTER"}
    lines = of("make")
    assert len(lines) > 15
    for command in lines:
        for word in command.words[1:]:
            name, equals, _ = word.partition("=")
            assert name in (known if equals else targets), f"{command.page}: {command.typed}"


@pytest.mark.parametrize(
    "command", of("kubectl", "sbatch", "locust", "cd", "pytest", "python"), ids=line
)
def test_files_that_a_line_names_are_there(command: Command) -> None:
    ours = r"(?:deploy|scripts|loadgen|tests|configs)/[\w./-]+"
    for name in re.findall(rf"(?<![\w/.]){ours}", line(command)):
        assert (ROOT / name).exists(), f"{command.page}: {command.typed}"
        if command.words[0] == "kubectl":
            assert (ROOT / name / "kustomization.yaml").exists()


def test_a_program_that_is_not_known_would_be_seen() -> None:
    """A line of a shell block starts with a program of `PROGRAMS`; of an indented block it may be output."""
    for page in PAGES:
        for block in re.findall(
            r"^```(?:sh|bash)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            for text in filter(None, map(str.strip, block.splitlines())):
                assert text.startswith("#") or [*read(text, page.name, whole=True)], (
                    f"{page}: {text}"
                )
    assert is_program("deploy/kubernetes/monitoring/rules.sh") and "greenbench" in PROGRAMS


# --- what is run here: word for word as shown, with these in place of its placeholders


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's folder: a run, the traffic of docs/plan.md, another tool's result."""
    here = tmp_path_factory.mktemp("person")
    shutil.copytree(ROOT / "docs" / "example", here / "runs" / "my")
    shutil.copy(ROOT / RESULT, here / "result.json")
    traffic = re.search(
        r"```yaml\n# traffic.yaml.*?\n(.*?)```", (ROOT / "docs/plan.md").read_text(), re.DOTALL
    )
    assert traffic
    (here / "traffic.yaml").write_text(traffic[1])
    return here


FILLED = {"RUNS": "runs/my", "RESULT": "result.json", "POINT": f"runs/my/{EXAMPLE}"}
HERE = [
    ("greenbench backends --for h100", "flash_attn3"),
    ("greenbench check --schema RUNS", ""),
    ("greenbench runs list", EXAMPLE[:16]),
    ("greenbench runs show POINT", "retrieve"),
    ("greenbench report RUNS --csv points.csv", "runs/my/report.html"),
    ("greenbench import RESULT --out runs/theirs", "runs/theirs"),
    ("greenbench plan --what-to-measure --traffic traffic.yaml", "contexts"),
    ("greenbench runs redo POINT", ""),
    ("greenbench runs delete POINT", ""),
    ("python -m loadgen.longctx --help", "--context-tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("shown_line", "said"), HERE, ids=[row[0] for row in HERE])
def test_it_runs_as_it_is_shown(shown_line: str, said: str, place: Path) -> None:
    command = next(c for c in shown() if c.whole and line(c) == shown_line)
    program, *words = [FILLED.get(word, word) for word in command.words]
    starts = {"greenbench": [sys.executable, "-c", "from greenbench.cli import main; main()"]}
    ended = subprocess.run(
        [*starts.get(program, [sys.executable]), *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="y\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert said in ended.stdout + ended.stderr


def test_each_command_of_a_block_is_run_somewhere() -> None:
    run_here = {row[0] for row in HERE}
    used: set[str] = set()
    for command in shown():
        if not command.whole or line(command) in run_here:
            continue
        rows = [row for row in RUN if f"{line(command)} ".startswith(row)]
        assert rows, f"{command.page}: {command.typed}: run nowhere; add it to HERE or RUN"
        used |= set(rows)
    assert set(RUN) - used == set(), "rows of RUN that no page shows any more"
    for named in re.findall(r"tests/[\w/]+\.py", " ".join(RUN.values())):
        assert (ROOT / named).exists(), named
