"""Segmentation: networks that standardise, targets, losses, windows, metrics in mm, files on the scan's grid."""

from __future__ import annotations

import json
import math

import nibabel as nib
import nrrd
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, State
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.networks.utils import pixelunshuffle
from monai.transforms import KeepLargestConnectedComponent
from semsynth.data.transforms import LoadTargetd
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.handlers import EvaluationHandler, InitWeights, RankedSegmentations, SegmentationWriter
from semsynth.metrics import AverageSurfaceDistanceMm, HausdorffDistanceMm
from semsynth.networks.frozen import FrozenSegmenter
from semsynth.networks.segmentation import (
    StandardizedSegmenter,
    SubvoxelNetwork,
    residual_unet,
    standardize,
    subvoxel_swin,
)
from semsynth.provenance.frozen import load_segmenter
from semsynth.synthesis.inferers import WholeOrWindowInferer
from semsynth.training.losses.segmentation import SegmentationLoss, class_weights
from semsynth.training.weights import take_over
from torch import nn


def network(classes: int = 2, widths: tuple[int, ...] = (4, 8, 8)) -> StandardizedSegmenter:
    torch.manual_seed(0)
    return StandardizedSegmenter(UNet(3, 1, classes, widths, (2, 2), num_res_units=1, norm="INSTANCE"), multiple=4)


# ---- networks


def test_the_intensity_scale_does_not_matter_and_any_size_comes_back():
    x = torch.rand(2, 1, 13, 10, 9)
    net = network().eval()
    assert net(x).shape == (2, 2, 13, 10, 9)
    assert torch.allclose(net(x), net(x * 812.5 - 1024), atol=1e-3)


@pytest.mark.parametrize("others", [(1, 1), (3, 4), (9, 2)])
def test_a_volume_of_any_length_is_segmented_and_larger_ones_are_padded_to_the_multiple_alone(others):
    net = network().eval()
    for length in range(1, 41):
        x = torch.rand(1, 1, *others, length)
        logits = net(x)
        assert logits.shape == (1, 2, *x.shape[2:]) and bool(logits.isfinite().all())
        if max(x.shape[2:]) > net.multiple:
            padding = [side for size in (length, *others[::-1]) for side in (0, -size % net.multiple)]
            padded = nn.functional.pad(standardize(x), padding, mode="replicate")
            assert torch.equal(logits, net.network(padded)[:, :, : others[0], : others[1], :length])


@pytest.mark.parametrize("build", [residual_unet, subvoxel_swin])
def test_the_shipped_networks_take_tiny_volumes(build):
    net = build().eval()
    with torch.no_grad():
        for shape in ((1, 1, 1), (6, 6, 6), (16, 16, 16), (16, 3, 17)):
            assert net(torch.rand(1, 1, *shape)).shape == (1, 2, *shape)


def test_gradients_reach_the_image_through_the_standardisation():
    x = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    network()(x)[:, 1].sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    # a change of scale changes nothing, so the gradient has no part along it
    assert float((x.grad * (x - x.mean()).detach()).sum()) == pytest.approx(0, abs=1e-2)


def test_the_segmentation_network_can_be_exported():
    torch.manual_seed(0)
    net = residual_unet().eval()
    exported = torch.jit.script(net)
    with torch.no_grad():
        for shape in ((1, 1, 1), (16, 3, 17), (20, 18, 17)):
            x = torch.rand(1, 1, *shape)
            assert torch.allclose(exported(x), net(x), atol=1e-4)


def test_a_constant_volume_gives_finite_logits():
    assert bool(network().eval()(torch.full((1, 1, 8, 8, 8), 7.0)).isfinite().all())


def test_subvoxel_blocks_keep_every_voxel():
    x, seen = torch.rand(2, 2, 4, 6, 8), []
    blocks = SubvoxelNetwork(nn.Identity())
    blocks.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    assert torch.equal(blocks(x), x)
    assert torch.equal(seen[0], pixelunshuffle(x, 3, 2))


