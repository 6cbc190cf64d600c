"""Command lines that work on the tiny inputs, with what is changed in them."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import dataclass

from attack_files import FileChange
from attack_inputs import JUDGE
from semsynth.cli.main import COMMANDS

ESCAPE = "\x1b[31mRED"
"""An escape code that no output may hold as it is."""

_MASKS = {"endo": "raw/*/endo.nii.gz", "wall": "raw/*/wall.nii.gz"}
_SMALL = {"output": "out", "spacing": "4,4,4"}
_NRRD = {"input": "nrrd/*/image.nrrd", "endo": "nrrd/*/seg.seg.nrrd#endo"}
_MAPS = {"input": "raw/*/image.nii.gz", "label": "raw/*/label.nii.gz", "output": "out"}
_EVALUATE = {
    "synthetic": "made", "real": "prepared", "output": "out", "draws": "20", "extractors": "la_unet_judge",
    "pictures": "1", "judge": "weights/judge.pt", "judge-classes": "1", "judge-channels": ",".join(map(str, JUDGE)),
    "judge-spacing": "4,4,4", "device": "cpu",
}  # fmt: skip
EXAMPLES: dict[str, list[tuple[dict[str, str | None], tuple[str, ...]]]] = {
    "phantom": [({**_SMALL, "cases": "3", "size": "16,16,16"}, ())],
    "check": [
        ({"input": "raw"}, ("raw",)),
        ({"input": "prepared"}, ("prepared",)),
        ({"input": "prepared", "json": None}, ("prepared",)),
        ({"input": "prepared", "bundle": "bundle"}, ("prepared", "bundle/configs", "bundle/models")),
        ({"input": "prepared", "same-patient": None, "output": "out"}, ("prepared",)),
        ({"input": "raw/*/image.nii.gz", **_MASKS}, ("raw",)),
        ({"input": "raw/*/image.nii.gz", "label": "raw/*/label.nii.gz"}, ("raw",)),
        (_NRRD, ("nrrd",)),
    ],
    "prepare": [
        ({"input": "raw", **_SMALL}, ("raw",)),
        ({"input": "raw", **_SMALL, "output": "kept", "overwrite": None}, ("raw", "kept")),
        ({"input": "raw", **_SMALL, "output": "kept"}, ("raw", "kept")),
        ({"input": "raw/*/image.nii.gz", **_MASKS, **_SMALL, "centers": "dataset"}, ("raw",)),
        ({**_NRRD, **_SMALL}, ("nrrd",)),
        ({"input": "raw", "output": "out", "like": "prepared"}, ("raw", "prepared")),
    ],
    "prepare-maps": [
        ({**_MAPS, "classes": "endo,wall,scar"}, ("raw",)),
        ({**_MAPS, "relabel": None, "classes": "endo,wall,tissue", "spacing": "4,4,4"}, ("raw",)),
        ({"input": "prepared", "output": "out", "k": "1", "classes": "classes.txt"}, ("prepared", "classes.txt")),
        ({"input": "nrrd/*/image.nrrd", "label": "nrrd/*/seg.seg.nrrd", "output": "out"}, ("nrrd",)),
    ],
    "pseudonymise": [
        ({"input": "prepared", "output": "out", "pseudonyms": "key.json"}, ("prepared",)),
        ({"input": "raw", "output": "out", "anonymous-names": None}, ("raw",)),
    ],
    "choose-k": [
        ({"input": "raw", "k-max": "2", "cases": "1", "spacing": "4,4,4", "output": "out"}, ("raw",)),
        ({"input": "raw/*/image.nii.gz", "endo": "raw/*/endo.nii.gz", "k-max": "2", "spacing": "4,4,4"}, ("raw",)),
    ],
    "evaluate": [(_EVALUATE, ("made", "prepared", "weights"))],
    "picture": [
        ({"synthetic": "made", "output": "out/p.png", "cases": "1", "planes": "axial"}, ("made",)),
        ({"synthetic": "a=made", "real": "prepared", "output": "out/p.png", "planes": "axial"}, ("made", "prepared")),
    ],
    "weights": [
        ({"checkpoint": "run", "output": "out/model.pt"}, ("run",)),
        ({"checkpoint": "weights/judge.pt", "output": "out/model.pt", "mantissa-bits": "8"}, ("weights",)),
    ],
    "convert": [
        ({"weights": "weights/spade.pt", "output": "out/c.pt"}, ("weights",)),
        ({"weights": "weights/ours.pt", "output": "out/c.pt", "to": "monai"}, ("weights",)),
        ({"weights": "weights/plain.pt", "output": "out/c.pt", "num-classes": "3", "groups": "2"}, ("weights",)),
    ],
    "export": [({"bundle": "bundle", "output": "out", "size": "16,16,16"}, ("bundle/configs", "bundle/models"))],
    "dicom": [
        (
            {
                "volume": "made/phantom_000_synthetic.nii.gz",
                "output": "out",
                "synthetic": None,
                "modality": "MR",
                "label": "prepared/phantom_000/label.nii.gz",
                "classes": "endo,wall,tissue 1",
                "body-part": "HEART",
            },
            ("made", "prepared"),
        ),
        (
            {
                "volume": "raw/phantom_000/image.nii.gz",
                "output": "out",
                "synthetic": None,
                "modality": "MR",
                "label": "none",
                "patient-id": "trial-1",
            },
            ("raw",),
        ),
    ],
    "compare": [
        (
            {"scores": "scores/table.csv", "baseline": "old=scores/raw", "patients": "scores", "output": "out"},
            ("scores",),
        ),
        ({"scores": "scores/summary.json", "baseline": "scores/raw", "draws": "1000"}, ("scores",)),
    ],
    "augment": [
        (
            {"input": "prepared", "bundle": "bundle", "output": "out", "per-case": "1", "device": "cpu"},
            ("prepared", "bundle/configs", "bundle/models"),
        ),
    ],
    "audit": [
        (
            {
                "synthetic": "audited/made",
                "train": "audited/train",
                "heldout": "audited/heldout",
                "output": "out",
                "false-positives": "0.25",
            },
            ("audited",),
        )
    ],
    "study": [({"config": "study/study.yaml", "output": "out", "dry-run": None}, ("study", "bundle/configs"))],
    "verify": [
        ({"path": "bundle"}, ("bundle/configs", "bundle/docs", "bundle/models")),
        ({"path": "weights/judge.pt"}, ("weights",)),
        (
            {"path": "bundle.zip", "signature": "keys/bundle.json", "public-key": "keys/public.pem"},
            ("keys", "bundle.zip"),
        ),
    ],
    "sign": [
        ({"path": "bundle", "key": "keys/private.pem", "output": "out/signature.json"}, ("keys", "bundle/configs"))
    ],
    "reproduce": [({"bundle": "bundle", "device": "cpu"}, ("bundle/docs", "bundle/models"))],
}
"""Command → working options (None: without a value), each with the folders that it reads."""


@dataclass(frozen=True)
class OptionChange:
    """An option given otherwise, or one more word; ``action``: set, leave out, double, bare or word."""

    name: str
    action: str
    value: str = ""

    def apply(self, words: list[str]) -> list[str]:
        """The command line's words behind the command, changed."""
        name = f"--{self.name}"
        if self.action == "word":
            return [*words, self.value]
        if self.action == "double":
            return [*words, *(word for word in words if word.split("=")[0] == name)]
        rest = [word for word in words if word.split("=")[0] != name]
        return rest + {"set": [f"{name}={self.value}"], "leave out": [], "bare": [name]}[self.action]


@dataclass(frozen=True)
class Attack:
    """A command line that works, with changed options and changed files."""

    command: str
    example: int
    options: tuple[OptionChange, ...] = ()
    files: tuple[FileChange, ...] = ()

    def arguments(self) -> list[str]:
        """The words behind ``semsynth``."""
        given, _ = EXAMPLES[self.command][self.example]
        words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in given.items()]
        for change in self.options:
            words = change.apply(words)
        return [self.command, *words]

    def __str__(self) -> str:
        line = shlex.join(["semsynth", *self.arguments()]).encode("unicode_escape").decode()
        return "\n".join([line, *(f"    with {change!r:.300}" for change in self.files)])


def options_of(command: str) -> list[str]:
    """As they are typed."""
    return [name.replace("_", "-") for name in inspect.signature(COMMANDS[command]).parameters]
