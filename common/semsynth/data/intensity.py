"""How the intensities of an image become [0, 1], and what a data set or weights state of it (free of torch)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..json_files import read_object_or_none
from ..vocabulary import PREPARED
from .volumes import scale_intensity, stem

Kind: TypeAlias = Literal["percentiles", "min-max", "window"]
Ends: TypeAlias = tuple[float, float]
SCALES: tuple[str, ...] = get_args(Kind)
PERCENTILES: Ends = (0.0, 99.9)
"""In the 79 scans of la2018 the brightest voxel is 1.1 to 2.4 times percentile 99.9; a defective one is far more."""
UNIT: Ends = (0.0, 1.0)
HU = "HU"
AIR = -200.0
"""CT holds air, within the body too: a volume without a value below this one is not in Hounsfield units."""
PADDING = -1100.0
"""CT has no values below air, -1000 HU and noise; scanners and converters write -2000 or -3024 outside the field."""
INTENSITY = "intensity"
"""Key of a datalist, and of an entry that differs from its datalist."""


@dataclass(frozen=True)
class Scaling:
    """The rule by which the intensities of a volume become [0, 1].

    Attributes:
        scale: ``"percentiles"``: of the volume's own non-zero voxels, clipped beyond; percentile 0 is the minimum of
            all voxels. ``"window"``: the same two intensities for all volumes, clipped beyond. ``"min-max"``: the
            volume's own minimum and maximum, which one defective voxel can set.
        ends: the two percentiles, or the two intensities; None for ``"min-max"``.

    Raises:
        InputError: for another rule, or ends that do not rise.
    """

    scale: Kind = "percentiles"
    ends: Ends | None = PERCENTILES

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        if self.scale == "min-max":
            object.__setattr__(self, "ends", None)
            return
        if self.ends is None or len(self.ends) != 2 or not float(self.ends[0]) < float(self.ends[1]):
            raise InputError(f"{self.scale} must be two rising numbers, got {self.ends}")
        object.__setattr__(self, "ends", (float(self.ends[0]), float(self.ends[1])))
        if self.scale == "percentiles" and not 0 <= self.ends[0] < self.ends[1] <= 100:
            raise InputError(f"percentiles must lie in 0…100, got {self.ends}")

    def window(self, image: NDArray[Any]) -> Ends:
        """The intensities of ``image`` that become 0 and 1.

        Raises:
            InputError: for an image whose two ends are one intensity.
        """
        if self.scale == "window":
            return cast(Ends, self.ends)
        least, most = float(image.min()), float(image.max())
        if most <= least:
            raise InputError(f"image is constant ({least:g}); check that it is the right file")
        if self.scale == "min-max":
            return least, most
        from_, to = cast(Ends, self.ends)
        content = image[image != 0]
        low = least if from_ == 0 else float(np.percentile(content, from_))
        high = most if to == 100 else float(np.percentile(content, to))
        if high <= low:
            raise InputError(
                f"percentiles {from_:g} and {to:g} of the non-zero voxels are one intensity ({high:g}), the image "
                f"reaches from {least:g} to {most:g}; use --scale min-max or a --window"
            )
        return low, high

    def __call__(self, image: NDArray[Any], window: Ends | None = None) -> NDArray[np.float32]:
        """Intensities of any unit → [0, 1], float32.

        Args:
            image: ``(H, W, D)``.
            window: result of :meth:`window` for the whole image, where ``image`` is a part of it or on another grid.

        Raises:
            InputError: as :meth:`window`.
        """
        if self.scale == "min-max" and window is None:
            return scale_intensity(image)
        return windowed(image, self.window(image) if window is None else window)

    def to_json(self) -> dict[str, Any]:
        """The form that datalists, cards and records hold."""
        return {"scale": self.scale} | ({} if self.ends is None else {self.scale: list(self.ends)})

    @classmethod
    def from_json(cls, content: Any, source: str | Path) -> Scaling:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: for anything else than its form.
        """
        try:
            scale = content["scale"]
            return cls(scale, None if scale == "min-max" else cast(Ends, tuple(content[scale])))
        except (KeyError, TypeError, ValueError, InputError) as reason:
            raise InputError(
                f'{source}: the rule of intensities must be such as {{"scale": "percentiles", "percentiles": '
                f'[0, 99.9]}}, {{"scale": "window", "window": [-1000, 1000]}} or {{"scale": "min-max"}}, '
                f"found {content!r}"
            ) from reason

    def __str__(self) -> str:
        """The rule in words, for cards and messages."""
        if self.scale == "min-max":
            return "each volume's minimum to 0, its maximum to 1"
        low, high = cast(Ends, self.ends)
        if self.scale == "window":
            return f"{low:g} to 0, {high:g} to 1, clipped beyond"
        least = "minimum" if low == 0 else f"percentile {low:g} of the non-zero voxels"
        return f"each volume's {least} to 0, its percentile {high:g} of the non-zero voxels to 1, clipped beyond"


