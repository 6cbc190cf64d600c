"""Label maps from nothing by a statistical shape model: deformations of a mean anatomy, and what they leave over.

Maps are registered to their mean by stationary velocity fields (Rueckert et al. 2003, "Automatic construction of 3-D
statistical deformation models"; log-Euclidean as Arsigny et al. 2006). What is left in the mean's frame is kept as
signed distances of the classes (as intensities in Cootes et al. 2001, "Active appearance models"): veins that some have
and others not, and tissues. Figures of the anatomy are linear in the modes, so that a figure that is asked for moves
them.

A wall of 2.5 mm would drown in means over voxels of 2 mm. It is told by two surfaces, each of a thick structure: that
of the cavity, and that of cavity and wall together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..fields import ControlGrid, sampled
from ..labels import plain
from ..limits import check_classes
from .blocks.noise import gaussian_noise, stream
from .figure_limits import FigureLimits, Figures
from .map_diffusion import figures_of, with_known
from .registration import Registration, one_hot_cells, place, taken
from .signed_distances import Surfaces, signed_distances

FINE_MM = 1.5
"""Standard deviation of the Gaussian over maps in the last steps of a registration."""
BEYOND = 1.25
"""How much larger than the frame a map may be."""
CLOSE = 0.02
"""A figure is met where it is within this share of what is asked for."""


class ShapeModel(nn.Module):
    """What is known of a label map → the whole map, drawn as people differ.

    Two vectors of numbers tell a map: one of its shape (the velocity), one of its content (the distances). Each is
    drawn near that of a random map of the training set, by a smoothed bootstrap (Silverman & Young 1987): n maps have
    n² combinations, each with its own blur.

    Args:
        num_classes: C, of the label map.
        figures: figures that are measured of maps.
        checked: figures of which the weights keep between which values they lie, see
            :class:`~semsynth.networks.figure_limits.FigureLimits`.
        walls: class of a wall → class that it is the wall of.
        derived: walls that are not drawn: they are laid around what is drawn afterwards, by a rule (see
            :class:`semsynth.synthesis.drawing.DerivedWall`), and what is next to them goes on in their place.
        spacing: mm per voxel of the maps that the model is made of, along H, W, D.
        frame: H, W, D of the largest map, in voxels; maps stand in its middle.
        modes: number of modes of the content, at most; one less than there are maps tells all.
        shape_modes: number of modes of the shape, at most.
        cell: voxels of the map along each axis of a voxel of the model.
        control_mm: between control points of the velocity, mm.
        blur: share of the standard deviation, 0…1, that is drawn freely, of shape and content; the rest is that of a
            random map. 1 is a normal distribution, 0 gives shapes and contents of the training set.
        corrections: number of times that a figure that is asked for is measured and aimed at again.
        most_maps: largest number of maps that the model can be made of.
        noise_seed: seed of the map: any whole number.

    Attributes:
        count: maps that it is made of.

    Raises:
        InputError: for numbers out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        figures: Figures,
        checked: Figures | None = None,
        walls: Mapping[int, int] | Mapping[str, int] | None = None,
        derived: Sequence[int] = (),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        frame: Sequence[int] = (156, 104, 56),
        modes: int = 48,
        shape_modes: int = 68,
        cell: int = 2,
        control_mm: float = 5.0,
        blur: Sequence[float] = (0.8, 0.8),
        corrections: int = 3,
        most_maps: int = 256,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        if cell < 1 or min(modes, shape_modes) < 1 or control_mm <= 0 or corrections < 0:
            raise InputError(
                "cell, modes and shape_modes must be 1 or more, control_mm above 0 and corrections 0 or more, got "
                f"{cell}, {modes}, {shape_modes}, {control_mm} and {corrections}"
            )
        if len(blur) != 2 or not all(0 <= b <= 1 for b in blur):
            raise InputError(f"blur must be two numbers in 0…1, of shape and content, got {list(blur)}")
        self.num_classes, self.figures, self.cell = num_classes, figures, int(cell)
        self.surfaces, self.limits = Surfaces.of(num_classes, walls or {}, derived), FigureLimits(checked, most_maps)
        self.spacing = tuple(float(s) for s in spacing)
        self.cells = tuple(max(-(-int(n) // cell), 1) for n in frame)
        self.frame = tuple(n * cell for n in self.cells)
        self.grid = ControlGrid(self.cells, [s * cell for s in self.spacing], control_mm)
        self.modes, self.shape_modes = int(modes), int(shape_modes)
        self.blur = (float(blur[0]), float(blur[1]))
        self.corrections, self.noise_seed = corrections, int(noise_seed)
        self._buffers_of(len(figures.names), most_maps)

    def _buffers_of(self, figures: int, most_maps: int) -> None:
        channels, shapes, contents = self.surfaces.channels, self.shape_modes, self.modes
        self.register_buffer("template", torch.zeros(self.num_classes, *self.cells))
        self.register_buffer("shown", torch.zeros(self.cells))
        self.register_buffer("velocity_modes", torch.zeros(shapes, 3, *self.grid.size))
        self.register_buffer("distance_mean", torch.zeros(channels, *self.cells))
        # in steps of each mode's scale: a quarter of the memory, and far finer than a voxel
        self.register_buffer("distance_modes", torch.zeros((contents, channels, *self.cells), dtype=torch.int8))
        self.register_buffer("distance_scale", torch.zeros(contents))
        self.register_buffer("count", torch.zeros([], dtype=torch.int64))
        self.register_buffer("shapes", torch.zeros(most_maps, shapes))
        self.register_buffer("contents", torch.zeros(most_maps, contents))
        self.register_buffer("figure_mean", torch.zeros(figures))
        self.register_buffer("figure_modes", torch.zeros(shapes + contents, figures))

    velocity_modes: torch.Tensor
    distance_mean: torch.Tensor
    distance_modes: torch.Tensor
    distance_scale: torch.Tensor
    figure_mean: torch.Tensor
    figure_modes: torch.Tensor
    template: torch.Tensor
    shown: torch.Tensor
    count: torch.Tensor
    shapes: torch.Tensor
    contents: torch.Tensor

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ShapeModel:
        """It stays on the CPU, whatever the device of a config: a map takes a fifth of a second there."""
        super()._apply(lambda tensor: fn(tensor).cpu(), recurse)
        return self

    def encode(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Figures of a map ``(B, S)``, and their log σ² (that of no spread)."""
        style = figures_of(image, label, figures=self.figures, spacing=self.spacing)
        return style, torch.full_like(style, -torch.inf)

    def forward(
        self,
        image: torch.Tensor,
        style: torch.Tensor | None = None,
        *,
        noise_seeds: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """What is known of label maps → label maps.

        Args:
            image: class indices ``(B, 1, H, W, D)``, −1 for what is to be drawn. (The name is what MONAI's tools call a
                network's input.)
            style: figures ``(1, S)`` or ``(B, S)``, NaN for any; None: all.
            noise_seeds: one per item; None takes the model's own for all.

        Returns:
            Class indices ``(B, 1, H, W, D)``, float32.
        """
        maps = plain(image)
        seeds = [self.noise_seed] * len(maps) if noise_seeds is None else list(noise_seeds)
        if len(seeds) != len(maps):
            raise InputError(f"noise_seeds must be one per item of the batch, got {len(seeds)} for {len(maps)}")
        made = []
        for i, seed in enumerate(seeds):
            own = None if style is None else style[i % len(style) : i % len(style) + 1]
            made.append(self.synthesize(maps[i : i + 1], [seed], style=own))
        return torch.cat(made).float()

    @torch.no_grad()
    def synthesize(
        self, label: torch.Tensor, seeds: Sequence[int], *, style: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Label maps that hold what is known, one per seed.

        Args:
            label: class indices ``(1, 1, H, W, D)``; −1 for what is to be drawn. A class of which there is a voxel is
                known as a whole: no other voxel gets it.
            seeds: whole numbers.
            style: figures, ``(1, S)`` or ``(len(seeds), S)``, NaN for any; None: all. Not used where voxels are known.

        Returns:
            Class indices ``(len(seeds), 1, H, W, D)``, uint8.

        Raises:
            InputError: for a map that is more than a quarter larger than the frame along an axis; up to there, what
                lies beyond the frame goes on as it is at its faces.
        """
        device, label = label.device, plain(label).float().cpu()
        style = None if style is None else style.cpu()
        size = tuple(label.shape[2:])
        if any(n > BEYOND * most for n, most in zip(size, self.frame, strict=True)):
            raise InputError(
                f"a map of {size} voxels is much larger than any that the model was made of ({self.frame} at most, of "
                f"{'×'.join(f'{s:g}' for s in self.spacing)} mm); ask for a smaller field of view"
            )
        fitted = self._fitted(label[0, 0]) if bool((label >= 0).any()) else None
        wanted = [None if style is None else style[i % len(style)] for i in range(len(seeds))]
        drawn = [self._drawn(label, *pair, fitted) for pair in zip(seeds, wanted, strict=True)]
        return torch.cat(drawn).to(device)

    def field_of_view(self, seed: int) -> tuple[int, int, int]:
        """H, W, D of the training map that a seed's shape is drawn near: crops are made around what they show."""
        return self.limits.field(self._case(0, seed))

    def _case(self, number: int, seed: int) -> int:
        """Which training map a seed's shape (0) or content (1) is drawn near."""
        count = int(self.count)
        if count == 0:
            raise InputError("this shape model is not made yet: train it, or load its weights")
        place = self.figure_mean.new_zeros([1, 1, 1, 1, 1], dtype=torch.float32)
        # the rank of a normal number among all is uniform
        rank = float(torch.special.ndtr(gaussian_noise(place, stream(seed, 2 + number))))
        return min(int(rank * count), count - 1)

    def _drawn(
        self, label: torch.Tensor, seed: int, wanted: torch.Tensor | None, fitted: torch.Tensor | None
    ) -> torch.Tensor:
        free = self.numbers(seed)
        if wanted is None or not bool(torch.isfinite(wanted).any()) or fitted is not None:
            return self.decoded(free, label, fitted)
        target = wanted.float()
        asked = torch.isfinite(target)
        aim = target.clone()
        for left in range(self.corrections, -1, -1):
            made = self.decoded(self.conditioned(free, aim), label)
            off = torch.where(asked, target - self.encode(made, made)[0][0], 0.0).nan_to_num()
            if left == 0 or bool((off.abs() <= CLOSE * target.abs().clamp(min=1e-6))[asked].all()):
                break
            aim = torch.where(asked, aim + off, aim)
        return made

    def numbers(self, seed: int) -> torch.Tensor:
        """Those of shape and content of a seed, ``(shape_modes + modes,)``, of mean 0 and the training set's spread."""
        found = []
        for number, (cases, blur) in enumerate(zip((self.shapes, self.contents), self.blur, strict=True)):
            places = self.figure_mean.new_zeros([1, 1, cases.shape[1], 1, 1], dtype=torch.float32)
            drawn = gaussian_noise(places, stream(seed, number))[0, 0, :, 0, 0]
            if not int(self.count):  # nothing is known yet: the mean
                found.append(drawn * 0.0)
                continue
            near = cases[self._case(number, seed)].float()
            found.append((1 - blur**2) ** 0.5 * near + blur * drawn * self._used(cases))
        return torch.cat(found)

    @staticmethod
    def _used(cases: torch.Tensor) -> torch.Tensor:
        """1 for modes that the training set has, 0 for those that it is too small for."""
        return (cases.float().abs().amax(dim=0) > 0).float()

    def conditioned(self, free: torch.Tensor, figures: torch.Tensor) -> torch.Tensor:
        """Numbers of the modes, as near to free ones as they are with the figures ``(S,)``, NaN for any.

        The figures are linear in the modes; the least change of normal numbers that meets linear conditions gives a
        draw from the conditional distribution.
        """
        asked = torch.isfinite(figures)
        rows = self.figure_modes.float()[:, asked].T  # (asked, numbers)
        spread = rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
        off = (figures[asked] - self.figure_mean.float()[asked]).unsqueeze(1) / spread
        missing = off - rows / spread @ free[:, None]
        result: torch.Tensor = free + (torch.linalg.pinv(rows / spread, rtol=1e-2) @ missing)[:, 0]
        return result

    def decoded(self, numbers: torch.Tensor, label: torch.Tensor, fitted: torch.Tensor | None = None) -> torch.Tensor:
        """The map of the modes' numbers.

        Args:
            numbers: result of :meth:`numbers`.
            label: known voxels, ``(1, 1, H, W, D)``.
            fitted: a velocity ``(3, h, w, d)`` in place of that of the numbers.

        Returns:
            Class indices ``(1, 1, H, W, D)``, uint8.
        """
        fine = self.distances(numbers, fitted)
        return with_known(self.surfaces.logits(taken(fine, label.shape[2:])), label)

    def distances(self, numbers: torch.Tensor, fitted: torch.Tensor | None = None) -> torch.Tensor:
        """Smooth distances of the modes' numbers in the frame, ``(1, channels, H, W, D)``; arguments as above."""
        shape, content = numbers.split([self.shape_modes, self.modes])
        velocity = torch.einsum("k,kchwd->chwd", shape, self.velocity_modes.float()) if fitted is None else fitted
        weights = content * self.distance_scale.float()
        made = torch.einsum("k,kn->n", weights, self.distance_modes.flatten(1).float()).view_as(self.distance_mean)
        places = self.grid.places(self.grid.exponential(-velocity))
        # each voxel looks up where it comes from: distances that are warped first and made finer then lose thin veins
        fine = F.interpolate(
            places.movedim(-1, 0)[None], scale_factor=float(self.cell), mode="trilinear", align_corners=False
        )
        return sampled(self.distance_mean.float() + made, fine[0].movedim(0, -1))[None]

    def looked_up(self, volume: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """A volume of the frame in the mean's frame: at the place that each cell goes to.

        Args:
            volume: ``(C, H, W, D)``.
            velocity: ``(3, h, w, d)``, mm.

        Returns:
            ``(C, …)`` on the cells.
        """
        places = self.grid.places(self.grid.exponential(velocity))
        sides = []
        for axis, (cells, voxels) in enumerate(zip(self.cells[::-1], self.frame[::-1], strict=True)):
            index = (places[..., axis] + 1) / 2 * (cells - 1) * self.cell + (self.cell - 1) / 2
            sides.append(index * (2 / max(voxels - 1, 1)) - 1)
        return sampled(volume, torch.stack(sides, dim=-1))

    @torch.no_grad()
    def explained(self, label: torch.Tensor, *, steps: int = 100) -> torch.Tensor:
        """A map as the model can tell it: registered to the mean, and brought to the nearest numbers of the modes.

        Of maps that it was not made of, how like they come back is its generality (Styner et al. 2003, "Evaluation of
        3D correspondence methods for model building").

        Args:
            label: class indices ``(1, 1, H, W, D)``.
            steps: number of steps of the registration.

        Returns:
            Class indices of the same shape, uint8.
        """
        device, label = label.device, plain(label).cpu()
        framed = place(label[0, 0].round().to(torch.int16), self.frame)
        velocity = self._registered(one_hot_cells(framed, self.num_classes, self.cell, FINE_MM / min(self.spacing)),
                                    torch.ones(self.num_classes), steps)  # fmt: skip
        signed = torch.from_numpy(signed_distances(framed.numpy(), self.surfaces, self.spacing))
        shown = (framed >= 0).float()[None]
        found = self.looked_up(torch.cat([signed, shown]), velocity)
        modes = self.distance_modes.float() * self.distance_scale.float().view(-1, 1, 1, 1, 1)
        apart = (found[:-1] - self.distance_mean.float()) * found[-1:]
        numbers = [_projected(velocity, self.velocity_modes.float()), _projected(apart, modes)]
        return self.decoded(torch.cat(numbers), torch.full_like(label.float(), -1.0)).to(device)

    def _fitted(self, known: torch.Tensor) -> torch.Tensor:
        """The velocity that brings the mean to what is known, by the classes that are known."""
        classes = [c for c in range(self.num_classes) if bool((known == c).any())]
        # what is not of a known class is of none: where it lies is known as well
        label = torch.where(known >= 0, known.round(), float(self.num_classes)).to(torch.int16)
        cells = one_hot_cells(place(label, self.frame), self.num_classes, self.cell, FINE_MM / min(self.spacing))
        weights = torch.zeros(self.num_classes)
        weights[classes] = 1.0
        return self._registered(cells, weights, 80)

    def _registered(self, cells: torch.Tensor, weights: torch.Tensor, steps: int) -> torch.Tensor:
        registration = Registration(self.grid, weights)
        with torch.enable_grad():
            velocity, _ = registration(self.template.float(), (self.shown > 0).float(), cells,
                                       torch.zeros(3, *self.grid.size), steps=steps)  # fmt: skip
        return velocity


def _projected(values: torch.Tensor, modes: torch.Tensor) -> torch.Tensor:
    """Numbers of the modes ``(K, …)`` whose sum is nearest to values ``(…)``; those that are 0 get none."""
    rows = modes.flatten(1)
    gram = rows @ rows.T
    numbers: torch.Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=1e-6) @ (rows @ values.flatten())
    return numbers
