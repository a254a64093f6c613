"""What went wrong, said in one sentence: what was wanted, what was found, what to do."""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable

from greenbench.contract.privacy import keep_private
from greenbench.contract.terminal import visible

USAGE_EXIT = 2
SAID = ("error: ", "failed: ")  # what a command's last word to a person starts with


class UserError(Exception):
    """Something the person can put right. Its text is the whole message; commands exit with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known word and lists the rest, for an 'unknown X' sentence."""
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=1)
    hint = f"did you mean '{close[0]}'? Known" if close else "known"
    return f"{hint}: {', '.join(words) or '(none)'}."


def exit_on_user_error(command: Callable[[], int | None]) -> int:
    """The boundary of every command: a person's error is one line on stderr and exit code 2.

    So is a file or folder that the system refuses (full disk, no permission, read-only). A reader of
    stdout that went away (``| head``) ends the command without a word. GREENBENCH_PRIVATE holds from here on.
    """
    keep_private()
    try:
        return command() or 0
    except UserError as error:
        say_error(error)
        return USAGE_EXIT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno is None:
            raise
        say_error(system_sentence(error))
        return USAGE_EXIT
    except RecursionError:
        say_error("the input is nested too deeply to be read")
        return USAGE_EXIT
    except KeyboardInterrupt:
        return 130


def say_error(what: object) -> None:
    """On stderr, in one line."""
    print(f"error: {visible(what)}", file=sys.stderr)


def system_sentence(error: OSError) -> str:
    """e.g. ``runs/a/manifest.json: No space left on device``."""
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename else why


def sentence_of(output: str) -> str | None:
    """The last sentence that a command printed for people, without its first word; None when it left none."""
    for line in reversed(output.splitlines()):
        for start in SAID:
            if line.strip().startswith(start):
                return line.strip().removeprefix(start)
    return None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(code: int) -> str:
    """Of a process that left no word, e.g. ``it died of SIGILL (Illegal instruction)``."""
    if code >= 0:
        return f"it ended with {code}"
    return f"it died of {signal_name(-code)} ({signal.strsignal(-code)})"
