"""Every command of this project, by its own parser: what its help says, and whether a line would be read.

    python -m scripts.command_lines                  the reference of all commands, as Markdown
    python -m scripts.command_lines --faults         JSON on stdin → JSON list of faults (null: none)

Nothing is run. Parsers are caught when they are about to read the words of this program.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import typer.main

from greenbench import cli
from greenbench.contract.command_name import TYPED_AS
from greenbench.contract.installation import ROOT

WIDTH = "88"
# what people and programs start, in the order in which the reference shows it
STAGES = {
    "python -m servers": "servers.__main__",
    "python -m loadgen": "loadgen.__main__",
    "python -m loadgen.openloop": "loadgen.openloop",
    "python -m loadgen.search": "loadgen.search",
    "python -m telemetry": "telemetry.__main__",
    "python -m gateway": "gateway.__main__",
    "python -m analysis": "analysis.__main__",
    "python -m planning": "planning.__main__",
    "python -m greenbench.contract": "greenbench.contract.__main__",
}
INTERNAL = {"enough", "verdict", "traces", "fit"}  # for programs: docs/contract.md has them


class CaughtParser(BaseException):  # passes through every `except Exception`
    """The parser that was about to read."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


class NotReadError(Exception):
    """A line that its parser refuses; ``incomplete``: only something that must be given is missing."""

    def __init__(self, said: str, incomplete: bool) -> None:
        super().__init__(said)
        self.incomplete = incomplete


@dataclass(frozen=True)
class Stage:
    """What a `greenbench` command hands its words to."""

    module: str
    words: tuple[str, ...]


def parser_of(module: str) -> argparse.ArgumentParser:
    """Of a module whose `main` reads its words with argparse."""

    def caught(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise CaughtParser(parser)

    read: Callable[[], object] = importlib.import_module(module).main
    with mock.patch.object(
        argparse.ArgumentParser, "parse_known_args", caught
    ):  # parse_args asks it
        try:
            read()
        except CaughtParser as found:
            return found.parser
    raise AssertionError(f"{module}.main() reads no command line")


@cache
def locust_parser() -> argparse.ArgumentParser:
    """Locust's, with the options of our file."""
    importlib.import_module("loadgen.longctx")
    return importlib.import_module("locust.argument_parser").get_parser()


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


# --- greenbench itself


def root() -> Any:
    return typer.main.get_command(cli.app)


def descend(words: Sequence[str]) -> tuple[Any, list[str], list[str]]:
    """The command that ``words`` (after `greenbench`) name, its name, and its own words."""
    command, name, rest = root(), ["greenbench"], list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        name.append(rest[0])
        command = command.commands[rest.pop(0)]
    return command, name, rest


def stage_of(command: Any, name: Sequence[str], words: Sequence[str]) -> Stage | None:
    """The stage that reads a command's words, where it does not read them itself."""
    if not command.context_settings.get("ignore_unknown_options"):
        return None
    started: list[list[str]] = []

    def passed(argv: list[str]) -> int:
        started.append(argv)
        return 0

    with mock.patch.object(cli, "passthrough", passed), contextlib.suppress(typer.Exit):
        context = command.make_context(" ".join(name), list(words))
        with context:
            command.invoke(context)
    os.environ.pop(TYPED_AS, None)
    module, *handed = started[0][started[0].index("-m") + 1 :]
    return Stage(f"{module}.__main__", tuple(handed))


# --- faults


def fault(words: Sequence[str], whole: bool = True) -> str | None:
    """Why the command's parser would not read ``words``. ``whole`` false: a piece of a line will do."""
    try:
        _read(list(words))
    except NotReadError as found:
        return None if found.incomplete and not whole else str(found)
    return None


def _read(words: list[str]) -> None:
    match words:
        case ["greenbench", *rest]:
            _read_greenbench(rest)
        case ["python", "-m", "loadgen.longctx", *rest] | ["locust", *rest]:
            _read_argparse(locust_parser(), rest)
        case ["python", "-m", module, *rest]:
            _read_module(module, rest)
        case ["python", script, *rest] if script.startswith("scripts/"):
            _read_module(script.removesuffix(".py").replace("/", "."), rest)
        case _:
            raise NotReadError(f"no parser is known of {words[:3]}", incomplete=False)


def _read_module(module: str, words: list[str]) -> None:
    inside = ROOT / module.replace(".", "/")
    path = inside / "__main__.py" if inside.is_dir() else inside.with_suffix(".py")
    if not path.exists():
        raise NotReadError(f"there is no module {module}", incomplete=False)
    if path.name == "__main__.py":
        module += ".__main__"
    source = path.read_text()
    if "def main(" in source and ".parse_args(" in source + _beside(path, "options.py"):
        with contextlib.suppress(
            ModuleNotFoundError
        ):  # torch and vLLM are in a Python of their own
            return _read_argparse(parser_of(module), words)
    unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
    if unknown:
        raise NotReadError(f"{module} does not name {', '.join(unknown)}", incomplete=False)
    return None


def _beside(path: Path, name: str) -> str:
    return (path.parent / name).read_text() if (path.parent / name).exists() else ""


def _read_greenbench(words: list[str]) -> None:
    command, name, rest = descend(words)
    if stage := stage_of(command, name, rest):
        return _read_argparse(parser_of(stage.module), list(stage.words))
    if hasattr(
        command, "commands"
    ):  # its options act as soon as they are read (--install-completion)
        known = {"--help", *(option for param in command.params for option in param.opts)}
        if rest and rest[0] not in known:
            raise NotReadError(f"{' '.join(name)} has no {rest[0]}", incomplete=False)
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            command.make_context(" ".join(name), rest)
    except typer.Exit:
        pass
    except Exception as error:
        incomplete = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        raise NotReadError(str(error), incomplete) from None
    return None


def _read_argparse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    def error(_: argparse.ArgumentParser, message: str) -> NoReturn:
        raise NotReadError(message, incomplete="required" in message)

    with (
        mock.patch.object(argparse.ArgumentParser, "error", error),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),  # --help, --version
    ):
        parser.parse_args(words)


