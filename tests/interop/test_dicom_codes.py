"""Classes and body parts in codes of pydicom's dictionary."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes
from semsynth.data.totalsegmentator import CLASSES
from semsynth.interop.dicom.codes import body_part_of, coded
from semsynth.interop.dicom.settings import BODY_PARTS


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("spinal cord", "2748008", None), ("right parotid", "45289007", "Right"), ("oesophagus", "32849002", None),
        ("brainstem", "119238007", None), ("larynx", "4596009", None), ("mandible", "91609006", None),
        ("vertebrae_L3", "36470004", None), ("rib_left_7", "113197003", "Left"), ("left_ventricle", "87878005", None),
        ("atrial_appendage_left", "33626005", None), ("Kidney-Right", "64033007", "Right"), ("PTV70", "130041", None),
        ("kidney_cyst_left", "367643001", "Left"), ("scar", "12402003", None), ("tissue 12", "85756007", None),
    ],
)  # fmt: skip
def test_a_class_has_the_code_of_its_structure(name, code, side):
    found = coded(name)
    assert found.known and found.kind.value == code
    assert (found.side.meaning if found.side else None) == side


def test_all_classes_of_totalsegmentator_have_codes_and_sides():
    found = {name: coded(name) for name in CLASSES}
    assert [name for name, one in found.items() if not one.known] == []
    unsided = {"atrial_appendage_left"}  # its code says left
    for name, one in found.items():
        sided = ("left" in name or "right" in name) and name not in unsided
        assert (one.side is not None) == sided, name


def test_an_unknown_class_is_tissue_and_says_so():
    found = coded("gizmo")
    assert not found.known and found.kind == codes.cid7151.Tissue


def test_every_body_part_has_a_code():
    assert all(getattr(codes.SCT, name).value for name in BODY_PARTS.values())


@pytest.mark.parametrize(
    ("names", "part"),
    [(["endo", "wall"], "HEART"), (["brainstem", "mandible"], "HEADNECK"), (["mandible"], None), (["liver"], None)],
)
def test_classes_tell_the_body_part(names, part):
    assert body_part_of(names) == part
