"""Segmentations on disk, on the scan's own grid."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys

from .. import __version__
from ..data.classes import read_metadata
from ..data.grids import same_affine
from ..data.hidden import KNOWN_AS
from ..data.kept import state_of
from ..data.label_files import LabelFormat, check_format, write_label_tables, write_labels
from ..data.nesting import refuse_among
from ..data.volumes import read_volume
from ..data.voxels import voxel_hash
from ..errors import InputError
from ..files import atomic_path, relative_to, sha256, shown_name, write_text
from ..json_files import read_object_or_none
from ..locks import locked
from ..ownership import object_with, refuse
from ..paths import as_path
from .finite import refuse_not_finite

logger = logging.getLogger(__name__)
WRITTEN = "sha256"
"""Key of a record: SHA-256 of the segmentation's file as it was written."""
_IS_RECORD = object_with("bundle", "case", "weights_sha256")


class SegmentationWriter:
    """Attached to an inference engine: writes ``<output_dir>/<case>_seg.nii.gz`` (or ``.seg.nrrd``) for each case.

    Each file has the shape and affine of the image that was given, and a JSON beside it with what made it (bundle,
    version, SHA-256 of the weights), the hash of the image's voxels, the file's SHA-256 and each class's volume in ml.
    Each file is written whole or not at all, never over that of another image, and, unless ``overwrite``, never over
    one of other weights or one that somebody has corrected. One run at a time holds the folder. Beside NIfTI, which
    cannot name classes, stand tables of their names and colours (see
    :func:`semsynth.data.label_files.write_label_tables`).

    Args:
        output_dir: folder of the results.
        metadata: the bundle's ``metadata.json``.
        weights: the file that the network's weights came from.
        class_names: class index, as text → name, for the volumes; classes that it does not name are called by number.
        label_format: ``nifti``, or ``seg.nrrd`` for segments with names and colours as 3D Slicer has them.
        overwrite: replace segmentations of other weights, and ones that were changed since.
        wait: wait until another run that writes into ``output_dir`` has ended; without it such a run is an error.

    Raises:
        InputError: for another format; (at the start) when the weights are not there, when another run writes into the
            folder, or for files that would be replaced and are not to be, such as a segmentation that was corrected by
            hand; (per case) when a result is not on its image's grid, when the network's output is not finite, or when
            the folder holds the segmentation of another image under the same name.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        metadata: str | Path,
        weights: str | Path,
        class_names: Mapping[str, str] | None = None,
        label_format: LabelFormat = "nifti",
        overwrite: bool = False,
        wait: bool = False,
    ) -> None:
        check_format(label_format)
        self.overwrite, self.wait, self.held = overwrite, wait, ExitStack()
        self.label_format = label_format
        self.output_dir, self.weights = as_path(output_dir, "output_dir"), as_path(weights, "weights")
        self.metadata = Path(metadata)
        self.names = {int(index): name for index, name in (class_names or {}).items()}

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator with class indices ``(1, H, W, D)`` in its decollated output's ``pred``."""
        engine.add_event_handler(Events.STARTED, self._start)
        refuse_not_finite(engine, self.weights)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.held.close())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        self.held.close()
        raise error

    def _start(self, engine: Engine) -> None:
        if not self.weights.is_file():
            raise InputError(f"{self.weights}: no such file; train the bundle first or set 'weights' to a trained file")
        self.held.enter_context(locked(self.output_dir, "an inference", wait=self.wait))
        dataset = getattr(getattr(engine.state, "dataloader", None), "dataset", None)
        entries = getattr(dataset, "data", None) or []
        listed = [entry for entry in entries if isinstance(entry, Mapping)]
        refuse_among(self.output_dir, [str(entry[Keys.IMAGE]) for entry in listed], option="output_dir")
        about = read_metadata(self.metadata)
        self.origin = {
            "bundle": about.get("bundle", self.metadata.parent.parent.name),
            "version": str(about.get("version", "unknown")),
            "semsynth": __version__,
            "weights": self.weights.name,
            "weights_sha256": sha256(self.weights),
        }
        self._refuse_replacing([str(entry["case"]) for entry in listed])
        if self.label_format == "nifti" and self.names:
            write_label_tables(self.output_dir, self.names)

    def _write(self, engine: Engine) -> None:
        batch: Any = engine.state.batch  # decollated by MONAI's engine together with the output
        output: Any = engine.state.output
        for entry, item in zip(batch, output, strict=True):
            case = entry["case"]
            image = Path(str(item[Keys.IMAGE].meta["filename_or_obj"]))
            source = read_volume(image)
            label = item[Keys.PRED].detach().cpu().numpy()[0].astype(np.uint8)
            affine = np.asarray(item[Keys.PRED].affine.cpu().numpy(), dtype=np.float64)
            if label.shape != source.data.shape or not same_affine(affine, source.affine, label.shape):
                raise InputError(
                    f"case {case}: the result has shape {label.shape}, {image} has {source.data.shape}: it is not on "
                    "the image's grid; check that postprocessing inverts the preprocessing"
                )
            voxels = voxel_hash(source.data)
            self._refuse_other_image(case, image, voxels)
            self._refuse_replacing([case])
            voxel_ml = abs(float(np.linalg.det(source.affine[:3, :3]))) / 1000
            counts = np.bincount(label.ravel(), minlength=max(self.names, default=0) + 1)
            volumes = {
                self.names.get(i, f"class {i}"): round(float(n) * voxel_ml, 2) for i, n in enumerate(counts) if i > 0
            }
            path = self._file(case)
            with atomic_path(path) as temporary:
                stem = temporary.with_name(temporary.name.removesuffix(self._suffix))
                write_labels(stem, label, source.affine, self.names, self.label_format)
                about = {
                    "case": case,
                    "file": path.name,
                    WRITTEN: sha256(temporary),
                }
                if KNOWN_AS not in entry:  # under a pseudonym no name of a file of the scan is written
                    about |= {"image": shown_name(image), "image_from": relative_to(image, self.output_dir)}
                record = self.origin | about | {"image_voxels": voxels, "volume_ml": volumes}
                write_text(path.with_name(f"{case}_seg.json"), json.dumps(record, indent=1))
            logger.info("%s: %s ml", path, ", ".join(f"{name} {value:g}" for name, value in volumes.items()))

    @property
    def _suffix(self) -> str:
        return ".nii.gz" if self.label_format == "nifti" else ".seg.nrrd"

    def _file(self, case: str) -> Path:
        return self.output_dir / f"{case}_seg{self._suffix}"

    def _refuse_replacing(self, cases: Sequence[str]) -> None:
        """A segmentation is ours if a record of ours stands beside it, and has its hash where it has one."""
        reasons = []
        for case in cases:
            file, described = self._file(case), self.output_dir / f"{case}_seg.json"
            record = read_object_or_none(described) if _IS_RECORD(described) else None
            if os.path.lexists(described) and record is None:
                reasons.append(f"{described}: is no record of a segmentation")
            elif os.path.lexists(file) and record is None:
                reasons.append(f"{file}: has no record of what made it beside it")
            elif record is None or self.overwrite or not file.is_file():
                continue
            elif record.get("file", file.name) != file.name:
                reasons.append(f"{file}: is not the file that {described.name} describes; --overwrite True replaces it")
            elif record["weights_sha256"] != self.origin["weights_sha256"]:
                reasons.append(f"{file}: was made with other weights; --overwrite True replaces it")
            elif state_of(file, record.get(WRITTEN)) == "changed":
                reasons.append(f"{file}: was changed since it was written; --overwrite True replaces it")
        refuse(reasons, "output_dir")

    def _refuse_other_image(self, case: str, image: Path, voxels: str | None) -> None:
        described = self.output_dir / f"{case}_seg.json"
        found = read_object_or_none(described) or {}
        own, other = relative_to(image, self.output_dir), found.get("image_from")
        if found.get("image_voxels", voxels) != voxels and other != own:
            file = self.output_dir / str(found.get("file", f"{case}_seg.nii.gz"))
            raise InputError(
                f"case {case}: {file} is the segmentation of {other}, not of {own}; "
                "give another output_dir, or set 'case' in the datalist"
            )
