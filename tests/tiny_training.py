"""A tiny real training (32³ phantoms, random augmentation, dropout or noise), in process or as a command."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandSpatialCropd
from monai.utils import set_determinism
from semsynth.data.transforms import LoadIntensityd, LoadLabelMapd, LoadTargetd
from semsynth.handlers import TrainingCheckpoint
from semsynth.networks.discriminators import ConditionalPatchDiscriminator
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.networks.segmentation import StandardizedSegmenter
from semsynth.training.engines.adversarial import AdversarialTrainer
from semsynth.training.engines.base import MixedPrecisionTrainer
from semsynth.training.loading import CaseSampler, TrainingDataset, TrainingLoader, load_sources
from semsynth.training.losses.gan import ConditionalGANLoss
from semsynth.training.losses.segmentation import SegmentationLoss


def loader(data: str | Path, kind: str, *, workers: int, seed: int = 0, epoch_cases: int | None = 6) -> TrainingLoader:
    """Random flips, noise and 16³ crops of the phantoms; six draws per epoch unless said otherwise."""
    keys = ["image", "label"]
    label = LoadTargetd() if kind == "unet" else LoadLabelMapd("label", 4)
    transform = Compose([
        LoadIntensityd("image"), label, RandFlipd(keys, prob=0.5, spatial_axis=0),
        RandGaussianNoised("image", prob=0.5, std=0.1), RandSpatialCropd(keys, (16, 16, 16), random_size=False),
    ])  # fmt: skip
    entries = load_sources(Path(data) / "datalist.json")
    dataset = TrainingDataset(entries, transform, num_workers=1, progress=False)
    sampler = CaseSampler(dataset, seed=seed, epoch_cases=epoch_cases)
    return TrainingLoader(dataset, sampler=sampler, batch_size=1, num_workers=workers)


def trainer(
    data: str | Path, folder: str | Path, *, kind: str = "unet", epochs: int = 2, workers: int = 0,
    resume: bool = False, handlers: tuple = (), interval: int = 1, **kwargs,
) -> MixedPrecisionTrainer:  # fmt: skip
    """A trainer that is ready to run; its ``network`` is what tests compare."""
    set_determinism(seed=0)
    common = {
        "device": torch.device("cpu"),
        "max_epochs": epochs,
        "train_data_loader": loader(data, kind, workers=workers),
    }
    if kind == "unet":
        network = StandardizedSegmenter(
            UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm="INSTANCE", dropout=0.2), multiple=2
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        extra, special = {}, {"loss_function": SegmentationLoss()}
    else:
        network = Pix2PixGenerator(4, channels=(4, 8), noise=True)
        discriminator = ConditionalPatchDiscriminator(4, channels=4, num_layers=1, norm="BATCH", detail=True)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
        extra = {"discriminator": discriminator, "d_optimizer": d_optimizer}
        special = {"loss_function": ConditionalGANLoss(), **extra}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    objects = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average, **extra}
    engine_class = MixedPrecisionTrainer if kind == "unet" else AdversarialTrainer
    checkpoint = TrainingCheckpoint(folder, objects, resume=resume, interval=interval)
    engine = engine_class(
        network=network, optimizer=optimizer,
        train_handlers=[_Steps(schedule, average, network), *handlers, checkpoint], **common, **special, **kwargs,
    )  # fmt: skip
    engine.average = average
    return engine


class _Steps:
    """Schedule and moving average, one step per iteration."""

    def __init__(self, schedule, average, network) -> None:
        self.schedule, self.average, self.network = schedule, average, network

    def attach(self, engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.average.update_parameters(self.network))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.schedule.step())


def weights(engine: MixedPrecisionTrainer) -> torch.Tensor:
    """All weights and buffers of the network and of its moving average as one vector."""
    states = [engine.network.state_dict(), engine.average.state_dict()]
    return torch.cat([t.flatten().double() for state in states for t in state.values()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, data, folder, epochs, output, workers = sys.argv

    class Announce:
        def attach(self, engine) -> None:
            from ignite.engine import Events

            engine.add_event_handler(Events.ITERATION_STARTED, lambda e: print(e.state.iteration, flush=True))

    engine = trainer(data, folder, epochs=int(epochs), resume=True, handlers=(Announce(),), workers=int(workers))
    engine.run()
    torch.save(weights(engine), output)
