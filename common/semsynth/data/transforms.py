"""Deterministic loading that bundles share; random augmentation stays visible in each bundle's config."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, RandomizableTransform, SpatialCrop, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor
from scipy.ndimage import gaussian_filter

from ..errors import InputError
from ..labels import check_range
from ..vocabulary import ENDO, WALL
from .geometry import TrainedGrid
from .grids import place
from .in_memory import ORIGINAL_AFFINE, SPATIAL_SHAPE, volume_of
from .intensity import HU, INTENSITY, Intensity, Scaling, no_air
from .raw import binary_mask
from .volumes import Volume, read_label


class Chain(Compose):
    """MONAI's ``Compose`` of transforms and of lists of them, which are taken apart.

    So a config can write what several chains begin with once, as a list, and put it into each by a macro.

    Args:
        transforms: transforms, and lists of transforms.
        kwargs: all else that ``monai.transforms.Compose`` takes.

    Examples:
        >>> from monai.transforms import Flip, Rotate90
        >>> begin = [Flip(0), Rotate90()]  # what several chains begin with
        >>> len(Chain([begin, Flip(1)]).transforms)
        3
    """

    def __init__(self, transforms: Sequence[Any] = (), **kwargs: Any) -> None:
        parts = [part if isinstance(part, list | tuple) else [part] for part in transforms]
        super().__init__([step for part in parts for step in part], **kwargs)


class LoadIntensityd(MapTransform):
    """Image file, or an array that was read already → MetaTensor ``(1, H, W, D)``, float32 in [0, 1].

    What the entry states under ``intensity`` (see :class:`semsynth.data.intensity.Intensity`;
    :func:`semsynth.data.entries.load_datalist` adds it) decides which values become 0 and 1: prepared and synthetic
    images are never stretched again. Of other images the weights' own rule decides, or ``scaling``.

    Args:
        keys: keys of the paths, or of the arrays (:func:`semsynth.data.in_memory.volume_of`).
        grid: training data of the weights, whose rule holds for images of which nothing is stated.
        scaling: the rule without ``grid``; None: :class:`semsynth.data.intensity.Scaling` as it is made without values.
        allow_missing_keys: pass over keys that the data does not have.

    Raises:
        InputError: for a file or array that cannot be used (see :func:`semsynth.data.in_memory.volume_of`), NaN, or a
            constant image.

    Examples:
        >>> import numpy as np
        >>> image = LoadIntensityd("image")({"image": np.arange(64.0).reshape(4, 4, 4)})["image"]
        >>> image.shape, float(image.min()), float(image.max())
        (torch.Size([1, 4, 4, 4]), 0.0, 1.0)
    """

    def __init__(
        self,
        keys: KeysCollection,
        grid: TrainedGrid | None = None,
        scaling: Scaling | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid, self.rule = grid, scaling

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        said = result.pop(INTENSITY, None)
        for key in self.key_iterator(result):
            volume, path = volume_of(result, key)
            if not np.isfinite(volume.data.sum(dtype=np.float64)):
                raise InputError(f"{path}: image must be finite, found NaN or infinite voxels; repair them")
            stated = Intensity(None) if said is None else Intensity.from_json(said, path)
            trained = None if self.grid is None else self.grid.trained
            if stated.window is None:
                self._check_unit(path, volume.data)
            elif trained is not None:  # another window of the same unit, as the weights know it
                stated = stated.in_range(trained.unit, trained.unit_range)
            try:
                scaled = stated.read(volume.data, self.scaling)
            except InputError as reason:
                raise InputError(f"{path}: {reason}") from reason
            result[key] = _tensor(scaled, volume.affine, path)
        return result

    def _check_unit(self, path: Any, data: np.ndarray) -> None:
        trained = None if self.grid is None else self.grid.trained
        if trained is not None and trained.unit == HU and no_air(data):
            raise InputError(
                f"{path}: the weights need Hounsfield units (air about -1000), found {data.min():g} to {data.max():g}; "
                f"prepare the image with 'semsynth prepare-maps --window … --hu-offset …', or state in a datalist "
                'which of its values are 0 and 1, such as "intensity": {"window": [24, 2024]} for HU + 1024'
            )

    @property
    def scaling(self) -> Scaling:
        """The rule for images of which nothing is stated."""
        return self.grid.scaling if self.grid is not None else self.rule or Scaling()


class LoadLabelMapd(MapTransform):
    """Label map, a file or an array → MetaTensor ``(1, H, W, D)``, uint8, checked against the network's classes.

    Values within 1e-3 of whole numbers are rounded.

    Args:
        keys: keys of the paths, or of the arrays (:func:`semsynth.data.in_memory.volume_of`).
        num_classes: the number of classes that the network was built for.
        allow_missing_keys: pass over keys that the data does not have.

    Raises:
        InputError: for a file or array that cannot be used, or class indices outside 0…num_classes−1.

    Examples:
        >>> import numpy as np
        >>> label = LoadLabelMapd("label", num_classes=4)({"label": np.full((4, 4, 4), 3)})["label"]
        >>> label.shape, label.dtype
        (torch.Size([1, 4, 4, 4]), torch.uint8)
    """

    def __init__(self, keys: KeysCollection, num_classes: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        for key in self.key_iterator(result):
            volume, path = volume_of(result, key, label=True)
            check_range(torch.from_numpy(np.asarray(volume.data, dtype=np.float32)), self.num_classes, source=path)
            result[key] = _tensor(np.asarray(volume.data, dtype=np.uint8), volume.affine, path)
        return result


class LoadTargetd(Transform):
    """The target of a segmentation: from a composite map, or from binary masks, under ``label``.

    ``label`` (a composite map) is read where the entry has it, else ``endo`` (0/1, or the 2018 challenge's 0/255) and,
    for class 2, ``wall``. Of the map's values those in ``classes`` become 1, 2, … in that order, all others 0:
    MetaTensor ``(1, H, W, D)``, uint8.

    Args:
        classes: values of the map that are to be segmented; [1] for the cavity, [1, 2] for cavity and wall.

    Raises:
        InputError: for a file that cannot be used, values that are no class indices, or masks that ``classes`` needs
            and the entry has not.

    Examples:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.data.volumes import write_label
        >>> with TemporaryDirectory() as folder:
        ...     path = write_label(f"{folder}/label.nii.gz", np.array([[[0, 1, 2]]], np.uint8), np.eye(4))
        ...     LoadTargetd(classes=[2])({"label": path})["label"].flatten().tolist()  # the wall alone
        [0, 0, 1]
    """

    def __init__(self, classes: Sequence[int] = (1,)) -> None:
        if not classes or min(classes) < 1 or len(set(classes)) != len(classes):
            raise InputError(f"classes must be different values of the map from 1 on, got {list(classes)}")
        self.classes = tuple(int(c) for c in classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        if "label" in data:
            path = str(data["label"])
            volume = read_label(path)
            check_range(torch.from_numpy(np.asarray(volume.data, dtype=np.float32)), 256, source=path)
            values = np.asarray(volume.data)
        elif "endo" in data:
            path = str(data["endo"])
            volume = self._from_masks(data)
            values = volume.data
        else:
            raise InputError(f"case {data.get('case', '?')}: needs 'label' or 'endo'")
        target = np.zeros(values.shape, dtype=np.uint8)
        for index, value in enumerate(self.classes, start=1):
            target[values == value] = index
        return dict(data) | {"label": _tensor(target, volume.affine, path)}

    def _from_masks(self, data: Mapping[Hashable, Any]) -> Volume:
        """Class indices on the grid of ``endo``."""
        roles = {ENDO: "endo", WALL: "wall"}
        unknown = [str(c) for c in self.classes if c not in roles or roles[c] not in data]
        if unknown:
            raise InputError(
                f"case {data.get('case', '?')}: its masks give no class {', '.join(unknown)}; prepare the data with "
                "'semsynth prepare', which derives a wall, and train on the composite maps"
            )
        endo = read_label(data["endo"])
        values = np.zeros(endo.data.shape, dtype=np.uint8)
        for value in sorted(self.classes, reverse=True):  # the cavity last: it wins where masks overlap
            mask = endo if value == ENDO else read_label(data[roles[value]])
            placed = mask.on_grid(endo.affine, endo.data.shape)
            if placed is None:
                raise InputError(
                    f"case {data.get('case', '?')}: {data[roles[value]]} and {data['endo']} must share one grid; "
                    "semsynth check says how they differ"
                )
            values[binary_mask(placed.data, roles[value]) > 0] = value
        return Volume(values, endo.affine)


class SameGridd(MapTransform):
    """All keys on the grid of the first one: what is stored in another voxel order is reordered, without loss.

    A grid is the same where no corner is further off than 1 % of a voxel; the others get the first one's affine. Of
    volumes without an affine (tensors and arrays that are no ``MetaTensor``) the shapes alone are compared.

    Raises:
        InputError: naming both files (of volumes that come from none: their keys), with what to do.

    Examples:
        >>> from monai.data import MetaTensor
        >>> def volume(name, x, affine):
        ...     return MetaTensor(x, affine=affine, meta={"filename_or_obj": name})
        >>> label = torch.tensor([1.0, 0, 0, 0]).reshape(1, 4, 1, 1)
        >>> turned = torch.tensor([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # first axis reversed
        >>> image = torch.rand(1, 4, 1, 1)
        >>> data = {"image": volume("image", image, torch.eye(4)), "label": volume("label", label, turned)}
        >>> SameGridd(["image", "label"])(data)["label"][0, :, 0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        first, *others = self.key_iterator(result)
        shape = tuple(result[first].shape[1:])
        for key in others:
            names = f"{_source(result, first)} and {_source(result, key)}"
            if not all(isinstance(result[k], MetaTensor) for k in (first, key)):
                if tuple(result[key].shape[1:]) != shape:
                    raise _two_shapes(names, shape, result[key].shape[1:])
                continue
            affine, other = result[first].affine.numpy(), result[key]
            placed = place(other.affine.numpy(), other.shape[1:], affine, shape)
            if placed.shape != shape:
                raise _two_shapes(names, shape, other.shape[1:])
            if not placed.one_grid:
                raise InputError(
                    f"{names} must share one affine, their corners are up to {placed.mm:.3g} mm ({placed.voxels:.2g} "
                    "voxels) apart; semsynth check says what to do"
                )
            if placed.reordered or not np.array_equal(affine, other.affine.numpy()):
                array = placed.apply(other.as_tensor().numpy()[0])
                result[key] = _tensor(array, affine, _source(result, key))
        return result


def _source(data: Mapping[Hashable, Any], key: Hashable) -> str:
    """The file of a volume, or its key."""
    return str(getattr(data[key], "meta", {}).get("filename_or_obj", key))


def _two_shapes(names: str, shape: Sequence[int], other: Sequence[int]) -> InputError:
    return InputError(
        f"{names} must share one shape, got {tuple(shape)} and {tuple(other)}; prepare them with 'semsynth prepare'"
    )


class RandSlicesd(RandomizableTransform, MapTransform):
    """A few slices of a volume, drawn at random, for networks that see one slice at a time.

    Args:
        keys: volumes ``(C, H, W, D)`` of one size.
        count: number of slices along D; of a thinner volume some are drawn more than once.
        position: key for their places in the volume: ``(count,)``, float32, in (0, 1), rising.

    Raises:
        InputError: for a count below 1.

    Examples:
        >>> data = RandSlicesd("image", count=2).set_random_state(seed=0)({"image": torch.rand(1, 8, 8, 6)})
        >>> data["image"].shape, data["position"].shape
        (torch.Size([1, 8, 8, 2]), torch.Size([2]))
    """

    def __init__(self, keys: KeysCollection, count: int = 8, *, position: str = "position") -> None:
        if count < 1:
            raise InputError(f"count must be 1 slice or more, got {count}")
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.count, self.position = int(count), position

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        depth = int(result[self.keys[0]].shape[-1])
        drawn = np.sort(self.R.choice(depth, self.count, replace=self.count > depth))
        for key in self.key_iterator(result):
            result[key] = result[key][..., torch.from_numpy(drawn)]
        return result | {self.position: torch.from_numpy((drawn + 0.5) / depth).float()}


class RandIntensityCurved(RandomizableTransform, MapTransform):
    """A random curve over the intensities, not always rising: another order of bright and dark tissues.

    Gamma and histogram shifts keep the order of intensities, so a network may rely on blood being brighter than muscle.
    Where a scan has it the other way round, only the shape is left to go by. The curve is piecewise linear through
    random values at evenly spaced points (Zhou et al., Models Genesis, 2021, use a Bézier curve to the same end); it is
    blended with the identity by a random share.

    Args:
        keys: images with intensities in [0, 1].
        prob: probability of a change, 0…1.
        points: number of points that the curve goes through.
        share: range of the curve's share against the identity.

    Examples:
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8))
        >>> changed = RandIntensityCurved("image", prob=1.0).set_random_state(seed=0)({"image": image})["image"]
        >>> changed.shape, bool((changed != image).any()), bool((changed >= 0).all() and (changed <= 1).all())
        (torch.Size([1, 8, 8, 8]), True, True)
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.1, points: int = 5, share: Sequence[float] = (0.3, 1.0)
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.points, self.low, self.high = int(points), float(share[0]), float(share[1])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return result
        share = self.R.uniform(self.low, self.high)
        values = share * self.R.uniform(size=self.points) + (1 - share) * np.linspace(0, 1, self.points)
        for key in self.key_iterator(result):
            image = result[key]
            curved = np.interp(convert_to_numpy(image), np.linspace(0, 1, self.points), values).astype(np.float32)
            result[key] = convert_to_dst_type(curved, image)[0]
        return result


class TissueMapd(MapTransform):
    """A coarse map of an image's tissues, for :class:`RandTissueContrastd`.

    Args:
        keys: the image, in [0, 1], and the target, class indices; ``(1, H, W, D)`` each.
        output: key for the map, of the image's shape: 0 for the darkest part outside the target, then the brighter
            ones, then the target's own classes.
        k: number of parts outside the target, by the quantiles of the smoothed image.
        sigma: standard deviation of that Gaussian smoothing, in voxels.

    Examples:
        >>> data = {"image": MetaTensor(torch.rand(1, 8, 8, 8)), "label": torch.zeros(1, 8, 8, 8)}
        >>> data["label"][:, :4] = 1
        >>> TissueMapd(["image", "label"], k=3)(data)["tissue"].unique().tolist()  # three parts, and the target
        [0, 1, 2, 3]
    """

    def __init__(self, keys: KeysCollection, output: str = "tissue", *, k: int = 3, sigma: float = 1.0) -> None:
        super().__init__(keys)
        self.output, self.k, self.sigma = output, int(k), float(sigma)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        image, target = (convert_to_numpy(data[key])[0] for key in self.keys)
        smoothed = gaussian_filter(image.astype(np.float32), self.sigma, mode="nearest")
        edges = np.quantile(smoothed, np.linspace(0, 1, self.k + 1)[1:-1])
        found = np.where(target > 0, self.k - 1 + target, np.digitize(smoothed, edges)).astype(np.uint8)
        return dict(data) | {self.output: convert_to_dst_type(found[None], data[self.keys[0]], dtype=np.uint8)[0]}


class RandTissueContrastd(RandomizableTransform, MapTransform):
    """Another brightness for each tissue: some scans are darker in the blood pool than around it.

    Curves over intensities change all tissues of one brightness alike. Here each class of a map is brightened or
    darkened as a whole, with soft borders; its texture stays.

    Args:
        keys: images with intensities in [0, 1].
        tissue: key of the map, class indices of the images' shape; it is removed from the result.
        prob: probability of a change, 0…1.
        shift: largest change of a class, in intensity.
        sigma: standard deviation of the borders, in voxels.

    Examples:
        >>> data = {"image": MetaTensor(torch.full((1, 8, 8, 8), 0.5)), "tissue": torch.zeros(1, 8, 8, 8)}
        >>> found = RandTissueContrastd("image", prob=1.0).set_random_state(seed=0)(data)
        >>> sorted(found), bool((found["image"] != 0.5).all())
        (['image'], True)
    """

    def __init__(
        self, keys: KeysCollection, tissue: str = "tissue", *, prob: float = 0.3, shift: float = 0.4, sigma: float = 0.7
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.tissue, self.shift, self.sigma = tissue, float(shift), float(sigma)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        tissue = np.asarray(result.pop(self.tissue)).astype(np.int64)
        self.randomize(None)
        if not self._do_transform:
            return result
        shifts = self.R.uniform(-self.shift, self.shift, size=int(tissue.max()) + 1).astype(np.float32)
        change = gaussian_filter(shifts[tissue[0]], self.sigma, mode="nearest")[None]
        for key in self.key_iterator(result):
            image = convert_to_tensor(result[key], track_meta=isinstance(result[key], MetaTensor))
            bright = (image + torch.from_numpy(change).to(image.device)).clamp(0, 1)
            result[key] = convert_to_dst_type(bright, result[key])[0]
        return result


class CropContentd(MapTransform):
    """Cut away the zeros that ``semsynth prepare --size`` has put around a smaller case.

    The datalist's entry says under ``content`` where the case stands in its files (``start`` and ``shape`` in voxels);
    entries without it are left as they are. Padding would make losses and metrics look better than they are. What an
    entry says of whose scan it is goes as well: it is no input of a network.

    Examples:
        >>> data = {"image": torch.zeros(1, 8, 8, 8), "content": {"start": [1, 0, 0], "shape": [6, 8, 8]}}
        >>> CropContentd("image")(data)["image"].shape
        torch.Size([1, 6, 8, 8])
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        content = result.pop("content", None)
        for said in (
            "patient",
            "voxels",
            INTENSITY,
        ):  # of the case, not for a network: entries may differ in having them
            result.pop(said, None)
        if content is None:
            return result
        crop = SpatialCrop(roi_start=content["start"], roi_end=np.add(content["start"], content["shape"]).tolist())
        return result | {key: crop(result[key]) for key in self.key_iterator(result)}


def _tensor(array: np.ndarray, affine: np.ndarray, path: str) -> MetaTensor:
    about = {"filename_or_obj": path, ORIGINAL_AFFINE: affine.copy(), SPATIAL_SHAPE: np.asarray(array.shape)}
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine), meta=about)
