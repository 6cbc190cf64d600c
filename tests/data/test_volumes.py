"""Reading and writing volumes: geometry and intensities survive, header traps are refused."""

from __future__ import annotations

import gzip

import nibabel as nib
import nrrd
import numpy as np
import pytest
from semsynth.data.headers import read_header
from semsynth.data.volumes import Volume, read_volume, scale_intensity, stem, write_image, write_label
from semsynth.errors import InputError
from semsynth.files import atomic_path

AFFINE = np.array([[-0.6, 0, 0, 12], [0, -0.6, 0, -7], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


def save(path, data):
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def patch(path, offset, values):
    """Write into the header as another program would have: nibabel's own writer repairs it."""
    raw = bytearray(gzip.decompress(save(path, np.ones((3, 4, 5))).read_bytes()))
    raw[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize(("dtype", "step"), [("uint8", 1 / 255), ("int16", 1 / 32767), ("float32", 1e-6)])
def test_written_intensities_are_read_back_to_half_a_step(tmp_path, dtype, step):
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    volume = read_volume(write_image(tmp_path / "a.nii.gz", data, AFFINE, dtype))
    assert np.abs(volume.data - data).max() <= step / 2 + 1e-6
    assert np.allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.spacing == pytest.approx((0.6, 0.6, 2.5), abs=1e-5)
    assert nib.load(tmp_path / "a.nii.gz").header.get_data_dtype() == np.dtype(dtype)


def test_labels_are_stored_as_they_are(tmp_path):
    data = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(read_volume(write_label(tmp_path / "l.nii.gz", data, AFFINE)).data, data)


def test_a_sheared_volume_is_written_so_that_it_can_be_read_again(tmp_path):
    affine = AFFINE.copy()
    affine[0, 2] = 0.4  # a tilted gantry
    volume = read_volume(write_label(tmp_path / "l.nii.gz", np.zeros((20, 20, 20), dtype=int), affine))
    assert np.allclose(volume.affine, affine, atol=1e-5)


def test_canonical_order_moves_voxels_but_no_anatomy():
    data = np.random.default_rng(0).random((4, 5, 6))
    moved = Volume(data, AFFINE).canonical()
    assert np.all(np.diag(moved.affine)[:3] > 0)
    i = np.array([1, 2, 3, 1])
    j = np.rint(np.linalg.inv(moved.affine) @ AFFINE @ i).astype(int)
    assert moved.data[tuple(j[:3])] == data[1, 2, 3]


def test_nrrd_directions_become_a_ras_affine(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.625, 0.625, 1.25]),
              "space origin": np.array([10.0, 20, 30])}  # fmt: skip
    nrrd.write(str(tmp_path / "a.nrrd"), data, header)
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.data, data)
    assert np.allclose(volume.affine, [[-0.625, 0, 0, -10], [0, -0.625, 0, -20], [0, 0, 1.25, 30], [0, 0, 0, 1]])


def test_a_single_frame_4d_file_is_a_volume(tmp_path):
    assert read_volume(save(tmp_path / "a.nii.gz", np.ones((3, 4, 5, 1)))).data.shape == (3, 4, 5)


def truncated(path):
    save(path, np.random.default_rng(0).random((20, 20, 20)))
    path.write_bytes(path.read_bytes()[:2000])


def disagreeing(path):
    image = nib.Nifti1Image(np.ones((9, 9, 9)), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(np.diag([1.0, 1, 1, 1]), code=1)
    nib.save(image, path)


def uninvertible(path):
    flat = AFFINE.copy()
    flat[:, 1] = flat[:, 0]
    raw = bytearray(gzip.decompress(save(path, np.ones((3, 4, 5))).read_bytes()))
    raw[280:328] = flat[:3].astype("<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


BROKEN = {
    "missing: found no such file": lambda path: None,
    "truncated or damaged": truncated,
    r"not one 3D volume: found 4D, shape \(3, 4, 5, 2\)": lambda path: save(path, np.ones((3, 4, 5, 2))),
    "unusable voxel size: found pixdim 0 × ": lambda path: patch(path, 80, np.zeros(1, dtype="<f4")),
    "unusable sform: found a singular matrix": uninvertible,
}


def test_where_header_transforms_are_in_doubt_the_sform_is_taken_and_a_note_made(tmp_path):
    disagreeing(tmp_path / "a.nii.gz")
    patch(tmp_path / "b.nii.gz", 252, np.zeros(2, dtype="<i2"))
    headers = [read_header(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz")]
    assert [note.finding for header in headers for note in header.notes] == [
        "qform and sform disagree",
        "no orientation",
    ]
    assert np.allclose(read_volume(tmp_path / "a.nii.gz").affine, AFFINE, atol=1e-5)
    assert headers[1].axes == "LAS" and read_volume(tmp_path / "b.nii.gz").data.shape == (3, 4, 5)


def test_the_last_bytes_of_a_gzip_file_count_too(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((5, 5, 5)))
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:-8] + b"\0" * 8):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="truncated or damaged"):
            read_volume(path)


def test_foreign_byte_order_is_turned_into_the_machines(tmp_path):
    data = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(data, AFFINE, nib.Nifti1Header(endianness=">")), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.data.dtype.isnative and np.array_equal(volume.data, data)


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_that_would_be_misread_is_refused_by_name(tmp_path, message):
    path = tmp_path / "a.nii.gz"
    BROKEN[message](path)
    with pytest.raises(InputError, match=message) as error:
        read_volume(path)
    assert str(path) in str(error.value)


def test_another_format_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"found the name a\.txt, expected one that ends in \.nii\.gz, \.nii, \.nrrd"):
        read_volume(tmp_path / "a.txt")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_scaling_a_constant_image_is_an_error():
    assert scale_intensity(np.array([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    with pytest.raises(InputError, match="image is constant"):
        scale_intensity(np.ones((2, 2)))


def test_stem_drops_the_double_suffix():
    assert stem("/a/b/case.1.nii.gz") == "case.1"
