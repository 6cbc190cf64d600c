"""The bundles of a study, judged before the first of them runs."""

from __future__ import annotations

from pathlib import Path

from ..synthesis.workflow import METADATA
from ..trust.running import refuse_bundle
from .settings import Study

_INFERENCE = "inference.json"
_TESTED = "evaluate.json"


def refuse_bundles(study: Study) -> None:
    """Raise before a study starts anything for a bundle that would do more than it needs to.

    Args:
        study: study whose trainings, segmenter and generators of volumes and maps are looked at.

    Raises:
        InputError: as :func:`semsynth.trust.running.refuse_bundle`, for the first such bundle.
    """
    configs: dict[Path, dict[str, None]] = {}
    for training in (*study.trainings.values(), study.segmenter):
        configs.setdefault(training.bundle, {}).update(dict.fromkeys(training.configs))
    configs[study.segmenter.bundle].update(dict.fromkeys((_INFERENCE, _TESTED)))
    sources = [*study.generators.values(), *([] if study.maps is None else [study.maps])]
    for source in sources:
        configs.setdefault(source.bundle, {})[_INFERENCE] = None
    for bundle, names in configs.items():
        refuse_bundle(bundle, METADATA, *names)
