"""Two fixed halves of the patients."""

from __future__ import annotations

import hashlib

import pytest
from semsynth.data.halves import half_of, in_half
from semsynth.errors import InputError


def test_a_patient_is_in_one_half_whoever_else_is_there():
    names = [f"patient_{i:03d}" for i in range(400)]
    halves = [half_of(name) for name in names]
    assert halves == [int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 for name in names]
    assert 160 < sum(halves) < 240, "about as many in each"


def test_scans_of_one_patient_stay_together_and_the_halves_make_up_the_whole():
    entries = [{"case": f"scan_{i}", "patient": f"patient_{i // 3}"} for i in range(60)]
    first, second = (in_half(entries, half) for half in (0, 1))
    assert sorted([*first, *second], key=entries.index) == entries and first and second
    assert not {e["patient"] for e in first} & {e["patient"] for e in second}
    assert in_half(entries, None) == entries


def test_a_synthetic_volume_is_in_the_half_of_the_case_that_it_was_made_from():
    name = next(f"case_{i}" for i in range(99) if half_of(f"case_{i}") == 1)
    entries = [{"case": "anything", "source_case": name}, {"case": name}]
    assert in_half(entries, 1) == entries


@pytest.mark.parametrize("half", [2, -1, "0", True, 0.5])
def test_another_half_is_refused(half):
    with pytest.raises(InputError, match="half must be 0, 1 or null"):
        in_half([{"case": "a"}], half)


def test_an_empty_half_is_an_error():
    name = next(f"case_{i}" for i in range(99) if half_of(f"case_{i}") == 0)
    with pytest.raises(InputError, match="none of the 1 cases is of a patient in half 1"):
        in_half([{"case": name}], 1)
