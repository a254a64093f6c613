"""The commands as a person types them: what they print, write and refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from greenbench.contract.policy import load_policy
from tests.planning.sweeps import CROSSING, points, written

ROOT = Path(__file__).resolve().parents[2]


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    run = (
        "import sys; sys.argv[0] = 'greenbench'; from greenbench.cli import main; "
        "from planning import fit; fit.every = lambda course, seed: []; main()"  # a minute; test_fresh.py
    )
    return subprocess.run(
        [sys.executable, "-c", run, "policy", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``sweep`` and the policy of it."""
    folder = tmp_path_factory.mktemp("person")
    written(folder / "sweep", points(CROSSING), 3)
    done = command("sweep", "--objective", "e2e", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def test_it_says_what_it_writes(made: Path) -> None:
    policy = load_policy(made / "policy.yaml")
    said = (made / "said").read_text().splitlines()
    assert said[-1] == "policy.yaml" and len(said) == len(policy.rules) + 1 + len(policy.said) + 1
    assert any("→ beta" in line and "better than alpha" in line for line in said)


def test_replay_prints_the_regret_table_and_its_figures(made: Path) -> None:
    done = command("replay", "policy.yaml", "--generate", "60", "--json", "r.json", cwd=made)
    assert done.returncode == 0, done.stderr
    figures = json.loads((made / "r.json").read_text())
    for score in figures["scores"]:
        assert any(line.startswith(score["who"]) for line in done.stdout.splitlines())
    assert figures["held_out"] and figures["folds"] == 3


def test_replay_of_a_trace(made: Path) -> None:
    rows = [
        {"timestamp": 2000 * i, "input_length": 2048 + 100 * i, "output_length": 32}
        for i in range(40)
    ]
    (made / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("replay", "policy.yaml", "--traffic", "t.jsonl", cwd=made)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 requests, mooncake trace t.jsonl.")


def test_export_goes_to_stdout_and_what_is_not_said_to_stderr(made: Path) -> None:
    done = command("export", "policy.yaml", "--to", "llm-d", cwd=made)
    assert done.returncode == 0 and "kind: EndpointPickerConfig" in done.stdout
    assert all(line.startswith("not said: ") for line in done.stderr.splitlines())


def test_help_has_the_table_of_settings(made: Path) -> None:
    done = command("--help", cwd=made)
    assert done.returncode == 0 and done.stdout.startswith("usage: greenbench policy")
    for word in ("--objective", "--slo", "capacity", "replay", "export"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere",), "nowhere"),
        (("sweep", "--slo", "fast"), "--slo wants bounds such as ttft=2"),
        (("sweep", "--bogus"), "greenbench policy: error: unrecognized arguments: --bogus"),
        (("sweep", "--out", "sweep"), "is a folder; --out wants a file"),
        (("replay", "nowhere.yaml", "--generate"), "nowhere.yaml: cannot be read"),
        (("replay", "policy.yaml", "--generate", "10", "--runs", "nowhere"), "nowhere"),
        (("replay", "policy.yaml", "--traffic", "said"), "no known trace format"),
        (("replay", "policy.yaml", "--generate", "9", "--lengths", "9k-2k"), "the shorter one"),
    ],
)
def test_bad_input_is_one_sentence_and_two(
    made: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = command(*words, cwd=made)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
