"""Patterns of files: wildcards of all kinds, folders with brackets in their names, names of cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from semsynth.data.datalists import named_files
from semsynth.data.naming import distinct_names
from semsynth.data.patterns import is_pattern, matches, names_of
from semsynth.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(pattern: str) -> list[str]:
    return [str(match.path) for match in matches(pattern)]


@pytest.mark.parametrize(
    ("pattern", "other", "wanted"),
    [
        ("img/*.nii", "lab/*.nii", {"img/a1.nii": "lab/a1.nii", "img/b2.nii": "lab/b2.nii"}),
        ("img/?1.nii", "lab/?1_seg.nii", {"img/a1.nii": "lab/a1_seg.nii"}),
        ("img/[!a]*.nii", "lab/[!a]*.nii", {"img/b2.nii": "lab/b2.nii"}),
        ("img/[ab]?.nii", "lab [v2]/[ab]_?.nii", {"img/a1.nii": "lab [v2]/a_1.nii", "img/b2.nii": "lab [v2]/b_2.nii"}),
        ("img/*.nii", "lab/* [v2].nii", {"img/a1.nii": "lab/a1 [v2].nii", "img/b2.nii": "lab/b2 [v2].nii"}),
        ("deep/**/*.nii", "seg/**/*.gz", {"deep/c3.nii": "seg/c3.gz", "deep/x/y/d4.nii": "seg/x/y/d4.gz"}),
    ],
)
def test_wildcards_stand_for_the_same_text_in_both(folder: Path, pattern: str, other: str, wanted: dict) -> None:
    touch("img/a1.nii", "img/b2.nii", "deep/c3.nii", "deep/x/y/d4.nii", "lab [v2]/x")
    assert {str(m.path): str(m.partner(pattern, other)) for m in matches(pattern)} == wanted


def test_a_folder_that_is_there_is_a_name_whatever_it_looks_like(folder: Path) -> None:
    touch("br [v2]/p1.nii", "br v/p2.nii", "a/c [1]/x.nii", "b/c [1]/x.nii", "1[2]*.nii")
    assert not is_pattern("br [v2]") and is_pattern("br [vw]") and not is_pattern("plain")
    assert found("br [v2]/*.nii") == ["br [v2]/p1.nii"]
    assert found("br [vw]/*.nii") == ["br v/p2.nii"] if Path("br w").exists() else True
    assert found("*/c [1]/x.nii") == ["a/c [1]/x.nii", "b/c [1]/x.nii"]
    assert found("1[2]*.nii") == ["1[2]*.nii"]
    assert found(str(folder / "br [v2]" / "p?.nii")) == [str(folder / "br [v2]" / "p1.nii")]
    assert found("nothing/*") == []


def test_wildcards_that_differ_are_named(folder: Path) -> None:
    touch("img/a1.nii")
    (match,) = matches("img/?1.nii")
    with pytest.raises(InputError, match=r"lab/\*\.nii: has the wildcards \*, img/\?1\.nii has \?; each stands for"):
        match.partner("img/?1.nii", "lab/*.nii")
    with pytest.raises(InputError, match="has more stars than"):
        match.partner("img/?1.nii", "lab/?/?.nii")


def test_the_home_folder_is_understood_in_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    touch("maps/a1.nii.gz")
    assert [name for name, _ in named_files("~/maps/*.nii.gz", "maps")] == ["a1"]
    assert named_files("~/maps/*.nii.gz", "maps")[0][1] == Path(os.path.realpath(folder)) / "maps" / "a1.nii.gz"


@pytest.mark.parametrize(
    ("files", "pattern", "names"),
    [
        (["P1/scan1/lge.nii", "P2/scan1/lge.nii"], "*/scan1/lge.nii", ["P1", "P2"]),
        (["A/x/scan1/lge.nii", "B/x/scan1/lge.nii"], "*/x/*/lge.nii", ["A", "B"]),
        (["A/p1.nii", "A/p2.nii", "B/p1.nii"], "*/p?.nii", ["A_1", "A_2", "B_1"]),
        (["d/s/p1.nii", "d/t/u/p1.nii"], "d/**/p1.nii", ["s", "t_u"]),
        (["sub-1/anat/sub-1_LGE.nii", "sub-2/anat/sub-2_LGE.nii"], "sub-*/anat/sub-*_LGE.nii", ["sub-1", "sub-2"]),
        (["sub-1/anat/sub-1.nii", "sub-2/anat/sub-2.nii"], "sub-*/anat/*.nii", ["sub-1", "sub-2"]),
    ],
)
def test_cases_are_called_by_what_differs_where_their_files_are_called_the_same(
    folder: Path, files: list[str], pattern: str, names: list[str]
) -> None:
    touch(*files)
    assert names_of(matches(pattern), pattern) == names


def test_names_that_still_stand_twice_are_refused_with_what_a_pattern_can_do(folder: Path) -> None:
    touch("a_b/c/scan/p1.nii", "a/b_c/scan/p1.nii")
    with pytest.raises(InputError, match=r"found more than once: a_b_c; give a pattern with stars where the paths dif"):
        names_of(matches("*/*/scan/p1.nii"), "*/*/scan/p1.nii")
    assert distinct_names(["p", "p"], [[], []]) == ["p", "p"]


def test_a_glob_finds_folders_and_keeps_the_part(tmp_path):
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
    both = [str(tmp_path / "p1"), str(tmp_path / "p2")]
    assert found(f"{tmp_path}/p*") == found(f"{tmp_path}/p*/") == both
    assert found(f"{tmp_path}/p*#LGE 3D") == [f"{path}#LGE 3D" for path in both]
    assert found(f"{tmp_path}/p*::LGE 3D") == found(f"{tmp_path}/p*#LGE 3D")
    assert found(f"{tmp_path}/q*#LGE") == []
