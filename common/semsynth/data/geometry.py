"""Voxel size and field of view that weights were trained on, and whether a label map has them (free of torch)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..files import real
from ..json_files import read_object
from ..paths import as_path
from .classes import read_metadata, trained_on
from .findings import Finding, FindingError, Report, of_case, warning
from .headers import Header, read_header
from .intensity import MIN_MAX, Intensity, Scaling, one_rule, stated_intensity

logger = logging.getLogger(__name__)

Triple: TypeAlias = tuple[float, float, float]
Voxels: TypeAlias = tuple[int, ...]
AXES = "RAS"
TOLERANCE = 0.2
"""A voxel size up to this share outside the trained range is not warned of."""
EXACT = 0.01
"""A voxel size up to this share outside the trained range is taken as it is when maps are resampled."""
FIELD_FACTOR = 2.0
"""A field of view so many times smaller or larger than any trained one is warned of."""
FIELD_TOLERANCE = 0.02
VOXEL_SIZE, FIELD_OF_VIEW = "another voxel size than the weights'", "another field of view than the weights'"
SCALING = "images scaled by another rule than the weights'"


@dataclass(frozen=True)
class Geometry:
    """What the volumes of a training measured; triples go along right, anterior, superior.

    Attributes:
        spacing: mm per voxel, the median.
        spacing_range: smallest and largest.
        field_of_view: mm, the median.
        field_of_view_range: smallest and largest.
        shape_range: fewest and most voxels.
        intensity: rule by which intensities were scaled, in words.
        axes: directions of the axes that the network sees.
        field_of_view_limit: mm up to which volumes were seen to come out well, where that was tried; None: it was not.
        trained: the rule by which intensities became [0, 1], and their unit; None: unknown.
    """

    spacing: Triple
    spacing_range: tuple[Triple, Triple]
    field_of_view: Triple
    field_of_view_range: tuple[Triple, Triple]
    shape_range: tuple[Voxels, Voxels]
    intensity: str = str(MIN_MAX)
    axes: str = AXES
    field_of_view_limit: Triple | None = None
    trained: Intensity | None = None

    @classmethod
    def of_grids(
        cls,
        grids: Iterable[tuple[Sequence[float], Sequence[int]]],
        *,
        spacing: Sequence[float] | None = None,
        trained: Intensity | None = None,
    ) -> Geometry:
        """Geometry of voxel sizes and shapes in the order right, anterior, superior; one pair or more.

        Args:
            grids: grids of the volumes.
            spacing: voxel size that training resamples them to; None: it does not.
            trained: the rule of intensities, and their unit.
        """
        sizes, shapes = (np.asarray(part, dtype=np.float64) for part in zip(*grids, strict=True))
        fields = sizes * shapes
        if spacing is not None:
            sizes = np.broadcast_to(np.asarray(spacing, dtype=np.float64), sizes.shape)
            shapes = np.maximum(np.rint(fields / sizes), 1)
        return cls(
            _triple(np.median(sizes, axis=0)), _range(sizes), _triple(np.median(fields, axis=0)), _range(fields),
            _voxels(_range(shapes)), str(MIN_MAX if trained is None else trained.scaling), trained=trained,
        )  # fmt: skip

    @classmethod
    def of_entries(
        cls,
        entries: Sequence[Mapping[str, Any]],
        key: str = "image",
        *,
        spacing: Sequence[float] | None = None,
        trained: Intensity | None = None,
    ) -> Geometry | None:
        """Geometry of a datalist's entries, from their headers; without the zeros that ``content`` says are padding.

        Args:
            entries: with the files' paths under ``key``.
            key: key of the images.
            spacing, trained: as in :meth:`of_grids`.

        Returns:
            None where no header can be read; those that cannot are passed over.
        """

        def grid(entry: Mapping[str, Any]) -> tuple[Triple, tuple[int, ...]] | None:
            try:
                header = read_header(entry[key])
            except (FindingError, KeyError, TypeError):
                return None
            content = entry.get("content")
            return in_order(header, content["shape"] if isinstance(content, Mapping) else None)

        with ThreadPoolExecutor() as pool:
            found = [grid for grid in pool.map(grid, entries) if grid is not None]
        return cls.of_grids(found, spacing=spacing, trained=trained) if found else None

    def to_json(self) -> dict[str, Any]:
        """The form that a model's card and a bundle's metadata hold."""
        found = {key: _plain(value) for key, value in asdict(self).items() if value is not None and key != "trained"}
        return found | ({} if self.trained is None else self.trained.to_json())

    @classmethod
    def from_json(cls, content: Any, source: str | Path) -> Geometry:
        """The inverse of :meth:`to_json`; ranges and the rule may be left out.

        Raises:
            InputError: for anything else than its form.
        """
        try:
            spacing, field = _numbers(content["spacing"]), _numbers(content["field_of_view"])
            limit = content.get("field_of_view_limit")
            stated = {key: content[key] for key in ("scaling", "unit", "unit_range") if key in content}
            trained = Intensity.from_json({"window": None, **stated}, source) if stated else None
            return cls(
                spacing, _pair(content.get("spacing_range", [spacing, spacing])), field,
                _pair(content.get("field_of_view_range", [field, field])),
                _voxels(_pair(content.get("shape_range", [np.divide(field, spacing)] * 2))),
                str(content.get("intensity", MIN_MAX)), str(content.get("axes", AXES)), limit and _numbers(limit),
                trained,
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError) as reason:
            raise InputError(
                f"{source}: what weights were trained on needs spacing and field_of_view, three positive numbers each, "
                f"found {content!r}"
            ) from reason

    def target(self, spacing: Sequence[float]) -> Triple:
        """The voxel size that a map is resampled to: its own along axes where the weights know it, else the median."""
        low, high = self.spacing_range
        kept = [
            own if least * (1 - EXACT) <= own <= most * (1 + EXACT) else trained
            for own, least, most, trained in zip(spacing, low, high, self.spacing, strict=True)
        ]
        return _triple(np.asarray(kept))

    def compare(self, spacing: Sequence[float], shape: Sequence[int], path: str | Path) -> list[Finding]:
        """Warnings on a label map's voxel size and field of view, in order right, anterior, superior."""
        found = []
        low, high = self.spacing_range
        if _outside(spacing, np.multiply(low, 1 - TOLERANCE), np.multiply(high, 1 + TOLERANCE)):
            wanted = ",".join(f"{size:g}" for size in self.spacing)
            found.append(warning(
                path, VOXEL_SIZE, found=f"{_text(spacing)} mm", expected=f"{_span(low, high)} mm, as in training",
                fix=f"prepare them with 'semsynth prepare --spacing {wanted}' (or prepare-maps), or synthesise with "
                "--resample True",
            ))  # fmt: skip
        field = np.multiply(spacing, shape)
        low, high = self.field_of_view_range
        limit = np.multiply(high, FIELD_FACTOR) if self.field_of_view_limit is None else self.field_of_view_limit
        if _outside(field, np.divide(low, FIELD_FACTOR), np.multiply(limit, 1 + FIELD_TOLERANCE)):
            found.append(warning(
                path, FIELD_OF_VIEW, found=f"{_text(np.rint(field))} mm",
                expected=f"{_span(np.rint(low), np.rint(high))} mm, as in training",
                fix="crop to what the weights have seen, or look at the volumes' edges and contrast with care",
            ))  # fmt: skip
        return found

    def differences(self, header: Header) -> list[str]:
        """What :meth:`compare` finds of a file, in words."""
        return [str(finding) for finding in self.compare(*in_order(header), header.path)]


