"""Times between the points of a published table and past them."""

from math import exp, log

from analysis.model.work import causal_pairs

BEYOND = 1.1  # how far outside of a table its last rate is held; further there is no figure


def at(x: float, points: dict[int, float]) -> float | None:
    """Value at ``x`` on the straight lines through the points' logarithms.

    Up to BEYOND past the last point its rate is held, value / x; None outside.
    """
    xs = sorted(points)
    if not xs or not xs[0] <= x <= xs[-1] * BEYOND:
        return None
    if x >= xs[-1]:
        return points[xs[-1]] * x / xs[-1]
    right = next(each for each in xs if each > x)
    left = xs[xs.index(right) - 1]
    share = log(x / left) / log(right / left)
    return exp((1 - share) * log(points[left]) + share * log(points[right]))


def decode_us(times: dict[int, dict[int, float]], sequences: float, context: float) -> float | None:
    """One layer's attention in a decode step; None outside of the table."""
    of_context = {n: us for n, row in times.items() if (us := at(context, row)) is not None}
    return at(sequences, of_context)


def whole_prompt_us(times: dict[int, dict[int, float]], tokens: int) -> float | None:
    """One layer's causal attention of a prompt. Past the table the rate of its longest, a pair, is held."""
    row = times.get(1, {})
    longest = max((each for each in row if each <= tokens), default=None)
    if longest is None:
        return None
    return row[longest] * causal_pairs(tokens, 0) / causal_pairs(longest, 0)
