"""A backend that gave no point stands in the report all the same, with its reason."""

import json
from pathlib import Path

import pytest

from analysis.objectives import DEFAULT
from analysis.report.page import render
from analysis.report.sentences import summary_sentences
from analysis.runs.unmeasured import LeftOut, left_out
from analysis.study import study
from analysis.summary import summary
from tests.fakes.manifests import manifest
from tests.fakes.pages import words
from tests.fakes.rundirs import FakeRun, write_run


def write_server(sweep: Path, name: str, state: str, error: str | None, **facts: object) -> None:
    server = manifest().server.model_copy(update={"model": "tiny", "ready_s": None, **facts})
    folder = sweep / "servers" / name
    folder.mkdir(parents=True)
    body = {"state": state, "error": error, "server": server.model_dump(mode="json")}
    (folder / "server.json").write_text(json.dumps(body))


def write_sweep(root: Path) -> Path:
    """alpha was measured at its second start; beta never came up, gamma died, delta was refused."""
    sweep = write_run(root, FakeRun(measure_s=15)).path.parent
    first, second = "tiny-alpha-r0a0-20260101T000000Z", "tiny-alpha-r0a0-20260101T010000Z"
    write_server(sweep, first, "failed", "port in use", requested_backend="alpha")
    write_server(sweep, second, "stopped", None, requested_backend="alpha", ready_s=30.0)
    dead = "tiny-{}-r0a0-20260101T020000Z"
    write_server(sweep, dead.format("beta"), "failed", "no <memory>", requested_backend="beta")
    write_server(
        sweep, dead.format("gamma"), "failed", "killed", requested_backend="gamma", ready_s=30.0
    )
    refused = {"tiny delta repeat 0": ["needs a GPU", "and a module"]}
    (sweep / "refused.json").write_text(json.dumps(refused))
    return sweep


EXPECTED = [
    LeftOut("tiny delta repeat 0", "refused", "needs a GPU; and a module"),
    LeftOut("tiny beta", "did not start", "no <memory>"),
    LeftOut("tiny gamma", "died", "killed"),
]


def test_only_what_never_came_to_its_end_is_left_out(tmp_path: Path) -> None:
    """From the sweep's folder, and from the one above it."""
    sweep = write_sweep(tmp_path)
    assert left_out(sweep) == left_out(tmp_path) == EXPECTED


def test_it_stands_in_page_summary_and_sentences(tmp_path: Path) -> None:
    whole = study(write_sweep(tmp_path))
    page = words(render(whole))
    assert "Excluded (3)" in page
    assert "tiny beta did not start no &lt;memory&gt;" in page
    assert "tiny delta repeat 0 refused needs a GPU; and a module" in page
    assert [entry["label"] for entry in summary(whole)["left_out"]] == [s.label for s in EXPECTED]
    (sentence,) = [s for s in summary_sentences(whole) if s.startswith("Not used")]
    assert "`tiny beta` (did not start)" in sentence and "`tiny gamma` (died)" in sentence


SWEEP = (
    "name: fake\nmodels: [tiny]\nbackends: [alpha]\ncontexts: [1024]\ntasks: [retrieve]\n"
    "loads: [{kind: closed, users: 4}]\n"
)
UNREAD = "tiny-x-r0a0-1/server.json"


@pytest.mark.parametrize(
    ("server_json", "label", "status", "words_of_why"),
    [
        ("[" * 100_000, UNREAD, "unreadable", "cannot be read as JSON"),
        ("[]", UNREAD, "unreadable", "holds no JSON object"),
        (
            '{"state": "failed", "error": "no memory", "server": ["tiny"]}',
            UNREAD,
            "unreadable",
            "server: keys and values are wanted",
        ),
        (
            '{"state": "failed", "error": ["no", "memory"], "server": null}',
            UNREAD,
            "unreadable",
            "error: it should be a valid string",
        ),
        ('{"state": "failed", "server": null}', "tiny-x-r0a0-1", "did not start", "no reason"),
        (  # of a version that has other fields, and lacks most of ours
            '{"state": "failed", "error": "no memory", "of_2": [1], "server": '
            '{"model": "tiny", "requested_backend": "x", "pid": "many"}}',
            "tiny x",
            "did not start",
            "no memory",
        ),
    ],
)
def test_a_start_that_cannot_be_read_costs_only_itself(
    server_json: str, label: str, status: str, words_of_why: str, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path)
    folder = sweep / "servers" / "tiny-x-r0a0-1"
    folder.mkdir()
    (folder / "server.json").write_text(server_json)
    (found,) = [each for each in left_out(sweep) if each not in EXPECTED]
    assert (found.label, found.status) == (label, status)
    assert words_of_why in found.why and "\n" not in found.why


@pytest.mark.parametrize(
    ("refused_json", "words_of_why"),
    [
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"tiny delta": "no card"}', "tiny delta: a list is wanted"),
        ('{"tiny delta": [{"no": "card"}]}', "tiny delta.0: it should be a valid string"),
        ('{"tiny delta": []}', "no reason was given"),
    ],
)
def test_refusals_that_cannot_be_read_are_said(
    refused_json: str, words_of_why: str, tmp_path: Path
) -> None:
    """Guards, beside a traceback, against a sentence that is taken for its letters: `n; o;  ; c; a`."""
    sweep = write_sweep(tmp_path)
    (sweep / "refused.json").write_text(refused_json)
    (found,) = [each for each in left_out(sweep) if each not in EXPECTED]
    assert words_of_why in found.why


@pytest.mark.parametrize(
    ("sweep_yaml", "words_of_why"),
    [
        ("name: [", "sweep.yaml: not valid YAML"),
        ("- a\n- b\n", "sweep.yaml: keys and values are wanted"),
        (SWEEP + "objective: fastest_of_7_0\n", "objective: no 'fastest_of_7_0' is known"),
        (SWEEP + "objective: ttft\n", None),
    ],
)
def test_a_sweep_file_that_cannot_be_used_costs_its_wishes_alone(
    sweep_yaml: str, words_of_why: str | None, tmp_path: Path
) -> None:
    """Guards against no report at all, and against a wish that is dropped without a word."""
    sweep = write_sweep(tmp_path)
    (sweep / "sweep.yaml").write_text(sweep_yaml)
    whole = study(sweep)
    found = [each for each in whole.unmeasured if each not in EXPECTED]
    assert [each.label for each in found] == ([] if words_of_why is None else ["sweep.yaml"])
    assert words_of_why is None or words_of_why in found[0].why
    assert whole.objective.name == ("ttft" if words_of_why is None else DEFAULT.name)
