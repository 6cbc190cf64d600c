"""Values of label maps and masks: whole numbers that a file holds as floats, and numbers in messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHOLE = 1e-3
"""A value so close to a whole number is one: files with a scale factor, and float files, hold 1 as 1.00000006."""
SHOWN = 6


def rounded(data: NDArray[Any]) -> NDArray[Any]:
    """Label values as whole numbers, where all of them are within 1e-3 of one.

    Args:
        data: values of a label map or mask, of any shape.

    Returns:
        The data itself where its type is a whole number's, or where a value is further off, not finite, or beyond
        int32; else int32 of the same shape. (``astype`` alone makes 0 of 0.9999.)
    """
    if data.dtype.kind != "f" or data.size == 0:
        return data
    if not (data.min() > -(2**31) and data.max() < 2**31 - 1):  # NaN is in no range
        return data
    whole = np.rint(data)
    if np.abs(data - whole).max() > WHOLE:
        return data
    return np.asarray(whole, dtype=np.int32)


def off_whole(data: NDArray[Any]) -> NDArray[Any]:
    """The distinct values of ``data`` (finite) that are no whole numbers, in rising order."""
    if data.dtype.kind != "f":
        return data[:0].ravel()
    return np.unique(data[data != np.rint(data)])


def digits(value: Any) -> str:
    """A number with as few digits as show what it is: never a whole number's for one that is not whole."""
    number = float(value)
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    text = f"{number:.6g}"
    return str(value) if float(text).is_integer() else text


def listed(values: Collection[Any]) -> str:
    """The first values, with commas."""
    shown = [digits(value) for value in list(values)[:SHOWN]]
    return ", ".join(shown) + (", …" if len(values) > len(shown) else "")
