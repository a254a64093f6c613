"""Numbers as a person reads them: three significant digits, a unit, a dash for what is not there."""

from collections.abc import Callable, Mapping
from math import floor, log10

from analysis.objectives import Unit

DASH = "–"


def significant(value: float, digits: int = 3) -> str:
    """Plain decimal with so many significant digits and thousands separators."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - floor(log10(abs(value))))
    rounded = round(value, digits - 1 - floor(log10(abs(value))))
    return f"{rounded:,.{places}f}"


def seconds(value: float | None) -> str:
    """µs below a millisecond, ms below a second, s above."""
    if value is None:
        return DASH
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms")):
        if abs(value) < limit and value != 0:
            return f"{significant(value * factor)} {unit}"
    return f"{significant(value)} s"


def rate(value: float | None) -> str:
    return DASH if value is None else significant(value)


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{significant(value)} {unit}"
        value /= 1024
    return f"{significant(value)} TiB"


def joules(value: float | None) -> str:
    if value is None:
        return DASH
    for limit, factor, unit in ((1, 1e3, "mJ"), (1e4, 1, "J"), (1e7, 1e-3, "kJ")):
        if abs(value) < limit:
            return f"{significant(value * factor)} {unit}"
    return f"{significant(value * 1e-6)} MJ"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{significant(value * 100)} %"


BARE: frozenset[Unit] = frozenset({"req/s", "tok/s"})  # whose figures stand without their unit
BY_UNIT: Mapping[Unit, Callable[[float | None], str]] = {
    "req/s": rate,
    "tok/s": rate,
    "s": seconds,
    "J": joules,
    "B": size,
    "share": percent,
}


def measured(value: float | None, unit: Unit) -> str:
    """A figure of an objective."""
    return BY_UNIT[unit](value)


def whole_percent(share: float) -> str:
    """``0.983`` → "98"; only a full share is "100", only none is "0"."""
    percent_ = round(share * 100)
    return str(percent_ if share in (0, 1) else min(99, max(1, percent_)))


def signed_percent(value: float | None) -> str:
    return DASH if value is None else f"{value:+.0%}".replace("%", " %")


LONGEST = 4_000  # characters of one piece of text; the files that it came from have all of it


def clipped(value: object) -> object:
    """A text that would bloat the page, cut; everything else as it is."""
    if type(value) is not str or len(value) <= LONGEST:
        return value
    return f"{value[:LONGEST]} … ({len(value):,} characters)"


def answer(text: str | None, most: int = 160) -> str:
    """What a model said, quoted, on one line and cut short; None: an archive left it out."""
    if text is None:
        return "not kept"
    words = " ".join(text.split())
    if len(words) > most:
        words = f"{words[:most].rpartition(' ')[0] or words[:most]} …"
    return f"“{words}”"


def count(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def times(ratio: float) -> str:
    """A factor of at least 1 as a person says it: ``3.1×``."""
    return f"{significant(ratio, 2 if ratio < 10 else 3)}×"


def factor(gain: float, interval: tuple[float, float] | None = None, less: bool = False) -> str:
    """By how much one is better, with its interval to as many decimals: ``1.31× [1.20, 1.42]``; a small one
    in percent, so that no difference is ever told as 1.00×: ``4.2 % [2.1 %, 6.3 %]``. ``less``: of the other,
    as in ``4.0 % lower``: 1 / 1.042 is 4.0 % below 1.
    """
    small = gain < 1.1
    places = 2 if gain < 10 else 1 if gain < 100 else 0

    def said(value: float) -> str:
        share = 1 - 1 / value if less else value - 1
        return f"{share * 100:.1f} %" if small else f"{value:,.{places}f}"

    words = said(gain) if small else f"{said(gain)}×"
    return words if interval is None else f"{words} [{said(interval[0])}, {said(interval[1])}]"
