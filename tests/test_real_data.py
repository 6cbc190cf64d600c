"""On the real volumes, where they are at hand (SEMSYNTH_DATA, default ../shared/data)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_seg, write_series
from semsynth.data.raw import find_cases, load_case
from semsynth.data.volumes import read_volume
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.wall import derive_wall

DATA = Path(os.environ.get("SEMSYNTH_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real volumes at {DATA} (set SEMSYNTH_DATA)")


@needs_data
def test_every_challenge_crop_is_found_and_splits_are_kept():
    cases = find_cases(DATA / "la2018")
    assert [sum(c.split == s for c in cases) for s in ("training", "validation", "testing")] == [69, 10, 0]
    assert len({load_case(case).image.data.shape for case in cases[:6]}) > 1, "no size may be assumed"


@needs_data
def test_the_derived_wall_overlaps_the_experts_as_published():
    folder = DATA / "la_wall_scar"
    endo, wall = (read_volume(folder / f"{name}.nii.gz") for name in ("laendo", "lawall"))
    endo, wall = endo.canonical(), wall.canonical()
    ring = (derive_wall(endo, 2.5).data > 0) & (endo.data == 0)
    dice = 2 * np.count_nonzero(ring & (wall.data > 0)) / (np.count_nonzero(ring) + np.count_nonzero(wall.data))
    assert dice == pytest.approx(0.875, abs=0.015)


@needs_data
def test_a_given_wall_stays_as_it_is_and_scar_and_all(tmp_path):
    path = prepare(DATA / "la_wall_scar", tmp_path, Settings(spacing=(0.625, 0.625, 2.5)), fractions=(1.0, 0.0))
    content = json.loads(path.read_text())
    label = read_volume(tmp_path / content["training"][0]["label"])
    expected = read_volume(DATA / "la_wall_scar" / "lawall.nii.gz").canonical()
    assert np.array_equal(label.data == 2, expected.data == 1) and label.data.max() == 3


@needs_data
@pytest.mark.parametrize("case", ["la2018/1MHBF3G6DCPWHSKG7XCP", "la_wall_scar"])
def test_a_scan_and_its_masks_as_dicom_are_the_same_voxels(tmp_path, case):
    names = {"laendo": "left atrium", "lawall": "wall"}
    files = {name: DATA / case / f"{name}.nii.gz" for name in ("lgemri", *names)}
    image, *masks = [read_volume(path) for path in files.values() if path.is_file()]
    write_series(tmp_path / "p" / "LGE", image.data.astype(np.uint16), image.affine)
    found = read_volume(tmp_path / "p" / "LGE")
    drawn = {name: mask.oriented_as(found.affine).data > 0 for name, mask in zip(names.values(), masks, strict=False)}
    write_seg(tmp_path / "p" / "seg", tmp_path / "p" / "LGE", drawn)
    read = [found, *(read_volume(f"{tmp_path}/p#{name}") for name in drawn)]
    for ours, source in zip(read, (image, *masks), strict=True):
        ours, source = ours.canonical(), source.canonical()
        assert np.array_equal(ours.data, source.data) and np.allclose(ours.affine, source.affine, atol=1e-5)