# ---- targets


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def test_targets_come_from_composite_maps_or_from_masks(tmp_path):
    composite = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 5
    label = write(tmp_path / "label.nii.gz", composite)
    endo = write(tmp_path / "endo.nii.gz", (composite == 1).astype(np.uint8) * 255)
    wall = write(tmp_path / "wall.nii.gz", (composite == 2).astype(np.uint8))
    cavity = LoadTargetd()
    assert torch.equal(cavity({"label": label})["label"], cavity({"endo": endo})["label"])
    both = LoadTargetd([1, 2])
    expected = torch.from_numpy(np.where(composite > 2, 0, composite))[None]
    assert torch.equal(both({"label": label})["label"].as_tensor(), expected)
    assert torch.equal(both({"endo": endo, "wall": wall})["label"].as_tensor(), expected)
    assert LoadTargetd([4])({"label": label})["label"].unique().tolist() == [0, 1]


def test_a_target_that_cannot_be_made_is_refused(tmp_path):
    endo = write(tmp_path / "endo.nii.gz", np.eye(3, dtype=np.uint8)[None])
    with pytest.raises(InputError, match=r"case a: its masks give no class 2; prepare the data"):
        LoadTargetd([1, 2])({"case": "a", "endo": endo})
    with pytest.raises(InputError, match="case b: needs 'label' or 'endo'"):
        LoadTargetd()({"case": "b", "image": "x"})
    with pytest.raises(InputError, match="classes must be different values"):
        LoadTargetd([1, 1])


# ---- losses


class Targets:
    def __init__(self, *labels: torch.Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def before_augmentation(self, index: int) -> dict[str, torch.Tensor]:
        return {"label": self.labels[index]}


def test_class_weights_are_inverse_to_voxel_counts_over_the_whole_data():
    few, many = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    few[0, 0, 0, :2] = 1
    many[0, 0, :3, :2] = 1
    weights = class_weights(Targets(few, many), 3)
    assert float(weights[1] / weights[0]) == pytest.approx((128 - 8) / 8) and weights[2] == 0
    root = class_weights(Targets(few, many), 3, power=0.5)
    assert float(root[1] / root[0]) == pytest.approx(math.sqrt(15))
    assert class_weights(Targets(few), 2, power=0).tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match="one class only"):
        class_weights(Targets(torch.zeros(1, 2, 2, 2)), 2)


def test_the_loss_is_dice_of_the_foreground_plus_weighted_cross_entropy():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 2, 4, 4, 4), (torch.rand(1, 1, 4, 4, 4) > 0.8).float()
    weights = torch.tensor([0.5, 4.0])
    terms = SegmentationLoss(class_weights=weights)(logits, target)
    p, t = logits.softmax(1)[:, 1], target[:, 0]
    assert float(terms["dice"]) == pytest.approx(float(1 - 2 * (p * t).sum() / (p.sum() + t.sum())), abs=1e-4)
    per_voxel = -logits.log_softmax(1).gather(1, target.long())[:, 0]
    w = weights[t.long()]
    assert float(terms["cross_entropy"]) == pytest.approx(float((w * per_voxel).sum() / w.sum()), abs=1e-5)
    with pytest.raises(InputError, match="not both 0"):
        SegmentationLoss(dice_weight=0, ce_weight=0)


# ---- windows


def test_a_volume_that_fits_is_done_in_one_pass_and_a_larger_one_in_windows():
    seen = []

    def local(x):
        seen.append(tuple(x.shape[2:]))
        return torch.cat([x, 1 - x], dim=1)

    inferer = WholeOrWindowInferer(roi_size=(12, 12, 12), overlap=0.5)
    x = torch.rand(1, 1, 10, 12, 7)
    assert torch.equal(inferer(x, local)[:, :1], x) and seen == [(10, 12, 7)]
    seen.clear()
    x = torch.rand(1, 1, 20, 12, 7)
    assert torch.allclose(inferer(x, local)[:, :1], x, atol=1e-6)
    assert set(seen) == {(12, 12, 7)} and tuple(inferer.roi_size) == (12, 12, 12)


def test_a_volume_seen_mirrored_gives_the_mean_of_the_probabilities():
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        """Logits that depend on the place along two axes, so that mirroring matters."""
        seen.append(x)
        ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1) + 0.3 * torch.arange(8.0).reshape(1, 1, 1, 1, 8)
        return torch.cat([x * 0, x + 0.2 * ramp], dim=1)

    x = torch.rand(1, 1, 8, 8, 8)
    inferer = WholeOrWindowInferer(roi_size=(12, 12, 12), flips=[2, 0])
    mean = inferer(x, network).softmax(dim=1)
    assert len(seen) == 4 and torch.equal(seen[3], x.flip(2, 4))
    expected = sum(network(x.flip(d)).softmax(dim=1).flip(d) for d in ([], [2], [4], [2, 4])) / 4
    assert torch.allclose(mean, expected, atol=1e-6)
    assert torch.equal(WholeOrWindowInferer(roi_size=(12, 12, 12))(x, network), network(x)), "off unless asked for"
    with pytest.raises(InputError, match=r"flips must be axes of 0, 1 and 2, got \[3\]"):
        WholeOrWindowInferer(roi_size=(12, 12, 12), flips=[3])


