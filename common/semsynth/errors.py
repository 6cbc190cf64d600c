"""The one error type for mistakes in what the user gave (files, options, configs), shown without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType


class InputError(ValueError):
    """Bad input: the message names the case or file, what was found, what is needed and what to do.

    Args:
        message: the whole message, or its first line when ``problems`` are given.
        problems: one line per bad case, listed under the message, so that all of a run's bad cases are seen at once.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


def say_plainly() -> None:
    """From here on a run that ends with an :class:`InputError` prints its message and no traceback.

    Bundles call this first: MONAI wraps an error in several others, one for each level of the config, and the message
    that says what to do stands far above the end. Every other error keeps its traceback.
    """
    if getattr(sys.excepthook, "says_plainly", False):
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            before(kind, error, traceback)
        else:
            sys.stderr.write(f"error: {cause}\n")

    hook.says_plainly = True  # type: ignore[attr-defined]
    sys.excepthook = hook
