"""Paths as they are typed: the home folder, and what command lines take for something else than text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from semsynth.errors import InputError, refuse_misread_paths
from semsynth.paths import as_path


def test_the_home_folder_stands_for_a_tilde_at_the_beginning_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert as_path("~/prep") == Path("/home/me/prep") and as_path(Path("~")) == Path("/home/me")
    assert as_path("a/~/b") == Path("a/~/b") and as_path("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")


def test_a_path_that_is_no_text_is_refused_by_its_options_name() -> None:
    with pytest.raises(InputError, match=r"output_dir must be text, got 20241128 \(int\); write it with ./ in front"):
        as_path(20241128, "output_dir")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "2024_11_28"], r"output_dir must be text, but 2024_11_28 is read as 20241128 \(int\); write "
                                         r"--output_dir \./2024_11_28 or --output_dir \"'2024_11_28'\""),
        (["run", "--seed", "1", "--dataset_dir=3.10"], r"dataset_dir must be text, but 3\.10 is read as 3\.1 \("),
        (["--judge_weights=1e3"], "judge_weights must be text"),
        (["--rules", "2024_11"], "rules must be text"),
        (["--label_maps", "a,b"], r"label_maps must be text, but a,b is read as \('a', 'b'\) \(tuple\)"),
        (["--writer#output_dir", "0x10"], "writer#output_dir must be text, but 0x10 is read as 16"),
    ],
)  # fmt: skip
def test_what_monais_command_line_misreads_is_one_clear_error(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        refuse_misread_paths(arguments)


def test_all_else_is_left_to_the_bundle() -> None:
    refuse_misread_paths([
        "run", "--output_dir", "./2024_11_28", "--dataset_dir", "'3.10'", "--weights", "None", "--seed", "2024_11_28",
        "--datalists", "['a.json','b.json']", "--extractor_weights", "{'a':'b'}", "--class_weights", "1,2",
        "--images", "br [v2]/*.nii.gz", "--resample", "True", "--output_dir",
    ])  # fmt: skip


def test_every_option_of_a_bundle_that_is_a_path_is_known_by_its_name(project_root: Path) -> None:
    for config in sorted(project_root.glob("bundles/*/configs/*.json")):
        if config.stem == "metadata":
            continue
        for name, value in json.loads(config.read_text(encoding="utf-8")).items():
            if isinstance(value, str) and "/" in value and name != "_desc_":
                with pytest.raises(InputError, match=f"{name} must be text"):
                    refuse_misread_paths([f"--{name}", "2024_11_28"])


@pytest.mark.parametrize("bundle", [pytest.param("pix2pix3d", marks=pytest.mark.slow), "la_unet"])
def test_a_bundle_says_how_to_write_a_path_instead_of_a_traceback(
    project_root: Path, tmp_path: Path, bundle: str
) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    done = subprocess.run([*command, "--dataset_dir", str(tmp_path), "--output_dir", "2024_11_28"], check=False,
                          cwd=project_root / "bundles" / bundle, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "error: output_dir must be text" in done.stderr
    assert "Traceback" not in done.stderr