def test_out_of_memory_on_a_volume_names_the_window_size():
    inferer = WholeOrWindowInferer(roi_size=(12, 12, 12))
    with pytest.raises(InputError, match=r"out of memory on a volume of \(8, 8, 8\).*smaller window_size"):
        inferer(torch.rand(1, 1, 8, 8, 8), lambda x: x + torch.empty(2**50))


def test_an_empty_list_of_largest_components_leaves_every_part():
    label = torch.zeros(1, 8, 8, 8)
    label[0, 0, 0, 0] = label[0, 5:7] = 1
    keep = {labels: KeepLargestConnectedComponent(applied_labels=list(labels))(label.clone()) for labels in ((), (1,))}
    assert torch.equal(torch.as_tensor(keep[()]), label)  # what duke.json relies on
    assert float(keep[(1,)].sum()) == float(label.sum()) - 1


# ---- metrics in mm


def cubes(spacing, shift):
    """Two cubes of 6 voxels, one shifted along the first axis, one-hot, on a grid of that voxel size."""
    masks = []
    for offset in (0, shift):
        mask = torch.zeros(1, 20, 20, 20)
        mask[0, 4 + offset : 10 + offset, 6:12, 6:12] = 1
        affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
        masks.append(MetaTensor(torch.cat([1 - mask, mask]), affine=affine))
    return masks


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.625, 2.0, 3.0)])
def test_surface_distances_are_in_mm_by_each_cases_own_voxel_size(spacing):
    y, pred = cubes(spacing, 3)
    hausdorff = HausdorffDistanceMm(percentile=100)
    hausdorff([pred], [y])
    assert float(hausdorff.aggregate()) == pytest.approx(3 * spacing[0])
    surface = AverageSurfaceDistanceMm()
    surface([pred], [y])
    assert 0 < float(surface.aggregate()) < 3 * spacing[0]
    surface.reset()
    surface([y], [y])
    assert float(surface.aggregate()) == 0


def test_distances_without_a_voxel_size_are_refused():
    y, pred = cubes((1, 1, 1), 1)
    with pytest.raises(InputError, match="need the voxel size"):
        HausdorffDistanceMm()([pred.as_tensor()], [y.as_tensor()])


# ---- files


def engine_with(**state) -> Engine:
    engine = Engine(lambda e, b: None)
    engine.state = State(**state)
    return engine


@pytest.fixture
def bundle_files(tmp_path):
    about = {
        "name": "x",
        "version": "1",
        "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "endo"}}}},
    }
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    (tmp_path / "model.pt").write_bytes(b"weights")
    return {"metadata": tmp_path / "metadata.json", "weights": tmp_path / "model.pt"}


def test_a_segmentation_is_written_on_the_scans_grid_with_its_volume(tmp_path, bundle_files):
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    path = write(tmp_path / "scan.nii.gz", np.zeros((4, 5, 6), np.int16), affine)
    mask = torch.zeros(1, 4, 5, 6)
    mask[0, :2] = 1
    image = MetaTensor(torch.zeros(1, 8, 8, 8), meta={"filename_or_obj": path})
    pred = MetaTensor(mask, affine=torch.from_numpy(affine))
    writer = SegmentationWriter(tmp_path / "out", **bundle_files, class_names={"1": "endo"})
    engine = engine_with(batch=[{"case": "a"}], output=[{"image": image, "pred": pred}])
    writer._start(engine)
    writer._write(engine)
    written = nib.load(tmp_path / "out" / "a_seg.nii.gz")
    assert np.array_equal(written.get_fdata(), mask[0]) and np.allclose(written.affine, affine)
    assert json.loads((tmp_path / "out" / "a_seg.json").read_text())["volume_ml"] == {"endo": 0.03}
    engine.state.output = [{"image": image, "pred": MetaTensor(mask[:, :3], affine=torch.from_numpy(affine))}]
    with pytest.raises(InputError, match=r"case a: the result has shape \(3, 5, 6\)"):
        writer._write(engine)


