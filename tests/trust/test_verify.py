"""What a verification says of good, unknown and changed bundles, of zips, folders and files of weights."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from bundles_of_enemies import configured, good_bundle, packed, write_manifest, write_weights
from pack_bundle import pack
from semsynth.cli.main import main
from semsynth.convert import convert_file_to_monai
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.synthesis.export import load_network
from semsynth.synthesis.workflow import run_inference, weights_of
from semsynth.training.weights import write_weights as write_ours
from semsynth.trust.verify import verify
from verify_bundles import CHECKS, RUNNING, find_bundles
from verify_bundles import verify as verify_bundle

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = find_bundles(ROOT / "bundles")


def lines(path: Path, **options: Path) -> list[str]:
    """What was found."""
    return [f"{'REFUSED' if f.refused else 'unknown'} {f.line()}" for f in verify(path, **options).findings]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_nothing_is_wrong_with_what_is_shipped(bundle: Path) -> None:
    verdict = verify(bundle)
    assert not verdict.refused, verdict.text()
    assert [finding.text[:15] for finding in verdict.findings] == ["signature: none"]


def test_a_packed_bundle_and_its_folder_are_found_good(tmp_path):
    bundle = next(bundle for bundle in BUNDLES if bundle.name == "la_unet")
    target = pack(bundle, tmp_path)
    found = verify(target)
    assert not found.refused and len(found.findings) == 1, found.text()
    assert any(check.said.startswith("4 of 4 files of weights") for check in found.checks)
    assert any(check.what == "code" and check.said.split(" of ")[0] in check.said.split()[2] for check in found.checks)
    with zipfile.ZipFile(target) as archive:
        archive.extractall(tmp_path / "here")
    unpacked = tmp_path / "here" / bundle.name
    (unpacked / "runs").mkdir()
    (unpacked / "runs" / "notes.bin").write_text("left by a run")
    assert not verify(unpacked).refused and "what runs leave: runs" in verify(unpacked).text()
    (unpacked / "scripts" / "semsynth" / "seeds.py").write_text("import os\n")
    found = lines(unpacked)
    assert len(found) == 3 and all("scripts/semsynth/seeds.py" in line for line in found[:2]), found
    assert "is not the file that the manifest lists" in found[0] and "unknown Python" in found[1]


def test_what_a_folder_lacks_of_its_manifest_is_named(tmp_path):
    folder = good_bundle(tmp_path / "bundle")
    write_manifest(folder)
    (folder / "docs" / "README.md").unlink()
    assert any("docs/README.md: is in the manifest and not here" in line for line in lines(folder))
    (folder / "manifest.sha256").write_text("no list\n")
    assert "REFUSED manifest.sha256: is no list of hashes and names; get the zip again" in lines(folder)


def test_what_nobody_can_tell_is_said_and_is_no_refusal(tmp_path):
    folder = good_bundle(tmp_path / "bundle")
    (folder / "models" / "model.json").unlink()
    write_weights(folder / "models" / "other.pt")
    (folder / "models" / "other.pt").unlink()
    verdict = verify(folder)
    assert not verdict.refused and "and 3 things below that cannot be checked" in verdict.text()
    assert "unknown models/model.pt: no card beside it says what it is: unknown weights" in lines(folder)
    assert "unknown models/other.json: is the card of weights that are not here" in lines(folder)
    assert shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path, "bundle")
    assert any("no manifest.sha256: it was not packed by" in line for line in lines(tmp_path / "b.zip"))


def test_a_file_of_weights_is_compared_with_its_card(tmp_path, capsys):
    path = tmp_path / "model.pt"
    write_weights(path)
    assert main(["verify", str(path)]) == 0
    assert "nothing wrong was found, and 1 thing below" in capsys.readouterr().out
    path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace(sha256(path)[:8], "00000000"))
    assert main(["verify", "--path", str(path)]) == 1
    assert "REFUSED: model.pt: is not the file that its card model.json describes" in capsys.readouterr().out


def test_safetensors_are_verified_too(tmp_path):
    write_ours({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert not verify(tmp_path / "model.safetensors").refused
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 32)
    assert any("cannot be read as weights" in line for line in lines(tmp_path / "model.safetensors"))


def test_large_files_need_an_address_a_hash_and_a_place_inside(tmp_path):
    folder = good_bundle(tmp_path / "bundle")
    path = folder / "models" / "model.pt"
    good = {"path": "models/model.pt", "url": "https://example.org/x", "hash_val": sha256(path), "hash_type": "sha256"}
    wrong = {
        "is not that file": {"hash_val": "0" * 64},
        "which is no https address": {"url": "file:///etc/passwd"},
        r"has no SHA-256 that the download could be compared with \(md5\)": {"hash_type": "md5", "hash_val": "0" * 32},
        "is not here; fetch it": {"path": "models/more.pt"},
    }
    for change in ({}, *wrong.values()):
        (folder / "large_files.yml").write_text(json.dumps({"large_files": [good | change]}))
        found = [line for line in lines(folder) if "large_files.yml" in line]
        assert len(found) == (1 if change else 0), found
        if change:
            assert any(text.replace("\\", "") in found[0] for text, c in wrong.items() if c is change), found
            assert found[0].startswith("unknown" if "path" in change else "REFUSED")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["verify"], 2, "path"),
        (["verify", "nowhere"], 1, "nowhere: no such bundle; give its folder, a packed bundle"),
        (["verify", "empty"], 1, "empty: no configs in it; give a bundle's folder"),
        (["verify", "text.zip"], 1, "text.zip: no folder, and no zip that can be read"),
        (["verify", "bundle", "--signature", "text.zip"], 1, "--signature and --public-key go together"),
        (["sign", "bundle", "--key", "text.zip"], 2, "output"),
    ],
)
def test_wrong_usage(arguments, status, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good_bundle(tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert said in printed.err + printed.out


def test_names_of_enemies_do_nothing_but_be_read(tmp_path):
    folder = good_bundle(tmp_path / "bundle")
    (folder / "docs" / "\x1b[31mred\n.md").write_text("x")
    configured(folder, **{"\x1b[31mred": {"_target_": "os.system"}})
    text = verify(folder).text()
    assert "\x1b" not in text and r"docs/\x1b[31mred\n.md: a name with characters that are not seen" in text


# ---- what uses it


def evil(folder: Path) -> Path:
    """A bundle whose config would write a file."""
    bundle = good_bundle(folder / "bundle")
    configured(bundle, network_def={"_target_": "os.system", "command": f"touch {folder / 'canary'}"},
               run=["$@network_def"])  # fmt: skip
    shutil.copy(bundle / "configs" / "inference.json", bundle / "configs" / "train.json")
    return bundle


@pytest.mark.parametrize("use", ["export", "augment and reproduce", "convert"])
def test_no_command_evaluates_a_config_that_would_do_more(use: str, tmp_path: Path) -> None:
    bundle = evil(tmp_path)
    with pytest.raises(InputError, match=r"is not run(.|\n)*network_def#_target_: the target 'os\.system'"):
        if use == "export":
            load_network(bundle)
        elif use == "convert":
            convert_file_to_monai(bundle / "models" / "model.pt", tmp_path / "out.pt", bundle=bundle)
        else:
            run_inference(bundle)
    assert not (tmp_path / "canary").exists()


def test_an_augmentation_looks_at_its_weights_before_any_work(tmp_path):
    bundle = good_bundle(tmp_path / "bundle")
    assert weights_of(bundle) == bundle / "models" / "model.pt"
    path = bundle / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1])
    for given in (None, path):
        with pytest.raises(InputError, match=r"model\.pt: is not the file that its card model\.json describes"):
            weights_of(bundle, given)


def test_the_check_of_bundles_runs_nothing_that_is_refused(tmp_path, capsys):
    bundle = evil(tmp_path)
    found = verify_bundle(bundle)
    assert any("bundle: trust: configs/inference.json: network_def#_target_" in line for line in found)
    printed = capsys.readouterr().out
    assert set(RUNNING) - CHECKS.keys() == {"fresh", "zoo"}
    made = [name for name in RUNNING if name in CHECKS]
    assert all(f"{name:14} not made, as it would run what 'trust' refuses" in printed for name in made)
    assert next(iter(CHECKS)) == "trust" and not (tmp_path / "canary").exists()


def test_weights_of_a_bundle_beside_are_named_in_a_folder_and_refused_in_a_zip(tmp_path):
    folder = configured(good_bundle(tmp_path / "bundle"), judge="$@bundle_root + '/../la_unet/models/judge_1.pt'")
    assert not verify(folder).refused
    assert any("judge: the path" in line and "leads out of the bundle" in line for line in lines(packed(folder)))
