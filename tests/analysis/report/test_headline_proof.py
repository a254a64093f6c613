"""A name in the headline is what a server was asked for; where nothing shows that it ran, that is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.report.sentences import headline
from analysis.study import study
from tests.fakes.rundirs import FakeRun, write_run

FAST = FakeRun(backend="fast", task="summarize", correct_share=None, repeat=0)
SLOW = replace(FAST, backend="slow", ttft_s=0.8, itl_s=0.08)


@pytest.mark.parametrize(
    ("unproven", "named"),
    [((), None), (("fast",), "`fast`"), (("slow",), "`slow`"), (("fast", "slow"), "`fast` and `slow`")],
)  # fmt: skip
def test_the_headline_says_whose_name_is_unproven(
    tmp_path: Path, unproven: tuple[str, ...], named: str | None
) -> None:
    for start in range(3):
        for fake in (FAST, SLOW):
            proof = "unproven" if fake.backend in unproven else "proven"
            write_run(tmp_path, replace(fake, repeat=start, started_s=start * 500.0, proof=proof))
    said = headline(study(tmp_path))
    assert any("`fast`" in sentence for sentence in said)
    told = [sentence for sentence in said if sentence.startswith("Unproven: ")]
    if named is None:
        assert told == []
    else:
        assert told == [
            f"Unproven: nothing shows that the server of {named} ran the attention class of that name."
        ]
