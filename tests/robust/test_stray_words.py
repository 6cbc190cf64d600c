"""A word that belongs to no option is refused before the command works, not after it has written everything."""

from __future__ import annotations

from pathlib import Path

import pytest
from semsynth.cli.main import main

PHANTOM = ["--cases=3", "--size=16,16,16", "--spacing=6,6,6"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["phantom", "raw", "--output=OUT", *PHANTOM],
        ["phantom", "--output", "OUT", *PHANTOM, "5"],
        ["phantom", "--output", "OUT", "second", *PHANTOM],
        ["phantom", "--output", "OUT", "--size=16,", "16,", "16"],
        ["phantom", "--output", "OUT", *PHANTOM, "-5.0"],
        ["prepare", "--input", "a.nii.gz", "b.nii.gz", "--output", "OUT"],
        ["convert", "--weights", "a.pt", "b.pt", "--output", "OUT"],
        ["evaluate", "--synthetic", "a=x", "b=y", "--real", "r", "s", "--output", "OUT"],
    ],
)
def test_a_stray_word_is_named_and_nothing_is_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in arguments]) == 1
    assert "belongs to no option" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["phantom", "--output", "OUT", "--cases", "3", "--size", "16,16,16", "--spacing", "6,6,6", "--seed", "-1"],
        ["evaluate", "--synthetic", "a=x", "b=y", "--real", "nowhere", "--output", "OUT"],
        ["picture", "--synthetic=a=x", "b=y", "--output", "OUT"],
    ],
)
def test_values_of_options_are_no_stray_words(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([word.replace("OUT", str(tmp_path / "out")) for word in arguments])
    assert "belongs to no option" not in capsys.readouterr().err


def test_help_is_shown_for_one_hyphen_too() -> None:
    assert main(["phantom", "-h"]) == 0
