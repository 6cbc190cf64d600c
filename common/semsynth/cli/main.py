"""The ``semsynth`` command line, shown by ``semsynth COMMAND --help``."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence

import fire
import fire.core

from .. import __version__
from ..errors import InputError
from .datasets import FailedCheck, check, choose_k, phantom, prepare, prepare_maps
from .systems import convert, evaluate, export, picture, weights

COMMANDS: dict[str, Callable[..., str]] = {
    "phantom": phantom,
    "check": check,
    "prepare": prepare,
    "prepare-maps": prepare_maps,
    "choose-k": choose_k,
    "evaluate": evaluate,
    "picture": picture,
    "weights": weights,
    "convert": convert,
    "export": export,
}
LISTS = ("--synthetic", "--weights", "--in-loss")  # options of evaluate and picture that take several values


def _join_lists(arguments: Sequence[str]) -> list[str]:
    """``--synthetic a=x b=y`` as one value, a list; Fire would take ``b=y`` for an argument of its own."""
    joined: list[str] = []
    values: dict[str, list[str]] = {}
    current: list[str] | None = None
    for argument in arguments:
        name, _, first = argument.partition("=")
        if name.replace("_", "-") in LISTS:
            current = values.setdefault(name.replace("_", "-"), [])  # given twice, it goes on
            current += [first] if first else []
        elif current is not None and not argument.startswith("--"):
            current.append(argument)
        else:
            current = None
            joined.append(argument)
    end = joined.index("--") if "--" in joined else len(joined)
    return [*joined[:end], *(part for name, found in values.items() for part in (name, repr(found))), *joined[end:]]


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse unknown commands and options before anything runs: Fire would run first and complain afterwards."""
    command = arguments[0]
    if command.startswith("-"):
        return
    if command not in COMMANDS:
        raise InputError(f"no command {command!r}; {_hint(command, list(COMMANDS))}")
    known = [name.replace("_", "-") for name in inspect.signature(COMMANDS[command]).parameters]
    for argument in arguments[1:]:
        if argument.startswith("--") and argument not in ("--", "--help"):
            name = argument[2:].split("=")[0].replace("_", "-")
            negated = name.removeprefix("no")
            if name not in known and negated not in known:
                raise InputError(f"semsynth {command} has no option --{name}; {_hint(name, known)}")


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 done, 1 bad input or errors found, 2 wrong usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"semsynth {__version__}")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    fire.core.Display = lambda lines, out: print(*lines, sep="\n", file=out)  # help without a pager
    try:
        if arguments:
            _check_options(arguments)
        arguments = _join_lists(arguments) if arguments[:1] in (["evaluate"], ["picture"]) else arguments
        fire.Fire(COMMANDS, command=arguments or ["--help"], name="semsynth")
    except FailedCheck as result:
        print(result)
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error.filename or ''}: {error.strerror or error}; check the path and its permissions",
            file=sys.stderr,
        )
        return 1
    except fire.core.FireExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
