"""spade_ldm's commands: styles by class, samples, and what the autoencoder alone makes of images."""

from __future__ import annotations

import json
from pathlib import Path

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.latent_diffusion import intensity_style
from semsynth.synthesis.style import StyleSource
from tiny_diffusion import diffusion
from tiny_synthesis import random_weights, synthesise

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "spade_ldm"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(BUNDLE, tmp_path_factory.mktemp("weights") / "model.pt")


def test_samples_differ_and_the_same_seed_gives_the_same(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    first, second = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "two", num_samples=2)
    (alone,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "one")
    assert np.array_equal(first, alone)
    assert np.abs(first - second).mean() > 1e-3


def test_sampler_steps_and_guidance_are_options(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    (usual,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "usual", steps=3)
    for name, options in {
        "ddpm": {"sampler": "ddpm", "steps": 3},
        "steps": {"steps": 5},
        "guidance": {"guidance": 3.0, "steps": 3},
    }.items():
        (other,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / name, **options)
        assert np.abs(usual - other).mean() > 1e-4, name


def test_a_style_is_copied_from_an_image_and_its_map(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    entry = json.loads((tiny_dataset / "datalist.json").read_text())["testing"][0]
    image, label = (tiny_dataset / entry[key] for key in ("image", "label"))
    (own,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "own", style_from="own")
    (given,) = synthesise(
        BUNDLE, weights, tiny_dataset, tmp_path / "given", style_from=str(image), style_map=str(label)
    )
    (drawn,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "drawn")
    assert np.array_equal(own, given)
    assert np.abs(own - drawn).mean() > 1e-3
    record = json.loads(next((tmp_path / "own").glob("*_synthetic.json")).read_text())
    assert (record["style_from"], record["style_from_sha256"]) == (image.name, sha256(image))


def style_of(image: Path, label: Path, spacing: float = 3.0) -> torch.Tensor:
    network = diffusion()
    style = StyleSource(network, image, label_map=label, spacing=(spacing,) * 3)({})
    assert style is not None
    return style


def write(path: Path, data: np.ndarray, pad: int = 0, axes: str = "RAS") -> Path:
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -3.0 * pad
    volume = nib.Nifti1Image(np.pad(data, pad).astype(np.float32), affine)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    nib.save(volume.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)), path)
    return path


def test_the_style_is_that_of_the_classes_on_the_right_voxels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, size=(8, 8, 8))
    image = label * 200.0 + generator.uniform(1.0, 90.0, size=label.shape)
    scaled = torch.from_numpy((image - image.min()) / (image.max() - image.min())).float()[None, None]
    wanted = intensity_style(scaled, torch.from_numpy(label).float()[None, None], 4)
    maps = [write(tmp_path / f"label_{axes}.nii.gz", label, axes=axes) for axes in ("RAS", "LPI")]
    plain = write(tmp_path / "image.nii.gz", image)
    for path in maps[:1]:
        torch.testing.assert_close(style_of(plain, path), wanted, atol=1e-4, rtol=0)
    both = [write(tmp_path / f"{n}_pad.nii.gz", data, pad=3) for n, data in (("i", image), ("l", label))]
    torch.testing.assert_close(style_of(*both), wanted, atol=1e-4, rtol=0)  # zeros around a scan are not its background


def test_an_image_without_its_map_is_refused() -> None:
    with pytest.raises(InputError, match=r"style_from scan\.nii: a style is the intensity in each class here; give"):
        StyleSource(diffusion(), "scan.nii")


def test_the_autoencoder_alone_reconstructs_each_image(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    names = ("inference", "inference_autoencoder")
    (made,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "made", names)
    network = ConfigParser(bundle_runs.read(BUNDLE, "inference", "tiny")).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights))
    entry = json.loads((tiny_dataset / "datalist.json").read_text())["testing"][0]
    image, label = (read_volume(tiny_dataset / entry[key]) for key in ("image", "label"))
    data = torch.from_numpy(np.asarray(image.data, dtype=np.float32))[None, None]
    data = (data - data.min()) / (data.max() - data.min())
    classes = torch.from_numpy(np.asarray(label.data, dtype=np.float32))[None, None]
    with torch.no_grad():
        wanted = network.autoencoder(classes, data).pred.clamp(0, 1)[0, 0].numpy()
    assert np.abs(made - wanted).max() < 2e-3
    record = json.loads(next((tmp_path / "made").glob("*_synthetic.json")).read_text())
    assert record["style_from"] == Path(entry["image"]).name


def test_stage_two_goes_on_from_whole_weights_without_those_of_stage_one(
    weights: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    paths = {"dataset_dir": tiny_dataset, "run_dir": tmp_path / "run", "autoencoder_weights": tmp_path / "none.pt"}
    training = bundle_runs.workflow(BUNDLE, ["train"], "train", paths, init_weights=str(weights))
    training.run()
    made, given = torch.load(tmp_path / "run" / "model_final.pt"), torch.load(weights)
    for name in given:
        if name.startswith("autoencoder."):
            assert torch.allclose(made[name].float(), given[name], atol=1e-2), name


THIRD = ["train", "decoder", "tiny", "tiny_decoder"]
QUICK = {"learning_rate": 0.02, "d_learning_rate": 0.02, "train#handlers#0#warm_up": 1}


def test_stage_three_trains_the_decoder_on_sampled_latents_and_its_weights_synthesise(
    weights: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    paths = {"dataset_dir": tiny_dataset, "run_dir": tmp_path / "run"}
    options = QUICK | {"init_weights": str(weights), "average#momentum": 0.9}
    training = bundle_runs.workflow(BUNDLE, THIRD, "train", paths, **options)
    training.run()
    training.finalize()
    file = tmp_path / "run" / "model_final.pt"
    made, given = torch.load(file), torch.load(weights)
    changed = {name for name in given if not torch.allclose(made[name].float(), given[name], atol=2e-3)}
    assert {name.split(".")[1] for name in changed} == {"decoder"}
    assert float(made["autoencoder.decoder.noise.conv.weight"].abs().max()) > 1e-3
    noise = {"network_def#autoencoder#noise": True}
    volumes = [synthesise(BUNDLE, file, tiny_dataset, tmp_path / str(i), **noise)[0] for i in range(2)]
    assert np.array_equal(*volumes)


@pytest.mark.slow
def test_stage_three_goes_on_as_if_it_had_not_stopped(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    for folder, parts in {"at once": [{"max_epochs": 2}], "in two": [{"max_epochs": 1}, {"max_epochs": 2}]}.items():
        for i, part in enumerate(parts):
            paths = {"dataset_dir": tiny_dataset, "run_dir": tmp_path / folder}
            options = QUICK | part | {"init_weights": str(weights), "resume": i > 0, "lr_scheduler#epochs": 2}
            training = bundle_runs.workflow(BUNDLE, THIRD, "train", paths, **options, **{"d_lr_scheduler#epochs": 2})
            training.run()
            training.finalize()
    made = [torch.load(tmp_path / folder / "model_final.pt") for folder in ("at once", "in two")]
    assert bundle_runs.compare_weights(*made) == []
