"""Maps drawn until one is within the limits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import SimpleInferer

from ...errors import InputError
from ...labels import plain
from ...limits import check_number
from ...networks.blocks.noise import stream
from .finishing import Finishing


class DrawnMapInferer(SimpleInferer):
    """A generator of label maps → a map within the limits of its training maps, of the figures that are asked for.

    Args:
        figures: name of a figure → value that the map is to have; those of the network (``network.figures``).
        tolerance: share of it by which a figure may be off; a count may be off by none.
        finishing: last steps of each map, before it is checked.
        tries: maps that are drawn for one, at most.

    Attributes:
        records: records of the last batch, one per map: ``tries``, ``refused`` (reason → how often) and ``figures``.
    """

    def __init__(
        self,
        figures: Mapping[str, float] | None = None,
        *,
        tolerance: float = 0.1,
        finishing: Finishing | None = None,
        tries: int = 20,
    ) -> None:
        super().__init__()
        if isinstance(tries, bool) or not isinstance(tries, int) or tries < 1:
            raise InputError(f"tries must be a whole number from 1 on, got {tries!r}")
        if figures is not None and not isinstance(figures, Mapping):
            raise InputError(f"figures must be names with values, such as {{'endo.volume_ml': 80}}, got {figures!r}")
        self.wanted = dict(figures or {})
        for name, value in {**self.wanted, "tolerance": tolerance}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name} must be a number, got {value!r}")
        check_number("tolerance", tolerance, 1e-6, 0.99)
        self.tolerance, self.finishing, self.tries = tolerance, finishing or Finishing(), tries
        self.records: list[dict[str, Any]] = []

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: Any,
        *args: Any,
        noise_seeds: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """What is known of maps ``(B, 1, H, W, D)``, −1 elsewhere → class indices of the same shape, float32.

        A map of one voxel is one of whatever size the network takes. Without seeds they are 0, 1, ….

        Raises:
            InputError: for a figure that the network does not know, or where no map within the limits was drawn.
        """
        whole: Any = getattr(network, "module", network)
        style = self._style(whole, inputs)
        self.records = []
        seeds = range(len(inputs)) if noise_seeds is None else noise_seeds
        made = [self._one(whole, plain(inputs)[i : i + 1], int(seed), style) for i, seed in enumerate(seeds)]
        return torch.cat(made).float()

    def _style(self, network: Any, like: torch.Tensor) -> torch.Tensor | None:
        names = list(network.figures.names)
        unknown = [name for name in self.wanted if name not in names]
        if unknown:
            raise InputError(f"figures: the weights do not know {', '.join(unknown)}; they know {', '.join(names)}")
        if not self.wanted:
            return None
        values = [float(self.wanted.get(name, np.nan)) for name in names]
        return torch.tensor([values], dtype=torch.float32, device=like.device)

    def _one(self, network: Any, given: torch.Tensor, seed: int, style: torch.Tensor | None) -> torch.Tensor:
        known = (given[0, 0] >= 0).cpu().numpy()
        given_classes = sorted({int(c) for c in given.unique().tolist() if c >= 0})
        # what is known, and what follows from it by a rule, is as it is: no other draw changes it
        ruled = given_classes + ([] if self.finishing.wall is None else [self.finishing.wall.wall])
        self._refuse_figures_of(network, given_classes)
        refused: Counter[str] = Counter()
        for number in range(self.tries):
            own = seed if number == 0 else stream(seed, 1_000_000 + number)
            blank = given
            if given.numel() == 1:
                blank = given.expand(1, 1, *network.field_of_view(own))
            drawn = network.synthesize(blank, [own], style=style)[0, 0].cpu().numpy().astype(np.uint8)
            label, changes = self.finishing(drawn, network.spacing, known if known.any() else None)
            reason, found = network.limits.refusal(label, network.spacing, ruled)
            reason = reason or self._missed(network, label)
            if not reason:
                figures = found | dict(zip(network.figures.names, network.figures(label, network.spacing), strict=True))
                self.records.append({"tries": number + 1, "refused": dict(refused), "figures": figures} | changes)
                return torch.from_numpy(label)[None, None].to(given.device)
            refused[reason.split()[0]] += 1
            last = reason
        counts = ", ".join(f"{why} {count}" for why, count in refused.most_common())
        raise InputError(
            f"no map within the limits in {self.tries} tries ({counts}; the last one: {last}); ask for figures nearer "
            "to those of the training maps, a wider tolerance, or more tries"
        )

    def _refuse_figures_of(self, network: Any, classes: Sequence[int]) -> None:
        told = [name for name in self.wanted if network.figures.index[name.rpartition(".")[0]] in classes]
        if told:
            raise InputError(
                f"figures: {', '.join(told)} can not be asked for where that class is known already; leave it out of "
                "figures, or of known"
            )

    def _missed(self, network: Any, label: np.ndarray) -> str:
        """A figure that is not as it is asked for."""
        if not self.wanted:
            return ""
        found = dict(zip(network.figures.names, network.figures(label, network.spacing), strict=True))
        for name, value in self.wanted.items():
            allowed = 0.0 if name.endswith((".branches", ".parts", ".tunnels", ".hollows")) else self.tolerance
            if not abs(found[name] - value) <= allowed * abs(value) + 1e-6:
                return f"{name} {found[name]:.4g}, wanted {value:g}"
        return ""
