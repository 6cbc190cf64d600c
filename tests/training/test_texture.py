"""A network that also has to tell the texture of what it segments, and one that segments at several levels."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import UNet
from scipy.ndimage import gaussian_filter
from semsynth.errors import InputError
from semsynth.networks.features.registry import JudgeEncoder
from semsynth.networks.segmentation import StandardizedSegmenter, residual_unet, subvoxel_swin
from semsynth.networks.supervision import DeepSupervision
from semsynth.networks.texture import TextureHead, embedding, encoder_length
from semsynth.training.engines.segmentation import SegmentationTrainer
from semsynth.training.losses.segmentation import SegmentationLoss
from semsynth.training.losses.texture import TextureLoss, texture


def volume(seed: int = 0, size=(32, 32, 32)) -> torch.Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed))


def halves(size=(32, 32, 32)) -> torch.Tensor:
    target = torch.zeros(1, 1, *size, dtype=torch.long)
    target[:, :, : size[0] // 2] = 1
    return target


def test_white_noise_has_the_strength_per_band_that_averages_of_blocks_leave():
    # variance 1; the mean of 8 voxels has variance 1/8: a band has 1 − 1/8 of what came into it
    strengths, there = texture(
        torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1)), halves((64,) * 3)
    )
    expected = [0.5 * math.log((1 - 1 / 8) / 8**band) for band in range(4)]
    assert strengths[0].tolist() == pytest.approx(expected * 2, abs=0.06) and bool(there.all())


def test_blur_takes_from_the_fine_bands_and_scale_and_offset_change_nothing():
    x, target = volume(), halves()
    before, _ = texture(x, target)
    blurred = torch.from_numpy(gaussian_filter(x.numpy(), [0, 0, 1, 1, 1]))
    after, _ = texture(blurred, target)
    # of variance 1 before and after: what the fine band loses the coarse ones have
    assert bool((after[0, [0, 4]] < before[0, [0, 4]] - 0.4).all()) and bool((after[0, 2:4] > before[0, 2:4]).all())
    assert torch.allclose(texture(300 * x + 7, target)[0], before, atol=1e-3)


def test_a_region_is_told_apart_and_one_that_is_not_there_does_not_count():
    x, target = volume(), halves()
    x[:, :, :16] = 0.5
    strengths, there = texture(x, target)
    assert bool((strengths[0, :3] < strengths[0, 4:7] - 2).all()), "nothing within the first half"
    strengths, there = texture(x, torch.zeros_like(target))
    assert there[0].tolist() == [False] * 4 + [True] * 4
    said = torch.zeros(1, 8, requires_grad=True)
    TextureLoss()(said, x, torch.zeros_like(target)).backward()
    assert bool((said.grad[0, :4] == 0).all()) and bool((said.grad[0, 4:] != 0).all())


def test_the_head_reads_what_the_judges_features_are():
    torch.manual_seed(0)
    segmenter = subvoxel_swin()
    head, x = TextureHead(segmenter).eval(), volume(size=(128, 64, 64))
    encoder = JudgeEncoder(segmenter, sha256="")
    with torch.no_grad():
        logits, said = head(x)
        assert torch.equal(logits, segmenter(x))
        assert torch.allclose(said, head.texture(encoder(x)), atol=1e-5)
        assert encoder(x).shape == (1, encoder_length(segmenter)) == (1, 192)


def test_each_level_weighs_alike_in_the_embedding():
    levels = [torch.rand(2, c, 4, 4, 4) + 1e-3 for c in (3, 12)]
    found = embedding(levels)
    one = embedding([levels[0], 100 * levels[1]])
    assert torch.allclose(found, one, atol=1e-5) and float(found.square().mean()) <= 1


def test_training_makes_the_features_tell_texture():
    """The loss of texture falls with training, so its gradient reaches the encoder through the head."""
    torch.manual_seed(0)
    segmenter = subvoxel_swin(window=2, depths=(1, 1, 1, 1))
    head, loss = TextureHead(segmenter), TextureLoss(weight=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=6e-3)
    values = []
    for step in range(14):
        x = volume(step % 3, (64, 64, 64))
        target = halves((64, 64, 64))
        term = loss(head(x)[1], x, target)
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        values.append(float(term.detach()))
    assert sum(values[-3:]) < 0.5 * sum(values[:3])
    assert float(segmenter.network.network.encoder1.layer.conv1.conv.weight.grad.abs().sum()) > 0


def trainer(network: torch.nn.Module, **kwargs) -> SegmentationTrainer:
    data = [{"image": volume(i, (16, 16, 16)), "label": halves((16, 16, 16))} for i in range(2)]
    return SegmentationTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=data, network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1), loss_function=SegmentationLoss(), **kwargs,
    )  # fmt: skip


def tiny_unet() -> StandardizedSegmenter:
    return StandardizedSegmenter(UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="INSTANCE"), multiple=4)


def test_coarse_levels_have_logits_of_the_volumes_shape_and_the_network_is_unchanged():
    torch.manual_seed(0)
    segmenter = residual_unet(channels=(4, 8, 8, 8, 8), dropout=0.0).eval()
    deep, x = DeepSupervision(segmenter, levels=3).eval(), volume(size=(34, 32, 30))
    with torch.no_grad():
        logits, coarse = deep(x)
        assert torch.equal(logits, segmenter(x))
    assert [tuple(c.shape) for c in coarse] == [(1, 2, 34, 32, 30)] * 3
    # the head of a level moves that level alone
    with torch.no_grad():
        deep.heads[1].bias += 1
        again = deep(x)
    assert torch.equal(again[0], logits) and torch.equal(again[1][0], coarse[0])
    assert torch.allclose(again[1][1], coarse[1] + 1, atol=1e-5) and torch.equal(again[1][2], coarse[2])


def test_deep_supervision_weighs_the_levels_by_halves():
    torch.manual_seed(0)
    deep = DeepSupervision(tiny_unet(), levels=1)
    engine = trainer(deep)
    x, target = volume(0, (16, 16, 16)), halves((16, 16, 16))
    engine.state.output = {}
    terms = engine._terms(engine, x, target)
    logits, coarse = deep(x)
    loss = SegmentationLoss()
    expected = (loss(logits, target)["dice"] + 0.5 * loss(coarse[0], target)["dice"]) / 1.5
    assert set(terms) == {"dice", "cross_entropy"} and float(terms["dice"]) == pytest.approx(float(expected), abs=1e-5)
    engine.run()
    assert float(deep.heads[0].weight.grad.abs().sum()) > 0


def test_texture_loss_and_head_go_together():
    with pytest.raises(InputError, match="go together; give both or none"):
        trainer(tiny_unet(), texture_loss=TextureLoss())
    with pytest.raises(InputError, match="go together; give both or none"):
        trainer(TextureHead(subvoxel_swin()))
    with pytest.raises(InputError, match="needs a network that subvoxel_swin made, got UNet"):
        TextureHead(tiny_unet())
    with pytest.raises(InputError, match="needs a network that residual_unet made, got SubvoxelNetwork"):
        DeepSupervision(subvoxel_swin())
    with pytest.raises(InputError, match="levels must be from 1 to 1"):
        DeepSupervision(tiny_unet(), levels=2)
    with pytest.raises(InputError, match="must be 0 or more"):
        TextureLoss(weight=-1)


def test_a_texture_head_trains_segmentation_and_texture_together():
    torch.manual_seed(0)
    head = TextureHead(subvoxel_swin(window=2, depths=(1, 1, 1, 1)))
    engine = trainer(head, texture_loss=TextureLoss())
    engine.run()
    assert {"dice", "cross_entropy", "texture"} == set(engine.state.output["losses"])
    assert float(head.texture.weight.grad.abs().sum()) > 0
