"""Finding, checking, splitting and preparing cases: from every kind of input, with every kind of mistake."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import nibabel as nib
import nrrd
import numpy as np
import pytest
from scipy import ndimage
from semsynth.data.check import Rules, check_cases
from semsynth.data.entries import load_datalist, load_label_maps
from semsynth.data.raw import find_cases, load_case
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.files import stamp
from semsynth.prepare.atrium import Settings, prepare, prepare_atrium_case
from semsynth.prepare.job import split_cases, with_source_scaling
from semsynth.prepare.kept import prepare_missing

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def volumes(seed: int = 0, shape=(20, 18, 9)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    endo = (x**2 + y**2 + z**2 < 0.2).astype(np.uint8)
    image = (100 * (x > 0.3) + 60 * endo + rng.normal(20, 3, shape)).clip(1, 250).astype(np.int16)
    image[:2] = 0
    return image, endo


def write(folder, image, endo, *, affine=AFFINE, endo_affine=None):
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(image, affine), folder / "lgemri.nii.gz")
    nib.save(nib.Nifti1Image(endo, affine if endo_affine is None else endo_affine), folder / "laendo.nii.gz")


@pytest.fixture
def raw(tmp_path):
    """Three cases of different shape in the challenge's folders."""
    for i, shape in enumerate([(20, 18, 9), (22, 16, 8), (18, 18, 10)]):
        write(tmp_path / "raw" / f"c{i}", *volumes(i, shape))
    return tmp_path / "raw"


def test_challenge_folders_become_images_maps_records_pictures_and_a_datalist(raw, tmp_path):
    path = prepare(raw, tmp_path / "out", Settings(k=2), fractions=(0.7, 0.3))
    content = json.loads(path.read_text())
    assert content["num_classes"] == 4 and list(content["classes"].values()) == [
        "background",
        "endo",
        "wall",
        "tissue 1",
    ]
    assert len(content["training"]) == 2 and len(content["validation"]) == 1
    for entry in load_datalist(path, "training", num_classes=4):
        image, label = read_volume(entry["image"]), read_volume(entry["label"])
        assert image.data.min() == 0 and image.data.max() == pytest.approx(1)
        assert image.data.shape == label.data.shape and image.spacing == (1, 1, 1)
        assert set(np.unique(label.data)) == {0, 1, 2, 3}
    record = json.loads((tmp_path / "out" / "c0" / "prepare.json").read_text())
    assert record["wall"] == "derived, 2.5 mm, axial plane" and record["wall_thickness_voxels"] > 2
    assert len(record["centers"]) == 2
    assert len(record["sources"]["image"]["sha256"]) == 64 and record["zero_voxels"] > 0
    assert (tmp_path / "out" / "c0" / "qc.png").stat().st_size > 1000


