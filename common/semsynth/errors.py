"""The one error type for mistakes in what the user gave (files, options, configs), shown without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input: the message names the case or file, what was found, what is needed and what to do.

    Args:
        message: the whole message, or its first line when ``problems`` are given.
        problems: one line per bad case, listed under the message, so that all of a run's bad cases are seen at once.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))