MIN_MAX = Scaling("min-max", None)


def chosen_scaling(scale: str | None, percentiles: Ends | None, window: Ends | None) -> Scaling | None:
    """The rule that options of the command line ask for; None where they ask for none.

    Raises:
        InputError: for options that do not go together, or values out of range.
    """
    given = [name for name, ends in (("percentiles", percentiles), ("window", window)) if ends is not None]
    if len(given) > 1:
        raise InputError("--window and --percentiles are two rules; give one of them")
    kind = scale or (given[0] if given else None)
    if kind is None:
        return None
    if given and given != [kind]:
        raise InputError(f"--{given[0]} goes with --scale {given[0]}, got --scale {scale}")
    if kind == "window" and window is None:
        raise InputError("--scale window needs --window, the two intensities that become 0 and 1")
    return Scaling(cast(Kind, kind), window if kind == "window" else percentiles or PERCENTILES)


@dataclass(frozen=True)
class Intensity:
    """What the image files of a data set hold.

    Attributes:
        window: values of the files that networks see as 0 and 1, clipped beyond; None: not stated.
        scaling: the rule by which the values of the source's files became those; None: not known.
        unit: unit of ``unit_range``, such as ``"HU"``; empty where intensities have no unit.
        unit_range: values of 0 and 1 in that unit.
    """

    window: Ends | None = UNIT
    scaling: Scaling | None = None
    unit: str = ""
    unit_range: Ends | None = None

    def read(self, image: NDArray[Any], otherwise: Scaling = MIN_MAX) -> NDArray[np.float32]:
        """The values of a file → [0, 1], float32; by ``otherwise`` where no window is stated."""
        return otherwise(image) if self.window is None else windowed(image, self.window)

    def in_range(self, unit: str, unit_range: Ends | None) -> Intensity:
        """The same files read so that 0 and 1 are ``unit_range``, where both are in one unit; else as they are.

        Beyond the files' own window nothing is known: what was clipped stays clipped.
        """
        if self.window is None or self.unit_range is None or unit_range is None or self.unit != unit:
            return self
        step = (self.window[1] - self.window[0]) / (self.unit_range[1] - self.unit_range[0])
        low, high = (self.window[0] + (value - self.unit_range[0]) * step for value in unit_range)
        return self if unit_range == self.unit_range else replace(self, window=(low, high), unit_range=unit_range)

    def to_json(self) -> dict[str, Any]:
        """The form that datalists and records hold."""
        found: dict[str, Any] = {} if self.window is None else {"window": list(self.window)}
        found |= {} if self.scaling is None else {"scaling": self.scaling.to_json()}
        return found | ({} if self.unit_range is None else {"unit": self.unit, "unit_range": list(self.unit_range)})

    @classmethod
    def from_json(cls, content: Any, source: str | Path) -> Intensity:
        """The inverse of :meth:`to_json`; of a file in its unit (``{"window": [-1000, 1000], "unit": "HU"}``) the
        window is the range.

        Raises:
            InputError: for anything else than its form.
        """
        try:
            content = json.loads(content) if isinstance(content, str) else content
            window, unit = content.get("window"), str(content.get("unit", ""))
            span = content.get("unit_range", window if unit else None)
            scaling = content.get("scaling")
            found = cls(
                _ends(window), None if scaling is None else Scaling.from_json(scaling, source), unit, _ends(span)
            )
        except (AttributeError, RecursionError, TypeError, ValueError) as reason:
            raise InputError(
                f'{source}: "{INTENSITY}" must be such as {{"window": [0, 1]}} or {{"window": [-1000, 1000], "unit": '
                f'"HU"}}, the values of the files that are 0 and 1, found {content!r}'
            ) from reason
        return found


