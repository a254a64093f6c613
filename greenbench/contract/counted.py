"""How many of something, in words."""


def counted(n: int, noun: str, one: str = "", many: str = "") -> str:
    """``1 point``, ``2 points``; with verbs ``1 point is``, ``2 points are``. The plural adds an s."""
    return f"{n} {noun} {one}".rstrip() if n == 1 else f"{n} {noun}s {many}".rstrip()
