"""Reading what an audit found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.provenance.audits import read_audit


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