# --- the reference


def sections() -> Iterator[tuple[str, str]]:
    """Each command as it is typed, with its help."""
    for command, name in _commands(root(), ["greenbench"]):
        yield " ".join(name), _greenbench_help(command, name)
    for typed, module in STAGES.items():
        parser = parser_of(module)
        yield typed, parser.format_help()
        for name, sub in subparsers(parser).items():
            if name not in INTERNAL:
                yield f"{typed} {name}", sub.format_help()
    yield "python -m loadgen.longctx", _own_options(locust_parser())


def _commands(command: Any, name: list[str]) -> Iterator[tuple[Any, list[str]]]:
    yield command, name
    for word, below in getattr(command, "commands", {}).items():
        yield from _commands(below, [*name, word])


def _greenbench_help(command: Any, name: Sequence[str]) -> str:
    typed = " ".join(name)
    if stage := stage_of(command, name, []):
        os.environ[TYPED_AS] = typed
        try:
            parser = parser_of(stage.module)
        finally:
            del os.environ[TYPED_AS]
        return subparsers(parser)[stage.words[0]].format_help()
    command.rich_markup_mode = None
    return command.get_help(command.context_class(command, info_name=typed))


def _own_options(parser: argparse.ArgumentParser) -> str:
    """Of Locust's help our part: the rest is Locust's manual."""
    from loadgen.longctx import __doc__ as said

    formatter = argparse.HelpFormatter(prog="python -m loadgen.longctx", width=int(WIDTH))
    for group in parser._action_groups:
        if group.title and "greenbench" in group.title.lower():
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
    first, ways, *_ = (said or "").split("\n\n")
    return f"{first.strip()}\n\n{ways}\n\n{formatter.format_help()}"


def reference() -> str:
    lines = [
        "# Commands",
        "",
        "What each command says of itself with `--help`, by the parser that reads it.",
        "",
    ]
    for typed, said in sections():
        lines += [f"## {typed}", "", "```text", said.rstrip(), "```", ""]
    return "\n".join(lines)


def main() -> int:
    os.environ["COLUMNS"] = WIDTH
    if sys.argv[1:] == ["--faults"]:
        asked = json.load(sys.stdin)
        with contextlib.redirect_stdout(sys.stderr):
            found = [fault(each["words"], each["whole"]) for each in asked]
        json.dump(found, sys.stdout)
        return 0
    sys.argv = sys.argv[:1]
    print(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
