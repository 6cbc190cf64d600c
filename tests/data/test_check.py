"""Cases that are checked: each kind of broken file gets its verdict and message, valid variants get none."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.check import Entry, Rules, check_cases
from semsynth.data.classes import bundle_classes, compare_classes
from semsynth.data.entries import load_datalist, load_label_maps
from semsynth.data.entry_cases import check_volumes
from semsynth.data.findings import COLUMNS
from semsynth.data.headers import unreadable
from semsynth.data.raw import Case, check_input, load_case
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError

SHAPE = (12, 10, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def image_of(name: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 1000, SHAPE).astype(np.int16)


def masks() -> tuple[np.ndarray, np.ndarray]:
    """A cavity of 4 × 4 × 4 voxels and the wall around it."""
    endo, wall = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    wall[3:9, 2:8, 1:7] = 1
    wall[4:8, 3:7, 2:6] = 0
    endo[4:8, 3:7, 2:6] = 1
    return endo, wall


def label() -> np.ndarray:
    endo, wall = masks()
    tissue = np.zeros(SHAPE, np.uint8)
    tissue[:, :, 7] = 3
    return np.where(endo > 0, 1, np.where(wall > 0, 2, tissue)).astype(np.uint8)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def write_case(folder: Path, name: str) -> dict[str, str]:
    """A case with everything, raw and prepared; returns its entry. The heart of "good" lies a voxel further on."""
    (folder / name).mkdir(parents=True)
    endo, wall = masks()
    for role, data in {"image": image_of(name), "endo": endo, "wall": wall, "label": label()}.items():
        moved = np.roll(data, 1, axis=0) if name == "good" else data
        save(folder / name / f"{role}.nii.gz", moved)
    return {"case": name} | {role: f"{name}/{role}.nii.gz" for role in ("image", "label", "endo", "wall")}


class Data:
    """Two cases, of which ``bad`` is there to be broken."""

    def __init__(self, root: Path, entries: dict[str, dict[str, str]]) -> None:
        self.root = root
        self.entries = {name: dict(entry) for name, entry in entries.items()}
        self.splits = {"training": ["good"], "validation": ["bad"]}

    def path(self, role: str) -> Path:
        return self.root / self.entries["bad"][role]

    def put(self, role: str, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        return save(self.path(role), data, affine)

    def rename(self, role: str, name: str) -> Path:
        self.path(role).unlink()
        self.entries["bad"][role] = f"bad/{name}"
        return self.path(role)

    def edit(self, role: str, offset: int, values: np.ndarray) -> None:
        """Write into the header as another program would have: nibabel's own writer repairs it."""
        raw = bytearray(gzip.decompress(self.path(role).read_bytes()))
        raw[offset : offset + values.nbytes] = values.tobytes()
        self.path(role).write_bytes(gzip.compress(bytes(raw)))

    def nrrd(self, role: str, data: np.ndarray, **header: object) -> None:
        space = {"space": "right-anterior-superior", "space directions": AFFINE[:3, :3], "space origin": np.zeros(3)}
        fields = {key: value for key, value in (space | header).items() if value is not None}
        nrrd.write(str(self.rename(role, f"{role}.nrrd")), data, fields)

    def datalist(self) -> Path:
        content = {split: [self.entries[name] for name in names] for split, names in self.splits.items()}
        path = self.root / "datalist.json"
        path.write_text(json.dumps({"num_classes": 4} | content))
        return path

    def check(self, **options: object):
        return check_input(self.datalist(), **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("written")
    return folder, {name: write_case(folder, name) for name in ("good", "bad")}


@pytest.fixture
def data(written: tuple[Path, dict[str, dict[str, str]]], tmp_path: Path) -> Data:
    return Data(Path(shutil.copytree(written[0], tmp_path / "data")), written[1])


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def plain(data: Data, role: str, raw: bytes | None = None) -> Path:
    """The file without compression, under a name that says so."""
    content = gzip.decompress(data.path(role).read_bytes()) if raw is None else raw
    path = data.rename(role, f"{role}.nii")
    path.write_bytes(content)
    return path


def float_image(value: float) -> np.ndarray:
    image = image_of("bad").astype(np.float32)
    image[1, 2, 3] = value
    return image


def labelled(value: float, where: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    result = label().astype(np.float32)
    result[where] = value
    return result if not float(value).is_integer() else result.astype(np.int16)


def masked(value: float) -> np.ndarray:
    return np.where(masks()[0] > 0, value, 0).astype(np.float32)


def swap(data: Data, role: str) -> None:
    image, other = read_volume(data.path("image")).data, read_volume(data.path(role)).data
    data.put("image", np.asarray(other))
    data.put(role, np.asarray(image))


def only(data: Data, *roles: str) -> None:
    data.entries["bad"] = {key: value for key, value in data.entries["bad"].items() if key in ("case", *roles)}


def swapped_raw(data: Data) -> None:
    only(data, "image", "endo")
    swap(data, "endo")


def swapped_prepared(data: Data) -> None:
    only(data, "image", "label")
    data.put("image", (image_of("bad") / 7.0).astype(np.float32))
    swap(data, "label")


def rgb(data: Data) -> None:
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    data.put("image", colours)


def moved(**changes: float) -> np.ndarray:
    affine = AFFINE.copy()
    for entry, value in changes.items():
        affine[int(entry[1]), int(entry[2])] = value
    return affine


def everything(data: Data, affine: np.ndarray) -> None:
    """The whole case on another grid."""
    for role in ("image", "label", "endo", "wall"):
        data.put(role, np.asarray(read_volume(data.path(role)).data), affine)


def same_voxels(data: Data) -> None:
    path = data.root / "bad" / "image.nii"
    save(path, np.roll(image_of("good"), 1, axis=0))
    data.entries["bad"]["image"] = "bad/image.nii"


def one_name(data: Data) -> None:
    data.entries["bad"]["case"] = "good"
    data.splits = {"training": ["good", "bad"]}


# name → (what breaks it, finding, file, what the message says was found, and what to do)
ERRORS = {
    "image missing": (lambda d: d.path("image").unlink(), "missing", "image", "no such file", "check the path"),
    "mask missing": (lambda d: d.path("endo").unlink(), "missing", "endo", "no such file", "check the path"),
    "folder": (lambda d: d.rename("image", "x.nii").mkdir(), "missing", "x.nii", "a folder", "check the path"),
    "no files": (lambda d: only(d), "missing", "datalist.json", "under validation without files", "complete"),
    "zero bytes": (lambda d: truncate(d.path("image"), 0), "empty file", "image", "0 bytes", "copy it again"),
    "gzip cut": (lambda d: truncate(d.path("image"), 900), "truncated or damaged", "image", "ended", "copy it again"),
    "gzip end cut": (
        lambda d: truncate(d.path("image"), d.path("image").stat().st_size - 3),
        "truncated or damaged", "image", "ended before", "copy it again",
    ),
    "gzip flipped": (
        lambda d: d.path("image").write_bytes(flipped(d.path("image").read_bytes())),
        "truncated or damaged", "image", ".", "copy it again",
    ),
    "plain cut": (lambda d: truncate(plain(d, "image"), 700), "truncated or damaged", "image.nii", "700 of 2272 bytes",
                  "copy it again"),
    "header cut": (lambda d: truncate(plain(d, "image"), 100), "truncated or damaged", "image.nii", "100 bytes",
                   "copy it again"),
    "impossible size": (lambda d: [only(d, "image"), d.edit("image", 42, np.array([30000] * 3, "<i2"))],
                        "truncated or damaged", "image", "of 54000000000352 bytes", "copy it again"),
    "text as gzip": (lambda d: d.path("image").write_text("text"), "not an image", "image", "no gzip data", "rename"),
    "text": (lambda d: plain(d, "image", b"text " * 200), "not an image", "image.nii", "no NIfTI header", "copy"),
    "picture": (lambda d: d.rename("image", "a.png").write_bytes(b"PNG"), "not an image", "a.png", "the name a.png",
                "convert it"),
    "gzip as plain": (lambda d: plain(d, "image", d.path("image").read_bytes()), "not an image", "image.nii",
                      "gzip data under the name .nii", "rename it to .nii.gz"),
    "plain as gzip": (lambda d: d.path("image").write_bytes(gzip.decompress(d.path("image").read_bytes())),
                      "not an image", "image", "no gzip data", "rename it to .nii"),
    "text as nrrd": (lambda d: d.rename("image", "a.nrrd").write_text("text"), "not an image", "a.nrrd", "no NRRD",
                     "copy it again"),
    "2D": (lambda d: d.put("image", image_of("bad")[:, :, 0]), "not one 3D volume", "image", "2D", "whole volume"),
    "4D": (lambda d: d.put("image", np.stack([image_of("bad")] * 2, -1)), "not one 3D volume", "image",
           "4D, shape (12, 10, 8, 2)", "extract the volume"),
    "5D": (lambda d: d.put("image", np.zeros((*SHAPE, 1, 3), np.float32)), "not one 3D volume", "image", "5D",
           "extract the volume"),
    "nrrd 4D": (lambda d: d.nrrd("image", np.zeros((3, *SHAPE)), **{"space directions": None}), "not one 3D volume",
                "image.nrrd", "4D", "extract the volume"),
    "single slice": (lambda d: [only(d, "image"), d.put("image", image_of("bad")[:, :, :1])], "single slice", "image",
                     "shape (12, 10, 1)", "whole volume"),
    "NaN": (lambda d: d.put("image", float_image(np.nan)), "NaN or infinite voxels in the image", "image", "1 of 960",
            "repair"),
    "infinite": (lambda d: d.put("image", float_image(-np.inf)), "NaN or infinite voxels in the image", "image",
                 "1 of 960", "repair"),
    "constant": (lambda d: d.put("image", np.full(SHAPE, 7, np.int16)), "image is constant", "image", "7 everywhere",
                 "right file"),
    "RGB": (rgb, "not real numbers", "image", "colours (RGB)", "one channel"),
    "complex": (lambda d: d.put("image", image_of("bad").astype(np.complex64)), "not real numbers", "image",
                "complex numbers", "magnitude"),
    "other shape": (lambda d: d.put("label", label()[:, :, :-1]), "shape differs from the image's", "label",
                    "(12, 10, 7)", "resample it"),
    "other spacing": (lambda d: d.put("label", label(), moved(a22=2.01)), "voxel size differs from the image's",
                      "label", "1 × 1 × 2.01 mm", "resample it"),
    "other origin": (lambda d: d.put("endo", masks()[0], moved(a03=0.5)), "affine differs from the image's", "endo",
                     "0.5 mm (0.5 voxels) apart", "resample it"),
    "other direction": (lambda d: d.put("wall", masks()[1], moved(a00=-1.0)), "affine differs from the image's",
                        "wall", "11 mm (11 voxels) apart", "resample it"),
    "swapped with mask": (swapped_raw, "image and label swapped", "endo", "many values in the endo", "exchange"),
    "swapped with map": (swapped_prepared, "image and label swapped", "label", "many values in the label", "exchange"),
    "same voxels": (same_voxels, "duplicate case", "image.nii", "the same voxels as good (training), by their hash",
                    "leave one of the two out"),
    "sform singular": (lambda d: d.edit("image", 280, np.zeros(12, "<f4")), "unusable sform", "image",
                       "a singular matrix", "repair the header"),
    "sform NaN": (lambda d: d.edit("image", 284, np.full(1, np.nan, "<f4")), "unusable sform", "image",
                  "NaN or infinite entries", "repair the header"),
    "pixdim 0": (lambda d: d.edit("image", 88, np.zeros(1, "<f4")), "unusable voxel size", "image", "pixdim 1 × 1 × 0",
                 "repair the header"),
    "micrometres": (lambda d: [only(d, "image"), everything_of_image(d, 1000.0)], "implausible voxel size", "image",
                    "1000 × 1000 × 2000 mm", "write it in mm"),
    "metres": (lambda d: [only(d, "image"), everything_of_image(d, 0.001)], "implausible voxel size", "image",
               "0.001 × 0.001 × 0.002 mm", "write it in mm"),
    "label NaN": (lambda d: d.put("label", labelled(np.nan)), "NaN or infinite voxels in the label map", "label",
                  "1 of 960", "nearest"),
    "label fraction": (lambda d: d.put("label", labelled(0.5)), "label values are not whole numbers", "label", "0.5",
                       "nearest"),
    "label too high": (lambda d: d.put("label", labelled(7)), "label values out of range", "label", "7",
                       "set num_classes to 8"),
    "label negative": (lambda d: d.put("label", labelled(-1)), "label values out of range", "label", "-1",
                       "map every value"),
    "label 0 and 255": (lambda d: d.put("label", masks()[0] * np.uint8(255)), "label values out of range", "label",
                        "255", "map 255 → 1"),
    "label ignore": (lambda d: d.put("label", labelled(255)), "label values out of range", "label", "255",
                     "map 255 → 0 if it marks voxels to ignore"),
    "only clusters": (lambda d: d.put("label", np.where(label() == 3, 3, 0).astype(np.uint8)),
                      "tissue clusters, but neither endo nor wall", "label", "classes 0, 3", "semsynth prepare"),
    "mask of 2": (lambda d: d.put("endo", masked(2)), "endo mask must hold only 0 and 1", "endo", "0, 2", "as 1"),
    "mask fraction": (lambda d: d.put("endo", masked(0.5)), "endo mask must hold only 0 and 1", "endo", "0, 0.5",
                      "as 1"),
    "mask NaN": (lambda d: d.put("wall", masked(np.nan)), "NaN or infinite voxels in the wall mask", "wall",
                 "64 of 960", "nearest"),
    "nrrd cut": (lambda d: [d.nrrd("image", image_of("bad")), truncate(d.path("image"), 600)], "truncated or damaged",
                 "image.nrrd", ".", "copy it again"),
    "nrrd without size": (lambda d: d.nrrd("image", image_of("bad"), **{"space directions": None}), "no voxel size",
                          "image.nrrd", "no 'space directions'", "add them"),
    "nrrd space": (lambda d: d.nrrd("image", image_of("bad"), space="scanner-xyz"), "unknown NRRD space",
                   "image.nrrd", "scanner-xyz", "left-posterior-superior"),
}  # fmt: skip


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 :]


def everything_of_image(data: Data, factor: float) -> None:
    data.put("image", image_of("bad"), np.diag([factor, factor, 2 * factor, 1.0]))


@pytest.mark.parametrize("name", ERRORS)
def test_a_bad_file_is_an_error_with_what_was_found_and_what_to_do(data, name):
    break_it, finding, file, found, fix = ERRORS[name]
    break_it(data)
    report = data.check()
    assert [f.case for f in report.errors] == ["bad"], report.table()
    error = report.errors[0]
    assert error.finding == finding and (found == "." or found in error.found) and fix in error.fix
    assert error.expected and Path(error.file).name == (file if "." in file else f"{file}.nii.gz")
    assert not [f for f in report.warnings if f.case == "good"]
    with pytest.raises(InputError, match=re.escape(finding)) as raised:
        report.raise_for_errors()
    assert "1 of 2 cases cannot be used" in str(raised.value)


def both_codes_0(data: Data) -> None:
    data.edit("image", 252, np.zeros(2, "<i2"))
    only(data, "image")


def qform_differs(data: Data) -> None:
    image = nib.Nifti1Image(image_of("bad"), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(np.diag([-1.0, -1.0, 2.0, 1.0]), code=1)
    nib.save(image, data.path("image"))


def overlapping(data: Data) -> None:
    endo, wall = masks()
    wall[4] |= endo[4]
    data.put("wall", wall)


def outside(data: Data) -> None:
    endo, _ = masks()
    endo[0:2, 0:3, 2:6] = 1
    data.put("endo", endo)


WARNINGS = {
    "qform and sform disagree": (qform_differs, "24 mm apart", "the sform is used"),
    "no orientation": (both_codes_0, "codes both 0", "LAS is assumed"),
    "endo mask is empty": (lambda d: d.put("endo", masks()[0] * 0), "no voxel", "give its mask"),
    "wall mask is empty": (lambda d: d.put("wall", masks()[1] * 0), "no voxel", "give its mask"),
    "label map is empty": (lambda d: d.put("label", label() * 0), "0 everywhere", "leave the case out"),
    "endo outside the wall's outer border": (outside, "24 of 88 voxels (27%)", "look at the masks"),
    "endo and wall overlap": (overlapping, "16 voxels in both", "endo wins"),
    "orientation is not RAS": (lambda d: everything(d, AFFINE * [[-1], [-1], [1], [1]]), "LPS", "restored in outputs"),
}


@pytest.mark.parametrize("finding", WARNINGS)
def test_what_can_still_be_used_is_a_warning(data, finding):
    break_it, found, fix = WARNINGS[finding]
    break_it(data)
    report = data.check()
    assert report.errors == [] and {f.case for f in report.warnings} == {"bad"}
    shown = {f.finding: f for f in report.warnings}
    assert finding in shown and len(shown) <= 2, report.table()  # without codes the orientation is not RAS either
    assert found in shown[finding].found and fix in shown[finding].fix
    report.raise_for_errors()


def test_a_volume_smaller_than_the_patch_is_named_in_the_order_of_the_body(data):
    assert data.check(patch_size=SHAPE).findings == ()
    found = data.check(patch_size=(12, 10, 16)).warnings
    assert {f.case for f in found} == {"good", "bad"} and found[0].found == "12 × 10 × 8 voxels"
    everything(data, np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))  # stored as A, S, R
    stored = [f for f in data.check(patch_size=(8, 12, 10)).warnings if f.case == "bad"]
    assert [f.finding for f in stored] == ["orientation is not RAS"]
    data.entries["bad"]["content"] = {"start": [0, 0, 0], "shape": [4, 12, 10]}
    assert "4 × 12 × 10 voxels" in {f.found for f in data.check(patch_size=(8, 12, 10)).warnings}


def test_cases_of_one_name_and_patients_in_two_splits(data):
    one_name(data)
    assert [f.finding for f in data.check().errors] == ["duplicate case"]
    data.splits = {"training": ["good"], "validation": ["bad"]}
    found = {f.finding: f for f in data.check().errors}
    assert "patient good in training (case good) and validation" in found["patient in two splits"].found
    data.entries["good"]["case"], data.entries["bad"]["case"] = "P1_a", "P1_b"
    assert data.check().errors == []
    assert [f.finding for f in data.check(patient_regex=r"^(P\d)").errors] == ["patient in two splits"]
    with pytest.raises(InputError, match="does not match the case name"):
        data.check(patient_regex="Q")


# ------------------------------------------------------------------------------------------------------ no false alarm


def scaled(data: Data) -> None:
    image = nib.Nifti1Image(image_of("bad"), AFFINE)
    image.header.set_slope_inter(0.25, -3.0)
    nib.save(image, data.path("image"))


def one_form(data: Data, form: str) -> None:
    for role in ("image", "label", "endo", "wall"):
        image = nib.load(data.path(role))
        image.set_qform(AFFINE, code=1)
        image.set_sform(AFFINE, code=1)
        getattr(image, f"set_{form}")(None, code=0)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), data.path(role))


