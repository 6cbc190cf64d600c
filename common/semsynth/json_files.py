"""JSON files that others wrote, read without an assumption about what is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .paths import read_text


def read_json(path: str | Path, *, missing: str = "check the path", damaged: str = "correct it") -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        missing: remedy where it is not there, for the message.
        damaged: remedy where it is no JSON, for the message.

    Raises:
        InputError: for a file that is missing, cannot be read, is no UTF-8 or no JSON, is nested beyond all measure,
            or larger than any such text; for a pipe or a device, which may have no end.
    """
    try:
        return json.loads(read_text(path))
    except InputError:
        raise
    except FileNotFoundError as reason:
        raise InputError(f"{path}: no such file; {missing}") from reason
    except OSError as reason:
        raise InputError(f"{path}: cannot be read ({reason.strerror or reason}); check the path and its permissions"
                         ) from reason  # fmt: skip
    except RecursionError as reason:
        raise InputError(f"{path}: not valid JSON (nested too deeply); {damaged}") from reason
    except ValueError as reason:  # no JSON, no UTF-8, a number of thousands of digits, a path that is none
        raise InputError(f"{path}: not valid JSON ({reason}); {damaged}") from reason


def read_object(path: str | Path, *, missing: str = "check the path", damaged: str = "correct it") -> dict[str, Any]:
    """A file that holds one JSON object; arguments as in :func:`read_json`.

    Raises:
        InputError: as :func:`read_json`, and for anything else than an object.
    """
    content = read_json(path, missing=missing, damaged=damaged)
    if not isinstance(content, dict):
        raise InputError(f"{path}: needs to be a JSON object, found {type(content).__name__}; {damaged}")
    return content


def read_object_or_none(path: str | Path) -> dict[str, Any] | None:
    """A file that holds one JSON object; None for any other, and where there is none.

    For records that are made again, or done without, where they are damaged.
    """
    try:
        return read_object(path)
    except InputError:
        return None


def finite(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity as null, of which JSON has neither, and tuples as lists.

    Args:
        value: mappings, lists and tuples of numbers and texts.
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
