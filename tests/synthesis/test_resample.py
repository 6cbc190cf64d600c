"""``--resample True``: synthesis at the trained voxel size, volumes on the label maps' own grid; and the warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from semsynth.data.geometry import FIELD_OF_VIEW, VOXEL_SIZE, Geometry, TrainedGrid
from semsynth.data.headers import read_header
from semsynth.handlers import MemoryReport
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.synthesis.jobs import MapBatches, settings
from tiny_synthesis import random_weights, synthesise

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("spade_gan3d", "med_lsdm")]


def trained(bundle: Path, folder: Path, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    """Random weights of a bundle's tiny network, whose card states a voxel size, and a field of view about theirs."""
    weights = random_weights(bundle, folder / "model.pt")
    geometry = Geometry.of_grids([(spacing, [round(20 / size) for size in spacing])])
    weights.with_suffix(".json").write_text(json.dumps({"training_cases": [], "geometry": geometry.to_json()}))
    return weights


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of 0.6 mm, 32³ voxels, one of them with its axes to the left, posterior, superior."""
    folder = tmp_path_factory.mktemp("fine")
    write_phantom_cases(folder, 3, size=(32, 32, 32), spacing=(0.6, 0.6, 0.6), k=2, progress=False)
    entry = json.loads((folder / "datalist.json").read_text())["validation"][0]
    for key in ("image", "label", "endo"):
        if key in entry:
            image = nib.load(folder / entry[key])
            turned = image.as_reoriented(nib.orientations.axcodes2ornt("LPS"))
            nib.save(nib.Nifti1Image(np.asanyarray(turned.dataobj), turned.affine), folder / entry[key])
    return folder


@pytest.mark.parametrize("name", ["pix2pix3d", "spade_ldm", *SLOW])
def test_volumes_of_resampled_maps_are_on_the_maps_own_grid(
    name: str, fine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = trained(BUNDLES / name, tmp_path)
    options = {"split": "validation", "num_samples": 2} | ({} if name == "pix2pix3d" else {"style_from": "own"})
    options |= {"batch_size": 2} if name == "spade_ldm" else {}

    def make(output: str, **more: Any) -> list[np.ndarray]:
        return synthesise(BUNDLES / name, weights, fine, tmp_path / output, **options, **more)

    plain = make("plain")
    said = capsys.readouterr().out  # a bundle's logging.conf
    assert said.count(VOXEL_SIZE) == 1 and "--resample True" in said
    volumes = make("resampled", resample=True)
    said = capsys.readouterr().out
    assert VOXEL_SIZE not in said and "1 of 1 label maps are resampled" in said
    for volume, other in zip(volumes, plain, strict=True):
        assert volume.shape == (32, 32, 32) and np.abs(volume - other).mean() > 1e-3
        assert volume.min() >= 0 and volume.max() <= 1
    listed = json.loads((tmp_path / "resampled" / "datalist.json").read_text())["training"]
    for entry in listed:
        image, label = (read_header(tmp_path / "resampled" / entry[key]) for key in ("image", "label"))
        assert image.shape == label.shape and image.axes == label.axes == "LPS"
        assert np.array_equal(image.affine.astype(np.float32), label.affine.astype(np.float32))
        record = json.loads((tmp_path / "resampled" / entry["image"].replace(".nii.gz", ".json")).read_text())
        assert record["settings"]["resample"] is True and record["settings"]["trained_spacing"] == [1.0, 1.0, 1.0]
    # the same setting: left as they are; another one, where that is asked for: made anew
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "resampled").glob("*.nii.gz")}
    make("resampled", resample=True)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    again = make("resampled", overwrite=True)
    assert all(np.array_equal(a, b) for a, b in zip(again, plain, strict=True))


def test_without_a_difference_nothing_changes_bit_for_bit(fine: Path, tmp_path: Path) -> None:
    weights = trained(BUNDLES / "pix2pix3d", tmp_path, (0.6, 0.6, 0.6))
    plain = synthesise(BUNDLES / "pix2pix3d", weights, fine, tmp_path / "a", split="all")
    same = synthesise(BUNDLES / "pix2pix3d", weights, fine, tmp_path / "b", split="all", resample=True)
    assert len(plain) == 3 and all(np.array_equal(a, b) for a, b in zip(plain, same, strict=True))


def test_an_autoencoder_is_given_image_and_map_of_the_trained_voxel_size(fine: Path, tmp_path: Path) -> None:
    bundle = BUNDLES / "spade_ldm"
    names = ("inference", "inference_autoencoder")
    weights = trained(bundle, tmp_path)
    one = synthesise(bundle, weights, fine, tmp_path / "a", names, split="validation", resample=True)
    two = synthesise(bundle, weights, fine, tmp_path / "b", names, split="validation")
    assert one[0].shape == two[0].shape == (32, 32, 32) and not np.array_equal(one[0], two[0])
    record = json.loads(next((tmp_path / "a").glob("*_synthetic.json")).read_text())
    assert record["settings"] == {"resample": True, "trained_spacing": [1.0, 1.0, 1.0], "reconstruction": True}


def test_preprocessing_alone_warns_as_monai_label_runs_it(
    fine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MONAI Label takes a bundle's preprocessing and postprocessing, and gives them entries of its own."""
    bundle = BUNDLES / "pix2pix3d"
    parser = ConfigParser(bundle_runs.read(bundle, "inference"))
    parser["bundle_root"], parser["weights"] = str(bundle), str(trained(bundle, tmp_path, (1.0, 1.0, 5.0)))
    parser["resample"] = True
    preprocessing = parser.get_parsed_content("preprocessing")
    entries = json.loads((fine / "datalist.json").read_text())
    label = str(fine / entries["training"][0]["label"])
    data = preprocessing({"image": label})
    assert data["image"].shape == (1, 20, 20, 5)
    given = nib.load(label)
    done = parser.get_parsed_content("postprocessing")(data | {"pred": data["image"].float() / 3})
    assert done["pred"].shape == (1, *given.shape) and np.allclose(done["pred"].affine, given.affine)
    assert VOXEL_SIZE not in caplog.text
    parser["resample"] = False
    parser.ref_resolver.reset()
    preprocessing = parser.get_parsed_content("preprocessing")
    for _ in range(2):
        assert preprocessing({"image": label})["image"].shape == (1, 32, 32, 32)
    assert caplog.text.count(VOXEL_SIZE) == 1 and FIELD_OF_VIEW not in caplog.text


def test_memory_is_estimated_for_the_size_that_the_network_is_given(fine: Path, tmp_path: Path) -> None:
    weights = trained(BUNDLES / "pix2pix3d", tmp_path)
    entries = json.loads((fine / "datalist.json").read_text())
    maps = [{"case": "a", "image": str(fine / entries["validation"][0]["label"])}]
    for resample, size in ((True, (20, 20, 20)), (False, (32, 32, 32))):
        grid = TrainedGrid(weights, tmp_path / "metadata.json", resample)
        assert MemoryReport(None, MapBatches(maps), grid=grid)._largest() == (size, 1)
        assert ("resample" in settings(None, grid=grid)) is resample
