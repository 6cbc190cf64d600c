"""What MONAI Deploy's bundle operator does with a bundle, step by step, with MONAI and torch alone.

After ``MonaiBundleInferenceOperator`` of monai-deploy-app-sdk 3.0.0 and 4.0.0, which needs a GPU's runtime and is
not installed here. ``python deploy_steps.py BUNDLE VOLUME OUTPUT [SPACE …]``: the bundle is a TorchScript file
with configs in ``extra/``, or a folder; the volume a NIfTI; SPACE is what the operator calls the space of the affine,
RAS or LPS.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from monai.utils import convert_to_dst_type, ensure_tuple

LEFT_OUT = ("LoadImage", "SaveImage")


class Operator:
    """One bundle as the operator holds it: parser, network, transforms, inferer."""

    def __init__(self, bundle: Path) -> None:
        if bundle.is_dir():  # since 4.0.0
            sys.path.insert(0, str(bundle))
            self.parser = configs_of_folder(bundle)
        else:
            self.parser = configs_of_archive(bundle)
        self.device = self.parser.get_parsed_content("device")
        self.inferer = self.parser.get_parsed_content("inferer")
        about = self.parser["_meta_"]["network_data_format"]
        (self.input,), (self.output,) = about["inputs"], about["outputs"]
        assert about["outputs"][self.output]["type"] == "image"
        self.before, self.after = (self._steps(name) for name in ("preprocessing", "postprocessing"))
        if bundle.is_dir():
            self.network: Any = self.parser.get_parsed_content("network")
            weights = torch.load(bundle / "models" / "model.pt", map_location=self.device)
            self.network.load_state_dict(weights, strict=True)
        else:
            self.network = torch.jit.load(str(bundle), map_location=self.device)
        self.network.eval()

    def _steps(self, name: str) -> Compose:
        compose: Compose = self.parser.get_parsed_content(name)
        kept = [step for step in compose.transforms if not any(word in type(step).__name__ for word in LEFT_OUT)]
        compose.transforms = tuple(kept)  # in place: inverting transforms hold the same object
        assert isinstance(kept[0], MapTransform), "the operator would call it with a tensor"
        return compose

    @torch.no_grad()
    def compute(self, volume: np.ndarray, meta: dict[str, Any]) -> torch.Tensor:
        """A volume ``(W, H, D)`` without channels → what the postprocessing makes."""
        value = convert_to_dst_type(volume, dst=volume)[0]
        inputs = self.before({self.input: MetaTensor.ensure_torch_and_prune_meta(value, meta)})
        seen = inputs.pop(self.input)
        others = {key: part[None].to(self.device) for key, part in inputs.items() if isinstance(part, torch.Tensor)}
        made = self.inferer(inputs=seen[None].to(self.device), network=self.network, **others)
        result = self.after({self.output: ensure_tuple(made)[0], **inputs, self.input: seen})
        pred: torch.Tensor = result[self.output]
        return pred


def configs_of_archive(path: Path) -> ConfigParser:
    """Of a TorchScript file, which is a zip with one folder of the file's name."""
    parser = ConfigParser()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        parser.read_meta(f=json.loads(archive.read(f"{path.stem}/extra/metadata.json")))
        archive.extract(f"{path.stem}/extra/inference.json", folder)
        parser.read_config([Path(folder, path.stem, "extra", "inference.json")])
    parser.parse()
    return parser


def configs_of_folder(path: Path) -> ConfigParser:
    """Of an unpacked bundle."""
    parser = ConfigParser()
    parser.read_meta(f=json.loads((path / "configs" / "metadata.json").read_text()))
    parser.read_config([path / "configs" / "inference.json"])
    parser.parse()
    return parser


def received(image: np.ndarray, about: Mapping[str, Any], space: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Of the SDK's image, an array ``(D, H, W)`` and what the DICOM loader says of it, what the transforms are given.

    Args:
        image: of the DICOM loader.
        about: its metadata.
        space: of the affine, which is RAS in truth; SDKs before 4.0.0 say LPS.
    """
    spacing = [about[f"{name}_pixel_spacing"] for name in ("row", "col", "depth")]
    affine = np.asarray(about["nifti_affine_transform"])
    volume = np.swapaxes(image, 0, 2)
    meta = dict(about) | {
        "spacing": np.asarray(spacing), "original_affine": affine, "affine": affine.copy(),
        "spatial_shape": np.asarray(volume.shape), "original_channel_dim": "no_channel",
    }  # fmt: skip
    return volume, meta | ({} if space is None else {"space": space})


def sent(pred: torch.Tensor) -> np.ndarray:
    """What the next operator is given of a result of the type ``image``: ``(D, H, W)``, uint8."""
    return np.swapaxes(np.squeeze(pred.cpu().numpy(), 0), 0, 2).astype(np.uint8)


def main(bundle: str, volume: str, output: str, *spaces: str) -> None:
    """See the module."""
    file = nib.load(volume)
    row, col, depth = (float(size) for size in file.header.get_zooms()[:3])
    about = {
        "row_pixel_spacing": row, "col_pixel_spacing": col, "depth_pixel_spacing": depth,
        "nifti_affine_transform": file.affine,
    }  # fmt: skip
    image = np.swapaxes(np.asanyarray(file.dataobj), 0, 2)
    operator, found = Operator(Path(bundle).resolve()), []
    for space in spaces or (None,):
        pred = operator.compute(*received(image, about, space))
        affine = pred.affine if isinstance(pred, MetaTensor) else None
        plain = torch.from_numpy(pred.cpu().numpy())
        found.append({"pred": plain, "affine": affine, "sent": torch.from_numpy(sent(pred).copy())})
    torch.save(found, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
