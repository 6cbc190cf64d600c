"""Reading what an audit found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.provenance.audits import passed, read_audit


def _audit(folder: Path, **changes: object) -> Path:
    content = {"verdict": "no sign found", "reasons": ["none"], "volumes_sha256": ["a"], "weights_sha256": []} | changes
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


def test_an_audit_says_which_volumes_it_covers(tmp_path: Path) -> None:
    volume = tmp_path / "v.nii.gz"
    volume.write_bytes(b"volume")
    read = read_audit(_audit(tmp_path, volumes_sha256=[sha256(volume)]))
    assert read.missing([volume]) == [] and read.missing({"other": "b"}) == ["other"]
    assert read.record() == {"verdict": "no sign found", "reasons": ["none"], "audit_sha256": read.sha256}


@pytest.mark.parametrize("changes", [{"verdict": "all well"}, {"reasons": "none"}, {"volumes_sha256": [1]}])
def test_what_is_no_audit_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is no audit of synthetic volumes"):
        read_audit(_audit(tmp_path, **changes))


def test_a_missing_audit_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such audit; make it with 'semsynth audit'"):
        read_audit(tmp_path)


def test_copies_stop_an_export_unless_it_is_recorded(tmp_path: Path) -> None:
    folder = _audit(tmp_path, verdict="copies found", reasons=["V1 is a copy"])
    with pytest.raises(InputError, match="copies of training scans were found in these volumes"):
        passed(folder, {"one": "a"})
    assert passed(folder, {"one": "a"}, despite=True)["despite"] is True


def test_an_export_overrules_no_audit_that_nobody_gave() -> None:
    with pytest.raises(InputError, match=r"--despite-audit \(of bundles --despite_audit\) goes with --audit"):
        passed(None, {"one": "a"}, despite=True)


def test_an_export_needs_an_audit_of_all_its_volumes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not cover 1 of the volumes"):
        passed(_audit(tmp_path), {"one": "a", "two": "b"})
    assert passed(tmp_path, {"one": "a"}, despite=True) == read_audit(tmp_path).record()


def test_volumes_without_an_audit_are_recorded_as_such(caplog: pytest.LogCaptureFixture) -> None:
    assert passed(None, {"one": "a"}) == {"verdict": "not audited"}
    assert "were not audited" in caplog.text
