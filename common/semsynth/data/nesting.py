"""Results among their own inputs: what a second run would take for data is refused at the first one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError
from ..files import split_part
from ..json_files import read_object_or_none
from ..ownership import object_with
from .patterns import is_pattern, matches_path

_IS_SYNTHETIC, _IS_SEGMENTED = object_with("weights_sha256", synthetic=True), object_with("weights_sha256", "volume_ml")


def refuse_found(output: str | Path, sources: Iterable[str | Path | None], made: Iterable[str] = ()) -> None:
    """Raise where a pattern that was given as input would find the results as well.

    Args:
        output: folder of the results.
        sources: inputs; only patterns count.
        made: paths of the results below ``output``.

    Raises:
        InputError: naming the pattern, and what it would find.
    """
    written = [Path(output), *(Path(output) / name for name in made)]
    for source in sources:
        if source is None or not is_pattern(source):
            continue
        found = next((path for path in written if matches_path(str(source), path)), None)
        if found is not None:
            raise InputError(
                f"{source}: would find {found} too, which goes to --output {output}; give an --output elsewhere, so "
                "that results are not taken for data"
            )


def refuse_among(
    output: str | Path, files: Iterable[str | Path], source: str | Path | None = None, *, option: str = "--output"
) -> None:
    """Raise where results would stand directly beside their inputs, or within one that is a folder.

    Args:
        output: folder of the results.
        files: the inputs' files; folders of DICOM series too.
        source: the folder that was given as input, where one was.
        option: name of the output's option, for the message.

    Raises:
        InputError: naming one of the inputs.
    """
    place = Path(os.path.realpath(output))
    if source is not None and not is_pattern(source) and os.path.realpath(source) == str(place):
        raise InputError(f"{output}: is the input as well; give another {option}")
    for parent, file in {Path(split_part(file)[0]).parent: file for file in files}.items():
        if os.path.realpath(parent) == str(place):
            raise InputError(f"{output}: holds {Path(file).name}, which is an input; give an {option} of its own")
    for file in files:
        given, _ = split_part(file)
        if os.path.isdir(given) and place.is_relative_to(os.path.realpath(given)):  # noqa: PTH112 - False, no error
            raise InputError(f"{output}: lies in {given}, which is an input; give an {option} elsewhere")


def refuse_results(pattern: str, files: Sequence[Path], what: str) -> None:
    """Raise where a pattern of label maps or images has found what an inference wrote.

    Args:
        pattern: pattern that was given.
        files: files that it found.
        what: "label maps", which no synthetic volume is, or "images", which no segmentation is.

    Raises:
        InputError: naming the first of them.
    """
    ending, is_result = ("_synthetic", _IS_SYNTHETIC) if what == "label maps" else ("_seg", _IS_SEGMENTED)
    for file in files:
        name = re.sub(r"(\.nii(\.gz)?|(\.seg)?\.nrrd)$", "", file.name)
        record = file.with_name(f"{name}.json")
        if name.endswith(ending) and is_result(record) and str((read_object_or_none(record) or {}).get("case")) in name:
            raise InputError(
                f"{pattern}: finds {file} too, a result of an earlier run and none of the {what}; give a pattern that "
                "leaves it out, and another output_dir"
            )
