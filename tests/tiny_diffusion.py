"""Tiny real networks of latent diffusion, and data for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandSpatialCropd
from semsynth.data.transforms import LoadIntensityd, LoadLabelMapd
from semsynth.networks.autoencoder import SPADEAutoencoder
from semsynth.networks.denoiser import SPADEUNet
from semsynth.networks.latent_diffusion import LatentDiffusion
from semsynth.networks.sampling.guided import SamplingOptions
from semsynth.networks.slice_unet import SliceUNet
from semsynth.networks.vqgan import VQGAN
from semsynth.training.latents import LatentDataset, SampledDataset
from semsynth.training.loading import load_sources
from torch import nn

SPADE: dict[str, Any] = {"hidden": 4, "groups": 2}


def awake(network: nn.Module) -> nn.Module:
    """Random weights where they start at zero, so that every part has a say."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return network


def denoiser(**kwargs: Any) -> SPADEUNet:
    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "latent_channels": 3, "channels": (8, 8), "stride": 4, "attention": (False, True), "spade": SPADE,
        "style_channels": 8,
    }  # fmt: skip
    network = SPADEUNet(4, **(usual | kwargs))
    awake(network)
    return network.eval()


def diffusion(
    *, of_denoiser: dict[str, Any] | None = None, of_autoencoder: dict[str, Any] | None = None, **kwargs: Any
) -> LatentDiffusion:
    torch.manual_seed(0)
    usual: dict[str, Any] = {"channels": (8, 8), "strides": (2, 2), "latent_channels": 3, "spade": SPADE}
    autoencoder = SPADEAutoencoder(4, **(usual | (of_autoencoder or {})))
    awake(autoencoder)
    names = SamplingOptions.__dataclass_fields__
    sampling = {"steps": 3} | {name: kwargs.pop(name) for name in list(kwargs) if name in names}
    network = LatentDiffusion(autoencoder, denoiser(**(of_denoiser or {})), sampling=sampling, **kwargs).eval()
    network.style_mean.copy_(torch.linspace(0.2, 0.6, network.style_channels))
    network.style_covariance.copy_(torch.eye(network.style_channels) * 0.01)
    return network


def slice_unet(**kwargs: Any) -> SliceUNet:
    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "num_classes": 5, "latent_channels": 3, "channels": (8, 8), "blocks": 1, "heads": 2, "head_channels": 4,
        "spade": {"hidden": 4, "groups": 2}, "label_channels": 6, "label_vector": 4,
    }  # fmt: skip
    network = SliceUNet(**(usual | kwargs))
    awake(network)
    return network.eval()


def med_lsdm(*, of_denoiser: dict[str, Any] | None = None, **sampling: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    autoencoder = VQGAN(
        channels=(8, 8), decoder_channels=(8,), blocks=(1, 1), patch=2, latent_channels=3, codes=64, norm="voxel",
        edge_norms=False, resampling="aligned",
    )  # fmt: skip
    awake(autoencoder)
    return LatentDiffusion(autoencoder, slice_unet(**(of_denoiser or {})), sampling={"steps": 3} | sampling).eval()


def label_map(size: tuple[int, int, int] = (16, 12, 8), seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 4, (1, 1, *size), generator=torch.Generator().manual_seed(seed)).float()


def dataset(data: Path, **kwargs: Any) -> LatentDataset:
    keys = ["image", "label"]
    # not 16: the coarsest level would have 2 voxels, where some processors' bfloat16 kernels leave gradients unwritten
    transform = Compose([
        LoadIntensityd("image"), LoadLabelMapd("label", 4), RandFlipd(keys, prob=0.5, spatial_axis=0),
        RandGaussianNoised("image", prob=0.9, std=0.1), RandSpatialCropd(keys, (24, 24, 24), random_size=False),
    ])  # fmt: skip
    entries = load_sources(data / "datalist.json")
    kind = SampledDataset if "crop" in kwargs else LatentDataset
    return kind(entries, transform, **({"views": 2, "num_workers": 1, "progress": False} | kwargs))


def exact(scheduler: Any) -> Any:
    """MONAI's scheduler with its constants in float64: in float32 it is off by up to 3e-4 after 200 steps."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    scheduler.one = torch.ones([], dtype=torch.float64)
    scheduler.final_alpha_cumprod = scheduler.one
    return scheduler
