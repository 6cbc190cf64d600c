"""Volumes in the style of a given image, and spade_gan3d's samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from semsynth.data.entries import load_label_maps
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.blocks.noise import gaussian_noise, stream
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.networks.spade_gan import SPADEGenerator
from semsynth.synthesis.batches import PrepareMapBatch
from semsynth.synthesis.style import StyleSource
from tiny_diffusion import diffusion
from tiny_synthesis import random_weights, synthesise

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "spade_gan3d"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(BUNDLE, tmp_path_factory.mktemp("weights") / "model.pt")


def image_file(path: Path, *, noise: float, spacing: float = 3.0, pad: int = 0) -> Path:
    """A bright ball on grey, with noise."""
    grid = np.indices((20, 20, 20)) - 10.0
    volume = 200.0 + 600.0 * ((grid**2).sum(axis=0) < 36) + np.random.default_rng(0).normal(size=(20, 20, 20)) * noise
    volume = np.pad(np.clip(volume, 1.0, None), pad)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * pad
    nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), path)
    return path


def encoded(image: Path, spacing: float = 3.0) -> torch.Tensor:
    torch.manual_seed(0)
    network = SPADEGenerator(4, channels=(4, 4), style_channels=3, encoder_channels=(4, 4)).eval()
    source = StyleSource(network, image, spacing=(spacing,) * 3)
    style = source({})
    assert style.shape == (1, 3) and not style.requires_grad and source({}) is style
    return style


def test_the_style_of_an_image_changes_the_volume_and_stands_in_its_record(weights, tiny_dataset, tmp_path):
    smooth, noisy = (image_file(tmp_path / f"{noise}.nii.gz", noise=noise) for noise in (1.0, 80.0))
    drawn, other = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "drawn", num_samples=2)
    a, second = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "a", num_samples=2, style_from=str(smooth))
    (b,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "b", style_from=str(noisy))
    for one, two in ((drawn, other), (drawn, a), (a, b), (a, second)):
        assert np.abs(one - two).mean() > 1e-3
    record = json.loads(next((tmp_path / "b").glob("*_synthetic.json")).read_text())
    assert (record["style_from"], record["style_from_sha256"]) == (noisy.name, sha256(noisy))
    assert "style_from" not in json.loads(next((tmp_path / "drawn").glob("*_synthetic.json")).read_text())


def test_the_same_style_and_seed_give_the_same_volume(weights, tiny_dataset, tmp_path):
    image = str(image_file(tmp_path / "image.nii.gz", noise=20.0))
    one, two = (synthesise(BUNDLE, weights, tiny_dataset, tmp_path / name, style_from=image)[0] for name in "ab")
    assert np.array_equal(one, two)


def test_zeros_around_an_image_and_its_scale_do_not_change_its_style(tmp_path):
    plain, padded = (encoded(image_file(tmp_path / f"{pad}.nii.gz", noise=20.0, pad=pad)) for pad in (0, 6))
    assert torch.allclose(plain, padded, atol=1e-4)
    other = encoded(image_file(tmp_path / "other.nii.gz", noise=80.0))
    assert not torch.allclose(plain, other, atol=1e-2)


def test_an_image_is_brought_to_the_spacing_that_the_network_knows(tmp_path):
    image = image_file(tmp_path / "image.nii.gz", noise=80.0)
    assert not torch.allclose(encoded(image), encoded(image, spacing=6.0), atol=1e-2)


def test_a_network_without_styles_and_a_missing_image_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"style_from x\.nii: Pix2PixGenerator has no styles"):
        StyleSource(Pix2PixGenerator(4, channels=(4, 4)), "x.nii")
    with pytest.raises(InputError, match=r"nowhere\.nii"):
        encoded(tmp_path / "nowhere.nii")


def test_maps_of_one_seed_have_styles_of_their_own():
    prepare = PrepareMapBatch(seed=3, per_case=True)
    batches = [{"case": [f"{case}_s{i}"], "source_case": [case], "sample": [i]} for case in "ab" for i in range(2)]
    seeds = [prepare.seeds(batch)[0] for batch in batches]
    assert len(set(seeds)) == 4 and seeds[1] == seeds[0] + 1
    assert prepare.seeds({"case": ["a"]}) == seeds[:1], "the first sample is what one sample alone is"


def test_no_two_of_many_cases_have_the_same_noise():
    prepare, places = PrepareMapBatch(per_case=True), torch.empty(1, 1, 4, 1, 1)
    seeds = [prepare.seeds({"case": [hashlib.md5(str(i).encode()).hexdigest()]})[0] for i in range(3000)]
    assert len({tuple(gaussian_noise(places, stream(seed, 0)).flatten().tolist()) for seed in seeds}) == 3000


@pytest.mark.parametrize("kind", ["gan", "diffusion"])
def test_no_two_of_many_cases_have_the_same_style(kind):
    prepare = PrepareMapBatch(per_case=True)
    names = [hashlib.md5(str(i).encode()).hexdigest() for i in range(3000)]
    network = SPADEGenerator(4, channels=(4, 4), style_channels=2) if kind == "gan" else diffusion()
    styles = [network.draw_style(prepare.case_offset(name)) for name in names]
    assert len({tuple(style.flatten().tolist()) for style in styles}) == 3000


def test_fields_of_a_sample_are_white_and_do_not_follow_from_each_other():
    places = torch.empty(1, 1, 40, 40, 40)
    fields = torch.stack(
        [gaussian_noise(places, stream(seed, n)).flatten() for seed in (0, 1, 1 << 20) for n in range(4)]
    )
    alike = torch.corrcoef(fields) - torch.eye(len(fields))
    assert alike.abs().max() < 0.02  # 1 / sqrt(64000) is 0.004
    assert fields.mean(dim=1).abs().max() < 0.02 and (fields.std(dim=1) - 1).abs().max() < 0.02


def test_each_map_in_the_style_of_its_own_image(weights, tiny_dataset, tmp_path):
    entry = json.loads((tiny_dataset / "datalist.json").read_text())["testing"][0]
    image = tiny_dataset / entry["image"]
    own = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "own", style_from="own", num_samples=2)
    given = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "given", style_from=str(image), num_samples=2)
    drawn = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "drawn", num_samples=2)
    assert np.array_equal(own[0], given[0]) and np.array_equal(own[1], given[1])
    assert np.abs(own[0] - drawn[0]).mean() > 1e-3
    record = json.loads(next((tmp_path / "own").glob("*_s0_synthetic.json")).read_text())
    assert (record["style_from"], record["style_from_sha256"]) == (image.name, sha256(image))


def test_the_style_changes_with_the_case(tmp_path):
    torch.manual_seed(0)
    network = SPADEGenerator(4, channels=(4, 4), style_channels=3, encoder_channels=(4, 4)).eval()
    images = [str(image_file(tmp_path / f"{noise}.nii.gz", noise=noise)) for noise in (5.0, 80.0)]
    source = StyleSource(network, "own", spacing=(3.0, 3.0, 3.0))
    seen = [source({"style_from": [image]}) for image in images]
    assert all(torch.equal(a, encoded(Path(image))) for a, image in zip(seen, images, strict=True))
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)
    with pytest.raises(InputError, match="set batch_size to 1"):
        source({"style_from": images})


def test_own_styles_need_the_datalists_images(tiny_dataset, tmp_path):
    with pytest.raises(InputError, match=r"style_from own .* names maps alone; leave label_maps out"):
        load_label_maps(tiny_dataset, "maps/*.nii.gz", style_from="own")
    content = json.loads((tiny_dataset / "datalist.json").read_text())
    bare = [{"case": e["case"], "label": str(tiny_dataset / e["label"])} for e in content["testing"]]
    (tmp_path / "datalist.json").write_text(json.dumps({"num_classes": content["num_classes"], "testing": bare}))
    assert "style_from" not in load_label_maps(tmp_path)[0]
    with pytest.raises(InputError, match="needs 'image'"):
        load_label_maps(tmp_path, style_from="own")
