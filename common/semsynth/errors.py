"""The one error type for mistakes in what the user gave (files, options, configs), shown without a traceback."""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Sequence
from types import TracebackType

from .booleans import misread
from .signals import end_on_sigterm
from .texts import log_plainly, shown
from .texts import message as one_line

_PATHS = re.compile(r"(.*_(dir|root)|((?!class_).*_)?weights|label_maps|images|style_from|style_map|(.*_)?datalists?"
                    r"|metadata|rules|style|map_bundle|given|pseudonyms)")  # fmt: skip
"""Names of the bundles' options that are paths."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WITH_PARTS = re.compile(r"label_maps|images|style_from|style_map")
"""Those of them that may mean a part of a file, behind a ``#``."""


_MEMORY_SIGNS = (
    "out of memory", "out of shared memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
    "failed to allocate memory", "memoryerror: ", "std::bad_alloc", "alloc_failed", "killed by signal: killed",
)  # fmt: skip
_IN_TRACEBACK = re.compile(
    r"^[\w.]*\b(?:InputError|FindingError): (.*?)(?=\n\n(?:The above|During handling)|\Z)", re.MULTILINE | re.DOTALL
)
LESS_MEMORY = (
    "what needs less: in a synthesis smaller label maps, windows (the overlay sliding_window.json, --window, "
    "--window_size), a larger --spacing or --batch_size 1; in a training a smaller --patch_size or --cache_rate, or "
    "fewer --num_workers; in both --device cpu, where that has more memory"
)


class InputError(ValueError):
    """Bad input: the message names the case or file, what was found, what is needed and what to do.

    Args:
        message: the whole message, or its first line when ``problems`` are given.
        problems: one line per bad case, listed under the message, so that all of a run's bad cases are seen at once.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        message = _of_worker(message) or message
        super().__init__("\n".join([one_line(message), *(f"  - {one_line(problem)}" for problem in self.problems)]))


def say_plainly() -> None:
    """From here on an :class:`InputError`, or a file that cannot be read or written, ends a run with its message alone.

    Bundles call this first: MONAI wraps an error in several others, one for each level of the config, and the message
    that says what to do stands far above the end. Every other error keeps its traceback.
    SIGTERM ends the run so that nothing half-written stays.

    Raises:
        InputError: where a path was typed that MONAI's command line reads as a number or the like: see
            :func:`refuse_misread_paths`; where a boolean was typed that it reads as a text.
    """
    if not getattr(sys.excepthook, "says_plainly", False):
        _install_hook()
    end_on_sigterm()
    log_plainly()
    for handler in logging.getLogger().handlers:
        handler.addFilter(_SAID_AT_THE_END)
    if not re.search(r"monai[/\\.]bundle", sys.argv[0]):
        return  # a program that runs the bundle has options of its own
    refuse_misread_paths(sys.argv[1:])
    if (wrong := misread(sys.argv[1:], _PATHS)) is not None:
        raise InputError(wrong)


def is_plain(error: object) -> bool:
    """Whether what ends a run is no fault of the program: its traceback would tell a user nothing."""
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _FULL
    return isinstance(error, InputError | KeyboardInterrupt | SystemExit)


class _SaidAtTheEnd(logging.Filter):
    """Holds back what engines log of an error that ends the run with one line anyway: it would stand there twice."""

    def filter(self, record: logging.LogRecord) -> bool:
        ends = record.levelno >= logging.ERROR and record.name.startswith("ignite.engine")
        return not (ends and is_plain(sys.exc_info()[1]))  # logged where the error is caught and raised again


_SAID_AT_THE_END = _SaidAtTheEnd()


def _install_hook() -> None:
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not is_plain(cause):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, InputError):
            sys.stderr.write(f"error: {cause}\n")
        elif isinstance(cause, KeyboardInterrupt):
            sys.stderr.write("interrupted; what is finished stays, and the same command goes on from here\n")
            raise SystemExit(130)  # python -m would end with 1
        elif isinstance(cause, OSError):
            sys.stderr.write(f"error: {os_error_line(cause)}\n")
        elif (told := _of_worker(str(error))) is not None:
            sys.stderr.write(f"error: {told}\n")
        elif is_out_of_memory(error):
            sys.stderr.write(f"error: out of memory ({_what_ran_out(error)}); {LESS_MEMORY}\n")
        else:
            before(kind, error, traceback)

    hook.says_plainly = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def os_error_line(error: OSError) -> str:
    """What could not be read or written, why, and what to do, in one line."""
    file = "" if error.filename is None else f"{shown(error.filename)}: "
    fix = "free disk space, or write elsewhere" if error.errno in _FULL else "check the path and its permissions"
    return f"{file}{shown(error.strerror or error)}; {fix}"


def refuse_misread_paths(arguments: Sequence[str]) -> None:
    """Refuse paths that are not those which were typed, once MONAI's command line has read them.

    Fire reads ``2024_11_28`` as the number 20241128, ``a,b`` as a tuple and ``run#2`` as ``run`` and a comment; MONAI's
    configs turn ``#`` into ``::``. What was typed is nowhere but here.

    Args:
        arguments: arguments of the process, ``--output_dir x`` or ``--output_dir=x``.

    Raises:
        InputError: naming the option, and how to write it.
    """
    try:
        from fire.parser import DefaultParseValue
    except ImportError:  # then nothing was typed: MONAI's command line is Fire's
        return
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, typed = argument.removeprefix("--").partition("=")
        typed = typed if equals else following
        option = re.split("#|::", name)[-1].replace("-", "_")
        if not argument.startswith("--") or typed.startswith("--") or not _PATHS.fullmatch(option):
            continue
        value = DefaultParseValue(typed)
        parts = _WITH_PARTS.fullmatch(option)
        if "#" in typed and (not parts or "#" not in str(value)):
            fix = f"write --{name} './{typed}'" if parts else "give a path without '#'"
            raise InputError(f"--{name} {typed}: MONAI's command line makes another path of one with '#'; {fix}")
        if isinstance(value, str | list | dict | bool | None):
            continue
        raise InputError(
            f"{name} must be text, but {typed} is read as {value!r} ({type(value).__name__}); write --{name} ./{typed}"
            f" or --{name} \"'{typed}'\""
        )


def _of_worker(text: str) -> str | None:
    """The message of an :class:`InputError` that a data loader's process met: torch hands it on within a traceback."""
    if "Original Traceback" not in text:
        return None
    found = _IN_TRACEBACK.search(text)
    return None if found is None else found[1].strip()


def _what_ran_out(error: BaseException) -> str:
    """The line that says it, of a text that may be a whole traceback."""
    found = _memory_error(error) or error
    lines = str(found).splitlines() or [type(found).__name__]
    telling = [line for line in lines if any(sign in line.lower() for sign in _MEMORY_SIGNS)]
    return (telling or lines)[0].strip()[:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that memory ran out, on a GPU or on the CPU.

    torch has no one class for both.
    """
    return _memory_error(error) is not None


def _memory_error(error: BaseException) -> BaseException | None:
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        text = str(seen).lower()
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return seen
        if any(sign in text for sign in _MEMORY_SIGNS):
            return seen
        seen = seen.__cause__
    return None
