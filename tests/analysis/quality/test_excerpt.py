"""What a reader of a disqualified backend sees of the prompt: the needle's surroundings and the question."""

import json
from pathlib import Path

import pytest

from analysis.quality.excerpt import AROUND, around, prompt_words, question
from analysis.runs.run import load_run
from greenbench.contract.config import ROOT
from tests.fakes.rundirs import FakeRun, write_run

tokenizers = pytest.importorskip("tokenizers")
MODEL = "models/retriever/model"
FILLER = "The harbour was quiet that morning. " * 40
ASKED = "Question: What is the code of canoe?"
TEXT = f"{FILLER}The code of canoe is 823443. {FILLER}\n\n{ASKED}\nAnswer: The code of canoe is"


def test_excerpt_is_cut_at_words_around_the_needle() -> None:
    found = around(TEXT, "823443")
    assert found is not None and "The code of canoe is 823443." in found
    assert found.startswith("… ") and found.endswith(" …")
    assert len(found) <= 2 * AROUND + len("823443") + 4
    assert set(found.replace("…", "").split()) <= set(TEXT.split())  # no word cut in two
    assert around("823443 at once", "823443") == "823443 at once"
    assert around(TEXT, "999999") is None and around(TEXT, "") is None


def test_the_question_is_the_last_paragraph() -> None:
    assert question(TEXT) == f"{ASKED} Answer: The code of canoe is"
    assert question("word " * 500).startswith("… word")


def write_with_prompts(root: Path, model_path: str, stored_at: Path) -> Path:
    run = write_run(root, FakeRun())
    raw = json.loads(run.manifest_path.read_text())
    raw["server"]["model_path"] = model_path
    run.manifest_path.write_text(json.dumps(raw))
    encoder = tokenizers.Tokenizer.from_file(str(ROOT / MODEL / "tokenizer.json"))
    lines = [
        {"request": {}},
        {"prompt_index": 0, "token_ids": encoder.encode("another").ids},
        {"prompt_index": 1, "token_ids": encoder.encode(TEXT).ids},
    ]
    stored_at.parent.mkdir(exist_ok=True)
    stored_at.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run.path


def test_words_come_from_the_prompt_file_also_after_the_runs_were_moved(tmp_path: Path) -> None:
    # the fake's config names ../prompts/tiny.jsonl, which is no path from here
    path = write_with_prompts(tmp_path, MODEL, tmp_path / "fake" / "prompts" / "tiny.jsonl")
    found = prompt_words(load_run(path), 1, "823443")
    assert found.excerpt is not None and "The code of canoe is 823443." in found.excerpt
    assert found.question is not None and found.question.startswith(ASKED)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = write_with_prompts(tmp_path, "models/none", tmp_path / "fake" / "prompts" / "x.jsonl")
    assert "tokenizer" in (prompt_words(load_run(path), 1, "823443").reason or "")
    known = write_with_prompts(tmp_path / "b", MODEL, tmp_path / "b" / "fake" / "other" / "x.jsonl")
    assert "prompt file" in (prompt_words(load_run(known), 1, "823443").reason or "")
