"""What hypothesis draws: a command's working line, and one to four changes of its options and files."""

from __future__ import annotations

from pathlib import Path

from attack_examples import ESCAPE, EXAMPLES, Attack, OptionChange, options_of
from attack_files import (
    BYTES,
    DEEP,
    NIFTI,
    PLACES,
    VOXELS,
    WEIGHTS,
    BytesChange,
    CellChange,
    FileChange,
    JsonChange,
    NiftiChange,
    NrrdChange,
    PlaceChange,
    VoxelChange,
    WeightsChange,
)
from hypothesis import strategies as st
from semsynth.cli.main import COMMANDS

_TEXTS = [
    "", " ", "0", "-1", "3", "1000000000", "nan", "inf", "-inf", "1e308", "1e-308", "0.001", "True", "no", "None",
    "null", "[]", "{}", "()", "[1,2]", "{'a':1}", "1,2", "1,2,3", "1,2,3,4", "-1,-1,-1", "0,0,0", "nan,nan,nan",
    "0.001,0.001,0.001", "100000,100000,100000", "inf,inf", "1,0", "a,b", "a b", "a=b", "=", "a=", "../other", "..",
    ".", "/dev/null", "/proc/none", "~", "~nobody/x", "#", "out#1", "raw#1", "a::b", "*", "[", "raw/*", "**", "'",
    "\"", "'q'", "$^$", "$\\frac$", "ünï名", ESCAPE, "a\nb", "\t", "\udcff", "x" * 300, "-", "--", "(a+)+$", "(",
    "(?P<x>", "(.*)*$", "%s", "{0}", "@x", "1_000", "0x10", "٣", "dataset", "cpu", "cuda:9", "window", "min-max",
    "float32", "medicalnet_resnet34", "raw", "prepared", "made", "kept", "nrrd", "run", "bundle", "weights/judge.pt",
    "raw/datalist.json", "made/datalist.json", "classes.txt", "raw/phantom_000", "raw/phantom_000/image.nii.gz",
    "kept/cases.csv", "kept/notes.txt", "scores", "x=made", "raw/new", "raw/*/*",
]  # fmt: skip
# as many as are asked for: that is no hang
_SLOW = {("phantom", "cases"), ("evaluate", "draws"), ("augment", "per-case"), ("augment", "tries")}


@st.composite
def option_changes(draw: st.DrawFn, command: str) -> OptionChange:
    """An option of a command changed."""
    action = draw(st.sampled_from(["set"] * 8 + ["leave out", "double", "bare", "word"]))
    value = draw(st.one_of(
        st.sampled_from(_TEXTS), st.sampled_from(_TEXTS), st.integers().map(str), st.floats().map(str),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    ))  # fmt: skip
    value = f"./{value.lstrip('/')}" if value.startswith("/") and value not in _TEXTS else value
    name = draw(st.sampled_from([*options_of(command), "nonsense"]))
    if (command, name) in _SLOW:
        value = value[:2]
    return OptionChange(name, action, value)


_VALUES = st.one_of(
    st.sampled_from([
        None, True, False, 0, -1, 5, 1e300, 10**30, float("nan"), float("inf"), "", " ", "x", "../x", ".", "..",
        ".partial.c1", ESCAPE, "a\nb", "\ud800", "$^$", "$\\frac$", "x" * 300, "~", "out#1", "*.nii.gz", "raw", "0",
        "1e3", "a/b", "ünï名", "<script>", [], {}, [[]], [None], {"": None}, {"0": "a", "00": "b"}, [1, "a"], DEEP,
        "training", "image", "phantom_000", "PHANTOM_000", "phantom_000/image.nii.gz", "phantom_000/label.nii.gz",
    ]),
    st.integers(-3, 300), st.floats(), st.text(max_size=6),
)  # fmt: skip
_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 4, 5, 7, 16, 32, 128, 256, 512, 1792, 2048, 32767, 1e-30, 1e30, float("nan"),
                     float("inf"), float("-inf"), 0.5, 352, 1e6]),
    st.integers(-32768, 32767), st.floats(width=32),
)  # fmt: skip

_NRRD_VALUES = [
    "(1,0,0) (0,1,0) (0,0,0)", "none none none", "(nan,0,0) (0,1,0) (0,0,1)", "20 20", "double", "block", "raw", "gzip",
    "../raw/phantom_000/image.nii.gz",
]  # fmt: skip


def _encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@st.composite
def file_changes(draw: st.DrawFn, files: list[str]) -> FileChange:
    """One of the files changed, in a way of its kind or in one of any file."""
    ending = draw(st.sampled_from(sorted({file.split(".", 1)[-1] for file in files})))  # few are JSON, many are images
    file = draw(st.sampled_from([file for file in files if file.endswith(ending)]))
    changes: list[st.SearchStrategy[FileChange]] = [
        st.builds(BytesChange, st.just(file), st.sampled_from(sorted(BYTES))),
        st.builds(PlaceChange, st.just(file), st.sampled_from(PLACES), st.integers(0, 1)),
    ]
    if file.endswith(".json"):
        json_change = st.builds(
            JsonChange, st.just(file), st.integers(0, 400),
            st.sampled_from(["replace"] * 5 + ["delete", "rename", "copy", "other"]), _VALUES,
        )  # fmt: skip
        changes += [json_change] * 5
    elif file.endswith(".csv"):
        text = st.one_of(st.sampled_from(_TEXTS), _NUMBERS.map(str), st.text(max_size=6).filter(_encodable))
        changes += [st.builds(CellChange, st.just(file), st.integers(0, 60), text)] * 4
    elif file.endswith(".nii.gz"):
        field = st.sampled_from(sorted(NIFTI))
        changes += [st.builds(NiftiChange, st.just(file), field, st.integers(0, 11), _NUMBERS)] * 2
        changes += [st.builds(VoxelChange, st.just(file), st.sampled_from(sorted(VOXELS)))]
    elif file.endswith(".nrrd"):
        text = st.one_of(st.none(), st.sampled_from(_TEXTS), st.sampled_from(_NRRD_VALUES), _NUMBERS.map(str))
        changes += [st.builds(NrrdChange, st.just(file), st.integers(0, 30), text)] * 3
    elif file.endswith(".pt"):
        changes += [st.builds(WeightsChange, st.just(file), st.sampled_from(sorted(WEIGHTS)))] * 2
    return draw(st.one_of(changes))


@st.composite
def attacks(draw: st.DrawFn, inputs: Path) -> Attack:
    """A command with one to three changes of its options and files."""
    often = {"export": 1, "reproduce": 1}  # slow
    command = draw(st.sampled_from([name for name in COMMANDS for _ in range(often.get(name, 4))]))
    example = draw(st.integers(0, len(EXAMPLES[command]) - 1))
    _, folders = EXAMPLES[command][example]
    files = sorted(
        str(path.relative_to(inputs)) for folder in folders
        for path in ([inputs / folder] if (inputs / folder).is_file() else (inputs / folder).rglob("*"))
        if path.is_file() and path.suffix != ".png"
    )  # fmt: skip
    of_options = draw(st.integers(0, 2)) if files else draw(st.integers(1, 3))
    of_files = draw(st.integers(0 if of_options else 1, 2)) if files else 0
    return Attack(
        command, example, tuple(draw(option_changes(command)) for _ in range(of_options)),
        tuple(draw(file_changes(files)) for _ in range(of_files)),
    )  # fmt: skip