def test_the_cavity_stays_where_it_was_in_the_world(raw, tmp_path):
    prepare(raw, tmp_path / "out", Settings(size=(16, 24, 16)), fractions=(0.7, 0.3))

    def centre(volume, mask):
        return (volume.affine @ np.append(np.argwhere(mask).mean(axis=0), 1))[:3]

    source, target = read_volume(raw / "c1" / "laendo.nii.gz"), read_volume(tmp_path / "out" / "c1" / "label.nii.gz")
    assert target.data.shape == (16, 24, 16)
    assert np.abs(centre(source, source.data == 1) - centre(target, target.data == 1)).max() < 0.6
    record = json.loads((tmp_path / "out" / "c1" / "prepare.json").read_text())
    outside = np.ones(target.data.shape, dtype=bool)
    start, shape = record["content"]["start"], record["content"]["shape"]
    outside[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = False
    assert outside.any() and not target.data[outside].any()


def test_datalist_splits_and_given_walls_are_kept(raw, tmp_path):
    _, endo = volumes(0)
    wall = ndimage.binary_dilation(endo, np.ones((3, 3, 1))).astype(np.uint8) - endo
    nib.save(nib.Nifti1Image(wall, AFFINE), raw / "c0" / "lawall.nii.gz")
    entries = [{"image": f"c{i}/lgemri.nii.gz", "endo": f"c{i}/laendo.nii.gz"} for i in range(3)]
    entries[0] |= {"wall": "c0/lawall.nii.gz", "case": "first"}
    (raw / "datalist.json").write_text(json.dumps({"training": entries[1:], "testing": entries[:1]}))
    content = json.loads(prepare(raw, tmp_path / "out", Settings(spacing=(1, 1, 2))).read_text())
    assert [e["case"] for e in content["testing"]] == ["first"] and content["validation"] == []
    assert json.loads((tmp_path / "out" / "first" / "prepare.json").read_text())["wall"] == "given"
    label = read_volume(tmp_path / "out" / "first" / "label.nii.gz").data
    assert np.count_nonzero(label == 2) == np.count_nonzero(wall)


def test_patterns_pair_images_and_masks_by_their_stars(raw):
    cases = find_cases(f"{raw}/*/lgemri.nii.gz", endo=f"{raw}/*/laendo.nii.gz")
    assert [(c.name, c.endo.parent.name) for c in cases] == [("c0", "c0"), ("c1", "c1"), ("c2", "c2")]


def test_challenge_nrrd_with_masks_of_0_and_255(tmp_path):
    header = {"space": "left-posterior-superior", "space directions": np.diag([1.0, 1, 2]), "space origin": np.zeros(3)}
    for seed, name in enumerate(("elsewhere", "raw/P1")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        image, endo = volumes(seed)
        endo = np.roll(endo, seed, axis=0)  # a heart of its own
        nrrd.write(str(folder / "lgemri.nrrd"), image.astype(np.uint8), header)
        nrrd.write(str(folder / "laendo.nrrd"), endo * np.uint8(255), header)
    (tmp_path / "raw" / "P2").symlink_to(tmp_path / "elsewhere")
    prepare(tmp_path / "raw", tmp_path / "out", Settings(spacing=(1, 1, 2)), fractions=(0.5, 0.5))
    label = read_volume(tmp_path / "out" / "P1" / "label.nii.gz").data
    assert np.count_nonzero(label == 1) == endo.sum()


def test_interrupted_work_goes_on_where_it_was(raw, tmp_path, caplog):
    done = []

    def stop_at_third(case, settings, folder):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.name)
        return prepare_atrium_case(case, settings, folder)

    cases, out = find_cases(raw), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        settings, _ = with_source_scaling(Settings(), None)
        prepare_missing(cases, settings, out, stop_at_third, jobs=1, overwrite=False)
    assert sorted(path.name for path in out.iterdir()) == sorted(done) and len(done) == 2
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    with caplog.at_level("INFO"):
        prepare(raw, out, Settings(), fractions=(0.7, 0.3))
    assert "2 of 3 cases are already prepared and kept" in caplog.text
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert {path.parent.name for path in out.rglob("label.nii.gz")} == {"c0", "c1", "c2"}


def test_what_the_check_vouches_for_is_not_judged_again_unless_it_changed(raw, tmp_path):
    cases = find_cases(raw)
    report = check_cases(cases)
    assert all(report.vouches_for(case.name, case.files.values(), Rules()) for case in cases)
    assert not report.vouches_for(cases[0].name, cases[0].files.values(), Rules(num_classes=4)), "other rules"
    assert not report.vouches_for("another", cases[0].files.values(), Rules())
    case = cases[0]
    assert np.array_equal(load_case(case, report).endo, load_case(case).endo)
    mask = nib.load(case.endo)
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj) * np.uint8(7), mask.affine), case.endo)
    assert not report.vouches_for(case.name, case.files.values(), Rules())
    with pytest.raises(InputError, match="endo mask must hold only 0 and 1"):
        load_case(case, report)
    told = replace(report, sound={case.name: {path: stamp(path) for path in case.files.values()}})
    assert load_case(case, told).endo.max() == 1, "read without a look at its values"
    case.endo.unlink()
    with pytest.raises(InputError, match="missing"):
        load_case(case, told)


