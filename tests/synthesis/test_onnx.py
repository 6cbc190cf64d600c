"""ONNX graphs give what the networks give, of any size where they may, and say nothing of the machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_packages import kept_out
from monai.bundle import ConfigParser
from scipy.ndimage import label as label_pieces
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.networks.sampling.guided import GuidedDenoiser, Start
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.synthesis.bundle_network import network_of, random_volume
from semsynth.synthesis.export import export_sampling
from semsynth.synthesis.onnx_graphs import Graph, onnx_graph
from semsynth.synthesis.workflow import run_inference
from semsynth.training.weights import write_weights
from tiny_diffusion import diffusion, label_map
from torch import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
SMALL: dict[str, dict[str, Any]] = {
    "la_unet": {"channels": [4, 4, 4, 4, 4]},
    "pix2pix3d": {"channels": [4, 4, 4, 4, 4, 4], "noise": True},
    "spade_gan3d": {"channels": [4, 4, 4], "style_channels": 4, "encoder_channels": [4, 4], "head_hidden": 4,
                    "spade": {"hidden": 4}},
}  # fmt: skip
"""What makes the bundles' networks small."""


def small_bundle(name: str, folder: Path) -> Path:
    """A copy of a bundle with a small network of the same kind and random weights, in a folder of a telling name."""
    bundle = folder / "someones_private_folder" / name
    shutil.copytree(BUNDLES / name, bundle, ignore=shutil.ignore_patterns("*.pt", "*.gz", "*.png"))
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"] |= SMALL[name]
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    shutil.rmtree(bundle / "models", ignore_errors=True)  # cards of other weights
    (bundle / "models").mkdir()
    write_weights(built(config), bundle / "models" / "model.pt")  # with their card
    return bundle


