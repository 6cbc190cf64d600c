"""The paper overlays say what the papers print: each number of their method sections against the merged config.

Al-Sanaani et al., sections II-A to II-C; Med-LSDM, sections 3.3 and 4, appendices A and B. What the papers do not
print (widths, weights of losses, epochs of Med-LSDM) is named in each overlay's ``_desc_`` as another's or ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import bundle_runs
import pytest
import torch
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
CONSTANT, COSINE = "torch.optim.lr_scheduler.ConstantLR", "semsynth.training.schedules.Cosine"

PRINTED = {
    ("pix2pix3d", "train", "paper"): {
        "patch_size": [256, 256, 64],  # II-A
        "max_epochs": 400,
        "train#dataloader#batch_size": 1,
        "accumulation_steps": 1,
        "learning_rate": 2e-4,
        "d_learning_rate": 2e-4,
        "optimizer#_target_": "torch.optim.Adam",
        "d_optimizer#_target_": "torch.optim.Adam",
        "optimizer#betas": [0.5, 0.999],
        "d_optimizer#betas": [0.5, 0.999],
        "lr_scheduler#_target_": CONSTANT,
        "d_lr_scheduler#_target_": CONSTANT,
        "network_def#label_encoding": "scalar",  # a single-channel map
        "discriminator_def#norm": "BATCH",
    },
    ("spade_gan3d", "train", "paper"): {
        "patch_size": [256, 256, 64],
        "max_epochs": 200,
        "learning_rate": 2e-5,
        "d_learning_rate": 4e-5,
        "optimizer#_target_": "torch.optim.Adam",
        "d_optimizer#_target_": "torch.optim.Adam",
        "lr_scheduler#_target_": COSINE,
        "d_lr_scheduler#_target_": COSINE,
        "network_def#spade#norm": "group",
        "discriminator_def#scales": 2,  # full and half resolution
        "discriminator_def#num_layers": 3,
        "discriminator_def#norm": "INSTANCE",
        "perceptual_networks#0": "medicalnet_resnet50",
    },
    ("spade_ldm", "train_autoencoder", "paper_autoencoder"): {
        "patch_size": [256, 256, 64],
        "max_epochs": 200,
        "learning_rate": 2e-4,
        "d_learning_rate": 4e-4,
        "optimizer#_target_": "torch.optim.Adam",
        "d_optimizer#_target_": "torch.optim.Adam",
        "lr_scheduler#_target_": CONSTANT,
        "d_lr_scheduler#_target_": CONSTANT,
        "amp": True,
        "network_def#latent_channels": 8,
        "network_def#strides": [1, 2, 2, 2, 2],  # four downsampling blocks, no patches
        "perceptual_networks#0": "medicalnet_resnet50",
        "discriminator_def#detail": False,
    },
    ("spade_ldm", "train", "paper"): {
        "patch_size": [256, 256, 64],
        "max_epochs": 200,
        "learning_rate": 1e-4,
        "optimizer#_target_": "torch.optim.Adam",
        "lr_scheduler#_target_": CONSTANT,
        "network_def#prediction": "epsilon",  # eq. 1
        "network_def#noise_schedule": "cosine",
        "network_def#timesteps": 1000,
        "network_def#label_dropout": 0.1,
        "network_def#denoiser#style_channels": 0,
        "network_def#denoiser#latent_channels": 8,
        "network_def#denoiser#middle_spade": True,
        "signal_power": 0.0,  # the plain mean squared error of eq. 1
        "guidance": 1.5,
        "sampler": "ddpm",
    },
    ("la_unet", "train", "paper"): {
        "max_epochs": 200,
        "learning_rate": 1e-4,
        "optimizer#_target_": "torch.optim.AdamW",
        "lr_scheduler#_target_": CONSTANT,
        "class_weight_power": 1.0,  # inverse to voxel counts
        "network_def#dropout": 0.2,
        "spacing": [1.0, 1.0, 1.0],
    },
    ("la_unet", "train", "duke"): {  # Med-LSDM, appendix B
        "learning_rate": 5e-5,
        "optimizer#_target_": "torch.optim.Adam",
        "lr_scheduler#_target_": CONSTANT,
        "batch_size": 4,
        "patch_size": [64, 64, 64],
        "max_epochs": 10,
    },
    ("med_lsdm", "train_vqgan", "paper_vqgan"): {
        "patch_size": [256, 256, 32],
        "learning_rate": 3e-4,
        "d_learning_rate": 3e-4,
        "optimizer#_target_": "torch.optim.Adam",
        "d_optimizer#_target_": "torch.optim.Adam",
        "optimizer#betas": [0.9, 0.999],
        "d_optimizer#betas": [0.9, 0.999],
        "lr_scheduler#_target_": CONSTANT,
        "d_lr_scheduler#_target_": CONSTANT,
        "network_def#codes": 16384,
        "network_def#latent_channels": 8,
        "loss#adaptive": True,  # eq. 7
        "loss#adversarial": "hinge",
    },
    ("med_lsdm", "train", "paper"): {
        "patch_size": [256, 256, 32],
        "learning_rate": 3e-4,
        "optimizer#_target_": "torch.optim.Adam",
        "optimizer#betas": [0.9, 0.999],
        "lr_scheduler#_target_": CONSTANT,
        "guidance": 1.0,  # none is printed
        "network_def#prediction": "epsilon",  # eq. 13
        "network_def#noise_schedule": "cosine",  # eq. 10
        "network_def#standardize": False,  # min-max by the codebook alone
        "network_def#autoencoder#codes": 16384,
        "network_def#autoencoder#latent_channels": 8,
        "network_def#denoiser#style_channels": 0,
        "network_def#denoiser#spade#norm": "group",  # eq. 15
        "signal_power": 0.0,
    },
}
NUMBERS_OF_OTHERS = {  # public code's, or ours: the overlay has to say so
    ("spade_ldm", "paper_autoencoder"): "Not in the paper: the widths",
    ("spade_ldm", "paper"): "Not in the paper: the widths",
    ("spade_gan3d", "paper"): "the weights of the losses (10, 10, 0.05) are those of Park et al.'s code",
    ("pix2pix3d", "paper"): "the weight 100 of L1 are those of Isola et al.",
    ("med_lsdm", "paper_vqgan"): "The public code's: the weights of the losses",
    ("med_lsdm", "paper"): "max_epochs is ours",
}


OF_OTHERS = {  # public code's, and called that in the overlay
    ("pix2pix3d", "train", "paper"): {"loss#l1_weight": 100.0, "network_def#dropout": 0.5},
    ("spade_gan3d", "train", "paper"): {
        "loss#feature_weight": 10.0, "loss#perceptual_weight": 10.0, "loss#kl_weight": 0.05
    },
    ("spade_ldm", "train_autoencoder", "paper_autoencoder"): {
        "loss#kl_weight": 0.001, "loss#adversarial_weight": 0.01, "loss#perceptual_weight": 0.001,
        "loss#r1_weight": 10.0, "loss#r1_interval": 16, "warm_up_epochs": 10,
    },
    ("med_lsdm", "train_vqgan", "paper_vqgan"): {
        "loss#l1_weight": 4.0, "loss#perceptual_weight": 4.0, "loss#feature_weight": 4.0,
        "loss#commitment_weight": 0.25, "loss#slices": 1,
    },
}  # fmt: skip


def merged(bundle: str, *names: str) -> ConfigParser:
    parser = ConfigParser(bundle_runs.read(BUNDLES / bundle, *names))
    parser.resolve_macro_and_relative_ids()
    return parser


@pytest.mark.parametrize(
    ("names", "wanted"), [*PRINTED.items(), *OF_OTHERS.items()], ids=lambda part: "-".join(part)[:60]
)
def test_what_the_paper_prints_is_what_its_overlay_trains_with(names: tuple[str, ...], wanted: dict) -> None:
    parser = merged(*names)
    found = {key: parser[key] for key in wanted}
    resolved = {
        key: parser.get_parsed_content(value[1:]) if isinstance(value, str) and value.startswith("@") else value
        for key, value in found.items()
    }
    assert resolved == wanted


@pytest.mark.parametrize("names", NUMBERS_OF_OTHERS, ids="-".join)
def test_what_no_paper_prints_is_not_said_to_be_the_papers(names: tuple[str, str]) -> None:
    bundle, overlay = names
    content = json.loads((BUNDLES / bundle / "configs" / f"{overlay}.json").read_text(encoding="utf-8"))
    assert NUMBERS_OF_OTHERS[names] in content["_desc_"]


@pytest.mark.parametrize("names", [n for n in PRINTED if n[2].startswith("paper")], ids="-".join)
def test_the_papers_networks_can_be_built(names: tuple[str, ...]) -> None:
    """On the meta device, without memory: parts that do not fit each other are refused when they are put together."""
    with torch.device("meta"):
        network = merged(*names).get_parsed_content("network_def")
    stride = {"paper_autoencoder": 16, "paper_vqgan": 4}.get(names[2])
    assert stride is None or network.stride == stride
    assert sum(p.numel() for p in network.parameters()) > 1e6


def test_both_stages_of_a_paper_have_one_autoencoder() -> None:
    for bundle, first, second in (
        ("spade_ldm", ("train_autoencoder", "paper_autoencoder"), ("train", "paper")),
        ("med_lsdm", ("train_vqgan", "paper_vqgan"), ("train", "paper")),
    ):
        alone, within = merged(bundle, *first)["network_def"], merged(bundle, *second)["network_def#autoencoder"]
        assert {k: v for k, v in alone.items() if k != "_desc_"} == {k: v for k, v in within.items() if k != "_desc_"}


def test_accumulation_makes_the_batch_of_two_of_med_lsdm() -> None:
    for names in (("train_vqgan", "paper_vqgan"), ("train", "paper")):
        parser = merged("med_lsdm", *names)
        assert parser["train_batch_size"] * parser["accumulation_steps"] == 2
