"""A back-test's bars, knees and errors in words: the terminal's and the page's are of the same figures."""

from typing import Any

import pytest

from planning.back_test import Bar
from scripts.backtest_told import bars_told, beside, rest_told, section

KNEES: dict[str, list[float | None]] = {"m triton x | 2048": [2.2, 2.0], "m fa x | 512": [None, 4]}
ORDERS: dict[str, list[list[str] | None]] = {
    "2048 | open1": [["a", "b"], ["a", "b"]],
    "512 | open1": [None, ["b"]],
}


@pytest.mark.parametrize(
    ("said", "saw", "words"),
    [
        (1.1, 1.0, "1.1 / 1.0 (+10.0%)"),
        (None, 1.0, "– / 1.0"),
        (1.0, None, "1.0 / –"),
        (1.0, 0.0, "1.0 / 0.0"),
    ],
)
def test_an_error_stands_where_both_are_there_and_what_was_measured_is_not_none(
    said: float | None, saw: float | None, words: str
) -> None:
    assert beside(said, saw, str) == words


def test_terminal_and_page_say_the_same_of_bars_knees_and_order() -> None:
    """6 % are allowed: 5 % of the plan meet and do not beat 4 %; a line of no point has no error."""
    bar = Bar("W", 0.06, 3, {"plan": 0.05, "nearest": 0.04, "line": None})
    assert bars_told([bar])[2] == "| W | 6% | 3 | 5.0% | 4.0% | – | yes | no |"
    assert rest_told(KNEES, ({"m fa x | 512": "too few"}, {}), ORDERS) == [
        "knee, triton chunk , 2,048: 2.2 / 2 requests/s (+10.0%; at most 10 %)",
        "knee, fa chunk , 512: – / 4 requests/s",
        "  none predicted: too few",
        "order of candidates: right at 1 of 2 loads",
    ]
    scored: dict[str, Any] = {
        "points": [],
        "bars": [{"name": "W", "most": 0.06, "points": 3, "errors": bar.errors}],
        "knees": KNEES,
        "orders": ORDERS,
    }
    frozen = {"points": [], "no_knee": {"m fa x | 512": "too few"}}
    page = section(frozen, scored).splitlines()
    assert page[2] == "| W | 6% | 3 | 5.0% | 4.0% | – | yes | no |"
    assert page[4:7] == [
        "* Knee of triton at 2,048 tokens: 2.20 / 2.00 (+10.0%) requests/s; at most 10 % off.",
        "* Knee of fa at 512 tokens: none predicted (too few), 4.00 requests/s measured.",
        "* Order of the candidates: right at 1 of 2 loads given to both.",
    ]
