"""Volumes under pseudonyms and real cases under their names are one case, or the evaluation says that they are not."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.hidden import Hidden
from semsynth.data.volumes import write_image
from semsynth.errors import InputError
from semsynth.evaluation import evaluate
from semsynth.evaluation.sources import load_real, under_pseudonyms


def entries(dataset: Path) -> list[dict[str, str]]:
    content = json.loads((dataset / "datalist.json").read_text())
    return [entry for split in ("training", "validation", "testing") for entry in content[split]]


def write_volumes(dataset: Path, folder: Path, called: dict[str, str]) -> Path:
    """Each real image with noise of its own, called as asked, with a record."""
    for number, entry in enumerate(entries(dataset)):
        image = nib.load(dataset / entry["image"])
        data = np.asarray(image.dataobj, dtype=np.float32)
        data = (data - data.min()) / np.ptp(data)
        data = np.clip(data + np.random.default_rng(number).normal(0, 0.02 * (number + 1), data.shape), 0, 1)
        name = called[entry["case"]]
        write_image(folder / f"{name}_synthetic.nii.gz", data, image.affine, "int16")
        (folder / f"{name}_synthetic.json").write_text(json.dumps({"case": name, "trained_on": False}))
    return folder


def scores(dataset: Path, volumes: Path, output: Path, **how: object) -> dict[str, dict[str, float]]:
    evaluate({"made": str(volumes)}, dataset, output, extractors=(), pictures=0, draws=20, **how)
    listed = json.loads((output / "evaluation.json").read_text())["cases"]
    return {row["case"]: row["values"] for row in listed if row["system"] == "made"}


@pytest.fixture(scope="module")
def named(tiny_dataset, tmp_path_factory):
    """Volumes under names, and their scores."""
    folder = tmp_path_factory.mktemp("named")
    names = {entry["case"]: entry["case"] for entry in entries(tiny_dataset)}
    volumes = write_volumes(tiny_dataset, folder / "volumes", names)
    return volumes, scores(tiny_dataset, volumes, folder / "out")


@pytest.mark.parametrize("anonymous", [False, True], ids=["key file", "voxels"])
def test_each_volume_is_compared_with_its_own_case(tiny_dataset, tmp_path, named, anonymous):
    how = {"anonymous_names": True} if anonymous else {"pseudonyms": tmp_path / "key.json"}
    hidden = Hidden.of(how.get("pseudonyms"), anonymous)
    _, names = under_pseudonyms(load_real(tiny_dataset), hidden)
    volumes = write_volumes(tiny_dataset, tmp_path / "volumes", dict(names.cases))
    found = scores(tiny_dataset, volumes, tmp_path / "out", **how)
    assert {names.cases[name]: values for name, values in named[1].items()} == found
    # volumes that still have names are called by pseudonyms too
    assert scores(tiny_dataset, named[0], tmp_path / "again", **how) == found
    with pytest.raises(InputError, match=r"without a real image of the same case name.*--pseudonyms"):
        scores(tiny_dataset, volumes, tmp_path / "without")


def test_another_key_file_pairs_nothing(tiny_dataset, tmp_path):
    _, names = under_pseudonyms(load_real(tiny_dataset), Hidden.of(tmp_path / "key.json", False))
    volumes = write_volumes(tiny_dataset, tmp_path / "volumes", dict(names.cases))
    with pytest.raises(InputError, match="without a real image of the same case name"):
        scores(tiny_dataset, volumes, tmp_path / "out", pseudonyms=tmp_path / "other.json")


def test_volumes_under_both_names_are_refused(tiny_dataset, tmp_path, named):
    _, names = under_pseudonyms(load_real(tiny_dataset), Hidden.of(tmp_path / "key.json", False))
    own = {name: name for name in names.cases}
    write_volumes(tiny_dataset, tmp_path / "volumes", own)
    write_volumes(tiny_dataset, tmp_path / "volumes", dict(names.cases))
    with pytest.raises(InputError, match=r"4 case\(s\) under their names and under their pseudonyms"):
        scores(tiny_dataset, tmp_path / "volumes", tmp_path / "out", pseudonyms=tmp_path / "key.json")


def test_a_key_in_the_evaluation_is_refused(tiny_dataset, tmp_path, named):
    with pytest.raises(InputError, match="which is to be given away"):
        scores(tiny_dataset, named[0], tmp_path / "out", pseudonyms=tmp_path / "out" / "key.json")


def test_a_card_still_knows_a_case_by_its_name(tiny_dataset, tmp_path):
    cases, names = under_pseudonyms(load_real(tiny_dataset), Hidden.of(tmp_path / "key.json", False))
    assert {case.known_as: name for name, case in cases.items()} == dict(names.cases)