def test_cases_prepared_with_other_settings_are_not_replaced_unasked(raw, tmp_path):
    prepare(raw, tmp_path / "out", Settings(k=2), fractions=(0.7, 0.3))
    with pytest.raises(InputError, match="was prepared with other settings"):
        prepare(raw, tmp_path / "out", Settings(k=3), fractions=(0.7, 0.3))
    prepare(raw, tmp_path / "out", Settings(k=3), fractions=(0.7, 0.3), overwrite=True)
    assert read_volume(tmp_path / "out" / "c0" / "label.nii.gz").data.max() == 4


def test_a_codebook_fitted_once_gives_all_cases_the_same_centres(raw, tmp_path):
    prepare(raw, tmp_path / "out", Settings(k=2), fractions=(0.7, 0.3), frozen_centers=True)
    centers = [json.loads((tmp_path / "out" / f"c{i}" / "prepare.json").read_text())["centers"] for i in range(3)]
    assert centers[0] == centers[1] == centers[2] and len(centers[0]) == 2


def test_all_bad_cases_are_listed_together_before_any_work(raw, tmp_path):
    seeds = iter(range(100, 200))  # no two cases have the same image

    def image():
        return volumes(next(seeds))[0]

    endo = volumes()[1]
    write(raw / "nan", np.where(image() > 100, np.nan, image()).astype(np.float32), endo)
    write(raw / "empty", image(), endo * 0)
    write(raw / "values", image(), endo * 2)
    write(raw / "shape", image(), endo[:-1])
    shifted = AFFINE.copy()
    shifted[0, 3] = 1
    write(raw / "affine", image(), endo, endo_affine=shifted)
    write(raw / "flat", image() * 0, endo)
    write(raw / "fourd", np.stack([image()] * 2, -1), endo)
    write(raw / "few", (image() > 50).astype(np.int16), endo)
    write(raw / "cut", image(), endo)
    (raw / "cut" / "lgemri.nii.gz").write_bytes((raw / "cut" / "lgemri.nii.gz").read_bytes()[:500])
    write(raw / "gone", image(), endo)
    (raw / "gone" / "laendo.nii.gz").unlink()
    write(raw / "twice", volumes(0)[0], endo)
    with pytest.raises(InputError, match="11 of 14 cases cannot be used") as error:
        prepare(raw, tmp_path / "out", Settings(k=3), fractions=(0.7, 0.3))
    text = str(error.value)
    for case, reason in {
        "nan": "NaN", "empty": "endo mask is empty", "values": "only 0 and 1: found 0, 2",
        "shape": "shape differs from the image's", "affine": "affine differs from the image's",
        "flat": "image is constant", "fourd": "not one 3D volume",
        "few": "too few intensities: found 2 distinct ones, expected 3 for --k 3", "cut": "truncated",
        "gone": "no such file", "twice": "the same voxels as c0",
    }.items():  # fmt: skip
        assert any(f"case {case}:" in line and reason in line for line in text.splitlines()), (case, reason)
    assert not (tmp_path / "out").exists()


def test_background_zero_without_zeros_is_named_before_any_work(tmp_path):
    image, endo = volumes()
    write(tmp_path / "raw" / "bright", image + 1, endo)
    write(tmp_path / "raw" / "good", image, endo)
    with pytest.raises(InputError, match=r"case bright: .*: no voxel of intensity 0: .* for --background zero"):
        prepare(tmp_path / "raw", tmp_path / "out", Settings(background="zero"), fractions=(0.5, 0.5))


