"""The two lists of real scans, and the cards of weights that they are held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.entries import load_datalist
from semsynth.data.voxels import hash_file
from semsynth.errors import InputError
from semsynth.privacy.sides import load_sides
from semsynth.provenance.cards import write_model_card
from semsynth.provenance.seen import Seen, training_cases
from tiny_patients import scans


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lists")
    return scans(folder / "train", range(4)), scans(folder / "heldout", range(10, 16), "validation")


def _weights(folder: Path, entries: Sequence[dict[str, object]]) -> str:
    (folder / "model.pt").write_bytes(b"weights")
    write_model_card(folder / "model.pt", unknown_parents=[], training_cases=training_cases(entries))
    return str(folder / "model.pt")


def test_one_datalist_gives_both_sides(lists: tuple[Path, Path], tmp_path: Path) -> None:
    train, heldout = (json.loads((folder / "datalist.json").read_text()) for folder in lists)
    for content, folder in ((train, lists[0]), (heldout, lists[1])):
        for entry in (*content.get("training", []), *content.get("validation", [])):
            entry |= {role: str(folder / entry[role]) for role in ("image", "label")}
    (tmp_path / "datalist.json").write_text(json.dumps(train | {"validation": heldout["validation"]}))
    real = load_sides(str(tmp_path), [str(tmp_path)])
    assert list(real.train) == [f"P{i}" for i in range(4)]
    assert list(real.heldout) == [f"P{i}" for i in range(10, 16)]


def test_patients_of_the_training_are_not_held_out(lists: tuple[Path, Path], tmp_path: Path) -> None:
    more = scans(tmp_path, [20], "validation")
    listed = json.loads((more / "datalist.json").read_text())
    listed["validation"][0]["patient"] = "patient 2"
    (more / "datalist.json").write_text(json.dumps(listed))
    real = load_sides(str(lists[0]), [str(lists[1]), str(more)])
    assert real.left_out == 1 and "P20" not in real.heldout


def test_a_card_that_names_the_training_leaves_no_gap(lists: tuple[Path, Path], tmp_path: Path) -> None:
    weights = _weights(tmp_path, load_datalist(lists[0] / "datalist.json", "training"))
    assert load_sides(str(lists[0]), [str(lists[1])], [weights]).gaps == ()


def test_a_scan_that_was_trained_on_in_two_preparations_is_one(lists: tuple[Path, Path], tmp_path: Path) -> None:
    """As where weights build on others, which saw the same scans, scaled in another way."""
    entries = load_datalist(lists[0] / "datalist.json", "training")
    again = [{**entry, "image": str(tmp_path / f"{entry['case']}.nii.gz")} for entry in entries]
    for entry, new in zip(entries, again, strict=True):
        image = nib.load(entry["image"])
        nib.save(nib.Nifti1Image(np.sqrt(image.get_fdata(dtype=np.float32)), image.affine), new["image"])
        for one in (entry, new):
            one["source_voxels"] = {"image": hash_file(Path(entry["image"]))}
            one.pop("voxels", None)
    weights = _weights(tmp_path, [*entries, *again])
    assert len(Seen.of(weights).cases) == 8 and Seen.of(weights).scans == 4
    assert load_sides(str(lists[0]), [str(lists[1])], [weights]).gaps == ()


def test_held_out_scans_that_weights_have_seen_are_refused(lists: tuple[Path, Path], tmp_path: Path) -> None:
    seen = load_datalist(lists[1] / "datalist.json", "validation")
    weights = _weights(tmp_path, seen[:2])
    with pytest.raises(InputError, match=r"trained on 2 of the scans in --heldout; move them to --train"):
        load_sides(str(lists[0]), [str(lists[1])], [weights])


def test_training_scans_that_are_missing_are_a_gap(lists: tuple[Path, Path], tmp_path: Path) -> None:
    more = scans(tmp_path / "more", [30])
    seen = [*load_datalist(lists[0] / "datalist.json", "training"), *load_datalist(more / "datalist.json", "training")]
    gaps = load_sides(str(lists[0]), [str(lists[1])], [_weights(tmp_path, seen)]).gaps
    assert gaps == ("model.pt was trained on 5 scans, and --train has 4 of them",)


def test_weights_without_a_card_are_a_gap(lists: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(b"weights")
    gaps = load_sides(str(lists[0]), [str(lists[1])], [str(tmp_path / "bare.pt")]).gaps
    assert gaps == ("no card beside bare.pt says which cases it was trained on",)
    with pytest.raises(InputError, match="no such file; give the weights that the volumes were drawn with"):
        load_sides(str(lists[0]), [str(lists[1])], [str(tmp_path / "none.pt")])
