"""The making of a shape model: every map is registered to their mean, and modes are taken of what is found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from tqdm import tqdm

from ...distributed import gather
from ...errors import InputError
from ...fields import sampled
from ...labels import plain
from ...networks.registration import Registration, one_hot_cells, place
from ...networks.shape_model import ShapeModel
from ...networks.signed_distances import signed_distances
from ..loading import check_spacing
from .base import LOSSES

logger = logging.getLogger(__name__)
SHOWN = 0.15
"""Share of the maps that must show a cell for the mean to count there."""


class ShapeModelTrainer(Trainer):
    """Makes a :class:`~semsynth.networks.shape_model.ShapeModel`: an epoch registers every map to their mean once.

    After each epoch the velocities are centred, and the mean is made anew with the next epoch's smoothing; the last
    one takes the modes. Nothing is drawn: the same maps give the same model.

    The output holds ``loss`` and ``losses``.

    Args:
        network: the model.
        sigmas: standard deviations of the Gaussian over the maps, mm, one per epoch: ``max_epochs`` is their number.
        steps: number of steps of a registration.
        class_weights: in the registration, one per class; None weighs all alike.
        stiffness: stiffness of the registration.
        max_epochs: must be the number of ``sigmas``.
        train_data_loader: batches of one map under ``label``, with its name under ``case``.
        train_handlers: ignite handlers.
        kwargs: all else that ``monai.engines.Trainer`` takes.

    Raises:
        InputError: for another number of epochs or weights; fewer than three maps; a map larger than the frame.
    """

    def __init__(
        self,
        *,
        device: str | torch.device,
        network: nn.Module,
        train_data_loader: Any,
        max_epochs: int,
        sigmas: Sequence[float] = (4.0, 2.5, 1.5),
        steps: int = 30,
        class_weights: Sequence[float] | None = None,
        stiffness: float = 0.06,
        train_handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if len(sigmas) != max_epochs:
            raise InputError(f"max_epochs must be the number of sigmas ({len(sigmas)}), got {max_epochs}")
        kwargs.setdefault("decollate", False)
        super().__init__(
            device=device, max_epochs=max_epochs, data_loader=train_data_loader, handlers=list(train_handlers or []),
            **kwargs,
        )  # fmt: skip
        model: Any = getattr(network, "module", network)
        assert isinstance(model, ShapeModel)
        self.model, self.sigmas, self.steps = model, [float(s) for s in sigmas], int(steps)
        weights = [1.0] * model.num_classes if class_weights is None else [float(w) for w in class_weights]
        if len(weights) != model.num_classes:
            raise InputError(f"class_weights must be one per class ({model.num_classes}), got {len(weights)}")
        self.registration = Registration(model.grid, torch.tensor(weights), stiffness=stiffness)
        self.maps: dict[str, torch.Tensor] = {}
        self.velocities: dict[str, torch.Tensor] = {}
        self.fresh: dict[str, torch.Tensor] = {}  # of this epoch and this process
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.skipped = 0

    def training_state(self) -> dict[str, Any]:
        """The state for a checkpoint: the velocities so far."""
        return {"velocities": dict(self.velocities)}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`training_state`."""
        self.velocities = dict(state["velocities"])

    def at_step_border(self) -> bool:
        """Whether a checkpoint can be made: at the end of an epoch alone, when all maps have moved."""
        length = int(self.state.epoch_length or 1)
        return bool(self.state.iteration % length == 0)

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        case = str(batchdata["case"][0])
        first = (self.state.iteration - 1) % int(self.state.epoch_length or 1) == 0
        if first:
            self._begin(self.sigmas[self.state.epoch - 1])
        sigma = self.sigmas[self.state.epoch - 1]
        cells = self._cells(self.maps[case], sigma)
        start = self.velocities.get(case, torch.zeros(3, *self.model.grid.size))
        shown = (self.model.shown > 0).float()
        self.fresh[case], loss = self.registration(self.model.template.float(), shown, cells, start, steps=self.steps)
        value = torch.tensor(loss)
        self.state.output = {Keys.LOSS: value, LOSSES: {"registration": value}}  # type: ignore[assignment]
        if self.state.iteration % int(self.state.epoch_length or 1) == 0:
            self._centre()
            if self.state.epoch == self.state.max_epochs:
                self._finish()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Any] = self.state.output  # type: ignore[assignment]
        return output

    def _begin(self, sigma: float) -> None:
        """Read the maps where that is not done, and make the mean."""
        if not self.maps:
            dataset = self.state.dataloader.dataset  # type: ignore[union-attr]
            for number in range(len(dataset)):
                item = dataset.before_augmentation(number)
                check_spacing(item, self.model.spacing)
                self.maps[str(item["case"])] = self._placed(item)
                self.sizes[str(item["case"])] = tuple(item["label"].shape[1:])
            if len(self.maps) > len(self.model.shapes):
                raise InputError(
                    f"{len(self.maps)} maps, but most_maps is {len(self.model.shapes)}; give a larger --most_maps"
                )
            if len(self.maps) < 3:
                raise InputError(f"a shape model needs three maps or more, got {len(self.maps)}")
        total: Any = 0.0
        shown: Any = 0.0
        for case, framed in self.maps.items():
            cells = self._cells(framed, sigma)
            if case in self.velocities:
                cells = self._moved(cells, self.velocities[case])
            total, shown = total + cells[:-1] * cells[-1:], shown + cells[-1]
        self.model.template.copy_(total / shown.clamp(min=1e-3))
        share = shown / len(self.maps)
        self.model.shown.copy_(torch.where(share > SHOWN, share, 0.0))

    def _placed(self, item: Mapping[str, Any]) -> torch.Tensor:
        label = plain(torch.as_tensor(item["label"]))[0].to(torch.int16)
        if any(n > most for n, most in zip(label.shape, self.model.frame, strict=True)):
            raise InputError(
                f"case {item['case']}: its map has {tuple(label.shape)} voxels, and the model's frame "
                f"{self.model.frame}; give a larger --frame"
            )
        return place(label, self.model.frame)

    def _cells(self, framed: torch.Tensor, sigma: float) -> torch.Tensor:
        return one_hot_cells(framed, self.model.num_classes, self.model.cell, sigma / min(self.model.spacing))

    def _moved(self, cells: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        grid = self.model.grid
        return sampled(cells, grid.places(grid.exponential(velocity)))

    def _centre(self) -> None:
        """The velocities of all processes; their mean is none: it is in the mean map."""
        for part in gather(self.fresh):
            self.velocities |= part
        self.fresh = {}
        for case in sorted(self.maps.keys() - self.velocities.keys()):  # shares of processes may leave one out
            cells = self._cells(self.maps[case], self.sigmas[self.state.epoch - 1])
            zero = torch.zeros(3, *self.model.grid.size)
            shown = (self.model.shown > 0).float()
            self.velocities[case], _ = self.registration(
                self.model.template.float(), shown, cells, zero, steps=self.steps
            )
        mean = torch.stack(list(self.velocities.values())).mean(dim=0)
        self.velocities = {case: velocity - mean for case, velocity in self.velocities.items()}

    # ---- the modes

    def _finish(self) -> None:
        model = self.model
        self._begin(self.sigmas[-1])
        cases = sorted(self.maps)
        velocity = torch.stack([self.velocities[case] for case in cases])
        distances, shown = self._distances(cases)
        mean = (distances * shown[:, None]).sum(0) / shown.sum(0).clamp(min=1e-3)
        # a cell that few maps show has as much variance as if all did
        apart = (distances - mean) * shown[:, None] * (len(cases) / shown.sum(0).clamp(min=3.0)).sqrt()
        shapes, contents = case_modes(velocity, model.shape_modes), case_modes(apart, model.modes)
        root = (len(cases) - 1) ** 0.5
        made = torch.tensordot(contents, apart, dims=1) / root
        scale = made.flatten(1).abs().amax(dim=1).clamp(min=1e-6) / 127
        model.velocity_modes.zero_()[: len(shapes)] = torch.tensordot(shapes, velocity, dims=1) / root
        model.distance_mean.copy_(mean)
        model.distance_modes.zero_()[: len(contents)] = (made / scale.view(-1, 1, 1, 1, 1)).round().to(torch.int8)
        model.distance_scale.zero_()[: len(contents)] = scale
        model.count.fill_(len(cases))
        for own, numbers in ((model.shapes, shapes), (model.contents, contents)):
            own.zero_()[: len(cases), : len(numbers)] = numbers.T * root
        model.limits.set_fields([self.sizes[case] for case in cases])
        self._measure_figures(cases)
        logger.info("%d modes of shape and %d of content, of %d maps", len(shapes), len(contents), len(cases))

    def _measure_figures(self, cases: Sequence[str]) -> None:
        """Mean figures, and how they change with each mode: by making maps a little to either side of the mean map."""
        model = self.model
        blank = torch.full((1, 1, *model.frame), -1.0)
        figures = torch.tensor([self._figures(case) for case in cases], dtype=torch.float32)
        model.figure_mean.copy_(figures.nanmean(dim=0).nan_to_num())
        model.figure_modes.zero_()
        used = torch.cat([model._used(model.shapes), model._used(model.contents)])
        for mode in tqdm(range(len(used)), "measuring the modes", unit="mode", mininterval=1.0):
            if not used[mode]:
                continue
            sides = []
            for sign in (-1.0, 1.0):
                numbers = torch.zeros(len(used))
                numbers[mode] = sign
                sides.append(model.encode(model.decoded(numbers, blank), blank)[0][0])
            model.figure_modes[mode] = ((sides[1] - sides[0]) / 2).nan_to_num()

    def _distances(self, cases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Signed distances in the mean's frame, and what of it each map shows."""
        rows = []
        for case in cases:
            framed = self.maps[case]
            signed = torch.from_numpy(signed_distances(framed.numpy(), self.model.surfaces, self.model.spacing))
            shown = (framed >= 0).float()[None]
            rows.append(self.model.looked_up(torch.cat([signed, shown]), self.velocities[case]))
        stacked = torch.stack(rows)
        return stacked[:, :-1], stacked[:, -1]

    def _figures(self, case: str) -> list[float]:
        framed = self.maps[case].numpy()
        inside = framed >= 0
        box = tuple(
            slice(int(there[0]), int(there[-1]) + 1)
            for there in (np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
        )
        return list(self.model.figures(framed[box].astype(np.uint8), self.model.spacing))


def case_modes(apart: torch.Tensor, most: int) -> torch.Tensor:
    """How maps are added up to their principal components.

    Args:
        apart: differences from the mean, ``(maps, …)``.
        most: components, at most; there is one less than maps.

    Returns:
        ``(K, maps)``, of orthogonal rows of length 1, the component of the largest variance first.
    """
    rows = apart.flatten(1)
    _, vectors = torch.linalg.eigh((rows @ rows.T).double())
    kept = vectors.flip(1)[:, : min(most, len(apart) - 1)].T
    signs = torch.where(kept[:, :1] < 0, -1.0, 1.0)  # those of eigenvectors are arbitrary
    result: torch.Tensor = (kept * signs).float()
    return result


class ExplainedMapInferer(SimpleInferer):
    """A map as a shape model can tell it, for the validation of one.

    Args:
        steps: number of steps of the registration.
        finishing: last step of every drawn map: ``(label, spacing)`` → the map and more, see
            :class:`semsynth.synthesis.drawing.Finishing`; None for nothing.
    """

    def __init__(self, steps: int = 100, finishing: Any = None) -> None:
        super().__init__()
        self.steps, self.finishing = steps, finishing

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Class indices ``(B, 1, H, W, D)`` → the same shape, see
        :meth:`semsynth.networks.shape_model.ShapeModel.explained`.
        """
        whole = getattr(network, "module", network)
        found = [whole.explained(one, steps=self.steps) for one in plain(inputs).split(1)]
        if self.finishing is not None:
            made = (self.finishing(one[0, 0].cpu().numpy(), whole.spacing)[0] for one in found)
            found = [torch.from_numpy(one)[None, None].to(inputs.device) for one in made]
        return torch.cat(found)