def test_two_cases_of_one_name_are_an_error(raw, tmp_path):
    entries = [{"image": "c0/lgemri.nii.gz", "endo": "c0/laendo.nii.gz", "case": "x"}] * 2
    (raw / "datalist.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(InputError, match="case names must differ, found more than once: x"):
        prepare(raw, tmp_path / "out", Settings())


def test_no_patient_stands_in_two_splits_whatever_the_order():
    patients = {f"p{i // 3}_{i}": f"p{i // 3}" for i in range(30)}
    splits = split_cases(patients, (0.6, 0.2, 0.2), seed=1)
    per_patient = {}
    for name, split in splits.items():
        per_patient.setdefault(name.split("_")[0], set()).add(split)
    assert all(len(s) == 1 for s in per_patient.values())
    assert [list(splits.values()).count(s) for s in ("training", "validation", "testing")] == [18, 6, 6]
    assert split_cases(dict(reversed(patients.items())), (0.6, 0.2, 0.2), seed=1) == splits


@pytest.mark.parametrize(
    ("count", "fractions", "least"),
    [(10, (0.98, 0.02), [9, 1]), (3, (0.49, 0.49, 0.02), [1, 1, 1]), (20, (0.9, 0.05, 0.05), [18, 1, 1]),
     (4, (1.0, 0.0), [4])],
)  # fmt: skip
def test_a_small_share_gets_one_patient_and_takes_no_ones_last(count, fractions, least):
    for seed in range(5):
        drawn = Counter(split_cases({f"c{i}": f"c{i}" for i in range(count)}, fractions, seed=seed).values())
        assert [drawn[split] for split in ("training", "validation", "testing") if drawn[split]] == least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (0.5, 0.6)}, "add up to 1"),
        ({"fractions": (0.4, 0.3, 0.3)}, "cannot fill 3 splits"),
    ],
)
def test_bad_splits_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        split_cases({"a": "a", "b": "b"}, **arguments)


def test_a_datalist_for_another_network_says_which_setting_to_change(raw, tmp_path):
    path = prepare(raw, tmp_path / "out", Settings(k=3), fractions=(0.7, 0.3))
    with pytest.raises(InputError, match=r"5 classes .* num_classes is 4; run with --num_classes 5"):
        load_datalist(path, "training", num_classes=4)
    in_training = [entry["case"] for entry in json.loads(path.read_text())["training"]]
    (tmp_path / "out" / "c0" / "label.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case c0: .*missing: found no such file"):
        load_datalist(path, "training" if "c0" in in_training else "validation")


def test_label_maps_come_from_testing_else_validation_or_a_pattern(raw, tmp_path):
    prepare(raw, tmp_path / "out", Settings(), fractions=(0.4, 0.3, 0.3))
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert [m["case"] for m in load_label_maps(tmp_path / "out")] == [content["testing"][0]["case"]]
    (tmp_path / "out" / "datalist.json").write_text(json.dumps(content | {"testing": []}))
    assert [m["case"] for m in load_label_maps(tmp_path / "out")] == [content["validation"][0]["case"]]
    maps = load_label_maps(tmp_path / "none", f"{tmp_path}/out/*/label.nii.gz")
    assert [m["case"] for m in maps] == ["c0", "c1", "c2"]
    with pytest.raises(InputError, match="no label maps found"):
        load_label_maps(tmp_path, "nothing*")


def test_output_never_replaces_sources_or_strange_folders(raw, tmp_path):
    before = sorted(str(p) for p in raw.rglob("*"))
    with pytest.raises(InputError, match="lies in a folder that would be replaced"):
        prepare(raw, raw, Settings(), fractions=(0.7, 0.3))
    assert sorted(str(p) for p in raw.rglob("*")) == before
    (tmp_path / "out" / "c1").mkdir(parents=True)
    (tmp_path / "out" / "c1" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"c1 exists and holds no prepare\.json"):
        prepare(raw, tmp_path / "out", Settings(), fractions=(0.7, 0.3), overwrite=True)
    assert (tmp_path / "out" / "c1" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "/x"])