def test_a_segmentation_can_be_written_for_3d_slicer_and_nifti_has_tables_of_names(tmp_path, bundle_files):
    affine = np.diag([-0.5, -0.5, 2.0, 1.0])
    path = write(tmp_path / "scan.nii.gz", np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    mask = torch.zeros(1, 4, 5, 6)
    mask[0, :2], mask[0, 3] = 1, 2
    item = {
        "image": MetaTensor(torch.zeros(1, 4, 5, 6), meta={"filename_or_obj": path}),
        "pred": MetaTensor(mask, affine=torch.from_numpy(affine)),
    }
    for label_format, name in (("nifti", "a_seg.nii.gz"), ("seg.nrrd", "a_seg.seg.nrrd")):
        out = tmp_path / label_format
        writer = SegmentationWriter(out, **bundle_files, class_names={"1": "endo"}, label_format=label_format)
        engine = engine_with(batch=[{"case": "a"}], output=[item])
        writer._start(engine)
        writer._write(engine)
        written = read_volume(out / name)
        assert np.array_equal(written.data, mask[0]) and np.allclose(written.affine, affine)
        assert json.loads((out / "a_seg.json").read_text())["file"] == name
        assert (out / "labels.ctbl").is_file() == (label_format == "nifti")
    assert nrrd.read_header(str(tmp_path / "seg.nrrd" / "a_seg.seg.nrrd"))["Segment1_Name"] == "class 2"
    with pytest.raises(InputError, match="label_format must be"):
        SegmentationWriter(tmp_path, **bundle_files, label_format="mha")


def test_a_segmentation_of_another_image_of_the_same_name_stays(tmp_path, bundle_files):
    writer = SegmentationWriter(tmp_path / "out", **bundle_files)
    for folder, seed in (("first", 0), ("second", 1), ("first", 2)):
        path = tmp_path / folder / "scan.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write(path, np.random.default_rng(seed).integers(0, 99, (4, 5, 6)).astype(np.int16))
        image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"filename_or_obj": str(path)})
        pred = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.eye(4, dtype=torch.float64))
        engine = engine_with(batch=[{"case": "a"}], output=[{"image": image, "pred": pred}])
        writer._start(engine)
        if folder == "second":
            with pytest.raises(InputError, match=r"a_seg.nii.gz is the segmentation of ../first/.*, not of ../second/"):
                writer._write(engine)
        else:
            writer._write(engine)  # the second time the same file holds another scan
        writer.held.close()  # as at the end of a run
    assert json.loads((tmp_path / "out" / "a_seg.json").read_text())["image_from"] == "../first/scan.nii.gz"


def test_best_median_and_worst_are_drawn(tmp_path):
    handler = RankedSegmentations(tmp_path / "ranked.png")
    engine = engine_with()
    y, _ = cubes((1, 1, 1), 0)
    path = write(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((20, 20, 20)).astype(np.float32))
    for shift in (0, 1, 3):
        pred = cubes((1, 1, 1), shift)[1]
        image = MetaTensor(torch.zeros(1, 20, 20, 20), meta={"filename_or_obj": path})
        engine.state.batch = [{"case": f"shift{shift}"}]
        engine.state.output = [{"image": image, "label": y, "pred": pred}]
        handler._collect(engine)
    engine.state.metric_details = {"dice": torch.tensor([[1.0], [0.8], [0.5]])}
    handler._draw(engine)
    assert (tmp_path / "ranked.png").stat().st_size > 10_000


# ---- judges


def test_a_frozen_segmenter_is_never_trained_and_passes_gradients_to_its_input(tmp_path):
    torch.save(network().state_dict(), tmp_path / "judge.pt")
    judge = load_segmenter(network(), tmp_path / "judge.pt", use="the judge's Dice")
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    judge.train()
    x = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    judge(x)[:, 1].sum().backward()
    assert not judge.training and not judge.network.training
    assert all(p.grad is None for p in judge.parameters()) and float(x.grad.abs().sum()) > 0
    assert all(torch.equal(v, before[k]) for k, v in judge.state_dict().items())


