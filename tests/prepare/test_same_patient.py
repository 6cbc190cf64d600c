from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation
from semsynth.cli.main import main
from semsynth.data.check import Entry
from semsynth.data.volumes import Volume
from semsynth.errors import InputError
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.job import with_splits
from semsynth.prepare.patients.groups import check_patients, findings, group_patients, grouped, with_patients
from semsynth.prepare.patients.null import LIKELY, SURE, Null, fit_null, similarities
from semsynth.prepare.patients.registration import Pose, register
from semsynth.prepare.patients.scans import Scan, make_scan
from semsynth.prepare.patients.screening import Link, Screening, screen
from semsynth.prepare.patients.shifts import (
    AS_STORED,
    ORIENTATIONS,
    OtherStorage,
    Shifts,
    best_shift,
    shift_turned,
    spectra_of,
)
from semsynth.prepare.phantom import make_phantom

SIZE, MM = (44, 36, 28), 2.5
Change = Callable[[np.ndarray], np.ndarray]


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    made = make_phantom(seed, size=SIZE, spacing=(MM,) * 3)
    return made.image, made.endo


def write(folder: Path, name: str, image: np.ndarray, endo: np.ndarray | None = None, affine: np.ndarray | None = None,
          **more: str) -> Entry:  # fmt: skip
    (folder / name).mkdir(parents=True)
    affine = np.diag([MM, MM, MM, 1.0]) if affine is None else affine
    files = {"image": folder / name / "image.nii.gz"}
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), files["image"])
    if endo is not None:
        files["endo"] = folder / name / "endo.nii.gz"
        nib.save(nib.Nifti1Image(endo.astype(np.uint8), affine), files["endo"])
    return Entry(name, files, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    folder = tmp_path_factory.mktemp("three")
    return [write(folder, f"case_{seed}", *phantom(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Entry], Screening]:
    """Sixteen phantoms and two further scans of one of them."""
    folder = tmp_path_factory.mktemp("many")
    cases = [write(folder, f"case_{seed:02d}", *phantom(seed)) for seed in range(16)]
    rng = np.random.default_rng(0)
    for index, seed in enumerate((3, 3)):
        image, endo = phantom(seed)
        changed = rotated(image, 3.0 * (index + 1)) + rng.normal(scale=0.3 * image.std(), size=image.shape)
        cases.append(write(folder, f"later_{index}", changed, rotated(endo, 3.0 * (index + 1))))
    return cases, screen(cases)


def rotated(array: np.ndarray, degrees: float) -> np.ndarray:
    matrix = Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix()
    middle = (np.array(array.shape) - 1) / 2
    return ndimage.affine_transform(array, matrix, middle - matrix @ middle, order=1, mode="nearest")


def scan(image: np.ndarray, name: str = "a") -> Scan:
    return make_scan(name, Volume(image, np.diag([MM, MM, MM, 1.0])), None, MM)


def crop(image: np.ndarray) -> np.ndarray:
    return image[5:-2, 3:, 1:-4]


def noisy(image: np.ndarray) -> np.ndarray:
    return image + np.random.default_rng(1).normal(scale=0.2 * image.std(), size=image.shape)


def gamma(image: np.ndarray) -> np.ndarray:
    return 50 + 9 * (image / image.max()) ** 0.6


def shaded(image: np.ndarray) -> np.ndarray:
    x, y, z = (np.linspace(-0.5, 0.5, n) for n in image.shape)
    return image * np.exp(x[:, None, None] + y[:, None] - z)


def resampled(image: np.ndarray) -> np.ndarray:
    return ndimage.zoom(image, 1 / 1.25, order=1, mode="nearest")


def test_registration_finds_a_known_rotation_and_shift() -> None:
    image, _ = phantom(1)
    fixed, moving = scan(crop(image)), scan(rotated(image, 6.0))
    found = register(fixed, moving.normal, Pose(np.eye(3), Shifts([fixed, moving]).between(0, 1).mm))
    # a point of the crop lies, in the whole image, further by the crop's start, less half of what was cut
    wanted = Rotation.from_rotvec(np.radians(6.0) * np.array([0.6, 0.0, 0.8])).as_matrix().T
    assert found.degrees == pytest.approx(6.0, abs=0.6)
    np.testing.assert_allclose(found.rotation, wanted, atol=0.012)
    offset = MM * (np.array([5, 3, 1]) - np.array([7, 3, 5]) / 2)
    np.testing.assert_allclose(found.shift, wanted @ offset, atol=0.8)
    assert found.correlation > 0.85


def test_what_is_next_to_nothing_is_not_alike() -> None:
    """Where all that is seen of a scan is the last bit of its air, rounding was divided by: correlations above 1."""
    random = np.random.default_rng(0)
    first = random.standard_normal((40, 40, 40)).astype(np.float32)
    second = np.concatenate([5e-4 * first[10:], 5 * random.standard_normal((10, 40, 40))]).astype(np.float32)
    one, other = (spectra_of(array, [80] * 3) for array in (first, second))
    assert abs(best_shift(one, other, [80] * 3, first.shape, second.shape, 1.0).score) < 0.2
    itself = best_shift(one, one, [80] * 3, first.shape, first.shape, 1.0)
    assert itself.score == pytest.approx(1) and not itself.mm.any()


def test_scans_that_hardly_overlap_have_no_correlation() -> None:
    image, _ = phantom(1)
    far = register(scan(image), scan(image).normal, Pose(np.eye(3), np.array([90.0, 0, 0])))
    assert far.correlation == -1.0


@pytest.mark.parametrize("which", range(1, len(ORIENTATIONS), 11))
def test_a_scan_stored_otherwise_is_turned_back(which: int) -> None:
    image, other = phantom(1)[0], phantom(2)[0]
    order, ways = zip(*ORIENTATIONS[which], strict=True)
    turned = np.flip(image, [i for i, way in enumerate(ways) if way < 0]).transpose(np.argsort(order))
    storage = OtherStorage([scan(image), scan(turned), scan(other)])
    (score, orientation), (against, _) = storage.best(1, [0, 2])
    back = nib.orientations.apply_orientation(turned, np.array(orientation))
    np.testing.assert_array_equal(back, image)
    np.testing.assert_allclose(shift_turned(scan(image), scan(turned), orientation).mm, 0.0, atol=1e-6)
    assert score > 0.95 > against


@pytest.mark.parametrize("change", [lambda a: rotated(noisy(a), 5.0), lambda a: gamma(shaded(a)), resampled,
                                    lambda a: crop(a)[::-1, :, ::-1], lambda a: a.transpose(2, 0, 1)])  # fmt: skip
def test_a_changed_copy_among_three_is_found(three: list[Entry], tmp_path: Path, change: Change) -> None:
    image, _ = phantom(1)
    copy = np.ascontiguousarray(change(image))
    affine = np.diag([1.25 * MM] * 3 + [1.0]) if change is resampled else None
    found = screen([*three, write(tmp_path, "copy", copy, affine=affine)])
    assert [{link.first, link.second} for link in found.links if link.sureness != "weak"] == [{"copy", "case_1"}]
    assert found.null.rate is None and "stated correlations" in found.null.basis


def test_an_edited_header_hides_nothing(three: list[Entry], tmp_path: Path) -> None:
    affine = np.diag([-MM, MM, MM, 1.0])
    affine[:3, 3] = 500
    found = screen([*three, write(tmp_path, "copy", *phantom(0), affine=affine)])
    (link,) = found.links
    assert link.turned and link.kind == "same scan" and link.sureness == "sure" and link.dice > 0.95


def test_different_patients_are_not_linked(three: list[Entry]) -> None:
    assert screen(three).links == ()


def test_second_scans_are_linked_by_the_data_set_itself(many: tuple[list[Entry], Screening]) -> None:
    cases, found = many
    assert found.null.rate is not None and found.null.pairs == found.compared == len(cases) * (len(cases) - 1) // 2
    sure = [link for link in found.links if link.sureness == "sure"]
    pairs = {tuple(sorted((a.first, a.second))) for a in sure}
    assert pairs == {("case_03", "later_0"), ("case_03", "later_1"), ("later_0", "later_1")}
    assert all(link.expected <= SURE for link in sure)
    groups, refused = grouped(cases, sure)
    assert [group.cases for group in groups] == [("case_03", "later_0", "later_1")]
    assert refused == []


def test_a_draw_keeps_groups_together(many: tuple[list[Entry], Screening]) -> None:
    cases, found = many
    sure = [link for link in found.links if link.sureness == "sure"]
    grown = with_patients(cases, grouped(cases, sure)[0])
    assert [case.name for case in grown] == [case.name for case in cases]
    for seed in range(8):
        splits = {case.name: case.split for case in with_splits(grown, (0.5, 0.5), seed, None, {})}
        assert splits["case_03"] == splits["later_0"] == splits["later_1"]


def link(first: str, second: str, sureness: str = "sure", expected: float = 0.01, kind: str = "same patient") -> Link:
    return Link(first, second, kind, sureness, expected, 1.0, 0.8, 0.8, 0.8, AS_STORED, Pose(np.eye(3), np.zeros(3)))


def entries(**patients: str | None) -> list[Entry]:
    return [Entry(name, {"image": Path(name)}, patient=patient) for name, patient in patients.items()]


def test_a_chain_of_links_is_one_patient_and_weak_ones_join_nobody() -> None:
    cases = entries(a=None, b=None, c=None, d=None, e=None)
    groups, _ = grouped(cases, [link("b", "c"), link("a", "b", "likely"), link("d", "e", "weak")])
    assert [(group.patient, group.cases) for group in groups] == [("patient_of_a", ("a", "b", "c"))]
    assert [case.patient for case in with_patients(cases, groups)] == ["patient_of_a"] * 3 + [None, None]


def test_stated_patients_name_the_group_and_are_never_joined() -> None:
    cases = entries(a="p1", b="p1", c=None, d="p2", e=None)
    groups, refused = grouped(cases, [link("a", "c"), link("c", "d"), link("d", "e", "likely")])
    assert {group.patient: group.cases for group in groups} == {"p1": ("a", "b", "c"), "p2": ("d", "e")}
    assert [(a.first, a.second) for a in refused] == [("c", "d")]


def test_stated_scans_of_one_patient_are_not_compared(three: list[Entry], tmp_path: Path) -> None:
    known = [replace(three[0], patient="p"), write(tmp_path, "copy", *phantom(0), patient="p"), three[1]]
    found = screen(known)
    assert found.links == () and found.null.pairs == 2


def test_findings_are_errors_across_splits_and_for_copies() -> None:
    splits = ["training", "training", "validation", None, "unlabelled", "training"]
    cases = [Entry(name, {"image": Path(name)}, split) for name, split in zip("abcdef", splits, strict=True)]
    links = (link("a", "b"), link("a", "c"), link("a", "d"), link("a", "e", kind="same scan"), link("f", "e"),
             link("d", "f", "weak"))  # fmt: skip
    made = Screening(links, Null(15), {}, 2.0, 15, 0.0)
    found = [(f.case, f.finding, f.severity) for f in findings(made, cases, [links[0]], "out")]
    assert found == [
        ("b", "one patient under two names", "warning"), ("c", "same patient in two splits", "error"),
        ("d", "scans of one patient", "warning"), ("e", "the same scan twice", "error"),
        ("e", "scans of one patient", "warning"), ("", "pairs to look at", "warning"),
    ]  # fmt: skip


def test_expected_false_links_are_few_and_true_ones_do_not_move_the_threshold() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.array(side) for side in np.triu_indices(60, 1))
    build, false = rng.normal(scale=0.1, size=60), []
    for _ in range(20):
        z = rng.normal(scale=0.1, size=len(first)) + build[first] + build[second]
        true = rng.choice(len(z), len(z) // 33, replace=False)
        z[true] += 0.9
        values = similarities(first, second, np.tanh(z), 60)
        linked = fit_null(values, np.ones(len(z)), len(z), 60).expected(values) <= LIKELY
        false.append(linked.sum() - linked[true].sum())
        assert linked[true].mean() > 0.9
    assert np.mean(false) <= 1.0


def test_pairs_are_weighted_by_how_many_they_stand_for() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    low = values < 1.0
    chosen = ~low | (np.arange(len(values)) % 10 == 0)  # all of the upper ones, a tenth of the lower ones
    weights = np.where(low, 10.0, 1.0)[chosen]
    whole, part = fit_null(values, np.ones_like(values), 20_000, 200), fit_null(values[chosen], weights, 20_000, 200)
    assert part.start == pytest.approx(whole.start, abs=0.03) and part.rate == pytest.approx(whole.rate, rel=0.1)


def test_files_say_what_was_found(three: list[Entry], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = [*three, write(tmp_path, "again", rotated(noisy(phantom(2)[0]), 4.0))]
    with caplog.at_level(logging.INFO):
        marked = group_patients(cases, tmp_path / "out")
    assert [case.patient for case in marked] == [None, None, "patient_of_again", "patient_of_again"]
    assert "2 of 4 cases are of 1 patients" in caplog.text
    (row,) = csv.DictReader((tmp_path / "out" / "pairs.csv").open(encoding="utf-8"))
    assert {row["first"], row["second"]} == {"again", "case_2"} and row["patient"] == "patient_of_again"
    summary = json.loads((tmp_path / "out" / "same_patient.json").read_text(encoding="utf-8"))
    assert summary["groups"]["patient_of_again"]["cases"] == ["again", "case_2"] and summary["pairs"] == 6
    assert (tmp_path / "out" / "pairs.png").stat().st_size > 5000


def test_check_same_patient_reports_a_leak(
    three: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = write(tmp_path, "copy", *(np.flip(array, 0)[1:] for array in phantom(1)))  # by its voxels another scan
    listed = [{"case": c.name, **{role: str(path) for role, path in c.files.items()}} for c in (*three, copy)]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": listed[:3], "validation": listed[3:]}))
    arguments = ["check", "--input", str(tmp_path / "datalist.json")]
    assert main(arguments) == 0
    assert main([*arguments, "--same-patient", "--output", str(tmp_path / "found")]) == 1
    text = capsys.readouterr().out
    assert "the same scan twice" in text and "mirrored along R" in text and (tmp_path / "found/pairs.png").is_file()
    assert main([*arguments, "--output", str(tmp_path / "other")]) == 1


def test_prepare_writes_the_patients_and_keeps_them_together(three: list[Entry], tmp_path: Path) -> None:
    image, endo = phantom(1)
    cases = [*three, write(tmp_path, "later", rotated(noisy(image), 4.0), rotated(endo.astype(float), 4.0) > 0.5)]
    listed = [{"case": c.name, **{role: str(path) for role, path in c.files.items()}} for c in cases]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": listed}))
    settings = Settings(spacing=(4.0, 4.0, 4.0))
    output = prepare(
        tmp_path / "datalist.json", tmp_path / "out", settings, fractions=(0.5, 0.5), find_patients=True
    )  # fmt: skip
    content = json.loads(output.read_text(encoding="utf-8"))
    split = {entry["case"]: key for key in ("training", "validation") for entry in content[key]}
    patient = {entry["case"]: entry.get("patient") for key in ("training", "validation") for entry in content[key]}
    assert split["later"] == split["case_1"]
    assert patient == {"case_0": None, "case_1": "patient_of_case_1", "case_2": None, "later": "patient_of_case_1"}


def test_prepare_warns_of_a_scan_twice_and_keeps_it_together(
    three: list[Entry], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = write(tmp_path, "copy", *phantom(1))
    marked = group_patients([*three, copy], tmp_path / "out")
    assert marked[1].patient == marked[3].patient == "patient_of_case_1"
    assert "the same scan twice: found" in caplog.text and "leave one of the two out" in caplog.text


def test_what_cannot_be_compared_is_named(three: list[Entry], tmp_path: Path) -> None:
    gone = Entry("gone", {"image": tmp_path / "gone.nii.gz"})
    small = write(tmp_path, "small", np.ones((4, 4, 4)))
    constant = write(tmp_path, "flat", np.ones(SIZE))
    with pytest.raises(InputError, match=r"2 of 4 cases cannot be compared(?s:.*)small(?s:.*)flat"):
        screen([*three[:2], small, constant])
    with pytest.raises(InputError, match="gone"):
        screen([*three, gone])
    with pytest.raises(InputError, match="no image"):
        screen([*three, Entry("bare", {"label": three[0].files["endo"]})])
    with pytest.raises(InputError, match="1 case"):
        screen(three[:1])
    assert check_patients(three[:1], output=tmp_path / "out") == []