def as_nifti2(data: Data) -> None:
    nib.save(nib.Nifti2Image(image_of("bad"), AFFINE), data.path("image"))


def big_endian(data: Data) -> None:
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(image_of("bad").astype(">i2"), AFFINE, header), data.path("image"))


def with_extension(data: Data) -> None:
    image = nib.Nifti1Image(image_of("bad"), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 9000))
    nib.save(image, data.path("image"))


def all_nrrd(data: Data) -> None:
    everything_else = {role: np.asarray(read_volume(data.path(role)).data) for role in ("label", "endo", "wall")}
    for role, content in {"image": image_of("bad"), **everything_else}.items():
        data.nrrd(role, content)


VALID = {
    "uncompressed": lambda d: plain(d, "image"),
    "uncompressed mask": lambda d: plain(d, "endo"),
    "uint8 image": lambda d: d.put("image", (image_of("bad") % 250).astype(np.uint8)),
    "uint16 image": lambda d: d.put("image", image_of("bad").astype(np.uint16)),
    "int32 image": lambda d: d.put("image", image_of("bad").astype(np.int32) * 100000),
    "float32 image": lambda d: d.put("image", (image_of("bad") / 1000 - 0.5).astype(np.float32)),
    "float64 image": lambda d: d.put("image", image_of("bad") * 1e-30),
    "very large numbers": lambda d: d.put("image", image_of("bad") * 1e26),
    "scaled": scaled,
    "float mask": lambda d: d.put("endo", masks()[0].astype(np.float32)),
    "mask of 0 and 255": lambda d: d.put("endo", masks()[0] * np.uint8(255)),
    "float label": lambda d: d.put("label", label().astype(np.float64)),
    "int16 label": lambda d: d.put("label", label().astype(np.int16)),
    "label of masks alone": lambda d: d.put("label", np.where(label() == 3, 0, label()).astype(np.uint8)),
    "rounding": lambda d: d.put("label", label(), AFFINE + np.random.default_rng(0).uniform(-1, 1, (4, 4)) * 5e-4),
    "rotated": lambda d: everything(d, nib.affines.from_matvec(rotation(0.2) @ AFFINE[:3, :3], [5, 6, 7])),
    "sheared": lambda d: everything(d, moved(a02=0.3)),
    "one frame": lambda d: d.put("image", image_of("bad")[..., None]),
    "one frame, 5D": lambda d: d.put("image", image_of("bad")[..., None, None]),
    "sform alone": lambda d: one_form(d, "qform"),
    "qform alone": lambda d: one_form(d, "sform"),
    "NIfTI-2": as_nifti2,
    "big endian": big_endian,
    "long extension": with_extension,
    "NRRD": all_nrrd,
    "wall open on one side": lambda d: d.put("wall", masks()[1] * (np.arange(SHAPE[0]) > 3)[:, None, None]),
    "no wall": lambda d: only(d, "image", "endo"),
    "image alone": lambda d: only(d, "image"),
    "label alone": lambda d: only(d, "label"),
}


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


