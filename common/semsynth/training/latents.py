"""Training data as latents: what the autoencoder makes of augmented cases, computed once, drawn in each step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from ..data.entry_cases import VOXELS
from ..distributed import gather, rank, world_size
from ..errors import InputError
from ..labels import plain
from ..memory import memory_advice
from ..networks.latent_diffusion import LatentDiffusion
from ..paths import as_path
from ..provenance.cards import weights_hash
from .cache import DiskCache
from .loading import TrainingDataset
from .losses.autoencoder import block_means

logger = logging.getLogger(__name__)
StyleOf: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LATENT = "latent"
"""Key of a batch's posterior: mean and log σ², ``(B, 2·Z, h, w, d)``."""
STYLE = "style"
COARSE = "coarse"
"""Key of the mean intensity of each of a latent's cells, ``(B, 1, h, w, d)``."""


class LatentDataset(TrainingDataset):
    """Augmented views of the cases with their latents, for the training of a denoiser.

    Encoding and augmenting take as long as a training step; of each case a fixed number of views is therefore made
    before the training. A view is kept as mean and log σ² of the posterior, not as a drawn latent, whose noise would be
    part of the target. With 0 views each draw is augmented anew and encoded in its step.

    An index is ``(number, seed)`` as :class:`semsynth.training.loading.CaseSampler` gives it: the seed picks the view.

    Args:
        data, transform: as in :class:`~semsynth.training.loading.TrainingDataset`; the transforms leave ``image`` and
            ``label``.
        views: number of views of each case; 0 encodes on the fly.
        latents_dir: folder for the views, or None. They are made again where the autoencoder's weights, a transform or
            a file have changed.
        view_seed: seed of the views' augmentation.
        image_key: key of what is encoded; ``"label"`` for an autoencoder of label maps.
        kwargs: all else that ``TrainingDataset`` takes.

    Raises:
        InputError: for a negative number of views.
    """

    kind = "view"

    def __init__(
        self,
        data: Any,
        transform: Any,
        *,
        views: int = 8,
        latents_dir: str | Path | None = None,
        view_seed: int = 0,
        image_key: str = "image",
        **kwargs: Any,
    ) -> None:
        if views < 0:
            raise InputError(f"views must be 0 (encode in each step) or more, got {views}")
        super().__init__(data, transform, **kwargs)
        self.views, self.view_seed, self.image_key = int(views), view_seed, image_key
        self.latents_dir = None if latents_dir is None else as_path(latents_dir, "latents_dir")
        self.made: dict[tuple[int, int], dict[str, Any]] = {}
        self.style_of: StyleOf | None = None  # known when a network encodes

    def __getitem__(self, index: Any) -> dict[str, Any]:
        number, seed = index if isinstance(index, tuple) else (index, 0)
        if self.views == 0:
            item: dict[str, Any] = super().__getitem__((number, seed))
            item["image"] = item[self.image_key]
            return item | {STYLE: _style(item, self.style_of)}
        view = self.made.get((number, seed % self.views))
        if view is None:
            raise InputError(
                "the latents are not made yet; attach semsynth.training.latents.EncodeCases to the trainer, after the "
                "handlers that load the autoencoder"
            )
        # stored in half of the space; a network takes float32
        return {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in view.items()}

    def encode(self, network: LatentDiffusion, *, title: str = "encoding") -> None:
        """Make all views with the network's autoencoder, and count latents and styles where they are not known yet."""
        self.style_of = network.style_of if network.style_channels else None
        moments: list[torch.Tensor] = []
        styles: list[torch.Tensor] = []
        for made in self._views(network, title):
            mean, log_variance = made[LATENT].float().chunk(2)
            moments.append(torch.stack([mean.mean(), (mean.square() + log_variance.exp()).mean()]))
            styles.append(made[STYLE].float())
        # as objects: processes may have made different numbers of views
        _count(network, *(torch.cat(gather(torch.stack(rows))) for rows in (moments, styles)))

    def _views(self, network: LatentDiffusion, title: str) -> Iterator[dict[str, Any]]:
        """This process's share of the views, one after the other; at the end all have all."""
        wanted = [(number, view) for number in range(len(self)) for view in range(max(self.views, 1))]
        mine = wanted[rank() :: world_size()]
        disk = None
        if self.latents_dir is not None:
            disk = DiskCache(self.latents_dir, [*self.transform.transforms, self._origin(network)])  # type: ignore[list-item]
        for number, view in tqdm(mine, desc=title, unit="view", disable=rank() != 0, mininterval=1.0):
            made = self._view(network, number, view, disk)
            if self.views:
                self.made[number, view] = made
            yield made
        for part in gather(self.made):  # which case a process draws follows from the epoch: all need all
            self.made |= part

    def _origin(self, network: LatentDiffusion) -> str:
        """What the views depend on beside their case and its augmentation."""
        return weights_hash(network.autoencoder.state_dict())

    def _make(self, network: LatentDiffusion, item: dict[str, Any], seed: int) -> dict[str, Any]:
        """A view, of the augmented case."""
        return _encoded(network, item | {"image": item[self.image_key]})

    def _view(self, network: LatentDiffusion, number: int, view: int, disk: DiskCache | None) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            seed = self._seed(number, view)
            return self._make(network, TrainingDataset.__getitem__(self, (number, seed)), seed)

        if disk is None:
            return make()
        case = f"{self.data[number]['case']}_{self.kind}{view}"
        entry = {**self.data[number], "case": case, "view_seed": self.view_seed}
        entry.pop(VOXELS, None)  # by its files, as in TrainingDataset
        return disk.load(entry, make)

    def _seed(self, number: int, view: int) -> int:
        return int(np.random.SeedSequence([self.view_seed, number, view, 5]).generate_state(1)[0])


