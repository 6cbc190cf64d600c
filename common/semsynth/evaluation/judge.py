"""The judge: the segmentation network that scores how faithful synthetic volumes are to their label maps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monai.networks.nets import SwinUNETR

from ..data.classes import plain_name
from ..errors import InputError
from ..networks.features.registry import JUDGE, JudgeEncoder
from ..networks.frozen import FrozenSegmenter
from ..networks.segmentation import residual_unet, subvoxel_swin
from ..provenance.frozen import load_segmenter
from ..provenance.weights import is_as_stated
from ..vocabulary import ENDO
from .sources import RealCase

logger = logging.getLogger(__name__)
MOST_CHANNELS = 4096


class JudgeFacts(NamedTuple):
    """What stands beside a judge's numbers.

    Attributes:
        name: name of the judge.
        sha256: SHA-256 of its weights' file.
        spacing: its voxel size in mm.
        second: SHA-256 of the second judge's file, "" without one.
        seconded: the cases that the second one judges.
    """

    name: str
    sha256: str
    spacing: tuple[float, ...]
    second: str = ""
    seconded: frozenset[str] = frozenset()

    def hashes(self, cases: Iterable[str]) -> list[str]:
        """SHA-256 of the judges of these cases, the first one's first."""
        members = set(cases)
        first = [self.sha256] if members - self.seconded else []
        return first + ([self.second] if members & self.seconded else [])


@dataclass(frozen=True)
class Panel:
    """The judge of each case: the second one where the first has been trained on it, or on its patient.

    Attributes:
        first: judges all cases that ``seconded`` does not name; None: no case is judged.
        second: second judge of the same classes and voxel size, trained on other patients.
        seconded: the cases that it judges.
    """

    first: FrozenSegmenter | None = None
    second: FrozenSegmenter | None = None
    seconded: frozenset[str] = frozenset()

    @staticmethod
    def of(
        first: FrozenSegmenter | None,
        second: FrozenSegmenter | None,
        cases: Mapping[str, RealCase],
        seen: Mapping[str, Mapping[str, bool | None]],
    ) -> Panel:
        """Share out the cases.

        Args:
            first, second: the judges.
            cases: cases by name, with their patients.
            seen: SHA-256 of a judge → case → whether it was trained on that; None where that is unknown.

        Raises:
            InputError: for a second judge without a first, of another voxel size, or that is the same file.
        """
        if second is None:
            return Panel(first)
        if first is None:
            raise InputError(f"{second.name}: a second judge needs a first; give --judge too")
        if second.sha256 == first.sha256:
            raise InputError(f"{second.source}: the second judge is the first; give the one of the other half")
        if second.spacing != first.spacing:
            raise InputError(
                f"the judges work at {first.spacing} and {second.spacing} mm per voxel; both need the same one"
            )
        people = [
            {cases[name].person for name, value in seen[judge.sha256].items() if value} for judge in (first, second)
        ]
        known, other = (seen[judge.sha256] for judge in (first, second))
        of_first = {name for name, case in cases.items() if known.get(name) or case.person in people[0]}
        free = {name for name in of_first if other.get(name) is False and cases[name].person not in people[1]}
        return Panel(first, second, frozenset(free))

    def judge(self, case: str) -> FrozenSegmenter | None:
        """Who judges a case."""
        return self.second if case in self.seconded else self.first

    def seen(self, seen: Mapping[str, Mapping[str, bool | None]]) -> dict[str, bool | None]:
        """Per case whether its judge was trained on it; None where that is unknown."""
        if self.first is None:
            return {}
        found = dict(seen.get(self.first.sha256, {}))
        if self.second is not None:
            found |= {name: seen[self.second.sha256].get(name) for name in self.seconded}
        return found

    def facts(self) -> JudgeFacts | None:
        """What tables say of the judges."""
        if self.first is None:
            return None
        second = "" if self.second is None else self.second.sha256
        return JudgeFacts(self.first.name, self.first.sha256, self.first.spacing, second, self.seconded)


def judge_features(judge: FrozenSegmenter | None) -> JudgeEncoder | None:
    """The feature network that a judge's encoder is, where it is la_unet_judge: its file is not read once more."""
    network: Any = None if judge is None else judge.network
    inner = getattr(getattr(network, "network", None), "network", None)  # within voxels as channels, see JudgeEncoder
    if judge is None or judge.name != JUDGE or not isinstance(inner, SwinUNETR):
        return None
    return JudgeEncoder(network, sha256=judge.sha256, source=judge.source)