class TrainedGrid:
    """The grid that weights were trained on, as their card says, and whether label maps are resampled to it.

    Args:
        weights: their file. Where the card beside it has no ``geometry`` and the file is one of the bundle's own
            (``models/``), ``trained_on`` of its metadata is taken.
        metadata: the bundle's ``metadata.json``.
        resample: True where maps of another voxel size are resampled, and the volumes back.

    Raises:
        InputError: when it is first used: ``resample`` with weights of which the voxel size is not known.
    """

    def __init__(self, weights: str | Path, metadata: str | Path, resample: bool = False) -> None:
        if not isinstance(resample, bool):
            raise InputError(f"resample must be True or False, got {resample!r}")
        self.weights, self.metadata, self.resample = as_path(weights, "weights"), Path(metadata), resample

    @cached_property
    def geometry(self) -> Geometry | None:
        """None where it is unknown."""
        found = geometry_of(self.weights, self.metadata)
        if found is None and self.resample:
            raise InputError(
                f"{self.weights}: resample needs the voxel size that they were trained at, and the card beside them "
                "states no geometry; prepare the maps at that voxel size instead and leave resample out"
            )
        return found

    @property
    def trained(self) -> Intensity | None:
        """The rule of intensities that the weights were trained with, and the unit; None where it is unknown."""
        return None if self.geometry is None else self.geometry.trained

    @property
    def scaling(self) -> Scaling:
        """The rule for images of which nothing is stated: the weights' own; minimum to maximum where that is unknown.

        Where the weights know a unit, the images have to be in it.

        Raises:
            InputError: where neither weights nor metadata are there: MONAI Deploy runs a TorchScript file from
                anywhere, and by another rule the result would be another one without a word.
        """
        if not (self.weights.is_file() or self.weights.with_suffix(".json").is_file() or self.metadata.is_file()):
            raise InputError(
                f"neither {self.weights} nor {self.metadata} is there, so it is unknown how the images of the training "
                "were scaled; start in the bundle's folder, or set bundle_root to it"
            )
        trained = self.trained
        if trained is not None and trained.unit_range is not None:
            return Scaling("window", trained.unit_range)
        return MIN_MAX if trained is None or trained.scaling is None else trained.scaling

    def warn_of_scaling(self, stated: Intensity | None, source: str | Path) -> None:
        """Log where a data set's images were scaled by another rule than those that the weights were trained on.

        Args:
            stated: statement of the data set's datalist.
            source: the datalist.
        """
        trained = self.trained
        if stated is not None and trained is not None and not one_rule(stated, trained):
            if stated.unit and stated.unit == trained.unit:
                logger.info("%s: its window is another one than the weights'; images are read by theirs", source)
                return
            logger.warning(
                "%s: its images were scaled by another rule (%s) than those that the weights were trained on (%s), so "
                "that the two differ in brightness; %s",
                source, stated.scaling, trained.scaling, _rescale(trained),
            )  # fmt: skip

    def check_scaling(self, stated: Intensity | None, source: str | Path) -> list[Finding]:
        """A warning where :meth:`warn_of_scaling` logs one, for a check of the whole data set."""
        trained = self.trained
        if stated is None or trained is None or one_rule(stated, trained):
            return []
        if stated.unit and stated.unit == trained.unit:
            return []
        return [warning(source, SCALING, found=f"{stated.scaling}", expected=f"{trained.scaling}",
                        fix=f"volumes and images differ in brightness: {_rescale(trained)}")]  # fmt: skip

    def target(self, spacing: Sequence[float]) -> Triple | None:
        """The voxel size that a map is to be resampled to, None for its own."""
        if not self.resample or self.geometry is None:
            return None
        wanted = self.geometry.target(spacing)
        return None if wanted == tuple(float(size) for size in spacing) else wanted

    def size(self, header: Header) -> tuple[int, ...]:
        """The voxels that the network is given of a label map."""
        spacing, shape = in_order(header)
        wanted = self.target(spacing)
        return shape if wanted is None else resampled_shape(shape, spacing, wanted)

    def settings(self) -> dict[str, Any]:
        """What volumes depend on, for their records: nothing where maps are taken as they are."""
        if not self.resample or self.geometry is None:
            return {}
        return {"resample": True, "trained_spacing": list(self.geometry.spacing)}

    def compare(self, spacing: Sequence[float], shape: Sequence[int], path: str | Path) -> list[Finding]:
        """Warnings on a label map; none on the voxel size where it is resampled."""
        found = [] if self.geometry is None else self.geometry.compare(spacing, shape, path)
        return [finding for finding in found if not (self.resample and finding.finding == VOXEL_SIZE)]

    def check(self, maps: Mapping[str, str | Path]) -> list[Finding]:
        """Warnings on label maps, case → file; what cannot be read is passed over, others say so."""
        if self.geometry is None:
            return []

        def one(item: tuple[str, str | Path]) -> list[Finding]:
            try:
                return of_case(item[0], self.compare(*in_order(read_header(item[1])), item[1]))
            except FindingError:
                return []

        with ThreadPoolExecutor() as pool:
            return [finding for found in pool.map(one, maps.items()) for finding in found]

    def warn(self, maps: Mapping[str, str | Path], *, voxel_size: bool = True) -> None:
        """Log each kind of difference of label maps (case → file) once, and how many of them will be resampled.

        Args:
            maps: the files by case.
            voxel_size: True where the voxel size counts; False for images that the bundle's own inference resamples.
        """
        found = [finding for finding in self.check(maps) if voxel_size or finding.finding != VOXEL_SIZE]
        Report(tuple(found), len(maps)).log_warnings(logger)
        TOLD.update((str(self.weights), str(path)) for path in maps.values())
        if self.resample and self.geometry is not None:
            grids = [in_order(read_header(path)) for path in maps.values()]
            count = sum(self.target(spacing) is not None for spacing, _ in grids)
            logger.info(
                "%d of %d label maps are resampled to the voxel size that the weights were trained at (%s mm), and the "
                "volumes back", count, len(maps), _text(self.geometry.spacing),
            )  # fmt: skip


