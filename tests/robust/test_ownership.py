"""Nothing that is not ours is replaced: each command over a user's file, its own, and its own that was changed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from semsynth.cli.main import main
from semsynth.data.label_files import SLICER_TABLE, SNAP_TABLE
from semsynth.errors import InputError
from semsynth.evaluation.files import result_files
from semsynth.handlers.summary import MetricsSummary, SaveMetrics
from semsynth.handlers.weights import SaveBestWeights, SaveFinalWeights
from semsynth.locks import LOCK
from semsynth.ownership import LEDGER, Outputs, is_marked_png, is_plotted_png, nobody, text_with
from semsynth.prepare.patients.groups import PAIRS, SHEET, SUMMARY, patient_files
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.report.pictures import Panel, Row, check_picture, save_planes
from semsynth.training.checkpoints import MANIFEST, CheckpointFolder
from semsynth.training.weights import extract_weights, save_weights

SMALL = ["--spacing", "4,4,4"]
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci"))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "raw"
    write_phantom_cases(folder, 3, size=(24, 24, 24), spacing=(4.0, 4.0, 4.0), progress=False)
    return folder


@pytest.fixture
def raw(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "raw"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    before = contents(folder)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said, said
    assert contents(folder) == before


# ---- the rule


def outputs(folder: Path) -> Outputs:
    return Outputs(folder, "a test", {"a.txt": text_with("ours\n"), "b.txt": nobody})


def test_what_is_listed_is_ours_until_it_is_changed(tmp_path: Path) -> None:
    files = outputs(tmp_path)
    for text in ("1", "2"):
        assert files.write_text("b.txt", text).read_text() == text
    files.check()
    (tmp_path / "b.txt").write_text("3")
    with pytest.raises(
        InputError, match=r"move them away, or give another --output:\n.*b.txt: was changed since a test"
    ):
        files.check()
    with pytest.raises(InputError, match="was changed since a test wrote it"):
        files.write_text("b.txt", "4")
    assert (tmp_path / "b.txt").read_text() == "3" and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match="was written by a test"):
        Outputs(tmp_path, "another", {"b.txt": nobody}).check()


def test_what_is_not_listed_is_ours_by_its_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ours\nof version 0.1.0")
    outputs(tmp_path).check()
    for foreign in ("b.txt", "a.txt"):
        (tmp_path / foreign).write_text("a user's")
        with pytest.raises(InputError, match=f"{foreign}: was not written by a test"):
            outputs(tmp_path).check()
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"a\.txt: is no file"):
        outputs(tmp_path).check(["a.txt"])
    with pytest.raises(InputError, match="is a file; --output needs a folder"):
        outputs(tmp_path / "b.txt").check()


def test_a_kill_between_ledger_and_file_changes_nothing(tmp_path: Path) -> None:
    files = outputs(tmp_path)
    files.write_text("b.txt", "old")
    with pytest.raises(KeyboardInterrupt), files.path("b.txt") as temporary:
        temporary.write_text("new")
        files._list({"b.txt": "0" * 64})
        raise KeyboardInterrupt
    assert (tmp_path / "b.txt").read_text() == "old"
    files.write_text("b.txt", "new")
    (tmp_path / LEDGER).write_text("{damaged")
    with pytest.raises(InputError, match="was not written by a test"):
        files.check()


# ---- pictures


def test_only_our_pictures_are_replaced(tmp_path: Path) -> None:
    volume = np.zeros((4, 4, 4), np.float32)
    rows = [Row("a", [Panel("image", volume)], (1, 1, 1), (2, 2, 2))]
    path = save_planes(tmp_path / "a.png", rows)
    assert is_marked_png(path) and not is_plotted_png(path) and save_planes(path, rows) == path
    pixels = matplotlib.image.imread(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    for change in (lambda: matplotlib.image.imsave(path, pixels), lambda: path.write_bytes(data),
                   lambda: path.write_text("x")):  # fmt: skip
        change()
        before = path.read_bytes()
        with pytest.raises(InputError, match="is no picture that semsynth drew, or was changed since"):
            save_planes(path, rows)
        assert path.read_bytes() == before
    before_marks = tmp_path / "epoch_0001.png"
    matplotlib.image.imsave(before_marks, pixels)  # as version 0.1.0 left them
    assert is_marked_png(save_planes(before_marks, rows))
    with pytest.raises(InputError, match=r"give a name that ends in \.png"):
        check_picture(tmp_path / "image.nii.gz")


def test_picture_and_choose_k_and_patients_leave_files_of_the_user(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = ["picture", "--synthetic", str(raw), "--cases", "1", "--output"]
    for name in ("phantom_000/image.nii.gz", "datalist.json", "plot.png"):
        (raw / name).touch()
        refused([*draw, str(raw / name)], raw, capsys, name)
    assert main([*draw, str(raw / "new.png")]) == 0 and main([*draw, str(raw / "new.png")]) == 0
    choose = ["choose-k", "--input", str(raw), "--k-max", "2", "--output", str(tmp_path / "k")]
    assert main(choose) == 0 and main(choose) == 0
    for name in ("choose_k.csv", "choose_k.png"):
        kept = (tmp_path / "k" / name).read_bytes()
        (tmp_path / "k" / name).write_bytes(b"mine")
        refused(choose, tmp_path / "k", capsys, name)
        (tmp_path / "k" / name).write_bytes(kept)
    (tmp_path / "k" / LEDGER).unlink()
    assert main(choose) == 0  # by its content
    search = ["check", "--input", str(raw), "--same-patient", "--output", str(tmp_path / "found")]
    main(search)
    for name in (PAIRS, SUMMARY, SHEET):
        kept = (tmp_path / "found" / name).read_bytes()
        (tmp_path / "found" / name).write_bytes(b"mine")
        with pytest.raises(InputError, match=name):
            patient_files(tmp_path / "found").check()
        (tmp_path / "found" / name).write_bytes(kept)
    (tmp_path / "found" / LEDGER).unlink()
    patient_files(tmp_path / "found").check()


# ---- data sets


def test_a_preparation_leaves_datalists_and_tables_of_the_user(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    commands = [["prepare", "--input", str(raw), "--output", str(out), *SMALL],
                ["prepare-maps", "--input", str(raw), "--output", str(out), *SMALL]]  # fmt: skip
    out.mkdir()
    for name in ("datalist.json", SNAP_TABLE, SLICER_TABLE):
        (out / name).write_text('{"name": "my study", "training": []}')
        for command in commands:
            refused([*command, "--overwrite"], out, capsys, name, "move them away, or give another")
        (out / name).unlink()
    (out / PAIRS).write_text("mine")
    refused([*commands[0], "--group-patients"], out, capsys, PAIRS)
    for _ in range(2):
        assert main(commands[0]) == 0
    (out / LEDGER).unlink()
    assert main(commands[0]) == 0  # as of version 0.1.0
    listed = out / "datalist.json"
    listed.write_text(listed.read_text().replace('"training"', '"testing"'))
    refused(commands[0], out, capsys, "datalist.json: was changed since semsynth's preparation wrote it")


def test_phantoms_replace_phantoms_alone(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = ["phantom", "--cases=3", "--size=24,24,24", "--spacing=4,4,4", "--output"]
    prepared = tmp_path / "prepared"
    assert main(["prepare", "--input", str(raw), "--output", str(prepared), *SMALL]) == 0
    refused([*make, str(prepared)], prepared, capsys, "datalist.json", "phantom_000/image.nii.gz")
    before = contents(raw)
    assert main([*make, str(raw)]) == 0 and contents(raw) == before
    (raw / LEDGER).unlink()
    assert main([*make, str(raw)]) == 0  # as of version 0.1.0
    (raw / "phantom_001" / "endo.nii.gz").write_bytes(b"corrected by hand")
    refused([*make, str(raw)], raw, capsys, "phantom_001/endo.nii.gz: was changed since semsynth phantom wrote it")
    refused(["prepare", "--input", str(prepared / "datalist.json"), "--output", str(raw), *SMALL], raw, capsys)


@pytest.mark.parametrize("name", ["cases.csv", "evaluation.md", "evaluation.html", "evaluation.json", "evaluation.csv"])
def test_an_evaluation_leaves_files_of_the_user(
    name: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / name).write_text("case,age\nphantom_000,71\n")
    arguments = ["evaluate", "--synthetic", f"a={tmp_path}", "--real", str(raw), "--output", str(raw)]
    refused(arguments, raw, capsys, f"{name}: was not written by semsynth evaluate")


def test_an_evaluation_of_before_is_recognised(tmp_path: Path) -> None:
    files = {
        "evaluation.json": json.dumps({"scores": [], "differences": [], "systems": [], "versions": {}}),
        "evaluation.md": "### Similarity\n", "cases.csv": "group,system,case,psnr\n",
        "evaluation.html": "<!doctype html>\n<title>Evaluation of synthetic volumes</title>",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    result_files(tmp_path).check()
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"evaluation.md: was not written"):
        result_files(tmp_path).check()


# ---- weights


def trained(tmp_path: Path) -> Path:
    state = {"objects": {"network": torch.nn.Linear(2, 2).state_dict()}, "epoch": 1, "iteration": 1}
    return CheckpointFolder(tmp_path / "run" / "checkpoints").save(state, epoch=1, iteration=1)


def test_weights_and_cards_of_the_user_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained(tmp_path)
    take = ["weights", "--checkpoint", str(tmp_path / "run"), "--output"]
    listed, bare = tmp_path / "datalist.json", tmp_path / "downloaded.pt"
    listed.write_text('{"training": []}')
    torch.save(torch.nn.Linear(2, 2).state_dict(), bare)
    for name, word in (("datalist.json", "is the name of a card"), ("datalist.pt", "is no card"),
                       ("downloaded.pt", "has no card beside it"), ("run", "is a folder"),
                       ("run/checkpoints/manifest.pt", "is no card")):  # fmt: skip
        refused([*take, str(tmp_path / name)], tmp_path, capsys, word)
    refused(["weights", "--checkpoint", str(checkpoint), "--output", str(checkpoint)], tmp_path, capsys,
            "would overwrite what the weights are made from")  # fmt: skip
    model = tmp_path / "model.pt"
    assert main([*take, str(model)]) == 0 and main([*take, str(model)]) == 0
    refused(["weights", "--checkpoint", str(model), "--output", str(model)], tmp_path, capsys, "made from")
    refused([*take, str(tmp_path / "model.pth")], tmp_path, capsys, "model.json: is the card of model.pt")
    smaller = tmp_path / "small.pt"
    for _ in range(2):
        extract_weights(model, smaller, mantissa_bits=8)
    assert json.loads(smaller.with_suffix(".json").read_text())["file"] == "small.pt"
    torch.save({"w": torch.zeros(2)}, model)
    refused([*take, str(model)], tmp_path, capsys, "is not the file that its card describes")
    refused(["convert", "--weights", str(bare), "--output", str(tmp_path / "datalist.pt"), "--overwrite"], tmp_path,
            capsys, "datalist.json: would be replaced by the card of datalist.pt, and is no card")  # fmt: skip


def test_trainings_are_refused_before_they_start(tmp_path: Path) -> None:
    network, engine = torch.nn.Linear(2, 2), __import__("ignite.engine", fromlist=["Engine"]).Engine(lambda e, b: None)
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    for handler in (SaveBestWeights(network, path, lower_is_better=True), SaveFinalWeights(network, path)):
        with pytest.raises(InputError, match="has no card beside it"):
            handler.attach(engine)
    path.unlink()
    save_weights(network, path)
    SaveFinalWeights(network, path).attach(engine)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / MANIFEST).write_text('{"mine": 1}')
    with pytest.raises(InputError, match="is no list of checkpoints"):
        CheckpointFolder(tmp_path / "checkpoints").refuse_foreign()


def test_weights_and_card_change_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = torch.nn.Linear(2, 2), tmp_path / "model.pt"
    save_weights(network, path)
    before = contents(tmp_path)
    monkeypatch.setattr("semsynth.provenance.cards.run_command", lambda: 1 / 0)  # a card that cannot be made
    with pytest.raises(ZeroDivisionError):
        save_weights(torch.nn.Linear(2, 2), path)
    assert contents(tmp_path) == before


# ---- metrics of a segmentation


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("metrics.csv", "dice,0.9\n"),
        ("dice_raw.csv", "filename,class0,mean\nc,0.9,0.9\n"),
        ("dice_summary.csv", "class,n,mean,sd,median,min,max\n"),
    ],
)
def test_tables_of_metrics_leave_those_of_the_user(name: str, own: str, tmp_path: Path) -> None:
    engine = __import__("ignite.engine", fromlist=["Engine"]).Engine(lambda e, b: None)
    attach: list[Callable[[], None]] = [
        lambda: SaveMetrics(tmp_path, metrics=["dice"], metric_details=["dice"]).attach(engine),
        lambda: MetricsSummary(tmp_path, ["dice"]).attach(engine),
    ]
    (tmp_path / name).write_text(own)  # as version 0.1.0 left it
    for one in attach:
        one()
    for content in ("case;age\n1;71\n", "case,dice,hd95\nP1,0.9,4\n", "dice,hd95\n0.9,4\n", "filename,dice,mean\n"):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}: was not written by semsynth's metrics"):
            for one in attach:
                one()


def test_the_demo_empties_no_folder_of_the_user(tmp_path: Path) -> None:
    from demo import emptied

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.nii.gz").touch()
    with pytest.raises(SystemExit, match="holds files that no demo wrote"):
        emptied(tmp_path)
    assert (tmp_path / "data" / "scan.nii.gz").is_file()
    made = emptied(tmp_path / "new")
    (made / "data").mkdir()
    assert not (emptied(made) / "data").exists()
