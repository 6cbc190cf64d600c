"""The ``semsynth`` command line, shown by ``semsynth COMMAND --help``."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import fire
import fire.core

from .. import __version__
from ..errors import InputError, is_out_of_memory, os_error_line
from ..memory import LESS_TO_EVALUATE, LESS_TO_PREPARE, out_of_memory
from ..signals import Terminated, end_on_sigterm
from ..texts import log_plainly, shown
from .auditing import audit
from .augmenting import augment
from .datasets import FailedCheck, check, choose_k, phantom, prepare, prepare_maps, pseudonymise
from .options import as_typed, booleans_of, texts_of
from .study import compare, study
from .systems import convert, dicom, evaluate, export, picture, reproduce, weights
from .trusting import sign, verify

COMMANDS: dict[str, Callable[..., str]] = {
    "phantom": as_typed(phantom),
    "check": as_typed(check),
    "prepare": as_typed(prepare),
    "prepare-maps": as_typed(prepare_maps),
    "choose-k": as_typed(choose_k),
    "pseudonymise": as_typed(pseudonymise),
    "evaluate": as_typed(evaluate),
    "picture": as_typed(picture),
    "weights": as_typed(weights),
    "convert": as_typed(convert),
    "export": as_typed(export),
    "dicom": as_typed(dicom),
    "reproduce": as_typed(reproduce),
    "compare": as_typed(compare),
    "augment": as_typed(augment),
    "study": as_typed(study),
    "audit": as_typed(audit),
    "verify": as_typed(verify),
    "sign": as_typed(sign),
}
MORE = "end other programs, or use a larger machine"
LESS_MEMORY = {
    "phantom": "give a smaller --size",
    "check": "give fewer --jobs",
    "prepare": LESS_TO_PREPARE,
    "prepare-maps": LESS_TO_PREPARE,
    "choose-k": "give a larger --spacing",
    "evaluate": LESS_TO_EVALUATE,
    "picture": "give fewer --cases or --samples",
    "export": "give a smaller --size",
    "dicom": "give fewer volumes, or --label none",
    "audit": "give fewer --synthetic volumes at a time",
    "augment": "give smaller label maps, or a GPU with --device cuda",
}
"""Command → the settings that need less memory."""
LISTS = ("--synthetic", "--weights", "--in-loss", "--heldout")  # options that take several values, of:
TAKE_LISTS = ("evaluate", "picture", "audit")
FIRST_WORDS = {"dicom": "--volume", "verify": "--path", "sign": "--path"}
"""Command → the option whose value may stand alone, in front."""


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Logs to what is standard error when it logs: a program that calls :func:`main` may change it between calls."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


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
    texts = {name.replace("_", "-"): is_path for name, is_path in texts_of(COMMANDS[command]).items()}
    switches = [name.replace("_", "-") for name in booleans_of(COMMANDS[command])]
    for argument, following in zip(arguments[1:], [*arguments[2:], "--"], strict=False):
        if argument == "--":
            return
        if argument.startswith("--") and argument != "--help":
            name, equals, value = argument[2:].partition("=")
            following = "" if equals else following
            name = name.replace("_", "-")
            bare = not equals and following.startswith("--")
            if name in texts and (bare or (texts[name] and not (value or following))):
                raise InputError(f"--{name} needs a value")  # Fire would make it the text True
            negated = name.removeprefix("no")
            if name not in known and negated in switches and not bare:
                raise InputError(f"--{name} stands alone; --{negated} takes yes or no")
            if name not in known and negated not in switches:
                raise InputError(f"semsynth {command} has no option --{name}; {_hint(name, known)}")
    _refuse_stray_words(command, arguments[1:])


def _refuse_stray_words(command: str, arguments: Sequence[str]) -> None:
    """A word that belongs to no option, such as files of a pattern that was not quoted."""
    several = [name.removeprefix("--") for name in LISTS] if command in TAKE_LISTS else []
    option = ""
    taken = 0  # words behind the option, one for its value
    for argument in arguments:
        if argument == "--":
            return
        if argument.startswith("--"):
            name, equals, _ = argument[2:].partition("=")
            option, taken = name.replace("_", "-"), 1 if equals else 0
        elif argument != "-h" and (not option or (taken and option not in several)):
            raise InputError(
                f"semsynth {command}: the word {argument!r} belongs to no option; values stand behind --OPTION, lists "
                "without spaces (1,1,1), patterns and names with spaces in quotes"
            )
        else:
            taken += 1


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 done, 1 bad input or errors found, 2 wrong usage, 130 interrupted, 143 told to end (SIGTERM),
        141 ended because no program reads what it writes. A command whose work is done keeps its own status, also where
        no program reads its result.
    """
    end_on_sigterm()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        _write_nowhere()
        return 141  # as a shell says it of a program that the signal SIGPIPE ended


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        _print(f"semsynth {__version__}")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", handlers=[_ToStandardError()])
    log_plainly()
    fire.core.Display = lambda lines, out: print(*lines, sep="\n", file=out)  # help without a pager
    try:
        arguments = _first_word(_study_compare(arguments))
        if arguments:
            _check_options(arguments)
        arguments = _join_lists(arguments) if arguments and arguments[0] in TAKE_LISTS else arguments
        result = fire.Fire(COMMANDS, command=arguments or ["--help"], name="semsynth", serialize=_printed_later)
        if isinstance(result, str):
            _print(result)
    except FailedCheck as failed:
        _print(str(failed))
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            print(f"error: {out_of_memory(arguments[0], LESS_MEMORY.get(arguments[0], MORE), error)}", file=sys.stderr)
            return 1
        if not isinstance(error, OSError):
            raise
        print(f"error: {os_error_line(error)}", file=sys.stderr)
        return 1
    except fire.core.FireExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Terminated as error:
        print("ended by SIGTERM; the same command goes on from here", file=sys.stderr)
        return int(str(error.code))
    return 0


def _study_compare(arguments: list[str]) -> list[str]:
    """``study compare A B …`` as ``compare --scores A --baseline B …``."""
    if arguments[:2] != ["study", "compare"]:
        return arguments
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    sides, rest = arguments[2:first], arguments[first:]
    if len(sides) not in (0, 2):
        raise InputError(f"semsynth study compare takes two files or folders of scores, got {len(sides)}")
    return ["compare", *(word for pair in zip(("--scores", "--baseline"), sides, strict=False) for word in pair), *rest]


def _first_word(arguments: list[str]) -> list[str]:
    """``dicom VOLUME …`` as ``dicom --volume VOLUME …``."""
    option = FIRST_WORDS.get(arguments[0]) if arguments else None
    if option is None or len(arguments) < 2 or arguments[1].startswith("-"):
        return arguments
    return [arguments[0], option, *arguments[1:]]


def _printed_later(result: Any) -> Any:
    """What Fire is to print of a result: nothing, where it is a command's text."""
    return None if isinstance(result, str) else result


def _print(text: str) -> None:
    """Print a result; ``semsynth check | head`` has what it wants and closes the pipe."""
    try:
        print(shown(text, lines=True), flush=True)
    except BrokenPipeError:
        _write_nowhere()


def _write_nowhere() -> None:
    """No program reads this process's output any more: what Python still flushes at its end must not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