def built(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    parser = ConfigParser(config)
    parser["device"] = "cpu"
    network: nn.Module = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return network.state_dict()


def export(bundle: Path, output: Path, *options: str) -> int:
    return main(["export", "--bundle", str(bundle), "--output", str(output), "--format", "onnx", *options])


def run(path: Path, **inputs: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return np.asarray(found)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Bundle and folder of the graphs of a small bundle; each made once."""
    known: dict[str, tuple[Path, Path]] = {}

    def make(name: str, *options: str) -> tuple[Path, Path]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            bundle = small_bundle(name, folder)
            assert export(bundle, folder / "graphs", *options) == 0
            known[name] = bundle, folder / "graphs"
        return known[name]

    return make


@pytest.mark.parametrize("size", [(32, 32, 16), (19, 45, 33), (16, 3, 1)])
@pytest.mark.parametrize("name", ["la_unet", pytest.param("pix2pix3d", marks=pytest.mark.slow)])
def test_a_network_that_takes_any_size_is_a_graph_that_does(exported: Any, name: str, size: tuple[int, ...]) -> None:
    """A last size of one block, of which instance norm would have one voxel."""
    bundle, output = exported(name)
    volume = random_volume(size, None if name == "la_unet" else 4)
    network = network_of(bundle).eval()
    with torch.no_grad():
        wanted = network(volume).numpy()
    found = run(output / "model.onnx", image=volume)
    assert found.shape == wanted.shape and wanted.std() > 1e-3
    assert np.abs(found - wanted).max() <= 1e-4


@pytest.mark.slow
def test_a_generator_with_styles_is_a_graph_of_one_size_that_is_given_the_style(exported: Any, tmp_path: Path) -> None:
    bundle, output = exported("spade_gan3d", "--size", "18,13,9")
    network = network_of(bundle).eval()
    about = json.loads((output / "model.json").read_text())
    mean, root = (torch.tensor(about[f"style_{name}"]) for name in ("mean", "root"))
    volume = random_volume((18, 13, 9), 4)
    for style in (mean[None], mean + torch.randn(1, 4) @ root):
        with torch.no_grad():
            wanted = network(volume, style=style).numpy()
        assert np.abs(run(output / "model.onnx", image=volume, style=style) - wanted).max() <= 1e-4


def test_file_and_record_say_what_they_are_and_nothing_of_the_machine(exported: Any) -> None:
    _, output = exported("la_unet")
    about = json.loads((output / "model.json").read_text())
    props = {prop.key: prop.value for prop in onnx.load(output / "model.onnx").metadata_props}
    for name in ("bundle", "version", "weights_sha256", "license", "axes", "intensity", "semsynth"):
        assert props[name] == about[name]
    assert (about["bundle"], about["license"], len(about["weights_sha256"])) == ("la_unet", "Apache-2.0", 64)
    assert json.loads(props["classes"]) == {"0": "background", "1": "endo"}
    assert json.loads(props["spacing"]) == [1.0, 1.0, 1.0]
    assert about["any_size"] is True and about["inputs"] == {"image": [1, 1, "H", "W", "D"]}
    for path in output.iterdir():
        content = path.read_bytes()
        for word in (
            b"someones_private_folder",
            b"site-packages",
            b"/common/",
            b".py",
            str(Path.home()).encode() + b"/",
        ):
            assert word not in content, f"{path.name}: {word!r}"
    assert {path.name for path in output.iterdir()} == {"model.onnx", "model.json", ".semsynth-files.json"}


def test_graphs_that_are_there_are_replaced_only_if_told_to_and_ours(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, output = exported("la_unet")
    assert export(bundle, output) == 1
    assert "has model.json, model.onnx already; give another output, or --overwrite" in capsys.readouterr().err
    before = (bundle / "models" / "model.json").read_bytes()
    assert export(bundle, bundle / "models", "--overwrite") == 1  # the card of the weights has this name too
    assert "model.json: was not written by semsynth export" in capsys.readouterr().err
    assert (bundle / "models" / "model.json").read_bytes() == before and not (bundle / "models" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("la_maps", (), "la_maps: its network is no single graph: a drawing loop"),
        ("spade_gan3d", (), "of one size; give --size"),
        ("spade_ldm", (), "of one size; give --size"),
        ("spade_ldm", ("--size=8,8",), "size must be three numbers"),
        ("la_unet", ("--format=tensorflow",), "format must be one of torch, onnx"),
    ],
)
def test_what_is_no_graph_is_named(
    name: str, options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(BUNDLES / name, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_missing_packages_are_named_with_the_extra_before_any_work(tmp_path: Path) -> None:
    command = ["-m", "semsynth", "export", "--bundle", str(BUNDLES / "la_unet"), "--format", "onnx", "--output", "out"]
    without = kept_out({"onnx", "onnxscript"}, tmp_path / "kept_out")
    without["PYTHONPATH"] += f":{ROOT / 'common'}"
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"} | without, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    wanted = "error: --format onnx needs onnx, onnxscript, not found here; pip install 'semsynth[onnx]'"
    assert done.stderr.splitlines()[-1] == wanted


class Branching(nn.Module):
    """Something else for small volumes: what tracing at one size does not see."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 2.0 if image.shape[2] < 16 else image * 3.0


class Quantile(nn.Module):
    """The quantile of a normal distribution."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(image) * 2.0**0.5


def test_a_graph_that_gives_something_else_is_refused() -> None:
    sizes = [(random_volume(size, None),) for size in ((20, 8, 8), (24, 8, 8), (8, 8, 8))]
    onnx_graph(Graph(Branching(), sizes[0], ["image"], ["pred"], sizes[1:2]), {})
    with pytest.raises(
        InputError, match=r"something else than the network on 8 × 8 × 8 voxels, by up to 1; give --size"
    ):
        onnx_graph(Graph(Branching(), sizes[0], ["image"], ["pred"], sizes[1:]), {})


def test_gaussian_noise_is_made_in_a_graph_as_in_torch() -> None:
    places = torch.cat([torch.linspace(-1 + 1e-6, 1 - 1e-6, 100_001), torch.tensor([0.0, 1e-9])])[
        None, None, None, None
    ]
    _, difference = onnx_graph(Graph(Quantile(), (places,), ["image"], ["pred"]), {})
    assert difference <= 2e-5  # of 4.9


def code_of_docs(word: str) -> str:
    text = (ROOT / "docs" / "deploy.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in block)
    return str(code)


def test_a_server_with_onnx_runtime_alone_makes_the_diffusion_networks_image(tmp_path: Path) -> None:
    size = (21, 14, 10)
    network = diffusion(steps=4, sampler="ddim", prediction="v", of_autoencoder={"noise": True})
    network.latent_scale.fill_(0.8)
    export_sampling(network, size, tmp_path / "graphs", "onnx")
    np.save(tmp_path / "label.npy", label_map(size).numpy())
    blocked = "import sys\nsys.modules['semsynth'] = sys.modules['monai'] = sys.modules['torch'] = None\n"
    code = (
        blocked + "import numpy\nnumpy.random.seed(7)\n" + code_of_docs("denoiser") + "\nnp.save('image.npy', image)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    np.random.seed(7)
    style, noise, added = (torch.from_numpy(np.random.standard_normal(shape).astype(np.float32))
                           for shape in ((1, 8), (1, 3, 6, 4, 3), (1, 1, *size)))  # fmt: skip
    with torch.no_grad():
        given = network.conditioning(label_map(size))
        loop = GuidedDenoiser(network.denoiser, network.schedule, network.sampling)
        latent = loop.latents(given, Start(lambda number: noise, style @ network.style_root()))
        image = network.autoencoder.decode(latent / network.latent_scale, given.decoder, added).clamp(0, 1)
    assert np.abs(np.load(tmp_path / "image.npy") - image.numpy()).max() <= 1e-4


@pytest.mark.slow
def test_the_docs_segmenter_is_the_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export(BUNDLES / "la_unet", tmp_path / "graphs") == 0
    write_phantom_cases(tmp_path, 3, size=(56, 48, 40), spacing=(1.0, 1.0, 1.0), k=2, progress=False)
    shutil.copy(tmp_path / "phantom_002" / "image.nii.gz", tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(code_of_docs("argmax"), {})
    run_inference(BUNDLES / "la_unet", images=str(tmp_path / "scan.nii.gz"), output_dir=str(tmp_path / "out"),
                  device="cpu")  # fmt: skip
    (own,) = (tmp_path / "out").glob("*.nii.gz")
    ours, theirs = (np.asanyarray(nib.load(path).dataobj) for path in (own, tmp_path / "classes.nii.gz"))
    pieces, _ = label_pieces(theirs, np.ones((3, 3, 3)))
    largest = 1 + int(np.argmax(np.bincount(pieces[pieces > 0])[1:]))
    assert np.array_equal(pieces == largest, ours > 0) and ours.any()  # of which the bundle keeps the largest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pix2pix3d", "spade_gan3d", "spade_ldm", "med_lsdm"])
def test_the_shipped_generators_are_graphs(name: str, tmp_path: Path) -> None:
    size = () if name == "pix2pix3d" else ("--size", "40,32,24")
    assert export(BUNDLES / name, tmp_path, *size) == 0
    for path in tmp_path.glob("[!.]*.json"):
        found = re.findall(r'"largest_difference": ([\d.e-]+)', path.read_text())
        assert found and max(float(value) for value in found) <= 1e-4