def targets_of(
    judge: FrozenSegmenter | None, names: Mapping[int, str], given: Mapping[int, int] | Sequence[int] | None = None
) -> dict[int, int]:
    """Class of the judge → class of the label maps that it is held against; empty where they have none in common.

    Args:
        judge: segmentation network, with the names of its classes or without.
        names: index → name of the label maps' classes; empty where the data set does not state them.
        given: the mapping itself, or the label maps' classes in the order of the judge's. None: by name; where judge or
            data set does not state names, the left-atrial cavity, 1 → 1.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if given is not None:
        return dict(enumerate(given, start=1))
    if judge is None or not judge.classes or not names:
        return {1: ENDO}
    index_of = {plain_name(name): index for index, name in names.items()}
    wanted = {i: index_of.get(plain_name(name)) for i, name in enumerate(judge.classes, start=1)}
    found = {own: other for own, other in wanted.items() if other is not None}
    unknown = [judge.classes[own - 1] for own, other in wanted.items() if other is None]
    if unknown:
        logger.warning(
            "%s segments %s, and the label maps have %s: %s. Where a class only has another name, give it the judge's "
            "in the datalist's \"classes\"", judge.name, ", ".join(judge.classes), ", ".join(names.values()),
            f"{', '.join(unknown)} is not judged" if found else "it does not judge them",
        )  # fmt: skip
    return found


def fitting(
    judge: FrozenSegmenter | None, names: Mapping[int, str], given: Mapping[int, int] | Sequence[int] | None
) -> tuple[FrozenSegmenter | None, dict[int, int], str]:
    """A judge that segments classes of the label maps, its :func:`targets_of` them, and why there is none.

    Args:
        judge, names, given: as in :func:`targets_of`.

    Returns:
        The judge, or None where there is none that fits; its targets; the reason where one was given and does not fit.
    """
    targets = targets_of(judge, names, given)
    if judge is None or targets:
        return judge, targets, ""
    return None, {}, f"{judge.name} segments {', '.join(judge.classes)}, which these label maps do not have"


def load_judge(
    weights: str | None,
    *,
    classes: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    channels: Sequence[int] | None = None,
    device: str = "cpu",
    option: str = "judge",
) -> FrozenSegmenter | None:
    """The judge that the command line's options describe: la_unet_judge, or a residual U-Net of several classes.

    Args:
        weights: the file; None: no judge.
        classes: classes of the label maps, that a residual U-Net segments; None takes la_unet_judge.
        spacing: mm per voxel of that U-Net, 1 × 1 × 1 unless given.
        channels: widths of its levels, 16, 32, 64, 128, 128 unless given.
        device: device on which it computes.
        option: option that the file was given by, for messages.

    Raises:
        InputError: naming the option, for options that do not go together, a file that is not there, does not
            fit, or is not the one that its card describes.
    """
    for name, given in (("classes", classes), ("spacing", spacing), ("channels", channels)):
        if given is not None and (weights is None or classes is None):
            needed = "--judge, the file of weights" if weights is None else "--judge-classes"
            raise InputError(f"--judge-{name} goes with {needed}")
    if weights is None:
        return None
    if not Path(weights).is_file():
        what = (
            "models/judge_1.pt of the bundle la_unet" if classes is None else "weights that la_unet's ct.json trained"
        )
        raise InputError(f"--{option} {weights}: no such file; give {what}")
    if classes is None:
        return load_segmenter(subvoxel_swin(), weights, use="faithfulness", name=JUDGE, device=device, classes=["endo"])
    size, widths = tuple(spacing or (1.0, 1.0, 1.0)), tuple(channels or (16, 32, 64, 128, 128))
    if len(size) != 3 or min(size) <= 0:
        raise InputError(f"--judge-spacing must be three lengths in mm, such as 4,4,2.5, got {size}")
    if len(widths) < 2 or min(widths) < 1 or max(widths) > MOST_CHANNELS:
        raise InputError(
            f"--judge-channels must be two or more widths up to {MOST_CHANNELS}, such as 16,32,64,64, got {widths}"
        )
    is_as_stated(Path(weights))
    try:
        return load_segmenter(residual_unet(len(classes) + 1, channels=widths), weights, use="faithfulness",
                              device=device, spacing=size, largest_component=[])  # fmt: skip
    except InputError as error:
        raise InputError(
            f"--{option} {weights}: no residual U-Net of {len(classes)} classes and background with the widths "
            f"{','.join(map(str, widths))}; give --judge-classes and --judge-channels of its training"
        ) from error
