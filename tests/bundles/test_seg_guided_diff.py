"""seg_guided_diff's bundle: slices along any axis, classes that are unknown, and trainings that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
import slice_brightness
import torch
from monai.bundle import ConfigParser
from semsynth.prepare.phantom import write_phantom_cases
from tiny_synthesis import random_weights

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "seg_guided_diff"


def made(tmp_path: Path, label: np.ndarray, name: str, **options: Any) -> np.ndarray:
    """The volume of one map."""
    path = tmp_path / name / "case" / "map.nii.gz"  # the seed follows from the name
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(label.astype(np.uint8), np.diag([1.0, 1.0, 1.0, 1.0])), path)
    weights = tmp_path / "weights.pt"
    if not weights.exists():
        random_weights(BUNDLE, weights)
    paths = {"output_dir": tmp_path / name / "out", "weights": weights, "label_maps": path}
    work = bundle_runs.workflow(BUNDLE, ("inference", "tiny"), "infer", paths, steps=2, **options)
    work.run()
    work.finalize()
    (volume,) = (tmp_path / name / "out").glob("*.nii.gz")
    record = json.loads(volume.with_name(volume.name.replace(".nii.gz", ".json")).read_text())
    assert "noise_field" in record["settings"] and "window" not in record["settings"]
    return np.asarray(nib.load(volume).dataobj)


@pytest.mark.parametrize(("axcodes", "axis"), [("RAS", 2), ("ASR", 0), ("SRA", 1)])
def test_slices_are_made_along_the_axis_that_is_asked_for(tmp_path: Path, axcodes: str, axis: int) -> None:
    label = np.random.default_rng(0).integers(0, 4, (20, 18, 16))
    changed = label.copy()
    place = [slice(None)] * 3
    place[axis] = 5
    changed[tuple(place)] = 3 - changed[tuple(place)]
    one, other = (made(tmp_path, m, n, axcodes=axcodes) for n, m in (("one", label), ("other", changed)))
    differs = np.moveaxis(one != other, axis, 0).reshape(label.shape[axis], -1).any(axis=1)
    assert one.shape == label.shape and differs[5] and differs.sum() == 1


def test_a_class_that_is_unknown_says_nothing(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 4, (18, 18, 8))
    told, untold = (made(tmp_path, label, n, unknown=u) for n, u in (("told", []), ("untold", [2])))
    assert (told != untold).any()
    swapped = np.where(label == 2, 0, label)
    assert (made(tmp_path, swapped, "swapped") != untold).any()  # unknown is not background


def test_a_training_that_is_resumed_is_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_phantom_cases(data, 6, size=(32, 32, 16), spacing=(3.0, 3.0, 3.0), k=2, progress=False)

    def train(name: str, **options: Any) -> dict[str, torch.Tensor]:
        paths = {"dataset_dir": data, "run_dir": tmp_path / name}
        common = {"epoch_cases": 2, "ablated": 0.5, "label_dropout": 0.1, "val_interval": 9, "lr_scheduler#epochs": 4}
        work = bundle_runs.workflow(BUNDLE, ("train", "tiny"), "train", paths, **common | options)
        work.run()
        work.finalize()
        found: dict[str, torch.Tensor] = torch.load(tmp_path / name / "model_final.pt", weights_only=True)
        return found

    once = train("once", max_epochs=4, checkpoint_interval=1)
    train("twice", max_epochs=2, checkpoint_interval=1)
    twice = train("twice", max_epochs=4, checkpoint_interval=1, resume=True)
    assert once.keys() == twice.keys()
    assert not [name for name in once if not torch.equal(once[name], twice[name])]


def test_the_papers_network_is_that_of_its_code() -> None:
    """``UNet2DModel`` of the public code, with these widths: 113.7 million parameters with one channel for labels."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "paper")])
    parser["num_classes"] = 2
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(113.7e6, rel=0.03)
    assert network.schedule.prediction == "epsilon" and network.schedule.kind == "linear_beta"
    assert not network.denoiser.position and network.label_dropout == 0


def test_the_shipped_network_predicts_the_image_too() -> None:
    """By the noise alone slices went from black to white (docs/experiments.md of the bundle)."""
    for names in (("train",), ("inference",), ("inference", "ct")):
        parser = ConfigParser()
        parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
        with torch.device("meta"):
            network = parser.get_parsed_content("network_def")
        assert network.schedule.prediction == "split" and network.denoiser.predictions == 2


def test_the_slices_of_the_golden_volume_differ_in_brightness_as_patients_do_at_most(tmp_path: Path) -> None:
    """Weights that predicted the noise alone gave 0.35 here (black and white slices), in place of 0.08."""
    about = json.loads((BUNDLE / "docs" / "golden.json").read_text())["phantom"]
    case = about.pop("case")
    write_phantom_cases(
        tmp_path, about["cases"], seed=about["seed"], size=tuple(about["size"]), spacing=tuple(about["spacing"]),
        k=about["k"], progress=False,
    )  # fmt: skip
    label = np.asarray(nib.load(tmp_path / case / "label.nii.gz").dataobj)
    volume = nib.load(BUNDLE / "docs" / "golden.nii.gz").get_fdata()
    for tissue in (0, 3):
        means = [volume[..., i][label[..., i] == tissue].mean() for i in range(volume.shape[2])]
        assert float(np.abs(np.diff(means)).mean()) < 0.2


def test_the_brightness_of_slices_is_told_from_that_of_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes; scans differ by 0.2 from patient to patient, the volumes by 0.1 from slice to slice."""
    label = np.zeros((30, 30, 16), np.uint8)
    label[:, 15:] = 1

    def write(folder: Path, volumes: dict[str, np.ndarray]) -> None:
        folder.mkdir()
        listed = []
        for case, volume in volumes.items():
            for name, values in (("image", volume), ("label", label)):
                nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{case}_{name}.nii.gz")
            listed.append(
                {
                    "case": case,
                    "source_case": case[:2],
                    "image": f"{case}_image.nii.gz",
                    "label": f"{case}_label.nii.gz",
                }
            )
        about = {
            "name": "test",
            "intensity": {"window": [0.0, 100.0]},
            "training": listed,
            "validation": [],
            "testing": [],
        }
        (folder / "datalist.json").write_text(json.dumps(about))

    stripes = np.tile([0.0, 10.0], 8)
    write(
        tmp_path / "scans", {f"p{i}": (np.where(label == 1, 50.0, 5.0) + 20.0 * i).astype(np.float32) for i in range(2)}
    )
    write(tmp_path / "made", {"p0_s0": (np.where(label == 1, 50.0, 5.0) + stripes).astype(np.float32)})
    arguments = ["slice_brightness.py", str(tmp_path / "scans"), f"made={tmp_path / 'made'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", arguments)
        slice_brightness.main()
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        patch.setattr("sys.argv", [*arguments, "--axis", "0"])
        slice_brightness.main()
        along = json.loads(capsys.readouterr().out.splitlines()[-1])
    for tissue in ("0", "1"):
        assert found[tissue] == pytest.approx({"two patients": 0.2, "scans": 0.0, "made": 0.1}, abs=1e-6)
        assert along[tissue]["made"] == pytest.approx(0.0, abs=1e-6)