@pytest.mark.parametrize("name", VALID)
def test_a_valid_variant_gives_no_false_alarm(data, name):
    VALID[name](data)
    assert data.check().findings == (), data.check().table()


@pytest.mark.parametrize("axes", ["LPS", "LAS", "RPI", "ASR", "SRA", "PIL", "IPR", "SLP"])
def test_every_orientation_is_understood(data, axes):
    start, end = nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
    turn = nib.orientations.ornt_transform(start, end)
    for role in ("image", "label", "endo", "wall"):
        nib.save(nib.load(data.path(role)).as_reoriented(turn), data.path(role))
    report = data.check(patch_size=SHAPE)
    assert [(f.finding, f.found) for f in report.findings] == [("orientation is not RAS", axes)]


def test_other_vocabularies_need_no_left_atrium(data):
    data.put("label", np.where(label() == 3, 3, 0).astype(np.uint8))
    path = data.datalist()
    names = {"0": "background", "1": "brainstem", "2": "spinal cord", "3": "parotid"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": names}))
    assert check_input(path).findings == () and load_datalist(path, "validation", num_classes=4)


# ------------------------------------------------------------------------------------------------ all in one, no crash


def test_all_findings_of_all_files_come_at_once_and_in_order(data):
    data.put("image", float_image(np.nan))
    data.put("label", labelled(9))
    data.put("endo", masked(3))
    data.put("wall", masks()[1][:-1])
    report = data.check()
    assert [Path(f.file).name.split(".")[0] for f in report.errors] == ["wall", "image", "label", "endo"]
    assert report.summary() == "2 cases checked: 4 errors in 1 case, 0 warnings"
    table = report.table()
    assert all(column in table for column in COLUMNS) and table.count("\n| bad") == 4
    content = json.loads(report.json())
    assert content["cases"] == 2 and len(content["errors"]) == 4 and content["warnings"] == []
    assert set(content["errors"][0]) == {*COLUMNS, "severity"}


def test_whatever_a_reader_raises_becomes_a_finding_and_the_rest_is_still_checked(tmp_path):
    image = tmp_path / "image.nrrd"
    header = {"space": "left-posterior-superior", "space directions": AFFINE[:3, :3], "space origin": [0, 0, 0]}
    nrrd.write(str(image), image_of("a"), header, compression_level=1)
    image.write_bytes(image.read_bytes().replace(b"encoding: gzip", b"encoding: text"))  # numpy raises
    mask = save(tmp_path / "endo.nii.gz", masks()[0] * np.uint8(9), np.diag([-1.0, -1.0, 2.0, 1.0]))
    found = [f.finding for f in check_cases([Entry("a", {"image": image, "endo": mask})]).errors]
    assert found == ["truncated or damaged", "endo mask must hold only 0 and 1"]
    other = unreadable(image, RuntimeError("no such codec")).finding
    assert other.finding == "cannot be read (RuntimeError: no such codec)" and other.file == str(image)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_to_header_and_voxels_never_ends_in_a_traceback(data, seed):
    rng = np.random.default_rng(seed)
    raw = bytearray(gzip.decompress(data.path("image").read_bytes()))
    raw[4:348] = bytes(b if rng.random() > 0.2 else int(rng.integers(256)) for b in raw[4:348])
    raw[344:348] = b"n+1\0"  # or all of them are no image
    data.path("image").write_bytes(gzip.compress(bytes(raw[: rng.integers(348, len(raw))])))
    assert {f.case for f in data.check().errors} == {"bad"}


def test_many_alike_warnings_are_one_row_and_one_line_of_the_log(tmp_path, caplog):
    affine = AFFINE * [[-1], [-1], [1], [1]]
    cases = []
    for i in range(5):
        name = f"case{i}"
        (tmp_path / name).mkdir()
        path = save(tmp_path / name / "image.nii.gz", image_of(name), affine)
        cases.append(Entry(name, {"image": path}))
    report = check_cases(cases)
    assert len(report.warnings) == 5 and "| 5 cases (case0, case1, case2, …) | image.nii.gz |" in report.table()
    with caplog.at_level(logging.WARNING):
        report.log_warnings(logging.getLogger("test"))
    assert len(caplog.records) == 1 and "5 of 5 cases (case0, case1, case2, …)" in caplog.text


# --------------------------------------------------------------------------------- before training, synthesis, loading


def test_a_training_is_refused_with_every_error_and_told_its_warnings_once(data, caplog):
    data.splits = {"training": ["good", "bad"]}
    everything(data, AFFINE * [[-1], [-1], [1], [1]])
    with caplog.at_level(logging.WARNING):
        entries = load_datalist(data.datalist(), num_classes=4, patch_size=(16, 16, 16))
    assert [e["case"] for e in entries] == ["good", "bad"] and Path(entries[0]["image"]).is_absolute()
    assert [r.message.split(":")[0] for r in caplog.records] == ["smaller than the patch", "orientation is not RAS"]
    data.put("label", labelled(9))
    data.put("image", float_image(np.inf))
    with pytest.raises(InputError, match="1 of 2 cases cannot be used") as raised:
        load_datalist(data.datalist(), num_classes=4)
    assert "out of range: found 9" in str(raised.value) and "NaN or infinite" in str(raised.value)
    assert load_datalist(data.datalist(), num_classes=4, check=False)


def test_only_what_is_needed_is_read(data):
    data.splits = {"training": ["bad"]}
    data.path("endo").write_bytes(b"")
    assert load_datalist(data.datalist(), num_classes=4), "masks are not read where there is a label map"
    with pytest.raises(InputError, match="empty file"):
        load_datalist(data.datalist(), needs=("image", "endo"))
    data.put("endo", masks()[0])
    data.path("label").unlink()
    assert load_datalist(data.datalist(), needs=("image", "endo"))
    data.path("wall").write_bytes(b"")
    with pytest.raises(InputError, match=r"wall\.nii\.gz: empty file"):
        load_datalist(data.datalist(), needs=("image", "endo"))
    with pytest.raises(InputError, match=r"label\.nii\.gz: missing"):
        load_datalist(data.datalist(), needs=("image",))
    assert load_datalist(data.datalist(), needs=("image",), also=())
    only(data, "image")
    assert load_datalist(data.datalist(), needs=("image",))[0]["image"].endswith("image.nii.gz")
    data.put("image", np.zeros(SHAPE))
    with pytest.raises(InputError, match="image is constant"):
        load_datalist(data.datalist(), needs=("image",))


def test_label_maps_are_checked_before_synthesis_and_against_the_weights(data):
    pattern = f"{data.root}/*/label.nii.gz"
    metadata = data.root / "metadata.json"
    metadata.write_text(json.dumps({"classes": {"0": "background", "1": "endo", "2": "wall"}}))
    assert len(load_label_maps(data.root, pattern, num_classes=4)) == 2
    with pytest.raises(InputError, match=r"classes that the weights never saw: found 3 \(in 2 maps\)"):
        load_label_maps(data.root, pattern, metadata=metadata)
    data.datalist()
    with pytest.raises(InputError, match=r"classes that the weights never saw: found 3 tissue 1 \(in 1 maps\)"):
        load_label_maps(data.root, metadata=metadata)
    with pytest.raises(InputError, match=r"case bad: .* out of range: found 3"):
        check_volumes([{"case": "bad", "image": data.path("image"), "label": data.path("label")}], 3)
    with pytest.raises(InputError, match=r"case x: .* out of range: found 3"):
        check_volumes([{"case": "x", "image": data.path("label")}], 3, label_key="image")


def test_loading_a_case_lists_the_same_problems(data):
    case = Case("bad", data.path("image"), data.path("endo"), data.path("wall"))
    assert load_case(case).wall is not None and load_case(case).endo.sum() == 64
    data.put("endo", masked(2), moved(a03=3.0))
    data.put("image", np.zeros(SHAPE))
    with pytest.raises(InputError, match="case bad") as raised:
        load_case(case)
    assert len(raised.value.problems) == 3
    data.put("image", image_of("bad"))
    data.put("endo", masks()[0] * 0)
    with pytest.raises(InputError, match="endo mask is empty"):
        load_case(case)


@pytest.mark.parametrize("rules", [{"patch_size": (8, 8)}, {"patch_size": (0, 8, 8)}, {"num_classes": 1}])
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(InputError, match=next(iter(rules))):
        Rules(**rules)


# ---------------------------------------------------------------------------------------------------------- vocabulary

WEIGHTS = {0: "background", 1: "endo", 2: "wall", 3: "tissue 1"}


@pytest.mark.parametrize(
    ("maps", "counts", "expected"),
    [
        (WEIGHTS, None, []),
        ({0: "Background", 1: "ENDO", 2: "wall", 3: "tissue_1"}, None, []),
        ({0: "background", 1: "endo", 2: "wall"}, None, [("warning", "3 classes", "also 3 tissue 1")]),
        (WEIGHTS | {4: "tissue 2"}, {0: 5, 1: 5, 2: 5, 3: 5, 4: 2}, [("error", "4 tissue 2 (in 2 maps)", "merge")]),
        (WEIGHTS | {4: "tissue 2"}, {0: 5, 1: 5, 2: 5, 3: 5}, []),
        (WEIGHTS, {0: 5, 1: 5, 3: 5}, [("warning", "no voxel of 2 wall in any map", "another --wall-plane")]),
        (
            {0: "background", 1: "wall", 2: "endo", 3: "tissue 1"},
            None,
            [("error", "1 wall, 2 endo", "remap 1 → 2 (wall), 2 → 1 (endo)")],
        ),
        ({0: "background", 1: "endo", 2: "wall", 3: "scar"}, None,
         [("error", "3 scar", "merge"), ("warning", "4 classes", "also 3 tissue 1")]),
        ({0: "", 1: "", 5: ""}, {0: 1, 1: 1, 5: 1},
         [("error", "5 (in 1 maps)", "merge"), ("warning", "3 classes", "also 2 wall, 3 tissue 1"),
          ("warning", "0 (in 1 maps), 1 (in 1 maps), 5", "by index alone")]),
    ],
)  # fmt: skip
def test_vocabularies_are_compared_by_name(maps, counts, expected):
    found = compare_classes(maps, WEIGHTS, source="datalist.json", counts=counts)
    assert [f.severity for f in found] == [severity for severity, *_ in expected]
    for finding, (_, what, why) in zip(found, expected, strict=True):
        assert what in finding.found and why in finding.expected + finding.fix


def test_a_bundle_that_contradicts_itself_or_is_silent_is_refused(tmp_path, project_root):
    assert bundle_classes(project_root / "bundles" / "pix2pix3d") == WEIGHTS
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "metadata.json"
    for content, message in {
        "{": "not valid JSON", "[]": "needs to be a JSON object", "{}": "does not say which classes",
        '{"classes": [1]}': "must be a table such as",
        '{"classes": {"0": "a", "1": "b"}}': "num_classes of train.json is 4",
    }.items():  # fmt: skip
        path.write_text(content)
        path.with_name("train.json").write_text('{"num_classes": 4}')
        with pytest.raises(InputError, match=message):
            bundle_classes(tmp_path)
    with pytest.raises(InputError, match="no such file; give the folder of a bundle"):
        bundle_classes(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------------------- command line


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["check", *arguments])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return status, shown.out, shown.err


def test_the_exit_status_is_1_on_errors_and_0_on_warnings(data, capsys):
    path = str(data.datalist())
    assert run(capsys, "--input", path)[:2] == (0, "2 cases checked: 0 errors, 0 warnings\n")
    status, out, _ = run(capsys, "--input", path, "--patch-size", "16,16,16")
    assert status == 0 and "Warnings:" in out and "smaller than the patch" in out
    data.put("label", labelled(255))
    status, out, _ = run(capsys, "--input", path)
    assert status == 1 and "Errors:" in out and "map 255 → 0" in out and out.endswith("1 error in 1 case, 0 warnings\n")
    assert run(capsys, "--input", str(data.root), "--num-classes", "256", "--jobs", "1")[0] == 0


def test_json_is_all_that_is_printed(data, capsys):
    path = str(data.datalist())
    status, out, _ = run(capsys, "--input", path, "--json")
    assert status == 0 and json.loads(out)["classes"] == {"0": 2, "1": 2, "2": 2, "3": 2}
    data.path("image").unlink()
    status, out, _ = run(capsys, "--input", path, "--json")
    assert status == 1 and json.loads(out)["errors"][0]["finding"] == "missing"
    status, out, _ = run(capsys, "--input", "nowhere", "--json")
    assert status == 1 and "no such file or folder" in json.loads(out)["errors"][0]["found"]


def test_patterns_challenge_folders_and_bundles_can_be_checked(data, capsys, project_root):
    pattern = [f"{data.root}/*/image.nii.gz", "--endo", f"{data.root}/*/endo.nii.gz"]
    assert run(capsys, "--input", *pattern)[0] == 0
    bundle = ["--bundle", str(project_root / "bundles" / "pix2pix3d")]
    assert run(capsys, "--input", str(data.datalist()), *bundle)[0] == 0
    status, _, err = run(capsys, "--input", *pattern, *bundle)
    assert status == 1 and "has no label maps to compare" in err
    for role, name in {"image": "lgemri", "endo": "laendo", "wall": "lawall"}.items():
        data.path(role).rename(data.path(role).with_name(f"{name}.nii.gz"))
    assert run(capsys, "--input", str(data.root / "bad"))[:2] == (0, "1 case checked: 0 errors, 0 warnings\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere"], "error: nowhere: no such file or folder"),
        (["--input", "DATA", "--patch-size", "8,8"], "patch_size must be three positive numbers"),
        (["--input", "DATA", "--jobs", "-1"], "--jobs must be 1 or more"),
        (["--input", "DATA", "--num-classes", "four"], "--num-classes must be a whole number"),
        (["--input", "DATA", "--patient-regex", "("], "is not a valid pattern"),
        (["--input", "DATA", "--bundle", "nowhere"], "no such file; give the folder of a bundle"),
        (["--input", "DATA", "--endo", "x"], "go with a pattern of image files"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_error(data, capsys, arguments, message):
    path = str(data.datalist())
    status, out, err = run(capsys, *[path if argument == "DATA" else argument for argument in arguments])
    assert status == 1 and message in err and out == ""


def test_a_datalist_that_states_nonsense_is_refused(data):
    path = data.datalist()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_classes": "four"}))
    with pytest.raises(InputError, match="num_classes must be a whole number from 2 on, found 'four'"):
        check_input(path)


REAL = Path(os.environ.get("SEMSYNTH_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real volumes at {REAL} (set SEMSYNTH_DATA)")
@pytest.mark.parametrize(
    ("name", "count", "warned"),
    [("la2018", None, 79), ("la_wall_scar", None, 1), pytest.param("openkbp_ct", 11, 0, marks=pytest.mark.slow)],
)
def test_real_data_give_no_false_alarm(name, count, warned):
    report = check_input(REAL / name, num_classes=count)
    assert report.errors == [] and {f.finding for f in report.warnings} <= {"orientation is not RAS"}
    assert len(report.warnings) == warned


def test_one_warning_of_many_files_is_one_row_whatever_they_are_called(tmp_path):
    affine = AFFINE * [[-1], [-1], [1], [1]]
    cases = [Entry(f"la_{i}", {"image": save(tmp_path / f"la_{i}_0000.nii.gz", image_of(f"la_{i}"), affine)})
             for i in range(5)]  # fmt: skip
    (row,) = [line for line in check_cases(cases).table().splitlines() if "not RAS" in line]
    assert "| 5 cases (la_0, la_1, la_2, …) | la_0_0000.nii.gz, la_1_0000.nii.gz, la_2_0000.nii.gz, … |" in row