TOLD: set[tuple[str, str]] = set()
"""Weights and files whose differences have been warned of, so that they are not once more when they are loaded."""


def geometry_of(weights: Path, metadata: Path) -> Geometry | None:
    """What a card, and where it is silent a bundle's metadata for one of its own files, says of weights' training.

    Raises:
        InputError: where one of them says it in another form.
    """
    card, stated = weights.with_suffix(".json"), dict[str, Any]()
    own = real(weights).parent == real(metadata).parent.parent / "models"
    if own and metadata.is_file():
        stated = trained_on(metadata).get(weights.name) or {}
    about = read_object(card, damaged="take the card of its training") if card.is_file() else {}
    if (said := about.get("geometry")) is not None:
        if not isinstance(said, dict):
            raise InputError(f'{card}: "geometry" must be an object, found {said!r}; take the card of its training')
        stated, metadata = {**stated, **said}, card
    return Geometry.from_json(stated, metadata) if stated else None


def _rescale(trained: Intensity) -> str:
    return f"prepare them with --scale {(trained.scaling or MIN_MAX).scale}, or train weights on them"


def bundle_grid(bundle: str | Path, vocabulary: str = "classes") -> TrainedGrid | None:
    """Grid of those weights of a bundle that know the classes under ``vocabulary`` of its metadata."""
    path = Path(bundle)
    path = path if path.suffix == ".json" else path / "configs" / "metadata.json"
    stated = trained_on(path)
    names = [name for name, about in stated.items() if about.get("classes", "classes") == vocabulary]
    names += ["model.pt"] if vocabulary == "classes" else []
    return TrainedGrid(path.parent.parent / "models" / names[0], path) if names else None


