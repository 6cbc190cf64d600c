"""MONAI Deploy's bundle operator, by its steps (``deploy_steps.py``), gives what the bundle's own inference gives."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_configs import WEIGHTS, read
from bundle_packages import kept_out
from pack_bundle import pack
from selection import slow_but_for
from semsynth.prepare.phantom import write_phantom_cases
from verify_bundles import find_bundles

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "tests" / "deploy_steps.py"
TAKEN = [path for path in find_bundles(ROOT / "bundles") if (path / WEIGHTS).is_file() and path.name != "la_maps"]
"""``la_maps`` makes maps from requests, not volumes from volumes."""


@dataclass(frozen=True)
class Case:
    """A packed bundle, a volume whose axes are neither RAS nor along the patient, and what its inference makes."""

    bundle: Path
    volume: Path
    made: nib.Nifti1Image
    plain: dict[str, str]

    def run(self, *arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Python in a process that cannot import semsynth, with a folder on its module path."""
        known = os.environ | self.plain | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if path is not None:
            known["PYTHONPATH"] += os.pathsep + str(path)
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True, timeout=300, check=False)

    def deployed(self, given: Path, output: Path, *space: str, path: Path | None = None) -> list[dict[str, Any]]:
        """What the operator's steps, started in the unpacked bundle, make of the volume, for each name of its space."""
        arguments = [str(STEPS), str(given), str(self.volume), str(output), *space]
        done = self.run(*arguments, cwd=self.bundle, path=path)
        assert done.returncode == 0, done.stderr[-3000:]
        found: list[dict[str, Any]] = torch.load(output, weights_only=True)
        return found


def oblique(source: Path, target: Path) -> Path:
    """The voxels in another order, the axes turned by 0.15 rad."""
    file = nib.load(source).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.15), -np.sin(0.15)], [np.sin(0.15), np.cos(0.15)]]
    nib.save(nib.Nifti1Image(np.asanyarray(file.dataobj), turn @ file.affine), target)
    return target


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("deploy")
    with zipfile.ZipFile(pack(request.param, folder / "dist")) as archive:
        archive.extractall(folder)
    bundle = folder / request.param.name
    segmenter = bundle.name == "la_unet"
    write_phantom_cases(folder / "data", 3, size=(56, 48, 40), spacing=(1.0, 1.0, 1.0), k=2, progress=False)
    name = "image" if segmenter else "label"
    volume = oblique(folder / "data" / "phantom_002" / f"{name}.nii.gz", folder / "case.nii.gz")
    options = ["--images", str(volume)] if segmenter else ["--label_maps", str(volume), "--map_batch#per_case", "False"]
    begun = Case(bundle, volume, nib.load(volume), kept_out({"semsynth"}, folder / "kept_out"))
    run = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--output_dir", str(folder / "out")]
    done = begun.run(*run, *options, cwd=bundle)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = folder.glob("out/*.nii.gz")
    return Case(bundle, volume, nib.load(made), begun.plain)


@pytest.fixture(scope="module")
def torchscript(case: Case) -> Path:
    if "export_exemption" in read(case.bundle, "metadata"):
        pytest.skip("let off TorchScript")
    path = case.bundle.parent / "model.ts"
    files = {"ckpt_file": WEIGHTS, "meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
    options = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    command = ["-m", "monai.bundle", "ckpt_export", "--net_id", "network_def", "--filepath", str(path), *options]
    done = case.run(*command, cwd=case.bundle)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def of_folder(case: Case) -> dict[str, Any]:
    """What the operator makes with the unpacked folder, of which it takes configs, network and weights."""
    (found,) = case.deployed(Path(), case.bundle.parent / "of_folder")
    return found


def same(found: dict[str, Any], case: Case) -> None:
    """Voxels, shape, order of voxels and place are those of the bundle's own inference."""
    own = case.made.get_fdata(dtype=np.float32)
    assert found["pred"].shape == (1, *own.shape)
    assert np.abs(found["pred"][0].numpy() - own).max() <= 1e-4
    assert np.allclose(found["affine"].numpy(), case.made.affine, atol=1e-4)
    assert own.max() > own.min()


@pytest.mark.parametrize("case", slow_but_for(TAKEN, "la_unet"), indirect=True, ids=lambda path: path.name)
class TestOperator:
    def test_a_torchscript_file_with_configs_gives_what_the_bundle_gives(
        self, case: Case, torchscript: Path, tmp_path: Path
    ) -> None:
        """The folder is on the module path as well; older SDKs call the affine LPS, which is RAS."""
        for found in case.deployed(torchscript, tmp_path / "found", "LPS", "RAS", path=case.bundle):
            same(found, case)

    def test_so_does_the_unpacked_folder(self, case: Case, of_folder: dict[str, Any]) -> None:
        same(of_folder, case)

    def test_the_next_operator_is_given_whole_numbers_which_leave_nothing_of_an_intensity(
        self, case: Case, of_folder: dict[str, Any]
    ) -> None:
        """docs/deploy.md says so, and what to do."""
        sent = np.swapaxes(of_folder["sent"].numpy(), 0, 2)
        if case.bundle.name == "la_unet":
            assert np.array_equal(sent, np.asanyarray(case.made.dataobj))
        else:
            assert len(np.unique(sent)) <= 2 < len(np.unique(of_folder["pred"]))

    def test_elsewhere_modules_are_missing_and_then_the_rule_of_intensities(
        self, case: Case, torchscript: Path, tmp_path: Path
    ) -> None:
        arguments = [str(STEPS), str(torchscript), str(case.volume), str(tmp_path / "found")]
        assert "scripts.semsynth" in case.run(*arguments, cwd=tmp_path).stderr.splitlines()[-1]
        done = case.run(*arguments, cwd=tmp_path, path=case.bundle)
        scaled = case.bundle.name == "la_unet"  # by another rule it would be another segmentation
        assert ("start in the bundle's folder, or set bundle_root to it" in done.stderr) == scaled
        assert (done.returncode == 0) == (not scaled)
