"""Grading a reply that lists several known things: what was stated, found, invented, in order."""

from collections.abc import Callable

from loadgen.tasks.task import Grade


def grade_listed(
    text: str,
    expected: list[str],
    stop: str,
    find: Callable[[str], list[str]],
    ordered: bool,
) -> Grade:
    """Score: share of ``expected`` stated. Right: all of them, none invented, in order if ``ordered``.

    ``find`` lists what the reply states, in order. Only as many as are expected count, and only up to
    ``stop``: decoding is made to run on past the reply's own end.
    """
    stated = find(text.split(stop, 1)[0])[: len(expected)]
    named = [one for one in expected if one in stated]
    in_order = [one for one in stated if one in expected] == named
    whole = stated == expected if ordered else sorted(stated) == sorted(expected)
    detail = {
        "expected": expected,
        "stated": stated,
        "found": named,
        "invented": [one for one in stated if one not in expected],
        "in_order": in_order,
    }
    return Grade(correct=whole, score=len(named) / len(expected), detail=detail)
