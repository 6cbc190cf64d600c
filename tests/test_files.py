"""Paths with a part behind a #, and folders that stand for one volume."""

from __future__ import annotations

import os

import pytest
from semsynth.files import is_there, relative_to, sha256, shown_name, split_part, stamp


def test_a_part_is_what_stands_behind_the_hash_of_a_file_or_folder(tmp_path):
    (tmp_path / "seg.dcm").touch()
    (tmp_path / "a#b").mkdir()
    (tmp_path / "a#b" / "c#d.nii").touch()
    assert split_part(tmp_path / "seg.dcm") == (tmp_path / "seg.dcm", None)
    assert split_part(f"{tmp_path}/seg.dcm#left/right # atrium") == (tmp_path / "seg.dcm", "left/right # atrium")
    assert split_part(tmp_path / "a#b" / "c#d.nii") == (tmp_path / "a#b" / "c#d.nii", None)
    assert split_part(f"{tmp_path}/a#b#LGE") == (tmp_path / "a#b", "LGE")
    assert split_part(tmp_path / "none#LGE") == (tmp_path / "none#LGE", None)
    assert split_part(f"{tmp_path}/a::b::LGE") == (tmp_path / "a#b", "LGE")  # as MONAI hands it on
    assert is_there(f"{tmp_path}/seg.dcm#x") and not is_there(tmp_path / "none#LGE")


def test_a_folder_changes_with_any_file_in_it(tmp_path):
    folder = tmp_path / "series"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "inner" / "b").write_text("bb")
    before = stamp(folder), sha256(folder)
    assert before == (stamp(folder), sha256(folder)) and before[0][0] == 3
    os.utime(folder / "inner" / "b", ns=(1, 1))
    assert stamp(folder) != before[0] and sha256(folder) == before[1]
    (folder / "inner" / "b").rename(folder / "b")
    assert sha256(folder) != before[1]
    assert sha256(f"{folder}#x") != sha256(f"{folder}#y") != sha256(folder)
    with pytest.raises(FileNotFoundError):
        stamp(folder / "none")


def test_records_show_no_uid(tmp_path):
    (tmp_path / "p1").mkdir()
    assert shown_name(f"{tmp_path}/p1#LGE 3D") == "p1#LGE 3D"
    told = relative_to(f"{tmp_path}/p1#1.2.826.0.1", tmp_path / "out")
    assert told.startswith("../p1#") and "826" not in told and len(told) == len("../p1#") + 12
    assert told != relative_to(f"{tmp_path}/p1#1.2.826.0.2", tmp_path / "out")
