"""The gate behind an inference: which of its volumes show what their label maps say, as a list to train on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.datalists import read_datalist, stated_classes
from ..data.hidden import Hidden
from ..distributed import world_size
from ..errors import InputError
from ..evaluation.sources import RealCase, load_real, under_pseudonyms
from ..files import relative_to
from ..locks import locked
from ..ownership import Outputs, object_with
from ..paths import as_path
from ..vocabulary import SPLITS
from .gate import Gate, GateOptions, Thresholds

logger = logging.getLogger(__name__)
DATALIST, REPORT, ACCEPTED = "datalist.json", "gate.json", "accepted"
MAKER = "the gate of semsynth's inference"
PATHS = ("image", "label")
NEEDED = ("case", *PATHS)
OPTIONS = ("judge_weights", "second_judge_weights")
"""As the bundles call the judges' files."""
HELD_OUT = ("validation", "testing")


@dataclass(frozen=True)
class Gated:
    """What a gate let through.

    Attributes:
        taken: entries of the accepted volumes.
        refused: volume → why it was refused.
        thresholds: values that volumes had to reach.
        datalist: the list of the accepted ones; None where there are none.
        report: the file with every volume's figures.
    """

    taken: Sequence[Mapping[str, Any]]
    refused: Mapping[str, str]
    thresholds: Thresholds
    datalist: Path | None
    report: Path

    def text(self) -> str:
        """The result in words."""
        count = len(self.taken) + len(self.refused)
        said = f"the gate refused {len(self.refused)} of {count} volumes, see {self.report}"
        return f"{said}; the others are listed in {self.datalist}" if self.datalist else said


def gate_volumes(
    volumes: str | Path,
    judge: str | Path,
    *,
    real: str | Path | None = None,
    second_judge: str | Path | None = None,
    min_dice: float | None = None,
    max_hd95: float | None = None,
    device: str | torch.device = "cpu",
    wait: bool = False,
    pseudonyms: str | Path | None = None,
    anonymous_names: bool = False,
) -> Gated:
    """Judge the volumes of a folder that an inference wrote, and list those that are faithful to their label maps.

    In the folder it writes ``gate.json`` (thresholds, and per volume Dice, HD95 in mm, who judged it, why it was
    refused) and ``accepted/datalist.json``, which a training reads (``--dataset_dir <folder>/accepted``). Volumes stay
    where they are. The same call again measures what is new alone.

    Args:
        volumes: folder of an inference, with its ``datalist.json``.
        judge: file of weights of la_unet's judge.
        real: datalist (or its folder) of the real cases that the label maps come from: it says who a patient is, and
            limits are learned from its training cases. None, or the text ``none``, as MONAI's command line leaves out
            what is None: they are unknown; then ``min_dice`` is needed.
        second_judge: file of the judge of the other half, for cases whose patients the first was trained on.
        min_dice: Dice that a volume needs; None: the 5th percentile of what real training scans reach that their judge
            did not see.
        max_hd95: HD95 in mm that a volume may have; None: the 95th percentile, or any with ``min_dice``.
        device: device of the judges.
        wait: wait until another run that writes into the folder has ended; without it such a run is an error.
        pseudonyms, anonymous_names: with which the volumes were made, so that real cases are found by them.

    Raises:
        InputError: for a folder without such a list, files that are not there, too few real cases to learn limits
            from, several processes, and files in the way that are not ours.
    """
    real = _known(real)
    check_gate(volumes, judge, real=real, second_judge=second_judge, min_dice=min_dice, max_hd95=max_hd95)
    options = GateOptions(str(judge), None if second_judge is None else str(second_judge), min_dice, max_hd95)
    folder = as_path(volumes, "output_dir")
    with locked(folder, "a gate", wait=wait):
        known = {} if real is None else load_real(as_path(real, "real_datalist"))
        hidden = Hidden.of(pseudonyms, anonymous_names, folder)
        known = known if hidden is None else under_pseudonyms(known, hidden)[0]
        return _gate(folder, None if real is None else known, options, str(device))