def test_missing_weights_switch_their_use_off_with_one_warning_and_wrong_ones_are_refused(tmp_path, caplog):
    assert load_segmenter(network(), tmp_path / "none.pt", use="the judge's Dice") is None
    assert caplog.text.count("the judge's Dice is off") == 1
    assert load_segmenter(network(), None, use="x") is None and len(caplog.records) == 1
    torch.save(network(3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: does not fit the network"):
        load_segmenter(network(), tmp_path / "other.pt", use="x")


class Threshold(nn.Module):
    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x - 0.5], dim=1) * 100


def test_a_volume_is_segmented_on_its_own_grid_whatever_its_axes_and_voxel_size():
    affine = torch.diag(torch.tensor([-0.5, 2.0, 1.0, 1.0], dtype=torch.float64))
    volume = torch.zeros(1, 24, 10, 12)
    volume[0, 4:16, 3:8, 2:9] = 1
    speck = (0, slice(20, 24), slice(0, 2), slice(9, 12))  # large enough to survive resampling
    volume[speck] = 1
    label = FrozenSegmenter(Threshold()).segment(MetaTensor(volume, affine=affine))
    expected = volume.clone()
    expected[speck] = 0
    assert label.shape == volume.shape and torch.equal(label.affine, affine)
    assert float((label.as_tensor() != expected).float().mean()) < 0.05
    assert float(label.as_tensor()[speck].max()) == 0


def test_at_the_networks_voxel_size_nothing_is_resampled_and_nothing_changes():
    torch.manual_seed(0)
    volume = torch.rand(1, 12, 9, 10)
    for affine in (torch.eye(4), torch.diag(torch.tensor([-1.0, 1, -1, 1])), torch.eye(4)[:, [2, 0, 1, 3]]):
        image = MetaTensor(volume, affine=affine.double())
        plain = FrozenSegmenter(network()).segment(image)
        nearly = FrozenSegmenter(network(), spacing=(1.0011, 1.0011, 1.0011)).segment(image)
        assert float((plain.as_tensor() != nearly.as_tensor()).float().mean()) < 0.02
        assert plain.shape == volume.shape and torch.equal(plain.affine, affine.double())


def test_the_judges_dice_is_that_of_its_segmentation_with_the_map():
    label, pred = torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)
    label[0, 2:6, 2:6, 2:6] = 1
    label[0, 6] = 3
    pred[0, 2:6, 2:6, 3:7] = 1
    affine = torch.eye(4, dtype=torch.float64)
    item = {"image": MetaTensor(label, affine=affine), "pred": MetaTensor(pred, affine=affine),
            "label": MetaTensor((label == 1).float(), affine=affine)}  # fmt: skip
    engine = Engine(lambda e, b: [item])
    EvaluationHandler([], paired=(), judge=FrozenSegmenter(Threshold())).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "metric_details", {}))
    engine.run([0, 1], max_epochs=1)
    assert engine.state.metrics == pytest.approx({"judge_dice": 0.75, "judge_dice_real": 1.0})
    assert engine.state.metric_details["judge_dice"].shape == (2, 1)


# ---- weights taken over


def test_weights_of_other_classes_are_taken_over_but_for_the_last_layer(tmp_path, caplog):
    path = tmp_path / "model.pt"
    torch.save({k: v.half() for k, v in network(2).state_dict().items()}, path)
    other = network(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    left = take_over(other, path)
    assert left and all(line.startswith("network.model.2.") and "initialised afresh" in line for line in left)
    assert "network.model.2.0.conv.bias: (2,) in the file, (5,) here; initialised afresh" in left
    assert all(line in caplog.text for line in left)
    named = {line.split(":")[0] for line in left}
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key in named)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(network(2, (8, 8, 8)).state_dict(), path)
    with pytest.raises(InputError, match=r"only \d+% of this network's values are in the file"):
        take_over(network(2), path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read as weights"):
        take_over(network(2), path)
    with pytest.raises(InputError, match="no such file of weights"):
        take_over(network(2), tmp_path / "none.pt")


def test_the_learning_rate_warms_up_and_the_schedule_does_not_notice(tmp_path):
    net = nn.Linear(2, 2)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    used = []
    engine = Engine(lambda e, b: (used.append(optimizer.param_groups[0]["lr"]), optimizer.step()))
    InitWeights(net, tmp_path / "model.pt", optimizers=[optimizer], warm_up=3).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    engine.run([0] * 5, max_epochs=1)
    assert used == pytest.approx([0.25, 0.5 * 0.5, 0.75 * 0.25, 0.125, 0.0625])
