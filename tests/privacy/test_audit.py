"""The whole audit, on patients that are random fields."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.privacy.findings import Findings
from semsynth.privacy.run import audit
from semsynth.privacy.volumes import load_made
from semsynth.provenance.audits import read_audit
from tiny_patients import scans, volumes

TRAIN, HELDOUT, NEW = range(0, 8), range(100, 114), range(200, 216)
LOOSE = 0.1  # so few scans carry no lower rate


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("real")
    return scans(folder / "train", TRAIN), scans(folder / "heldout", HELDOUT, "validation")


@pytest.fixture(scope="module")
def honest(real: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Path]:
    folder = tmp_path_factory.mktemp("honest")
    made = volumes(folder / "made", NEW, own=[0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104])
    found = audit(str(made), real[0], str(real[1]), folder / "audit", false_positives=LOOSE)
    return found, folder


@pytest.fixture(scope="module")
def copying(real: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Path]:
    folder = tmp_path_factory.mktemp("copying")
    made = volumes(folder / "made", NEW, copied=[1, 2, 3, 4])
    return audit(str(made), real[0], str(real[1]), folder / "audit", false_positives=LOOSE), folder


def test_volumes_of_nobody_show_no_sign_of_copies(honest: tuple[Findings, Path]) -> None:
    found, _ = honest
    assert found.verdict.word == "no sign found"
    assert found.counts.sure == 0


def test_every_kind_of_planted_copy_is_found(honest: tuple[Findings, Path]) -> None:
    test = honest[0].test
    assert test.passed and test.recall >= 0.95
    assert set(test.kinds) == {
        "exact",
        "shifted",
        "rotated by 2°",
        "noise",
        "gamma",
        "contrast",
        "mirrored",
        "smoothed",
    }
    assert all(one.false_positives < 0.25 for one in test.shares)


def test_copies_are_found_counted_and_named(copying: tuple[Findings, Path]) -> None:
    found, folder = copying
    assert found.verdict.word == "copies found"
    assert found.counts.sure == 4 and found.counts.copies.low <= 4 <= found.counts.copies.high
    flagged = {one.name for one, judged in zip(found.made, found.judged, strict=True) if judged.sure}
    assert flagged == {"copy1", "copy2", "copy3", "copy4"}
    for one, judged in zip(found.made, found.judged, strict=True):
        if judged.sure:
            assert found.compared.names[judged.scan] == one.name.replace("copy", "P")
    assert read_audit(folder / "audit").verdict == "copies found"


def test_a_map_of_ones_own_is_a_leak_and_no_copy(honest: tuple[Findings, Path]) -> None:
    members, others = honest[0].leaks
    assert (members.trained_on, others.trained_on) == (True, False)
    assert (members.volumes, others.volumes, members.copies, others.copies) == (6, 5, 0, 0)
    assert members.image > 0.4 and members.painted > 0.4  # the map alone gives the likeness
    assert abs(members.texture) < 0.2
    names = {one.name for one in honest[0].attacks}
    assert names == {
        "samples: likeness to the most similar volume", "their painted maps alone: likeness to the most similar map",
        "samples of a scan's own map: texture beyond the map",
    }  # fmt: skip


def test_the_texture_of_ones_own_scan_is_a_copy(real: tuple[Path, Path], tmp_path: Path) -> None:
    made = volumes(tmp_path / "made", NEW, copied=[3])
    listed = json.loads((made / "datalist.json").read_text())
    for entry in listed["training"]:
        if entry["case"] == "copy3":
            del entry["drawn"]
            entry["source_case"] = "P3"
    (made / "datalist.json").write_text(json.dumps(listed))
    found = audit(str(made), real[0], str(real[1]), tmp_path / "audit", false_positives=LOOSE)
    assert found.verdict.word == "copies found"
    assert [one.name for one, judged in zip(found.made, found.judged, strict=True) if judged.of_map] == ["copy3"]


def test_the_origin_of_a_map_is_told_by_the_record_beside_it(tmp_path: Path) -> None:
    """An inference of maps that la_maps drew says nothing of their origin itself."""
    made = volumes(tmp_path, NEW[:4])
    listed = json.loads((made / "datalist.json").read_text())
    beside: list[dict[str, Any]] = [{"drawn": True}, {"source_case": "P1", "morph": {"seed": 3}}, {"case": "P1"}, {}]
    for entry, record in zip(listed["training"], beside, strict=True):
        del entry["drawn"]
        (made / entry["label"]).with_name("label.json").write_text(json.dumps(record))
    (made / "datalist.json").write_text(json.dumps(listed))
    origins = {one.name: (one.origin, one.source) for one in load_made(str(made), ["P1"])}
    assert origins == {
        "new200": ("generated", None), "new201": ("morphed", "P1"), "new202": ("unknown", None),
        "new203": ("unknown", None),
    }  # fmt: skip


def test_what_can_be_shared_names_no_case_and_what_cannot_says_so(copying: tuple[Findings, Path]) -> None:
    folder = copying[1] / "audit"
    shared = [(folder / name).read_text() for name in ("audit.json", "audit.md", "audit.html", "volumes.csv")]
    for text in shared:
        assert not any(name in text for name in ("P1", "patient 1", "copy1", "P100"))
        assert "anonymous" not in text.lower() and "safe " not in text.lower().replace("safeguard", "")
    table = (folder / "closest_pairs.csv").read_text()
    assert table.startswith("# THIS FILE SHOWS SCANS OF PATIENTS") and "copy1" in table and "P1" in table
    assert (folder / "closest_pairs.png").is_file()


def test_numbers_do_not_follow_the_order_of_names(copying: tuple[Findings, Path]) -> None:
    """Whoever knows the list of patients could count."""
    found, folder = copying
    rows = list(csv.DictReader((folder / "audit" / "volumes.csv").open()))
    hashes = [row["sha256"] for row in rows]
    assert hashes == sorted(hashes) and [row["volume"] for row in rows] == [f"V{i + 1}" for i in range(len(rows))]
    pairs = list(csv.reader((folder / "audit" / "closest_pairs.csv").open()))[2:]
    scans = dict(zip(found.real.all, [sha256(case.image) for case in found.real.all.values()], strict=True))
    told = sorted({(int(row[2][1:]), scans[row[3]]) for row in pairs})
    assert [digest for _, digest in told] == sorted(digest for _, digest in told) and len(told) > 5
    volumes = {row[0]: row[1] for row in pairs}
    for row in rows:
        if row["sure"] == "yes":
            assert (
                scans[volumes[row["volume"]].replace("copy", "P")]
                == sorted(scans.values())[int(row["training_scan"][1:]) - 1]
            )


def test_an_audit_covers_the_volumes_that_it_has_seen(copying: tuple[Findings, Path]) -> None:
    found, folder = copying
    read = read_audit(folder / "audit" / "audit.json")
    assert not read.missing([one.image for one in found.made])
    other = folder / "made" / "copy1" / "label.nii.gz"
    assert read.missing([found.made[0].image, other]) == ["label.nii.gz"]


def test_an_audit_goes_on_from_what_it_has_measured(copying: tuple[Findings, Path], real: tuple[Path, Path]) -> None:
    found, folder = copying
    kept = {path: path.stat().st_mtime_ns for path in (folder / "audit" / "measured").glob("*.npz")}
    again = audit(str(folder / "made"), real[0], str(real[1]), folder / "audit", false_positives=LOOSE)
    assert {path: path.stat().st_mtime_ns for path in (folder / "audit" / "measured").glob("*.npz")} == kept
    assert again.counts == found.counts


def test_the_command_prints_the_verdict(
    copying: tuple[Findings, Path], real: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copying[1]
    lists = ["--train", str(real[0]), "--heldout", str(real[1])]
    assert main(["audit", "--synthetic", str(folder / "made"), *lists, "--output", str(folder / "audit"),
                 "--false-positives", str(LOOSE)]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "Verdict: copies found" in printed and "Self-test: recall of planted copies" in printed


def test_few_volumes_without_a_sign_tell_nothing(real: tuple[Path, Path], tmp_path: Path) -> None:
    made = volumes(tmp_path / "made", [300, 301])
    found = audit(str(made), real[0], str(real[1]), tmp_path / "audit", false_positives=LOOSE)
    assert found.verdict.word == "cannot tell" and "2 volumes are too few" in found.verdict.reasons[0]


def test_a_scan_in_both_lists_is_refused(real: tuple[Path, Path], tmp_path: Path) -> None:
    made = volumes(tmp_path / "made", [300])
    with pytest.raises(InputError, match="that are in --train as well"):
        audit(str(made), real[0], [str(real[1]), str(real[0])], tmp_path / "audit")


def test_a_rate_that_the_scans_cannot_carry_is_refused(real: tuple[Path, Path], tmp_path: Path) -> None:
    made = volumes(tmp_path / "made", [300])
    with pytest.raises(
        InputError, match=r"22 real scans cannot carry a false-positive rate of 0\.01: give 100 or more"
    ):
        audit(str(made), real[0], str(real[1]), tmp_path / "audit", false_positives=0.01)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (0.0, "must be above 0 and at most 10 mm, got 0"),
        (1e-4, "would need at least .* give a larger --feature-spacing"),
    ],
)
def test_a_voxel_size_at_which_no_network_can_see_is_refused(
    real: tuple[Path, Path], tmp_path: Path, spacing: float, message: str
) -> None:
    made = volumes(tmp_path / "made", [300])
    with pytest.raises(InputError, match=message):
        audit(str(made), real[0], str(real[1]), tmp_path / "audit", false_positives=LOOSE,
              extractors=["efficientnet_lite0"], feature_spacing=spacing)  # fmt: skip


def test_features_are_seen_at_the_voxel_size_that_was_asked_for(real: tuple[Path, Path], tmp_path: Path) -> None:
    made = volumes(tmp_path / "made", [300])
    common: dict[str, Any] = {"false_positives": LOOSE, "extractors": ["efficientnet_lite0"]}
    found = [
        audit(str(made), real[0], str(real[1]), tmp_path / str(mm), feature_spacing=mm, **common) for mm in (4.0, 8.0)
    ]
    at4, at8 = (one.compared.made[0].levels for one in found)
    assert at4["image"] == at8["image"]
    assert at4["features of efficientnet_lite0"] != at8["features of efficientnet_lite0"]


def test_too_few_held_out_scans_are_refused(real: tuple[Path, Path], tmp_path: Path) -> None:
    made = volumes(tmp_path / "made", [300])
    few = scans(tmp_path / "few", [400, 401], "validation")
    with pytest.raises(InputError, match="--heldout has 2 scans of patients that are not in --train, 5 or more"):
        audit(str(made), real[0], str(few), tmp_path / "audit")
