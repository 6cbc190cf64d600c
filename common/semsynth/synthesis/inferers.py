"""Inferers: only what MONAI's lack."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.utils import fall_back_tuple
from torch.nn import functional as F

from ..errors import InputError, is_out_of_memory
from ..memory import memory_advice
from ..networks.blocks.noise import gaussian_noises, item_seeds, white_noises

WINDOWS = (
    "add the overlay configs/sliding_window.json (--config_file \"['configs/inference.json',"
    "'configs/sliding_window.json']\"), or give --device cpu where that has more memory"
)


class WholeVolumeInferer(SimpleInferer):
    """MONAI's ``SimpleInferer``, which takes whole volumes, with a word on what to do where they are too large.

    Args:
        advice: settings that need less memory.
    """

    def __init__(self, advice: str = WINDOWS) -> None:
        super().__init__()
        self.advice = advice

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Input ``(B, C, H, W, D)`` → the network's output.

        Raises:
            InputError: out of memory, with what to do.
        """
        with memory_advice(lambda: f"a volume of {tuple(inputs.shape[2:])} voxels as a whole", self.advice):
            result: torch.Tensor = super().__call__(inputs, network, *args, **kwargs)
        return result


class NoisyWindowInferer(SlidingWindowInferer):
    """Sliding windows for a generator with a noise input: one noise field over the whole volume, cut with the map.

    Were each window to make its own field, overlapping windows would average different textures and lose them.

    Args:
        noise: True where the network has a noise input (if not, this is MONAI's inferer).
        noise_seed: as the network's.
        normal: True where the network's noise has a normal distribution, not a uniform one.
        multiple: volumes are padded to a multiple of it, by repeating the border, and the result is cropped back, so
            that windows begin at multiples of it where roi_size and overlap are such: a network that takes every s-th
            voxel of the noise then takes the same ones in all windows.
        kwargs: all that ``monai.inferers.SlidingWindowInferer`` takes.
    """

    def __init__(
        self, *, noise: bool, noise_seed: int = 0, normal: bool = False, multiple: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.noise, self.noise_seed, self.normal, self.multiple = noise, noise_seed, normal, multiple

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        noise_seeds: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Label map ``(B, 1, H, W, D)`` → intensities in [0, 1], ``(B, 1, H, W, D)``.

        Args:
            inputs, network, args, kwargs: as in ``monai.inferers.SlidingWindowInferer``.
            noise_seeds: one per item, or one for all, in place of the inferer's own seed; the network is told too,
                which may draw a style from it. A ``style`` of the network, ``(B, Z)``, is each item's own.

        Raises:
            InputError: for another number of seeds; out of memory, with what to do.
        """
        with memory_advice(
            lambda: f"a volume of {tuple(inputs.shape[2:])} voxels with windows of {self.roi_size}",
            "give a smaller --roi_size, such as '[96,96,48]', or --device cpu where that has more memory",
        ):
            return self._synthesise(inputs, network, *args, noise_seeds=noise_seeds, **kwargs)

    def _synthesise(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        noise_seeds: Sequence[int] | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        items = inputs.shape[0]
        seeds = item_seeds(noise_seeds, self.noise_seed, items)
        if items > 1:  # MONAI mixes the windows of several items, of which the network could not tell whose seed counts
            style = kwargs.pop("style", None)
            own = [{} if style is None else {"style": style[i : i + 1] if len(style) == items else style}
                   for i in range(items)]  # fmt: skip
            given = [None if noise_seeds is None else [seed] for seed in seeds]
            return torch.cat([
                self._synthesise(inputs[i : i + 1], network, *args, noise_seeds=given[i], **own[i], **kwargs)
                for i in range(items)
            ])  # fmt: skip
        h, w, d = inputs.shape[2:]
        x = inputs.to(torch.float32)  # MONAI adds windows up in the input's type
        if self.multiple > 1:
            padding = [side for length in (d, w, h) for side in (0, -length % self.multiple)]
            x = F.pad(x, padding, mode="replicate")
        if self.noise:
            make = gaussian_noises if self.normal else white_noises
            x = torch.cat([x, make(x, seeds)], dim=1)
        told = {} if noise_seeds is None else {"noise_seeds": seeds}
        result = super().__call__(x, network, *args, **told, **kwargs)
        assert isinstance(result, torch.Tensor)
        return result[:, :, :h, :w, :d]


class WholeOrWindowInferer(SlidingWindowInferer):
    """The whole volume in one pass where it fits into one window, overlapping windows where it does not.

    MONAI's inferer pads a smaller volume up to the window with zeros, which costs time and changes the statistics that
    networks standardise by.

    Args:
        roi_size: the largest window, voxels along H, W, D.
        flips: axes (0, 1, 2) along which the volume is mirrored: the network sees it in all combinations of them (2 to
            the power of their number), and the logarithm of the mean probabilities is returned in place of logits. Not
            along left and right where those are classes.
        kwargs: all else that ``monai.inferers.SlidingWindowInferer`` takes.

    Raises:
        InputError: for axes that there are not.
    """

    def __init__(self, *args: Any, flips: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flips = tuple(sorted(set(flips)))
        if not set(self.flips) <= {0, 1, 2}:
            raise InputError(f"flips must be axes of 0, 1 and 2, got {list(flips)}")

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Input ``(B, C, H, W, D)`` → the network's output on the same grid.

        Raises:
            InputError: out of memory, with what to do.
        """
        if not self.flips:
            return self._once(inputs, network, *args, **kwargs)
        combinations = [axes for n in range(len(self.flips) + 1) for axes in itertools.combinations(self.flips, n)]
        total: Any = 0
        for axes in combinations:
            dims = [2 + axis for axis in axes]
            total = total + self._once(inputs.flip(dims), network, *args, **kwargs).softmax(dim=1).flip(dims)
        result: torch.Tensor = (total / len(combinations)).clamp(min=torch.finfo(torch.float32).tiny).log()
        return result

    def _once(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        largest = fall_back_tuple(self.roi_size, inputs.shape[2:])
        try:
            if all(size <= window for size, window in zip(inputs.shape[2:], largest, strict=True)):
                return network(inputs, *args, **kwargs)
            windowed = copy(self)
            windowed.roi_size = tuple(min(pair) for pair in zip(inputs.shape[2:], largest, strict=True))
            result = super(WholeOrWindowInferer, windowed).__call__(inputs, network, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"out of memory on a volume of {tuple(inputs.shape[2:])} voxels with windows of {tuple(largest)}; give "
                "a smaller window_size, for example [96,96,64], or --device cpu"
            ) from error
        assert isinstance(result, torch.Tensor)
        return result


class ReconstructionInferer(SimpleInferer):
    """An autoencoder's reconstruction of an image, without the posterior that it was drawn from.

    Args:
        label_maps: True where the autoencoder is given the label map too; a VQ-GAN is not.
    """

    def __init__(self, *, label_maps: bool = True) -> None:
        super().__init__()
        self.label_maps = label_maps

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., Any], real: torch.Tensor
    ) -> torch.Tensor:
        """Label map and image, ``(B, 1, H, W, D)`` each → intensities in [0, 1], the same shape."""
        pred: torch.Tensor = network(inputs, real).pred if self.label_maps else network(real)
        return pred.clamp(0.0, 1.0)
