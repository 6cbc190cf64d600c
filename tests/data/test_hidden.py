"""Pseudonyms: stable, told from each other, kept in a file of their own."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from semsynth.data.hidden import KNOWN_AS, Hidden, Person, under_pseudonyms
from semsynth.errors import InputError

PEOPLE = [Person("P1", "anna", "aa" * 32), Person("P2", "anna", "bb" * 32), Person("P3", None, "cc" * 32)]


def test_without_the_options_nothing_is_hidden(tmp_path):
    assert Hidden.of(None, False, tmp_path) is None


def test_the_same_case_has_the_same_pseudonym_whatever_is_added(tmp_path):
    key = tmp_path / "keys" / "key.json"
    first = Hidden.of(key, False, tmp_path / "out").names(PEOPLE[:2])
    later = Hidden.of(str(key), False, tmp_path / "other").names(PEOPLE[::-1])
    assert {name: later.cases[name] for name in first.cases} == first.cases
    assert first.patients == later.patients and len(first.patients) == 1
    assert len(set(later.cases.values())) == 3
    assert all(re.fullmatch("case_[0-9a-f]{12}", new) for new in later.cases.values())
    assert sorted(path.name for path in key.parent.iterdir()) == ["key.json"]


def test_pseudonyms_follow_from_nothing_in_the_names(tmp_path):
    one, other = (Hidden.of(tmp_path / f"{i}.json", False).names(PEOPLE) for i in (1, 2))
    assert not set(one.cases.values()) & set(other.cases.values())
    assert not set(one.patients.values()) & set(other.patients.values())


def test_the_key_is_for_its_owner_alone(tmp_path):
    key = tmp_path / "key.json"
    before = os.umask(0)
    try:
        Hidden.of(key, False).names(PEOPLE[:1])
        key.chmod(0o644)  # by mistake
        Hidden.of(key, False).names(PEOPLE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize("inside", ["key.json", "deep/key.json", "link/key.json"])
def test_a_key_among_what_leaves_is_refused(tmp_path, inside):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match=r"key\.json: lies in .*out, which is to be given away"):
        Hidden.of(out / inside, False, tmp_path / "other", out)
    assert not list(out.rglob("*.json"))


def test_both_options_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        Hidden.of(tmp_path / "key.json", True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"), ("[]", "needs to be a JSON object"), ('{"cases": {}}', "under 'patients'"),
        ('{"cases": {"P1": 1}, "patients": {}}', "under 'cases'"),
        ('{"cases": {"P1": "a", "P2": "a"}, "patients": {}}', "a stands for two names"),
        ('{"cases": {"P1": "P2", "P2": "b"}, "patients": {}}', "P2 is a pseudonym and also a name"),
        ('{"cases": {"P1": "a/b"}, "patients": {}}', "leads to another folder"),
    ],
)  # fmt: skip
def test_what_is_no_key_file_is_refused_and_stays(tmp_path, content, message):
    key = tmp_path / "key.json"
    key.write_text(content)
    with pytest.raises(InputError, match=message):
        Hidden.of(key, False)
    assert key.read_text() == content


def test_pseudonyms_of_ones_own_are_taken(tmp_path):
    key = tmp_path / "key.json"
    key.write_text('{"cases": {"P1": "site1_001"}, "patients": {}}')
    names = Hidden.of(key, False).names(PEOPLE)
    assert names.cases["P1"] == "site1_001" and names.case("unknown") == "unknown"


def test_a_new_case_that_is_called_like_a_pseudonym_is_refused(tmp_path):
    key = tmp_path / "key.json"
    key.write_text('{"cases": {"P1": "P2"}, "patients": {}}')
    with pytest.raises(InputError, match="P2 is a pseudonym and also a name"):
        Hidden.of(key, False).names(PEOPLE)
    assert json.loads(key.read_text())["cases"] == {"P1": "P2"}


def test_data_that_have_pseudonyms_keep_them(tmp_path):
    key = tmp_path / "key.json"
    first = Hidden.of(key, False).names(PEOPLE)
    before = key.read_text()
    again = [Person(first.cases[p.name], p.patient and first.patients[p.patient]) for p in PEOPLE]
    second = Hidden.of(key, False).names(again)
    assert key.read_text() == before and set(second.cases.values()) == set(first.cases.values())
    assert {second.patient(new) for new in first.patients.values()} == set(first.patients.values())


def test_runs_at_the_same_time_lose_no_pseudonym(tmp_path):
    key = tmp_path / "key.json"
    told = [[Person(f"P{i}"), Person(f"P{i + 1}")] for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda people: Hidden.of(key, False).names(people).cases, told))
    kept = json.loads(key.read_text())["cases"]
    assert len(kept) == 9
    assert all(kept[name] == new for names in found for name, new in names.items())


def test_without_a_key_file_names_follow_from_the_voxels(tmp_path):
    names = Hidden.of(None, True).names(PEOPLE)
    again = Hidden.of(None, True).names([Person("other name", None, PEOPLE[0].voxels)])
    assert again.cases["other name"] == names.cases["P1"] != names.cases["P2"]
    assert list(names.patients) == ["anna"]
    with pytest.raises(InputError, match="P1 and P4 have the same label map"):
        Hidden.of(None, True).names([*PEOPLE, Person("P4", None, PEOPLE[0].voxels)])
    with pytest.raises(InputError, match=r"voxels are not known: P5; give --pseudonyms"):
        Hidden.of(None, True).names([Person("P5")])


def test_entries_keep_their_files_and_what_they_are_known_as(tmp_path):
    entries = [
        {"case": "P1", "image": "/data/P1/label.nii.gz", "patient": "anna"},
        {"case": "P2_a0", "source_case": "P2", "sample": 3, "image": "/data/P2.nii.gz", "patient": "anna"},
    ]
    found = under_pseudonyms(entries, Hidden.of(tmp_path / "key.json", False))
    assert [entry["case"] for entry in found] == sorted(entry["case"] for entry in found)  # not the names' order
    first, second = sorted(found, key=lambda entry: str(entry[KNOWN_AS]))
    assert first["image"] == "/data/P1/label.nii.gz" and first[KNOWN_AS] == "P1" and second[KNOWN_AS] == "P2"
    assert first["patient"] == second["patient"] != "anna"
    assert second["case"] == f"{second['source_case']}_3" and second["source_case"] != first["case"]
    assert entries[0]["case"] == "P1"


def test_a_killed_run_leaves_the_key_whole(tmp_path):
    """The process ends while it writes: what stood there stands there."""
    key = tmp_path / "key.json"
    Hidden.of(key, False).names(PEOPLE[:1])
    before = key.read_text()
    code = (
        "import os, semsynth.data.hidden as h\n"
        "from pathlib import Path\n"
        "Path.replace = lambda *a: os._exit(9)\n"
        f"h.Hidden.of({str(key)!r}, False).names([h.Person('P9')])\n"
    )
    common = str(Path(__file__).resolve().parents[2] / "common")
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": common}, check=False)
    assert ended.returncode == 9 and key.read_text() == before
    assert "P9" in Hidden.of(key, False).names([Person("P9")]).cases
