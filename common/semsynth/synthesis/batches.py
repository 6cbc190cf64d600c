"""What a generator is given of a batch: the label map, and beside it the seeds, the style and whom to tell of steps."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.utils.enums import CommonKeys as Keys

from ..seeds import checked_seed
from .style import StyleSource


class PrepareMapBatch(PrepareBatch):
    """Batch → label map, and the named arguments that the inferer hands on to the network.

    ``noise_seeds``: sample i of a label map is drawn with seed + i. Which sample it is stands in the batch under
    ``sample`` (see :func:`semsynth.data.entries.load_label_maps`; 0 without it), so that a volume depends on its map
    and its number alone, not on what else is drawn. ``style``: where there is a source of it. ``on_step``: where
    somebody is to be told.

    Args:
        seed: seed of sample 0.
        per_case: mixture of the seed with the case's name, for networks whose seed is also their style: with the same
            seed for all cases a whole data set would look as if it came from one scan.
        style: source of the style per batch; None where the network draws it or has none.
        progress: receiver of the shares of work, with a method ``step``, see
            :class:`semsynth.handlers.SynthesisProgress`; None for networks that make a volume in one step.
    """

    def __init__(
        self, *, seed: int = 0, per_case: bool = False, style: StyleSource | None = None, progress: Any = None
    ) -> None:
        self.seed, self.per_case, self.style = checked_seed(seed), per_case, style
        self.on_step: Callable[[float], None] | None = None if progress is None else progress.step

    def __call__(  # type: ignore[override]
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None, tuple[Any, ...], dict[str, Any]]:
        """Label map ``(B, 1, H, W, D)`` on the device, no target, no further inputs, and the named arguments."""
        label = batchdata[Keys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
        told: dict[str, Any] = {"noise_seeds": self.seeds(batchdata)}
        style = None if self.style is None else self.style(batchdata)
        if style is not None:
            told["style"] = style
        if self.on_step is not None:
            told["on_step"] = self.on_step
        return label, None, (), told

    def seeds(self, batch: Mapping[str, Any]) -> list[int]:
        """One per item of a batch that has ``case`` names and, for several samples of a map, ``source_case`` ones."""
        cases: Sequence[Any] = batch.get("source_case", batch["case"])
        samples = batch.get("sample", [0] * len(cases))
        return [
            self.seed + int(sample) + self.case_offset(str(case)) for sample, case in zip(samples, cases, strict=True)
        ]

    def case_offset(self, case: str) -> int:
        """A multiple of 2^20 that follows from the case's name, so that seeds of samples do not meet."""
        return zlib.crc32(case.encode()) << 20 if self.per_case else 0
