"""Names and paths are text: shown, never obeyed, and what is written goes where somebody typed."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from semsynth.cli.main import main
from semsynth.data.check import Entry, check_cases
from semsynth.data.datalists import read_datalist
from semsynth.data.naming import check_names, unusable_name
from semsynth.errors import InputError, refuse_misread_paths
from semsynth.files import write_text
from semsynth.handlers import SyntheticWriter
from semsynth.paths import as_path
from semsynth.report.pictures import Panel, Row, save_planes
from semsynth.report.tables import Cell, Column, Table
from semsynth.texts import log_plainly, shown

HOSTILE = "\x1b[31mred\x07\r\n\u202eright\x9b\ud800"


@pytest.mark.parametrize(
    ("text", "plain"),
    [("a\x1b[31m", r"a\x1b[31m"), ("a\nb\tc", r"a\nb\tc"), ("\x9b0m", r"\x9b0m"), ("a\u202eb", r"a\u202eb"),
     ("\udcff", r"\udcff"), ("Größe 心房 🫀", "Größe 心房 🫀"), ("a\\b", "a\\b")],
)  # fmt: skip
def test_what_does_something_instead_of_being_seen_is_escaped(text, plain):
    assert shown(text) == plain


def test_messages_keep_the_lines_of_their_list_and_no_others():
    inner = InputError("one", ["a\x1b", "b\nc"])
    assert str(inner) == "one\n  - a\\x1b\n  - b\\nc"
    assert str(InputError(f"two: {inner}")) == "two: one\n  - a\\x1b\n  - b\\nc"
    assert str(InputError("x\ny")) == "x\\ny"


def test_logs_are_escaped_whoever_writes_them(capsys):
    before = logging.getLogRecordFactory()
    try:
        log_plainly()
        log_plainly()
        record = logging.getLogger("any").makeRecord("any", 30, "f", 1, "%s: %d\n%s", (Path(HOSTILE), 3, HOSTILE), None)
        assert record.getMessage() == f"{shown(HOSTILE)}: 3\n{shown(HOSTILE)}"
        record = logging.getLogger("any").makeRecord("any", 30, "f", 1, f"50 % of {HOSTILE}", (), None)
        assert "\x1b" not in record.getMessage() and "50 % of" in record.getMessage()
    finally:
        logging.setLogRecordFactory(before)


# ---- names of cases


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".partial.c1", "a/b", "a\\b", "a\0", "a\nb", "\x1b[31m", "x" * 200, "心" * 70, "a\udcff"]
)
def test_names_that_cannot_be_those_of_files_are_refused_and_found_by_check(name):
    assert unusable_name(name) is not None
    with pytest.raises(InputError, match="cannot use these; set 'case'") as caught:
        check_names(["good", name], "list")
    assert shown(str(caught.value), lines=True) == str(caught.value)
    report = check_cases([Entry("good", {}), Entry(name, {})])
    assert [finding.finding for finding in report.errors] == ["unusable case name"]


@pytest.mark.parametrize("name", ["a", "la_000", "P1 (2)", "$^$", "_{", r"100%", "=1+1", "a|b", "a#b", "Größe", "心房"])
def test_other_names_are_anybodys_own(name):
    assert unusable_name(name) is None


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return Path(shutil.copytree(tiny_dataset, tmp_path / "data"))


def rename(data: Path, *names: str) -> None:
    path = data / "datalist.json"
    content = json.loads(path.read_text())
    for entry, name in zip(content["training"], names, strict=False):
        entry["case"] = name
    path.write_text(json.dumps(content))


def test_a_name_with_escape_codes_reaches_no_terminal(data, tmp_path, capsys):
    rename(data, HOSTILE)
    for command in (["check"], ["check", "--json"], ["prepare", "--output", str(tmp_path / "out")]):
        assert main([command[0], "--input", str(data), *command[1:]]) == 1
        text = "".join(capsys.readouterr())
        assert shown(text, lines=True) == text.replace("\r", "\\r") and "red" in text


def test_odd_names_go_through_preparation_pictures_and_tables(data, tmp_path, capsys):
    rename(data, "$^$", "=a|b_{")
    out = tmp_path / "out"
    arguments = ["prepare", "--input", str(data), "--output", str(out), "--spacing=3,3,3", "--fractions=0.5,0.5"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert {"$^$", "=a|b_{"} < {path.name for path in out.iterdir()}
    assert main(["check", "--input", str(out)]) == 0
    picture = tmp_path / "sheet.png"
    assert main(["picture", "--synthetic", str(out), "--real", str(out), "--output", str(picture)]) == 0
    assert imread(picture).shape[2] >= 3


def test_paths_of_any_bytes_are_read_written_and_printed(data, tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[1m"))
    data.rename(folder)
    assert main(["check", "--input", str(folder)]) == 0
    out = folder / "prepared"
    arguments = ["prepare", "--input", str(folder), "--output", str(out), "--spacing=3,3,3"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err and "\\udcff\\x1b[1m" in printed.out
    assert len(read_datalist(out / "datalist.json")["training"]) == 2
    # JSON gives back what is no UTF-8
    path = write_text(tmp_path / "a.json", json.dumps({"file": str(folder)}, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == {"file": str(folder)}


# ---- pictures and tables


@pytest.mark.parametrize("name", ["$^$", "_{", r"$\frac$", "a$b", "\x1b[31m", "a\nb", r"\$x^2$"])
def test_no_name_is_taken_for_a_formula(tmp_path, name):
    panel = Panel(name, np.random.default_rng(0).random((8, 8, 8)))
    row = Row(name, [panel, panel], (1.0, 1.0, 1.0), (4, 4, 4))
    path = save_planes(tmp_path / "a.png", [row], title=name)
    assert imread(path).size


def test_tables_hold_names_as_they_are_and_spreadsheets_run_none():
    names = ["=1+1", "+1", "-1", "@a", "\t=1", "a|b"]
    table = Table("t", [Column("case"), Column("value")], [[Cell(name), Cell("-0.5", -0.5)] for name in names])
    rows = list(csv.reader(io.StringIO(table.csv())))[1:]
    assert [row[0] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "'\t=1", "a|b"]
    assert {row[1] for row in rows} == {"-0.5"}
    assert "a\\|b" in table.markdown() and "\t" not in table.text()


# ---- what bundles are given on MONAI's command line


@pytest.mark.parametrize(
    "arguments",
    [["--run_dir", "run#2"], ["--run_dir=run#2"], ["--output_dir", "/x/run#1"], ["--weights", "a#1/model.pt"],
     ["--dataset_dir", "a#1"], ["--cache_dir", "#1"], ["--label_maps", "maps#LGE"]],
)  # fmt: skip
def test_a_path_of_which_monai_makes_another_one_is_refused(arguments):
    with pytest.raises(InputError, match="makes another path of one with '#'"):
        refuse_misread_paths(arguments)


def test_a_part_of_a_file_goes_through():
    refuse_misread_paths(["--label_maps", "./maps/*.seg.nrrd#cavity", "--images=data/*#LGE", "--num_samples", "2"])


def test_a_path_with_two_colons_from_elsewhere_is_refused_where_it_would_be_made(tmp_path):
    with pytest.raises(InputError, match="MONAI's configs turn '#' into '::'"):
        SyntheticWriter(str(tmp_path / "run::1"), metadata="m", weights="w", num_classes=2)
    (tmp_path / "there::1").mkdir()
    assert as_path(str(tmp_path / "there::1"), "output_dir").is_dir()


def test_commands_write_where_they_are_told(tmp_path, capsys):
    for name in ("run#2", "a::b", "2024_11_28", "$x", "a b"):
        out = tmp_path / name
        assert main(["phantom", "--output", str(out), "--cases=3", "--size=16,16,16", "--spacing=6,6,6"]) == 0
        assert (out / "datalist.json").is_file() and main(["check", "--input", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["$x", "2024_11_28", "a b", "a::b", "run#2"]


def test_a_text_that_is_no_path_is_refused():
    for text in ("a\0b", "a\ud800"):
        with pytest.raises(InputError, match="cannot be a path, since it holds"):
            as_path(text)
    assert as_path("a\udcff")  # a byte of a file's name that is no UTF-8


def test_a_volume_with_an_odd_name_is_named_in_a_finding(tmp_path):
    path = tmp_path / "a\x1b[31m|b.nii.gz"
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), path)
    report = check_cases([Entry("c", {"image": path})])
    assert len(report.errors) == 1 and r"a\x1b[31m" in shown(report.table(), lines=True)
