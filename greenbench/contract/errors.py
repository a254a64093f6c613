"""What went wrong, said in one sentence: what was wanted, what was found, what to do."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable

USAGE_EXIT = 2


class UserError(Exception):
    """Something the person can put right. Its text is the whole message; commands exit with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known word and lists the rest, for an 'unknown X' sentence."""
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(words) or '(none)'}."


def exit_on_user_error(command: Callable[[], int | None]) -> int:
    """Run a command; print a UserError as one line on stderr and turn it into exit code 2."""
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_EXIT
    except KeyboardInterrupt:
        return 130


def how_it_ended(code: int) -> str:
    """Of a process that left no word, e.g. ``it died of SIGILL (Illegal instruction)``."""
    if code >= 0:
        return f"it ended with {code}"
    return f"it died of {signal.Signals(-code).name} ({signal.strsignal(-code)})"
