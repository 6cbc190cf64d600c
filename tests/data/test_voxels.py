"""A volume is known by its voxels, whatever file they stand in."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from semsynth.data.voxels import hash_file, voxel_hash

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 200, (7, 9, 11)).astype(np.uint8)
FLOATS = rng.normal(size=(7, 9, 11))


@pytest.mark.parametrize("data", [IMAGE, FLOATS, IMAGE.astype(np.int32) * 1000 - 90000], ids=["uint8", "float", "wide"])
def test_storage_type_scale_and_direction_of_axes_do_not_matter(data):
    own = voxel_hash(data)
    assert own is not None and len(own) == 64
    same = {
        "type": data.astype(np.float64), "scaled": data * 2.5 + 7, "flipped": data[::-1, :, ::-1],
        "axes": data.transpose(2, 0, 1), "both": data.transpose(1, 0, 2)[:, ::-1], "order": np.asfortranarray(data),
    }  # fmt: skip
    assert {name for name, other in same.items() if voxel_hash(other) != own} == set()


def test_one_other_voxel_another_shape_and_a_crop_are_other_volumes():
    own = voxel_hash(IMAGE)
    changed = IMAGE.copy()
    changed[3, 4, 5] ^= 1
    others = [changed, IMAGE[:-1], IMAGE.reshape(9, 7, 11), 255 - IMAGE, np.pad(IMAGE, 1)]
    assert own not in {voxel_hash(other) for other in others}
    assert len({voxel_hash(other) for other in others}) == len(others)


def test_a_mask_of_0_and_255_is_the_mask_of_0_and_1_and_a_constant_volume_tells_nothing():
    mask = (IMAGE > 90).astype(np.uint8)
    assert voxel_hash(mask) == voxel_hash(mask * 255) != voxel_hash(1 - mask)
    assert voxel_hash(np.zeros((3, 3, 3))) is None


def test_files_of_any_format_are_recognised_and_read_again_once_they_change(tmp_path: Path):
    paths = [tmp_path / name for name in ("a.nii", "b.nii.gz", "c.nrrd")]
    for path in paths[:2]:
        image = nib.Nifti1Image(IMAGE, np.diag([2.0, 1.0, 3.0, 1.0]))
        image.header["descrip"] = path.name
        nib.save(image, path)
    header = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(paths[2]), IMAGE, header)
    assert {hash_file(path) for path in paths} == {voxel_hash(IMAGE)}
    nib.save(nib.Nifti1Image(255 - IMAGE, np.eye(4)), paths[0])
    assert hash_file(paths[0]) == voxel_hash(255 - IMAGE)
    (tmp_path / "bad.nii").write_bytes(b"no volume")
    assert hash_file(tmp_path / "bad.nii") is None and hash_file(tmp_path / "gone.nii") is None


def test_small_and_wide_integers_do_not_overflow():
    levels = rng.integers(0, 200, (6, 7, 8))
    own = voxel_hash(levels.astype(np.uint8))
    assert voxel_hash((levels - 100).astype(np.int8)) == own
    wide = levels * 327 - 32700  # from one end of int16 to the other
    assert voxel_hash(wide.astype(np.int16)) == voxel_hash(wide.astype(np.float32)) == own