def test_a_case_name_that_is_no_file_name_is_refused(raw, tmp_path, name):
    entry = {"image": "c0/lgemri.nii.gz", "endo": "c0/laendo.nii.gz", "case": name}
    (raw / "datalist.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(InputError, match=r"case names become folder and file names|must be a name"):
        prepare(raw, tmp_path / "out", Settings())


def test_a_case_folder_is_named_whatever_it_is_called_from(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(raw / "c0")
    assert [case.name for case in find_cases(".")] == ["c0"]


def test_one_split_is_divided_when_fractions_are_asked_for_and_leaks_are_found(raw, tmp_path):
    entries = [{"image": f"c{i}/lgemri.nii.gz", "endo": f"c{i}/laendo.nii.gz", "case": f"p1_{i}"} for i in range(3)]
    (raw / "datalist.json").write_text(json.dumps({"training": entries}))
    content = json.loads(prepare(raw, tmp_path / "a", Settings(), fractions=(0.7, 0.3)).read_text())
    assert (len(content["training"]), len(content["validation"])) == (2, 1)
    (raw / "datalist.json").write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    with pytest.raises(InputError, match=r"patient in two splits: found patient p1 in training .* and validation"):
        prepare(raw, tmp_path / "b", Settings(), patient_regex=r"^(p\d)_")


def test_how_names_tell_the_patient_is_handed_on_to_training(raw, tmp_path):
    path = prepare(raw, tmp_path / "out", Settings(), fractions=(0.7, 0.3), patient_regex=r"^(c\d)")
    load_datalist(path, "training")
    content = json.loads(path.read_text())
    content["validation"][0]["case"] = content["training"][0]["case"] + "_again"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="patient in two splits"):
        load_datalist(path, "training")


@pytest.mark.parametrize("told", [None, r"(ses-\d)"])
def test_sessions_of_a_subject_of_bids_stay_together_unless_told_otherwise(tmp_path, told, caplog):
    for i in range(6):
        name = f"sub-{i // 2}/ses-{i % 2}/anat/sub-{i // 2}_ses-{i % 2}"
        write(tmp_path / str(i), *volumes(i, (20 + i, 18, 9)))  # each its own map
        for kind, folder, ending in (("lgemri", "bids", "T1w"), ("laendo", "bids/derivatives/seg", "label-LA_mask")):
            path = tmp_path / folder / f"{name}_{ending}.nii.gz"
            path.parent.mkdir(parents=True)
            (tmp_path / str(i) / f"{kind}.nii.gz").rename(path)
    images, masks = "sub-*/ses-*/anat/*_T1w.nii.gz", "derivatives/seg/sub-*/ses-*/anat/*_label-LA_mask.nii.gz"
    with caplog.at_level("INFO"):
        path = prepare(f"{tmp_path}/bids/{images}", tmp_path / "out", Settings(spacing=(2, 2, 2)),
                       endo=f"{tmp_path}/bids/{masks}", fractions=(0.5, 0.5), patient_regex=told)  # fmt: skip
    content = json.loads(path.read_text())
    where = {entry["case"]: split for split in ("training", "validation") for entry in content[split]}
    part = 0 if told is None else 1  # sub-0, or ses-0
    splits = [{split for name, split in where.items() if name.split("_")[part] == one}
              for one in {name.split("_")[part] for name in where}]  # fmt: skip
    assert len(where) == 6 and all(len(split) == 1 for split in splits)
    assert ("sub-0_ses-0 is of sub-0, sub-0_ses-1 is of sub-0" in caplog.text) == (told is None)
    assert content["patient_regex"] == (told or "^sub-[a-zA-Z0-9]+")
    trained = {name.split("_")[part] for name, split in where.items() if split == "training"}
    assert {entry["patient"] for entry in load_datalist(path, "training")} == trained


def test_bad_label_maps_are_listed_before_synthesis_starts(raw, tmp_path):
    prepare(raw, tmp_path / "out", Settings(), fractions=(0.4, 0.6))
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 9, np.uint8), AFFINE), tmp_path / "out" / "c1" / "label.nii.gz")
    (tmp_path / "out" / "c2" / "label.nii.gz").write_bytes(b"xx")
    with pytest.raises(InputError, match="2 of 3 cases cannot be used") as error:
        load_label_maps(tmp_path, f"{tmp_path}/out/*/label.nii.gz", num_classes=4)
    assert "case c1" in str(error.value) and "case c2" in str(error.value)