def check_gate(
    volumes: str | Path,
    judge: str | Path,
    *,
    real: str | Path | None = None,
    second_judge: str | Path | None = None,
    min_dice: float | None = None,
    max_hd95: float | None = None,
) -> None:
    """What can be refused before the volumes are made; arguments and errors as in :func:`gate_volumes`."""
    real = _known(real)
    if world_size() > 1:
        raise InputError(
            "the gate needs all volumes: run inference.json with torchrun, and then gate.json without it, which finds "
            "them"
        )
    GateOptions(str(judge), None if second_judge is None else str(second_judge), min_dice, max_hd95)
    for option, path in zip(OPTIONS, (judge, second_judge), strict=True):
        if path is not None and not as_path(path, option).is_file():
            raise InputError(
                f"--{option} {path}: no such file; give models/judge_1.pt and judge_2.pt of the bundle la_unet"
            )
    if real is not None and not as_path(real, "real_datalist").exists():
        raise InputError(
            f"{real}: no such file; give --dataset_dir, the data of the label maps, or --real_datalist none "
            "together with --min_dice"
        )
    if real is None and min_dice is None:
        raise InputError("--min_dice is needed where the real cases are not known: no limit can be learned")
    reports, lists = _outputs(as_path(volumes, "output_dir"))
    reports.check()
    lists.check()


def _known(real: str | Path | None) -> str | Path | None:
    return None if isinstance(real, str) and real.lower() == "none" else real


def _outputs(folder: Path) -> tuple[Outputs, Outputs]:
    """What is written into the folder, and into that of the accepted volumes."""
    known = {REPORT: object_with("gated_by")}, {DATALIST: object_with("gated_by")}
    return (Outputs(folder, MAKER, known[0], instead="output_dir"),
            Outputs(folder / ACCEPTED, MAKER, known[1], instead="output_dir"))  # fmt: skip


def _gate(folder: Path, real: Mapping[str, RealCase] | None, options: GateOptions, device: str) -> Gated:
    listed = folder / DATALIST
    if not listed.is_file():
        raise InputError(f"{listed}: no such file; make the volumes first, with configs/inference.json")
    content = read_datalist(listed)
    entries = [dict(entry) for split in SPLITS for entry in content.get(split) or []]
    others = [str(entry.get("case", i)) for i, entry in enumerate(entries) if not entry.get("synthetic")]
    if others or not entries:
        found = f"lists cases that are not synthetic: {', '.join(others[:5])}" if others else "lists no volumes"
        raise InputError(f"{listed}: {found}; give the folder of an inference")
    _refuse_incomplete(entries, listed)
    reports, lists = _outputs(folder)
    cases, teachers = _cases(entries, folder, real)
    (folder / ACCEPTED / DATALIST).unlink(missing_ok=True)  # of an earlier run, of other volumes or limits
    gate = Gate(cases, stated_classes(listed, content), str(options.judge), options.second, learns_from=teachers,
                options=OPTIONS, store=folder / "measured", device=device)  # fmt: skip
    for name in cases.keys() - teachers:
        if cases[name].image == cases[name].label and not cases[name].source and gate.saw[name] is False:
            gate.saw[name] = None  # unknown for a map without a history
    gate.check(learns=options.min_dice is None)
    thresholds = options.thresholds(gate)
    rows = [(_source(entry), folder / str(entry["image"]), folder / str(entry["label"])) for entry in entries]
    figures = gate.judge_all(rows, "judging volumes")
    refused = {
        str(entry["case"]): why
        for entry, found in zip(entries, figures, strict=True)
        if (why := thresholds.refusal(found))
    }
    judged = {
        str(entry["case"]): {
            **{name: value if math.isfinite(value) else None for name, value in found.items()},
            "refused": refused.get(str(entry["case"]), ""),
            **gate.judged_by(_source(entry)),
        }
        for entry, found in zip(entries, figures, strict=True)
    }
    taken = [entry for entry in entries if str(entry["case"]) not in refused]
    by = f"semsynth {__version__}"
    report = {"gated_by": by, "thresholds": asdict(thresholds), "volumes": len(entries), "refused": len(refused),
              "judged": judged}  # fmt: skip
    path = reports.write_text(REPORT, json.dumps(report, indent=1))
    accepted = None
    if taken:
        kept = {key: value for key, value in content.items() if key not in SPLITS}
        moved = [_moved(entry, folder, lists.folder) for entry in taken]
        accepted = lists.write_text(DATALIST, json.dumps({**kept, "gated_by": by, "training": moved}, indent=1))
    result = Gated(taken, refused, thresholds, accepted, path)
    logger.info("%s", result.text())
    return result