def training_geometry(
    entries: Sequence[Mapping[str, Any]],
    datalists: str | Path | Iterable[str | Path] = (),
    spacing: Sequence[float] | None = None,
) -> dict[str, Any] | None:
    """``geometry`` of a training's card.

    Args:
        entries: entries that it was trained on.
        datalists: datalists that they come from; the first that states a rule of intensities tells it.
        spacing: voxel size that training resamples to; None: it does not.
    """
    paths = [datalists] if isinstance(datalists, str | Path) else datalists
    stated = [stated_intensity(read_metadata(Path(path)), path) for path in paths]
    known = [found for found in stated if found is not None and found.scaling is not None]
    first = known[0] if known else Intensity(None, Scaling())  # of raw images, see LoadIntensityd
    trained = Intensity(None, first.scaling, first.unit, first.unit_range)
    found = Geometry.of_entries(entries, spacing=spacing, trained=trained)
    return None if found is None else found.to_json()


def in_order(header: Header, shape: Sequence[int] | None = None) -> tuple[Triple, tuple[int, ...]]:
    """Voxel size and shape (the header's unless given) along right, anterior, superior."""
    order = np.argsort(nib.io_orientation(header.affine)[:, 0])
    size, voxels = np.asarray(header.spacing)[order], np.asarray(header.shape if shape is None else shape)[order]
    return _triple(size), tuple(int(n) for n in voxels)


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Voxels of ``target`` size from the first to the last of ``shape`` centres that are ``spacing`` apart.

    No further: what lies beyond would be the outermost slice again and again.
    """
    return tuple(round((n - 1) * own / new) + 1 for n, own, new in zip(shape, spacing, target, strict=True))


def _outside(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> bool:
    return bool(np.any(np.less(values, low)) or np.any(np.greater(values, high)))


def _triple(values: NDArray[Any]) -> Triple:
    return tuple(float(value) for value in values)  # type: ignore[return-value]


def _range(values: NDArray[Any]) -> tuple[Triple, Triple]:
    return _triple(values.min(axis=0)), _triple(values.max(axis=0))


def _voxels(ends: tuple[Triple, Triple]) -> tuple[Voxels, Voxels]:
    low, high = (tuple(max(1, round(value)) for value in end) for end in ends)
    return low, high


def _numbers(values: Sequence[float]) -> Triple:
    if len(values) != 3 or not all(0 < float(value) < math.inf for value in values):
        raise ValueError(values)
    return _triple(np.asarray(values))


def _pair(values: Sequence[Sequence[float]]) -> tuple[Triple, Triple]:
    low, high = values
    return _numbers(low), _numbers(high)


def _plain(value: Any) -> Any:
    """Tuples as lists, numbers to four decimals."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _text(values: Iterable[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)


def _span(low: Iterable[float], high: Iterable[float]) -> str:
    ends = [(f"{a:.3g}", f"{b:.3g}") for a, b in zip(low, high, strict=True)]
    return " × ".join(a if a == b else f"{a}–{b}" for a, b in ends)