class SampledDataset(LatentDataset):
    """Augmented views of the cases, each with a latent that the denoiser sampled for its map: to train the decoder.

    A decoder that was trained on latents of real images meets others when it decodes samples. Of each case a fixed
    number of views is made before the training, with a latent in a drawn style each; a draw is a crop of one, on the
    latent's cells. An item holds ``image`` and ``label``, ``latent`` in the autoencoder's units, and ``coarse``: the
    mean intensity of each cell as the decoder gave it before this training.

    Args:
        data, transform: as in :class:`LatentDataset`.
        crop: voxels along H, W, D of a draw, rounded down to whole cells, or to what the volume has.
        stride: voxels per cell of the latent.
        views: number of views of each case, 1 or more.
        kwargs: all else that :class:`LatentDataset` takes.

    Raises:
        InputError: for no views, or a crop of less than one cell.
    """

    kind = "sample"

    def __init__(
        self, data: Any, transform: Any, *, crop: Sequence[int], stride: int = 4, views: int = 8, **kwargs: Any
    ) -> None:
        if views < 1:
            raise InputError(f"views must be 1 or more, got {views}: latents are sampled before the training")
        if isinstance(crop, int) or len(crop) != 3 or min(crop) < stride:
            raise InputError(f"crop must be three numbers of {stride} voxels or more, got {crop}")
        super().__init__(data, transform, views=views, **kwargs)
        self.crop, self.stride = [int(length) // stride for length in crop], int(stride)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        seed = index[1] if isinstance(index, tuple) else 0
        view = super().__getitem__(index)
        latent, size = view[LATENT], view["label"].shape[1:]
        generator = np.random.default_rng([seed, 7])
        inside: list[slice] = []
        for length, cells, wanted in zip(size, latent.shape[1:], self.crop, strict=True):
            last = max(length // self.stride - wanted, 0)
            first = int(generator.integers(last + 1))
            inside.append(slice(first, min(first + wanted, cells)))
        voxels = tuple(slice(part.start * self.stride, part.stop * self.stride) for part in inside)
        parts = {LATENT: inside, COARSE: inside, "image": voxels, "label": voxels}
        return {name: view[name][(slice(None), *part)] for name, part in parts.items()}

    def encode(self, network: LatentDiffusion, *, title: str = "sampling") -> None:
        """Make all views with the network."""
        if network.autoencoder.stride != self.stride:
            raise InputError(f"stride must be the autoencoder's, {network.autoencoder.stride}, got {self.stride}")
        training = network.training
        network.eval()
        for _ in self._views(network, title):
            pass
        network.train(training)

    def _origin(self, network: LatentDiffusion) -> str:
        # how many at once, and in which parts, changes nothing
        how = replace(network.sampling, batch_size=1, tile=None, compile=False)
        return f"{weights_hash(network.state_dict())} {how} {network.schedule} {network.style_scale}"

    def _make(self, network: LatentDiffusion, item: dict[str, Any], seed: int) -> dict[str, Any]:
        label = plain(torch.as_tensor(item["label"]))
        on_device = label[None].float().to(network.style_mean.device)
        with torch.no_grad(), memory_advice("a sampled latent", "give --tile '[192,192,0]', or crop the cases"):
            given = network.conditioning(on_device, decoder=False)
            latent = network.sample_latent(given, [seed], on_step=lambda _: None)  # the views have a bar of their own
            del given
            image = network.decode(latent, on_device)
        return {
            LATENT: (latent / network.latent_scale.float())[0].cpu().half(),
            COARSE: block_means(image, self.stride)[0].cpu().half(),
            "image": plain(torch.as_tensor(item["image"])).half(),
            "label": label.to(torch.uint8),
        }


def _encoded(network: LatentDiffusion, item: dict[str, Any]) -> dict[str, Any]:
    device = network.style_mean.device
    image, label = (plain(torch.as_tensor(item[key])) for key in ("image", "label"))
    with torch.no_grad():
        posterior = torch.cat(network.autoencoder.encode(image[None].float().to(device)), dim=1)[0].cpu()
    return {
        LATENT: posterior.half(),
        "label": label.to(torch.uint8),
        STYLE: _style({"image": image, "label": label}, network.style_of if network.style_channels else None),
    }


def _style(item: dict[str, Any], style_of: StyleOf | None) -> torch.Tensor:
    """Of an image; of a network without style, no values."""
    if style_of is None:
        return torch.zeros(0)
    image, label = (plain(torch.as_tensor(item[key])) for key in ("image", "label"))
    return style_of(image[None], label[None])[0]


def _count(network: LatentDiffusion, moments: torch.Tensor, styles: torch.Tensor) -> None:
    """Set the latents' scale, and the mean and covariance of the styles, unless the weights brought theirs along."""
    if float(network.latent_scale) != 1:
        return
    first, second = moments.double().mean(dim=0)
    if network.standardize:
        network.latent_scale.fill_(float((second - first**2).rsqrt()))
    logger.info("latents: mean %.3f, standard deviation %.3f", float(first), float((second - first**2).sqrt()))
    if not network.style_channels:
        return
    seen = styles.double()
    mean = seen.nanmean(dim=0)
    apart = (seen - mean).nan_to_num()
    network.style_mean.copy_(mean)
    network.style_covariance.copy_(apart.T @ apart / max(len(seen) - 1, 1))


class EncodeCases:
    """Attached to a trainer, after the handlers that load weights: makes the views of a :class:`LatentDataset`.

    Args:
        dataset: dataset whose views to make.
        network: with the autoencoder; its scale of latents and distribution of styles are set where they are not known.
    """

    def __init__(self, dataset: LatentDataset, network: Any) -> None:
        self.dataset, self.network = dataset, getattr(network, "module", network)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.STARTED, self._encode)

    def _encode(self, engine: Engine) -> None:
        self.dataset.encode(self.network)
