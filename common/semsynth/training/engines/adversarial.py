"""Trainers with a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...distributed import world_size
from ...errors import InputError
from ...labels import plain
from ...networks.autoencoder import SPADEAutoencoder
from ...precision import autocast
from ..latents import COARSE, LATENT
from ..losses.autoencoder import AutoencoderLoss, DecoderLoss
from ..losses.gan import ConditionalGANLoss
from .base import MixedPrecisionTrainer
from .batches import PrepareSynthesisBatch


class AdversarialTrainer(MixedPrecisionTrainer):
    """Alternating generator and discriminator steps on (label map, image) batches.

    A ``SupervisedTrainer`` whose ``network`` is the generator, so that whatever works with one (handlers, federated
    learning, checkpoints) works here. MONAI's own ``AdversarialTrainer`` takes the network's *input* for the
    discriminator's real sample, which is wrong for image-to-image. Each iteration makes one generated image, takes a
    generator step with the discriminator frozen, then a discriminator step on the same image, detached.

    The output holds ``image`` (label map), ``label`` (real image), ``pred``, ``loss`` (the generator's sum) and
    ``losses`` (every named term).

    Args:
        discriminator: (label map, image) → list of features, logits last; may be wrapped for distributed training.
        d_optimizer: its optimizer.
        loss_function: makes the named terms of both steps.
        kwargs: all else that :class:`MixedPrecisionTrainer` takes; ``clip_norm`` holds for each of the two networks.
    """

    loss_function: ConditionalGANLoss

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        d_optimizer: torch.optim.Optimizer,
        loss_function: ConditionalGANLoss,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("prepare_batch", PrepareSynthesisBatch())
        super().__init__(loss_function=loss_function, **kwargs)
        self.discriminator, self.d_optimizer = discriminator, d_optimizer
        self.learners["discriminator"] = self._learner(discriminator, d_optimizer)

    def _train_on(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> None:
        first, last = self._accumulation()
        self.network.train()
        self.discriminator.train()
        if first:
            for learner in self.learners.values():
                learner.start()
        fake = self._generator_step(engine, inputs, target, step=last)
        self._discriminator_step(inputs, fake.detach(), target, step=last)

    def _generator_step(
        self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor, *, step: bool
    ) -> torch.Tensor:
        discriminator = self._bare_discriminator()
        if discriminator is not None:
            discriminator.requires_grad_(False)
        with autocast(self.state.device, enabled=self.mixed, scaled=True):
            made = self._synthesize(engine, label, real)
            fake: torch.Tensor = made[0]
            self._predicted(fake)
            terms = self._generator_terms(discriminator, label, fake, real, *made[1:])
        self._optimize(self.learners["network"], terms, step=step)
        if discriminator is not None:
            discriminator.requires_grad_(True)
        return fake

    def _generator_terms(
        self, discriminator: Any, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *more: Any
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.generator(discriminator, label, fake, real, *more)

    def _bare_discriminator(self) -> nn.Module | None:
        """The discriminator, bare: frozen parameters give a wrapper nothing to wait for."""
        wrapped = isinstance(self.discriminator, DistributedDataParallel)
        discriminator: nn.Module = self.discriminator.module if wrapped else self.discriminator  # type: ignore[assignment]
        return discriminator

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        """The generated image, and what else the generator's loss takes."""
        return (engine.inferer(label, self.network),)

    def _discriminator_step(self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, step: bool) -> None:
        with autocast(self.state.device, enabled=self.mixed, scaled=True):
            terms = self._discriminator_terms(label, fake, real)
        self._optimize(self.learners["discriminator"], terms, step=step)

    def _discriminator_terms(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.discriminator(self.discriminator, label, fake, real)


class VariationalGANTrainer(AdversarialTrainer):
    """Adversarial training of a generator that takes its style from the real image (a VAE-GAN; Park et al. 2019).

    The network is called with label map and real image and gives a
    :class:`~semsynth.networks.spade_gan.Reconstruction`; its posterior goes to the loss.
    """

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        made = engine.inferer(label, self.network, real)
        if isinstance(made, torch.Tensor):  # a generator without style
            return (made,)
        return made.pred, (made.mean, made.log_variance)


class DelayedAdversarialTrainer(AdversarialTrainer):
    """Adversarial training of an autoencoder, whose discriminator takes part after a warm-up.

    Until then it is neither used nor trained: it would learn to tell blurred reconstructions, which need no
    discriminator.

    Args:
        warm_up_epochs: number of epochs before it.
        kwargs: all else that :class:`AdversarialTrainer` takes.
    """

    def __init__(self, *, warm_up_epochs: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.warm_up_epochs = warm_up_epochs

    @property
    def warmed_up(self) -> bool:
        """Whether the warm-up is over."""
        return bool(self.state.epoch > self.warm_up_epochs)

    @property
    def adversarial(self) -> bool:
        """Whether the adversarial part takes part in this step."""
        return self.warmed_up and self.loss_function.adversarial_weight > 0

    def _bare_discriminator(self) -> nn.Module | None:
        return super()._bare_discriminator() if self.adversarial else None

    def _discriminator_step(self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, step: bool) -> None:
        if self.adversarial:
            super()._discriminator_step(label, fake, real, step=step)


class AutoencoderTrainer(DelayedAdversarialTrainer, VariationalGANTrainer):
    """Training of a KL autoencoder: a warm-up (10 epochs in the paper), and R1 for the discriminator.

    Args:
        kwargs: all that :class:`DelayedAdversarialTrainer` takes; ``loss_function`` is a
            :class:`semsynth.training.losses.autoencoder.AutoencoderLoss`.
    """

    loss_function: AutoencoderLoss

    def _discriminator_terms(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        terms = super()._discriminator_terms(label, fake, real)
        if self.state.iteration % self.loss_function.r1_interval == 0:
            terms |= self.loss_function.penalty(self.discriminator, label, real)
        return terms


class DecoderTrainer(AutoencoderTrainer):
    """Training of the decoder in a :class:`~semsynth.networks.latent_diffusion.LatentDiffusion` on sampled latents.

    Batches are those of a :class:`semsynth.training.latents.SampledDataset`. Encoder and denoiser stay as they are.
    Each step draws the noise that the decoder adds, if it is one that does.

    Args:
        loss_function: a :class:`semsynth.training.losses.autoencoder.DecoderLoss`.
        kwargs: all that :class:`AutoencoderTrainer` takes; the optimizer has the decoder's parameters alone.

    Raises:
        InputError: for an optimizer that has others, or several processes.
    """

    loss_function: DecoderLoss

    def __init__(self, *, warm_up_epochs: int = 0, **kwargs: Any) -> None:
        if world_size() > 1:
            raise InputError(f"the decoder is trained by one process, not {world_size()}: start it without torchrun")
        super().__init__(warm_up_epochs=warm_up_epochs, **kwargs)
        decoder = self._autoencoder().decoder
        own = {id(p) for p in decoder.parameters()}
        if any(id(p) not in own for group in self.optimizer.param_groups for p in group["params"]):
            raise InputError(
                "the optimizer has other parameters than the decoder's; give it "
                "$@network_def.autoencoder.decoder.parameters()"
            )
        decoder.requires_grad_(True)

    def _autoencoder(self) -> SPADEAutoencoder:
        whole: Any = getattr(self.network, "module", self.network)
        found = getattr(whole, "autoencoder", None)
        if not isinstance(found, SPADEAutoencoder):
            raise InputError(f"needs a network with a SPADE autoencoder, got {type(found or whole).__name__}")
        return found

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        batch: Any = engine.state.batch
        latent, coarse = (plain(batch[key]).to(label.device) for key in (LATENT, COARSE))
        autoencoder = self._autoencoder()
        added = (torch.randn_like(real),) if autoencoder.takes_noise else ()
        return autoencoder.decode(latent, label, *added), coarse

    def _generator_terms(
        self, discriminator: Any, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *more: Any
    ) -> dict[str, torch.Tensor]:
        terms = self.loss_function.generator(discriminator, label, fake, real)
        return terms | self.loss_function.content(fake, more[0], self._autoencoder().stride)
