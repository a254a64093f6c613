"""How many of something, and from how many to how many, in words."""


def counted(n: int, noun: str, one: str = "", many: str = "") -> str:
    """``1 point``, ``2 points``; with verbs ``1 point is``, ``2 points are``. The plural adds an s."""
    return f"{n} {noun} {one}".rstrip() if n == 1 else f"{n} {noun}s {many}".rstrip()


def ranged(low: int, high: int) -> str:
    """``4,096``; ``1,000 to 3,000``. Of numpy's whole numbers too."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
