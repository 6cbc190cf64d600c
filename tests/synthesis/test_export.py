"""Exported graphs: what the network gives, with torch alone."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.networks.sampling.guided import GuidedDenoiser, Start
from semsynth.synthesis.export import _graph, export_bundle, export_sampling, load_network
from tiny_diffusion import diffusion, label_map
from torch import nn

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "spade_ldm"


def server_loop() -> str:
    """That of the bundle's docs."""
    text = (BUNDLE / "docs" / "commands.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "torch.export.load" in block)
    return str(code)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "v", "of_autoencoder": {"noise": True}},
        pytest.param({"prediction": "split", "of_denoiser": {"predictions": 2}}, marks=pytest.mark.slow),
        pytest.param(
            {"prediction": "v", "of_denoiser": {"middle_spade": False, "embedding": "add", "resampling": "strided"}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_server_with_torch_alone_makes_the_networks_image(tmp_path: Path, options: dict[str, Any]) -> None:
    size = (21, 14, 10)
    network = diffusion(steps=6, sampler="ddim", **options)
    network.latent_scale.fill_(0.8)
    export_sampling(network, size, tmp_path / "graphs")
    torch.save(label_map(size), tmp_path / "label.pt")
    code = (
        "import sys, torch\nsys.modules['semsynth'] = sys.modules['monai'] = None\ntorch.manual_seed(7)\n"
        + server_loop() + "\ntorch.save((style, image), 'image.pt')\n"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.manual_seed(7)
    style = torch.randn(1, 8) @ network.style_root()
    noise = torch.randn(1, 3, 6, 4, 3)
    added = [torch.randn(1, 1, *size)] if network.autoencoder.takes_noise else []
    with torch.no_grad():
        given = network.conditioning(label_map(size))
        loop = GuidedDenoiser(network.denoiser, network.schedule, network.sampling)
        latent = loop.latents(given, Start(lambda number: noise, style))
        image = network.autoencoder.decode(latent / network.latent_scale, given.decoder, *added).clamp(0, 1)
    theirs = torch.load(tmp_path / "image.pt", weights_only=True)
    torch.testing.assert_close(theirs[0], style)
    assert (theirs[1] - image).abs().max() <= 1e-4


def test_the_denoisers_graph_is_the_denoiser(tmp_path: Path) -> None:
    network, size = diffusion(prediction="v"), (16, 12, 8)
    export_sampling(network, size, tmp_path)
    graphs = {name: torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("conditioning", "denoiser")}
    label, x, style = label_map(size), torch.randn(1, 3, 4, 3, 2), torch.randn(1, 8)
    modulation = graphs["conditioning"](label)
    levels = network.denoiser.encode(label)
    both = levels, {stride: torch.zeros_like(level) for stride, level in levels.items()}
    for t in (3, 500, 999):
        timestep = torch.tensor([t])
        level = network.schedule.level(timestep)
        with torch.no_grad():
            outputs = [network.denoiser(x, timestep, given, style) for given in both]
        eager = torch.cat([network.schedule.estimate(output, x, level)[0] for output in outputs])
        graph = graphs["denoiser"](x, timestep, style, modulation)
        assert (graph - eager).abs().max() <= 1e-4 * eager.abs().max()


def test_drawn_styles_are_those_of_the_network() -> None:
    network = diffusion()
    network.style_covariance.copy_(torch.cov(torch.randn(8, 50, generator=torch.Generator().manual_seed(0))))
    drawn = torch.randn(200_000, 8, generator=torch.Generator().manual_seed(1)) @ network.style_root()
    spread = network.style_covariance.diagonal().sqrt()
    wanted = network.style_covariance / spread[:, None] / spread
    torch.testing.assert_close(torch.cov(drawn.T), wanted, atol=0.02, rtol=0)


def test_the_network_is_left_as_it_is(tmp_path: Path) -> None:
    network = diffusion().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    before = network.denoiser.start.weight.stride()
    export_sampling(network, (8, 8, 8), tmp_path)
    assert network.denoiser.start.weight.stride() == before


def test_a_graph_does_not_say_where_the_program_lies() -> None:
    """PyTorch keeps with every step the line of code that it came from, in a folder that is called after a person."""

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    content = _graph(Twice(), (torch.ones(3),))
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert not [name for name in archive.namelist() if str(Path(__file__).parent).encode() in archive.read(name)]
    assert torch.export.load(BytesIO(content)).module()(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]


def test_what_cannot_be_exported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "denoiser.pt2").touch()
    (tmp_path / "described").mkdir()
    (tmp_path / "described" / "sampling.json").write_text('{"rate": "44.1 kHz"}')
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "sampling.json").write_text('{"semsynth": "0.1.0", "timesteps": [], "signal_squared": []}')
    (tmp_path / "ours" / "denoiser.pt2").touch()
    for bundle, output, size, message in (
        (BUNDLE, "there", "16,16,16", "denoiser.pt2: was not written by semsynth export"),
        (BUNDLE, "described", "16,16,16", "sampling.json: was not written by semsynth export"),
        (BUNDLE, "ours", "16,16,16", "has denoiser.pt2, sampling.json already; give another output, or --overwrite"),
        (BUNDLE, "new", "16,16", "size must be three numbers of voxels"),
        (tmp_path, "new", "16,16,16", "no configs/inference.json in it; give the folder of a bundle"),
        (BUNDLE.parent / "pix2pix3d", "new", "16,16,16", "what is exported is a LatentDiffusion"),
    ):
        arguments = ["export", "--bundle", str(bundle), "--output", str(tmp_path / output), "--size", size]
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    other = tmp_path / "other.pt"
    torch.save(diffusion().state_dict(), other)
    with pytest.raises(InputError, match="weights of another network"):
        load_network(BUNDLE, other)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    network, size = diffusion(prediction="v"), (8, 8, 8)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for output in (tmp_path / "new", tmp_path / "there"):
        if output.name == "there":
            export_sampling(network, size, output)
        files = {path.name: path.read_bytes() for path in output.glob("*")}
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # torch's writer would end the process
        try:
            with pytest.raises(InputError, match=rf"{output}: cannot be written \(File too large\); free disk space"):
                export_sampling(network, size, output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert {path.name: path.read_bytes() for path in output.glob("*")} == files
    assert not (tmp_path / "new").exists()
    export_sampling(network, size, tmp_path / "there")  # over our own
    (tmp_path / "there" / "decoder.pt2").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"decoder\.pt2: was changed since semsynth export wrote it"):
        export_sampling(network, size, tmp_path / "there")


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").is_file(), reason="no trained weights")
def test_weights_with_noise_make_a_network_with_noise(tmp_path: Path) -> None:
    network = load_network(BUNDLE)
    state = {name: value for name, value in network.state_dict().items() if ".noise." not in name}
    noise = {"weight": torch.ones(32, 1, 2, 2, 2), "bias": torch.zeros(32)}
    state |= {f"autoencoder.decoder.noise.conv.{name}": value for name, value in noise.items()}
    torch.save(state, tmp_path / "with.pt")
    made = load_network(BUNDLE, tmp_path / "with.pt")
    assert made.autoencoder.takes_noise
    assert torch.equal(made.autoencoder.decoder.noise.conv.weight, noise["weight"])


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").is_file(), reason="no trained weights")
def test_the_bundle_is_exported(tmp_path: Path) -> None:
    export_bundle(BUNDLE, tmp_path, (32, 24, 16), steps=5)
    about = json.loads((tmp_path / "sampling.json").read_text())
    assert about["latent"] == [1, 8, 8, 6, 4]
    assert len(about["timesteps"]) == 5
    assert len(about["weights_sha256"]) == 64
    assert sorted(path.name for path in tmp_path.glob("*.pt2")) == ["conditioning.pt2", "decoder.pt2", "denoiser.pt2"]
