"""Nothing of a patient leaves: canaries in names, folders, files, headers and notes of the inputs of every command.

Inputs are full of texts that nobody writes by chance (``canaries.py``). What each command writes is searched for them,
in containers and in what is drawn too. A command that is new has to be given a line in :data:`HELD`.
"""

from __future__ import annotations

import inspect
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
from attack_examples import EXAMPLES, Attack
from attack_inputs import write_inputs
from bundle_configs import isolated, read
from canaries import (
    CASE,
    DATE,
    FILE,
    FOLDER,
    HEADER,
    HOST,
    NOTE,
    PATIENT,
    annotate,
    canaries_in,
    leaks,
    poison_nrrd,
    spoil,
)
from dicom_files import write_series
from matplotlib.figure import Figure
from matplotlib.text import Text
from semsynth.cli.main import COMMANDS, main
from semsynth.prepare.phantom import write_phantom_cases
from tiny_synthesis import random_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
QUICK_BUNDLE = "pix2pix3d"
NOBODY: set[str] = set()
HELD = {
    "phantom": NOBODY, "check": {CASE}, "prepare": {CASE, PATIENT, FILE}, "prepare-maps": {CASE, PATIENT, FILE},
    "choose-k": NOBODY, "pseudonymise": NOBODY, "evaluate": {CASE}, "picture": {CASE}, "weights": NOBODY,
    "convert": NOBODY, "export": NOBODY, "dicom": NOBODY, "compare": {CASE, PATIENT}, "augment": {CASE, PATIENT, NOTE},
    "study": {CASE, PATIENT}, "verify": NOBODY, "sign": NOBODY, "reproduce": NOBODY,
    "audit": {CASE},  # closest_pairs, which show patients and say so
}  # fmt: skip
"""Command → what may stand in its results where its input has names; of data under pseudonyms nothing may."""
TAKES_KEY = ("augment", "evaluate", "pseudonymise", "compare", "picture")
"""Commands whose results leave, of data with names too: they take --pseudonyms."""
BY_VOXELS = TAKES_KEY[:3]
"""Those that read voxels, and take --anonymous-names."""
SLOW = {"export", "reproduce"}
"""Commands whose examples take long: an export, and a volume of the golden file."""
PSEUDONYM = "site"