def one_rule(a: Intensity, b: Intensity) -> bool:
    """Whether the same tissue has the same intensity in [0, 1] by both: one range of one unit, or one rule.

    Where either is not stated, nothing speaks against it.
    """
    if None not in (a.unit_range, b.unit_range):
        return a.unit == b.unit and a.unit_range == b.unit_range
    return None in (a.scaling, b.scaling) or a.scaling == b.scaling


def no_air(image: NDArray[Any]) -> bool:
    """Whether a volume cannot be CT in Hounsfield units: padding aside, it has no value of air."""
    inside = image[image >= PADDING]
    return inside.size == 0 or float(inside.min()) > AIR


def windowed(image: NDArray[Any], window: Sequence[float]) -> NDArray[np.float32]:
    """Intensities ``(H, W, D)`` → [0, 1], float32: the two ends of ``window`` become 0 and 1, all beyond them too."""
    low, high = window
    result: NDArray[np.float32] = np.clip((image.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    return result


def stated_intensity(content: Mapping[str, Any], source: str | Path) -> Intensity | None:
    """What a datalist says of all its image files; None where it says nothing.

    Datalists of version 0.1.0 do not state it: of what ``semsynth prepare`` wrote it follows from the settings.

    Raises:
        InputError: where it says it in another form.
    """
    if content.get(INTENSITY) is not None:
        return Intensity.from_json(content[INTENSITY], source)
    settings = content.get("settings")
    if not isinstance(settings, Mapping) or "dtype" not in settings:
        return None
    window = settings.get("window")
    try:
        return Intensity(UNIT, Scaling("window", cast(Ends, _ends(window))) if window else MIN_MAX)
    except (TypeError, ValueError) as reason:
        raise InputError(f'{source}: "window" of its settings must be two rising numbers, found {window!r}') from reason


def entry_intensity(entry: Mapping[str, Any], stated: Intensity | None, source: str | Path) -> Intensity | None:
    """What holds of one entry: its own statement, else that of its datalist; None where neither says anything.

    Synthetic volumes without such a statement hold what a network made, in [0, 1].

    Raises:
        InputError: where the entry says it in another form.
    """
    if entry.get(INTENSITY) is not None:
        return Intensity.from_json(entry[INTENSITY], f"{source}, case {entry.get('case', '?')}")
    return Intensity() if stated is None and entry.get("synthetic") else stated


def intensity_beside(path: str | Path) -> Intensity | None:
    """What the record beside an image says that it holds: of a prepared image or a synthetic volume; else None."""
    path = Path(path)
    record = read_object_or_none(path.with_name(f"{stem(path)}.json"))
    if record is not None and record.get("synthetic"):
        return entry_intensity(record, None, path)
    record = read_object_or_none(path.with_name(PREPARED))
    return stated_intensity(record, path.with_name(PREPARED)) if record is not None and stem(path) == "image" else None


def _ends(values: Any) -> Ends | None:
    if values is None:
        return None
    low, high = (float(value) for value in values)
    if not -math.inf < low < high < math.inf:
        raise ValueError(values)
    return low, high


@dataclass(frozen=True)
class Stored:
    """How synthetic intensities in [0, 1] are written.

    Attributes:
        window: file values of 0 and 1; None: the type's own steps with a scale factor, read back as [0, 1].
        about: statement beside the volumes.
    """

    window: Ends | None = None
    about: Intensity = field(default_factory=Intensity)

    @classmethod
    def of(cls, trained: Intensity | None, intensity_range: Sequence[float] | None) -> Stored:
        """The form of files by what weights were trained on, and the range that a user asks for.

        Raises:
            InputError: for a range that is no two rising numbers.
        """
        trained = trained or Intensity(None)
        try:
            asked = _ends(intensity_range)
        except (TypeError, ValueError):
            raise InputError(
                f"intensity_range must be two rising numbers, such as [0,255], got {intensity_range!r}"
            ) from None
        window = asked or trained.unit_range
        return cls(window, Intensity(window or UNIT, trained.scaling, trained.unit, trained.unit_range))
