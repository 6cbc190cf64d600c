"""MONAI transforms: a label map with an anatomy that was never scanned."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Transform
from monai.utils import convert_to_dst_type
from numpy.typing import NDArray

from ...anatomy.measured import Anatomy, ShapeLimits, anatomy_of
from ...anatomy.rules import MorphRules, rules_for
from ...data.classes import plain_name
from ...errors import InputError
from ...seeds import LARGEST
from .deform import Morphed, Source, morph


class MorphLabel(Randomizable, Transform):
    """A label map → one that another person could have.

    A smooth deformation without folds (random, affine, the surface of organs outwards or inwards, veins longer or
    shorter) carries all classes along; then walls are made thicker or thinner and patches such as scar are laid anew.
    What leaves the limits, tears, closes or pierces a class is refused and drawn again. The volume maps onto itself.

    Args:
        classes: names of the classes, from class 0 on, or index → name.
        rules: rules of what may change: a YAML file, its content as a table, or None for those of the left atrium where
            the maps have its classes, and for deformation alone where they do not (:class:`MorphRules`).
        limits: between which figures must lie: learned by :meth:`learn`, as a table of it, or None.
        tries: largest number of draws of a map.

    Raises:
        InputError: for rules or limits that cannot be used.

    Examples:
        >>> import numpy as np
        >>> label = np.zeros((24, 24, 24), np.uint8)
        >>> label[8:16, 8:16, 8:16] = 1
        >>> morphed, record = MorphLabel(["background", "organ"]).morphed(label, seed=0, spacing=(2.0, 2.0, 2.0))
        >>> morphed.shape, bool((morphed == label).all())
        ((24, 24, 24), False)
    """

    def __init__(
        self,
        classes: Sequence[str] | Mapping[int, str] | Mapping[str, str],
        rules: str | Path | Mapping[str, Any] | MorphRules | None = None,
        limits: ShapeLimits | Mapping[str, Any] | None = None,
        tries: int = 20,
    ) -> None:
        table = classes if isinstance(classes, Mapping) else dict(enumerate(classes))
        names = {int(index): str(name) for index, name in table.items()}
        self.rules = rules_for(names, rules)
        self.index = {plain_name(name): index for index, name in names.items()}
        self.limits = limits if isinstance(limits, ShapeLimits) else ShapeLimits.from_json(limits or {})
        if isinstance(tries, bool) or not isinstance(tries, int) or tries < 1:
            raise InputError(f"tries of morphing must be a whole number from 1 on, got {tries!r}")
        self.tries = tries

    def learn(self, maps: Iterable[tuple[Any, Sequence[float] | None]]) -> MorphLabel:
        """Take the limits from maps: training maps, never those of a test. Without rules for classes there are none.

        Args:
            maps: label maps ``(H, W, D)`` or ``(1, H, W, D)`` and their spacing (None: of their affine).

        Returns:
            Itself.
        """
        if not self.rules.classes:
            return self
        self.limits = ShapeLimits.learn((self.measure(label, spacing) for label, spacing in maps), self.rules.widen)
        return self

    def measure(self, label: Any, spacing: Sequence[float] | None = None) -> Anatomy:
        """The figures that limits are about; arguments as in :meth:`morphed`."""
        array, spacing = _array(label), _spacing(label, spacing)
        return anatomy_of(array, spacing, self.index, self.rules)

    def morphed(self, label: Any, seed: int, spacing: Sequence[float] | None = None) -> Morphed:
        """A new map and its record, the same for a seed.

        Args:
            label: class indices ``(H, W, D)`` or ``(1, H, W, D)``.
            seed: seed of all that is drawn.
            spacing: mm per voxel; None: of the affine of a MetaTensor.

        Raises:
            InputError: for a map without spacing, of another shape, with other values than class indices, or from
                which no map within the limits was drawn.
        """
        source = Source.of(_array(label), _spacing(label, spacing), self.index, self.rules)
        found = morph(source, self.limits, seed, tries=self.tries)
        shaped = found.label.reshape(tuple(label.shape))
        return found._replace(label=convert_to_dst_type(shaped, label, dtype=label.dtype)[0])

    def __call__(self, label: Any, spacing: Sequence[float] | None = None) -> Any:
        """A new map of the same shape and kind; arguments and errors as in :meth:`morphed`, the seed is drawn."""
        return self.morphed(label, int(self.R.randint(LARGEST, dtype=np.uint32)), spacing).label


class MorphLabeld(RandomizableTransform, MapTransform):
    """Dictionary form of :class:`MorphLabel`. An image beside the map is not moved: it is to be synthesised anew.

    Args:
        keys: keys of label maps, each of which is morphed on its own.
        classes, rules, limits, tries: as in :class:`MorphLabel`.
        prob: probability that a map is morphed, 0…1.
        record_key: key under which the record of the last map is put (None: nowhere).
        allow_missing_keys: pass over keys that are not there.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> label = torch.zeros(1, 24, 24, 24)
        >>> label[:, 8:16, 8:16, 8:16] = 1
        >>> transform = MorphLabeld(classes=["background", "organ"], record_key="morph").set_random_state(seed=0)
        >>> data = transform({"label": MetaTensor(label, affine=torch.eye(4))})
        >>> data["label"].shape, "morph" in data
        (torch.Size([1, 24, 24, 24]), True)
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        classes: Sequence[str] | Mapping[int, str] | Mapping[str, str],
        rules: str | Path | Mapping[str, Any] | MorphRules | None = None,
        limits: ShapeLimits | Mapping[str, Any] | None = None,
        tries: int = 20,
        prob: float = 1.0,
        record_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.transform = MorphLabel(classes, rules, limits, tries)
        self.record_key = record_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data → the same data with morphed maps.

        Raises:
            InputError: as :class:`MorphLabel`, naming the file.
        """
        result = dict(data)
        self.randomize(None)
        for key in self.key_iterator(result):
            seed = int(self.R.randint(LARGEST, dtype=np.uint32))
            if not self._do_transform:
                continue
            try:
                label, record = self.transform.morphed(result[key], seed)
            except InputError as error:
                raise InputError(f"{_file_of(result[key], key)}: {error}") from None
            result[key] = label
            if self.record_key is not None:
                result[self.record_key] = record
        return result


def _array(label: Any) -> NDArray[np.integer]:
    """Class indices as ``(H, W, D)`` of the smallest type."""
    array = label.detach().cpu().numpy() if isinstance(label, torch.Tensor) else np.asarray(label)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[0] != 1) or not array.size:
        raise InputError(f"a label map to morph must be (H, W, D) or (1, H, W, D), got shape {tuple(array.shape)}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 65535) or (array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))):
        raise InputError(f"a label map to morph must hold class indices from 0 on, found {low:g}…{high:g}")
    whole = array.astype(np.uint8 if high <= 255 else np.int32)
    return np.ascontiguousarray(whole.reshape(whole.shape[-3:]))


def _spacing(label: Any, spacing: Sequence[float] | None) -> Sequence[float]:
    if spacing is None and isinstance(label, MetaTensor):
        spacing = affine_to_spacing(label.affine, 3).tolist()
    if spacing is None or len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"morphing needs three spacings in mm, got {spacing}; give spacing, or a map with an affine")
    return spacing


def _file_of(label: Any, key: Hashable) -> str:
    name = label.meta.get("filename_or_obj") if isinstance(label, MetaTensor) else None
    return str(name or key)
