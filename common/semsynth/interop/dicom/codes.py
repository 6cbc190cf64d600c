"""Classes of label maps as coded concepts: SNOMED CT by pydicom's dictionary, so that no code is typed here.

A class is looked up by its name, without left and right, among CID 7192 (anatomical structures), which has most of what
TotalSegmentator knows; :data:`_OTHERWISE` has what is called otherwise there. What is in neither is "Tissue".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ...data.classes import plain_name

_OTHERWISE = {
    "endo": "LeftAtrium", "left atrial cavity": "LeftAtrium", "heart atrium": "Atrium", "heart myocardium": "Heart",
    "brainstem": "BrainStem", "oesophagus": "Esophagus", "parotid": "ParotidGland", "thyroid gland": "Thyroid",
    "submandibular": "SubmandibularGland", "cord": "SpinalCord", "small bowel": "SmallIntestine",
    "urinary bladder": "Bladder", "lung upper lobe": "UpperLobeOfLung", "lung lower lobe": "LowerLobeOfLung",
    "lung middle lobe": "LobeOfLung", "atrial appendage": "LeftAuricularAppendage", "clavicula": "Clavicle",
    "brachiocephalic trunk": "InnominateArtery", "brachiocephalic vein": "InnominateVein", "vertebrae s1": "Sacrum",
    "portal vein and splenic vein": "Vein", "iliac artery": "CommonIliacArtery", "iliac vena": "CommonIliacVein",
    "gluteus maximus": "MuscleOfLowerLimb", "gluteus medius": "MuscleOfLowerLimb",
    "gluteus minimus": "MuscleOfLowerLimb", "iliopsoas": "MuscleOfLowerLimb", "autochthon": "ErectorSpinaeMuscle",
    "costal cartilages": "CostalCartilage",
}  # fmt: skip
"""A class's plain name without left and right → what pydicom calls its code, or one of what it is a part or kind of."""
_HEART = frozenset({"endo", "left atrial cavity", "left atrium", "right atrium", "left ventricle", "right ventricle"})
_HEAD_AND_NECK = frozenset({"brainstem", "right parotid", "left parotid", "larynx", "mandible"})
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


@dataclass(frozen=True)
class Coded:
    """A class in codes.

    Attributes:
        category: category of the segmented property.
        kind: the segmented property's type.
        side: left or right; None where the type says it, or where there is none.
        region: part of the body that it belongs to; None: not said.
        known: True where the codes were found; else they say "Tissue".
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None
    known: bool = True


def coded(name: str) -> Coded:
    """The codes of a class's name."""
    plain = plain_name(name)
    tissue, abnormal = codes.cid7150.Tissue, codes.cid7150.MorphologicallyAbnormalStructure
    if re.fullmatch(r"tissue( \d+)?", plain):
        return Coded(tissue, codes.cid7151.Tissue)
    if re.fullmatch(r"(la |left atrial )?wall", plain):
        return Coded(codes.cid7150.AnatomicalStructure, codes.SCT.CardiacWallStructure, region=codes.SCT.LeftAtrium)
    if plain == "scar":
        return Coded(abnormal, codes.SCT.ScarTissue, region=codes.SCT.LeftAtrium)
    if re.fullmatch(r"(ptv|ctv|gtv)[ \d]*", plain):
        return Coded(codes.cid7150.SpatialAndRelationalConcept, codes.DCM.RTTarget)
    words = plain.split()
    side = next((code for word, code in _SIDES.items() if word in words), None)
    bare = " ".join(word for word in words if word not in _SIDES)
    if bare == "kidney cyst":
        return Coded(abnormal, codes.SCT.Cyst, side, codes.SCT.Kidney)
    return _structure(plain, bare, side)


def _structure(plain: str, bare: str, side: Code | None) -> Coded:
    """An anatomical structure by its name, else by its name without left and right, else "Tissue"."""
    anatomy = codes.cid7150.AnatomicalStructure
    known = _anatomy()
    found = known.get(plain.replace(" ", ""))
    if found is not None:
        return Coded(anatomy, found)
    bare = re.sub(r"^rib \d+$", "rib", bare)
    bare = re.sub(r"^vertebrae ([clt]\d+)$", r"\1 vertebra", bare)
    if bare in _OTHERWISE:
        found = getattr(codes.cid7192, _OTHERWISE[bare])
        sided = _OTHERWISE[bare].startswith(("Left", "Right"))
        return Coded(anatomy, found, None if sided else side)
    found = known.get(bare.replace(" ", ""))
    if found is not None:
        return Coded(anatomy, found, side)
    return Coded(codes.cid7150.Tissue, codes.cid7151.Tissue, known=False)


@lru_cache(maxsize=1)
def _anatomy() -> dict[str, Code]:
    """Name of an anatomical structure in lower case, without spaces → its code."""
    return {name.lower(): getattr(codes.cid7192, name) for name in codes.cid7192.dir()}


def body_part_of(names: Iterable[str]) -> str | None:
    """The body part that a map's classes tell, as DICOM's Body Part Examined; None where they do not."""
    plain = {plain_name(name) for name in names}
    if plain & _HEART:
        return "HEART"
    return "HEADNECK" if len(plain & _HEAD_AND_NECK) > 1 else None