def examples() -> list[Any]:
    """Every command's, of which the first is quick where it can be."""
    return [
        pytest.param(command, number, id=f"{command}-{number}",
                     marks=[pytest.mark.slow] if number > 0 or command in SLOW else [])
        for command, known in EXAMPLES.items()
        for number in range(len(known))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """Inputs of all commands, of patients."""
    folder = write_inputs(_folder(tmp_path_factory), spoil, CASE)
    for path in sorted((folder / "nrrd").rglob("*.nrrd")):
        poison_nrrd(path)
    annotate(folder / "prepared")
    _name_audited(folder / "audited")
    return folder


def _name_audited(folder: Path) -> None:
    """Give the scans of an audit names of patients, and so the folders of both lists."""
    for name in ("train", "heldout", "made"):
        path = folder / name / "datalist.json"
        content = json.loads(path.read_text())
        for number, entry in enumerate(content.get("training") or content.get("validation")):
            if "source_case" in entry:
                entry["source_case"] = entry["source_case"].replace("P", f"{CASE}_P")
            if name != "made":
                entry |= {"case": f"{CASE}_{entry['case']}", "patient": f"{PATIENT}_{name}_{number}"}
        path.write_text(json.dumps(content))
        if name != "made":
            (folder / name).rename(folder / f"{FOLDER}_{name}")


def _for_other_programs(folder: Path) -> list[str]:
    """Options of an augmentation that writes all forms: nnU-Net's needs two patients."""
    content = json.loads((folder / "prepared" / "datalist.json").read_text())
    content["training"] += content.pop("validation")
    (folder / "prepared" / "two.json").write_text(json.dumps(content))
    return ["--input=prepared/two.json", "--format=datalist,decathlon,nnunet"]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> Path:
    """The same, made of what ``semsynth pseudonymise`` has made of them, by pseudonyms of somebody's own."""

    def under_pseudonyms(raw: Path) -> None:
        spoil(raw)
        key, named = raw.parent / "keys_of_names" / "key.json", raw.with_name("named")
        key.parent.mkdir()
        cases = {f"{CASE}_{number:03d}": f"{PSEUDONYM}_{number:03d}" for number in range(3)}
        key.write_text(json.dumps({"cases": cases, "patients": {}}))
        raw.rename(named)
        assert main(["pseudonymise", "--input", str(named), "--output", str(raw), "--pseudonyms", str(key)]) == 0

    return write_inputs(_folder(tmp_path_factory), under_pseudonyms, PSEUDONYM)


def _folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / FOLDER
    folder.mkdir()
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in a folder of inputs; gives what of the canaries is in its results, or is drawn in them."""
    drawn: list[str] = []
    save = Figure.savefig
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)

    def savefig(self, *args, **kwargs):
        drawn.extend(text.get_text() for text in self.findobj(Text))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)

    def run(folder: Path, *arguments: str) -> dict[str, set[str]]:
        monkeypatch.chdir(folder)
        for name in ("out", "key.json"):
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
        drawn.clear()
        monkeypatch.setattr(sys, "argv", ["semsynth", *arguments])  # records say how they were made
        assert main(arguments) == 0, capsys.readouterr().err
        output = Path("kept" if "--output=kept" in arguments else "out")
        found = leaks(output) if output.exists() else {}
        pictured = {canary for text in drawn for canary in canaries_in(text.encode())}
        return {**found, **({"what is drawn": pictured} if pictured else {})}

    return run


def _arguments(command: str, number: int, name: str) -> list[str]:
    words = Attack(command, number).arguments()
    if command == "audit" and name == CASE:
        words = [word.replace("/train", f"/{FOLDER}_train").replace("/held", f"/{FOLDER}_held") for word in words]
    return words if command == "phantom" else [word.replace("phantom", name) for word in words]


def test_every_command_is_decided_upon():
    assert set(HELD) == set(COMMANDS) == set(EXAMPLES)
    options = {command: set(inspect.signature(run).parameters) for command, run in COMMANDS.items()}
    assert {command for command, names in options.items() if "pseudonyms" in names} == set(TAKES_KEY)
    assert {command for command, names in options.items() if "anonymous_names" in names} == set(BY_VOXELS)


def test_the_canaries_are_in_the_inputs(named):
    image = f"raw/{CASE}_000/{FILE}_image.nii.gz"
    assert canaries_in((named / image).read_bytes()) == {HEADER, FILE, DATE}
    listed = (named / "raw" / "datalist.json").read_bytes()
    assert canaries_in((named / f"nrrd/{CASE}_000/image.nrrd").read_bytes()) == {HEADER}
    assert canaries_in(listed) == {CASE, PATIENT, FILE, NOTE} and FOLDER in str(named)


@pytest.mark.parametrize(("command", "number"), examples())
def test_results_hold_no_header_no_note_and_no_names_that_are_not_said(named, run, command, number):
    found = run(named, *_arguments(command, number, CASE))
    beyond = {where: held - HELD[command] for where, held in found.items() if held - HELD[command]}
    assert not beyond


@pytest.mark.slow
@pytest.mark.parametrize(("command", "number"), examples())
def test_of_data_under_pseudonyms_no_result_names_anybody(hidden, run, command, number):
    assert not run(hidden, *_arguments(command, number, PSEUDONYM))


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, "--pseudonyms=key.json") for command in TAKES_KEY]
    + [(command, "--anonymous-names") for command in BY_VOXELS],
)
def test_with_pseudonyms_no_result_names_anybody(named, run, command, option):
    given = [word for word in _arguments(command, 0, CASE) if not word.startswith("--pseudonyms")]
    if command == "augment":
        given = [word for word in given if not word.startswith("--input")] + _for_other_programs(named)
    assert not run(named, *given, option)
    if command == "augment":
        assert json.loads((named / "out" / "datalist.json").read_text())["names"] == "pseudonyms"


def test_copies_of_scans_for_other_programs_have_clean_headers(named, run):
    """With names: they stay inside, and the training that another program makes of them may not."""
    given = [word for word in _arguments("augment", 0, CASE) if not word.startswith("--input")]
    found = run(named, *given, *_for_other_programs(named))
    copies = {where: held for where, held in found.items() if where.startswith(("decathlon", "nnunet"))}
    assert (named / "out" / "nnunet").is_dir() and set().union(*copies.values()) == {CASE}


@pytest.mark.slow
def test_attributes_of_dicom_series_reach_no_prepared_file_and_no_copy_of_it(named, tmp_path, run):
    """PatientName and all texts of a series; ``semsynth dicom --like`` has a test of its own."""

    def poison(ds, number):
        ds.PatientName, ds.PatientID, ds.SeriesDescription, ds.StudyID = (HEADER,) * 4
        ds.InstitutionName, ds.ProtocolName, ds.PatientComments, ds.AccessionNumber = (HEADER,) * 4

    folder = tmp_path / FOLDER
    for raw in sorted((named / "raw").glob(f"{CASE}_*")):
        image = nib.load(raw / "image.nii.gz")
        write_series(folder / "dicom" / raw.name / "LGE", np.asarray(image.dataobj), image.affine, change=poison)
        shutil.copy(raw / "endo.nii.gz", folder / "dicom" / raw.name)
    given = ["--input", "dicom/*/LGE", "--endo", "dicom/*/endo.nii.gz", "--spacing", "4,4,4"]
    found = run(folder, "prepare", *given, "--output", "out")
    assert found and not any(HEADER in held for held in found.values())
    (folder / "out").rename(folder / "prepared")
    assert not run(folder, "pseudonymise", "--input", "prepared", "--output", "out", "--anonymous-names")


# ---- bundles


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> Path:
    """Cases with label maps, of patients."""
    folder = _folder(tmp_path_factory) / "data"
    write_phantom_cases(folder, 3, size=(32,) * 3, spacing=(1.5,) * 3, k=2, progress=False)
    spoil(folder)
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(b, marks=[] if b == QUICK_BUNDLE else [pytest.mark.slow], id=b) for b in BUNDLES]
)
@pytest.mark.parametrize("option", ["pseudonyms", "anonymous_names"])
def test_inference_under_pseudonyms_names_nobody(patients, tmp_path, name, option):
    bundle, data = ROOT / "bundles" / name, patients
    classes = int(read(bundle, "inference", "tiny").get("num_classes", 4))
    if classes != 4 and name not in ("la_unet", "la_maps"):
        data = tmp_path / FOLDER / "data"
        write_phantom_cases(data, 3, size=(32,) * 3, spacing=(1.5,) * 3, k=classes - 2, progress=False)
        spoil(data)
    out, key = tmp_path / "out", tmp_path / "key.json"
    paths = {"dataset_dir": data, "output_dir": out, "weights": _weights(bundle, tmp_path)}
    more = {"given": "datalist", "known": ["endo"], "count": 1} if name == "la_maps" else {}
    hidden = {"pseudonyms": str(key)} if option == "pseudonyms" else {"anonymous_names": True}
    (tmp_path / "cwd").mkdir()
    for _ in range(2):  # the second time all is there
        with isolated(tmp_path / "cwd"):
            workflow = bundle_runs.workflow(bundle, ["inference"], "infer", paths, **hidden, **more)
            workflow.run()
            workflow.finalize()
        assert len(list(out.glob("*.nii.gz"))) == 1 and not leaks(out)
    if name not in ("la_unet", "la_maps"):
        assert json.loads((out / "datalist.json").read_text())["names"] == "pseudonyms"


def _weights(bundle: Path, folder: Path) -> Path:
    """Random ones of the tiny network; a network that has to be fitted is fitted to phantoms."""
    if bundle.name != "la_maps":
        return random_weights(bundle, folder / "weights.pt")
    write_phantom_cases(folder / "fitted", 12, size=(32,) * 3, spacing=(1.5,) * 3, k=2, progress=False)
    with isolated(folder):
        paths = {"dataset_dir": folder / "fitted", "run_dir": folder / "run"}
        training = bundle_runs.workflow(bundle, ["train"], "train", paths)
        training.run()
        training.finalize()
    return folder / "run" / "model.pt"


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_training_leaves_names_in_no_weights_cards_or_logs(patients, tmp_path, monkeypatch, name):
    """What of a run's folder may leave: weights, their cards, TensorBoard's events. Checkpoints stay inside."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    bundle, data = ROOT / "bundles" / name, tmp_path / FOLDER / "data"
    k = max(int(read(bundle, "train").get("num_classes", 4)) - 2, 0)
    write_phantom_cases(data, 12 if name == "la_maps" else 3, size=(32,) * 3, spacing=(1.5,) * 3, k=k, progress=False)
    spoil(data)
    (tmp_path / "work").mkdir()
    (tmp_path / "cwd").mkdir()
    with isolated(tmp_path / "cwd"):
        assert not bundle_runs.run_training(bundle, data, tmp_path / "work")
    assert list((tmp_path / "work").rglob("*.pt"))
    found = {where: held for where, held in leaks(tmp_path / "work").items() if "checkpoints" not in Path(where).parts}
    assert not found
