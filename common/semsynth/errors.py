"""The one error type for mistakes in what the user gave (files, options, configs), shown without a traceback."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from types import TracebackType

_PATHS = re.compile(r"(.*_(dir|root)|((?!class_).*_)?weights|label_maps|images|style_from|style_map|(.*_)?datalists?"
                    r"|metadata)")  # fmt: skip
"""Names of the bundles' options that are paths."""


_MEMORY_SIGNS = (
    "out of memory", "out of shared memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
    "failed to allocate memory", "std::bad_alloc", "alloc_failed", "killed by signal: killed",
)  # fmt: skip
_IN_TRACEBACK = re.compile(
    r"^[\w.]*\b(?:InputError|FindingError): (.*?)(?=\n\n(?:The above|During handling)|\Z)", re.MULTILINE | re.DOTALL
)
LESS_MEMORY = (
    "what needs less: in a synthesis smaller label maps, windows (the overlay sliding_window.json, --window, "
    "--window_size) or --batch_size 1; in a training a smaller --patch_size or --cache_rate, or fewer --num_workers; "
    "in both --device cpu, where that has more memory"
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
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


def say_plainly() -> None:
    """From here on an :class:`InputError`, or a file that cannot be read or written, ends a run with its message alone.

    Bundles call this first: MONAI wraps an error in several others, one for each level of the config, and the message
    that says what to do stands far above the end. Every other error keeps its traceback.

    Raises:
        InputError: where a path was typed that MONAI's command line reads as a number or the like: see
            :func:`refuse_misread_paths`.
    """
    if not getattr(sys.excepthook, "says_plainly", False):
        _install_hook()
    refuse_misread_paths(sys.argv[1:])


def _install_hook() -> None:
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError) and getattr(cause, "filename", None) is None:
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, InputError):
            sys.stderr.write(f"error: {cause}\n")
        elif isinstance(cause, OSError):
            sys.stderr.write(f"error: {cause.filename}: {cause.strerror}; check the path and its permissions\n")
        elif (told := _of_worker(str(error))) is not None:
            sys.stderr.write(f"error: {told}\n")
        elif is_out_of_memory(error):
            sys.stderr.write(f"error: out of memory ({_first_line(error)}); {LESS_MEMORY}\n")
        else:
            before(kind, error, traceback)

    hook.says_plainly = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def refuse_misread_paths(arguments: Sequence[str]) -> None:
    """Refuse paths that Fire, which reads MONAI's command line, takes for something else than text.

    It reads ``2024_11_28`` as the number 20241128 and ``a,b`` as a tuple; what was typed is nowhere but here.

    Args:
        arguments: of the process, ``--output_dir x`` or ``--output_dir=x``.

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
        if not argument.startswith("--") or typed.startswith("--") or not _PATHS.fullmatch(re.split("#|::", name)[-1]):
            continue
        value = DefaultParseValue(typed)
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that memory ran out, on a GPU or on the CPU.

    torch has no one class for both.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        text = str(seen).lower()
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        if any(sign in text for sign in _MEMORY_SIGNS) or "\nmemoryerror" in text:
            return True
        seen = seen.__cause__
    return False
