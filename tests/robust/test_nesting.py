"""Results among their own inputs: refused where a second run would take them for data, allowed where it would not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from semsynth.cli.main import main
from semsynth.data.nesting import refuse_among, refuse_found, refuse_results
from semsynth.data.patterns import matches, matches_path
from semsynth.errors import InputError
from semsynth.prepare.phantom import write_phantom_cases


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "scans"
    write_phantom_cases(folder, 3, size=(24, 24, 24), spacing=(4.0, 4.0, 4.0), progress=False)
    return folder


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("scans/*/image.nii.gz", "scans/p1/image.nii.gz", True),
        ("scans/*/image.nii.gz", "scans/out/p1/image.nii.gz", False),
        ("scans/**/image.nii.gz", "scans/out/p1/image.nii.gz", True),
        ("scans/**/image.nii.gz", "out/p1/image.nii.gz", False),
        ("scans/*", "scans/out", True),
        ("scans/*#LGE 3D", "scans/out", True),
        ("scans/p[12]*", "scans/out", False),
        ("./scans/../scans/*.nii.gz", "scans/a_synthetic.nii.gz", True),
        ("*/image.nii.gz", "out/image.nii.gz", True),
    ],
)
def test_a_pattern_finds_what_it_would_find_were_it_there(
    pattern: str, path: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    assert matches_path(pattern, path) is found
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()
    assert (Path(path).resolve() in [match.path.resolve() for match in matches(pattern.partition("#")[0])]) is found


@pytest.mark.parametrize("command", ["prepare", "prepare-maps"])
@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("scans/*/image.nii.gz", "scans", "lies in a folder that would be replaced"),
        ("scans/**/image.nii.gz", "scans/prepared", r"would find .*scans/prepared/phantom_000/image.nii.gz"),
        ("*/*/image.nii.gz", "prepared", r"would find .*prepared/phantom_000/image.nii.gz"),
        ("scans", "scans", "would be replaced|needs a datalist, or a quoted pattern|is the input as well"),
        ("flat/*_image.nii.gz", "flat", "flat: holds a_.*.nii.gz, which is an input"),
    ],
)
def test_a_preparation_that_a_second_one_would_find_is_refused(
    command: str, source: str, output: str, message: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(raw, "scans")
    Path("flat").mkdir()
    for role in ("image", "endo", "label"):
        shutil.copy(raw / "phantom_000" / f"{role}.nii.gz", f"flat/a_{role}.nii.gz")
    before = {path: path.is_file() and path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    role = "endo" if command == "prepare" else "label"
    partner = [f"--{role}", source.replace("image", role)] if "*" in source else []
    more = [] if command == "prepare" or "*" not in source else ["--classes", "a,b,c"]
    assert main([command, "--input", source, *partner, *more, "--output", output, "--spacing", "4,4,4"]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.is_file() and path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_what_is_harmless_is_allowed(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(raw, "scans")
    refuse_found("scans/out", ["scans/*/image.nii.gz", "scans", None], ["phantom_000/image.nii.gz"])
    refuse_among("scans/out", ["scans/phantom_000/image.nii.gz"], "scans")
    arguments = ["prepare", "--input", "scans", "--output", "scans/out", "--spacing", "4,4,4"]
    assert main(arguments) == 0 and main(arguments) == 0
    assert main(["choose-k", "--input", "scans", "--k-max", "2", "--output", "scans"]) == 0


def test_results_among_scans_of_a_series_are_refused(tmp_path: Path) -> None:
    series = tmp_path / "p1" / "lge"
    series.mkdir(parents=True)
    (series / "1.dcm").touch()
    with pytest.raises(InputError, match=r"out: lies in .*lge, which is an input"):
        refuse_among(series / "out", [f"{series}#LGE 3D"])
    (tmp_path / "link").symlink_to(series)
    with pytest.raises(InputError, match="which is an input"):
        refuse_among(tmp_path / "link" / "out", [series])
    with pytest.raises(InputError, match=r"would find .*evaluation too"):
        refuse_found(tmp_path / "out" / "evaluation", [f"{tmp_path}/out/*"])


@pytest.mark.parametrize(
    ("what", "name", "record"),
    [
        ("label maps", "a_synthetic.nii.gz", {"case": "a", "synthetic": True, "weights_sha256": "0"}),
        ("images", "a_seg.seg.nrrd", {"case": "a", "volume_ml": {}, "weights_sha256": "0"}),
    ],
)
def test_results_of_an_inference_are_no_input(what: str, name: str, record: dict, tmp_path: Path) -> None:
    file = tmp_path / name
    refuse_results("x/*", [file], what)  # nobody says that it is one
    (tmp_path / f"{name.partition('.')[0]}.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="a result of an earlier run"):
        refuse_results("x/*", [tmp_path / "a.nii.gz", file], what)
    refuse_results("x/*", [file], "images" if what == "label maps" else "label maps")  # synthetic images are images
