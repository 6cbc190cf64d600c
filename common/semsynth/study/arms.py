"""The arms of a study: what a segmenter is trained on in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ALL = "all"
"""Every scan of every training patient."""
REAL, CONTROL = "R", "C"
MIXTURE = "MG"
"""The default of the primary contrast."""


@dataclass(frozen=True)
class Arm:
    """What one arm's segmenters are trained on.

    Attributes:
        name: name of the arm.
        about: in a few words.
        real: True: with the labelled real cases.
        maps: kind of label map (``given``, ``morphed``, ``generated``) → its share of the synthetic volumes; empty: no
            volumes of its own.
        like: the arm whose volumes (``painted``: label maps) it takes; empty: its own. ``volumes_of`` in the file.
        painted: True: the maps are painted instead of given to a generator, see :mod:`semsynth.synthesis.painting`.
        pseudo: True: with the unlabelled images and the labels that a segmenter of the arm R gives them.
        unlabelled: True: generator and label maps have the unlabelled images, with such labels, too.
        everything: the positive control: all real training cases, whatever number of cases the others have.
        generator: name of the generator; empty: the study's first.
        ratio: real to synthetic cases; None: the study's.
        seeds: seeds of its segmenters; None: the study's.
        real_end: share of the steps, at the end, on the labelled real cases alone: a second training, from the weights
            of the first.
    """

    name: str
    about: str
    real: bool = True
    maps: Mapping[str, float] = field(default_factory=dict)
    like: str = ""
    painted: bool = False
    pseudo: bool = False
    unlabelled: bool = False
    everything: bool = False
    generator: str = ""
    ratio: tuple[float, float] | None = None
    seeds: tuple[int, ...] | None = None
    real_end: float = 0.0

    @property
    def synthetic(self) -> bool:
        """Whether it has synthetic volumes."""
        return bool(self.maps or self.like)

    @property
    def two_sources(self) -> bool:
        """Whether its cases are of two kinds, which a ratio mixes."""
        return self.real + self.pseudo + self.synthetic == 2


_BOTH = {"morphed": 1.0, "generated": 1.0}
ARMS = {
    arm.name: arm
    for arm in (
        Arm(REAL, "labelled real cases"),
        Arm(CONTROL, "positive control: all real training cases", everything=True),
        Arm("P", "real + painted maps", like=MIXTURE, painted=True),
        Arm("S", "real + synthetic of the same maps", maps={"given": 1.0}),
        Arm("M", "real + synthetic of morphed maps", maps={"morphed": 1.0}),
        Arm("G", "real + synthetic of generated maps", maps={"generated": 1.0}),
        Arm(MIXTURE, "real + synthetic of morphed and generated maps", maps=_BOTH),
        Arm("O", "synthetic only", real=False, like=MIXTURE),
        Arm("RU", "real + pseudo-labelled real images", pseudo=True),
        Arm("MU", "real + synthetic of morphed maps, generator and maps with pseudo-labelled images",
            maps={"morphed": 1.0}, unlabelled=True),
    )
}  # fmt: skip
"""Name → the arms that every study may have."""


def kind(arm: Arm) -> str:
    """Name of the arm that it is by its settings, such as O for an arm ``{name: O1, like: O, seeds: [0]}``; or ""."""
    of_them = (a.name for a in ARMS.values() if replace(arm, name=a.name, about=a.about, seeds=a.seeds) == a)
    return next(of_them, "")