def _cases(
    entries: Sequence[Mapping[str, Any]], folder: Path, real: Mapping[str, RealCase] | None
) -> tuple[dict[str, RealCase], set[str]]:
    """The real cases of the label maps, and the names of those that limits are learned from."""
    known = real or {}
    wanted = {_source(entry): entry for entry in entries}
    missing = [name for name, entry in wanted.items() if name not in known or _another(entry, known[name])]
    if missing and real is not None:
        logger.warning("real_datalist: does not have %d of %d cases that volumes were made of (%s); if they have "
                       "pseudonyms, give what the volumes were made with (pseudonyms or anonymous_names)", len(missing),
                       len(wanted), ", ".join(missing[:5]))  # fmt: skip
    held = [name for name in wanted if name not in missing and known[name].split in HELD_OUT]
    if held:
        logger.warning("volumes are of maps of validation or testing cases (%s): do not train on them where these "
                       "cases validate or test", ", ".join(held[:5]))  # fmt: skip
    strangers = {name: _stranger(name, wanted[name], folder) for name in missing}
    # a pattern of files has no splits: then all may teach
    teachers = {
        name for name, case in known.items()
        if case.split not in HELD_OUT and case.label is not None and name not in missing
    }  # fmt: skip
    return {**{n: c for n, c in known.items() if n in wanted or n in teachers}, **strangers}, teachers


def _another(entry: Mapping[str, Any], case: RealCase) -> bool:
    """Whether a volume's map comes from other raw files than the real case of that name."""
    own = {f"source_{role}": value for role, value in dict(entry.get("source_voxels") or {}).items()}
    return any(case.source[role] != value for role, value in own.items() if role in case.source)


def _refuse_incomplete(entries: Sequence[Mapping[str, Any]], listed: Path) -> None:
    lacking = []
    for i, entry in enumerate(entries):
        missing = [key for key in NEEDED if not isinstance(entry.get(key), str)]
        if missing:
            lacking.append(f"{entry.get('case', f'entry {i}')}: no {', '.join(missing)}")
    if lacking:
        needed = ", ".join(NEEDED)
        raise InputError(f"{listed}: entries need the texts {needed}; give the list of an inference", lacking)


def _stranger(name: str, entry: Mapping[str, Any], folder: Path) -> RealCase:
    """A case of which there is only the volume's entry."""
    label = folder / str(entry["label"])
    source = {f"source_{role}": str(value) for role, value in dict(entry.get("source_voxels") or {}).items()}
    patient = entry.get("patient")
    return replace(RealCase(name, label, label), source=source, patient=None if patient is None else str(patient))


def _source(entry: Mapping[str, Any]) -> str:
    """The real case that a volume's label map comes from."""
    return str(entry.get("source_case", entry["case"]))


def _moved(entry: Mapping[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """An entry whose paths are from another folder."""
    paths = {key: relative_to(old / str(entry[key]), new) for key in PATHS if key in entry}
    return {**entry, **paths}
