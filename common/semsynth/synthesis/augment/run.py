"""From labelled scans to a training set: maps, morphs, volumes, gate, files."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...data.hidden import Hidden
from ...distributed import leave, local_device, rank, start, stop, together, world_size
from ...errors import InputError
from ...evaluation.sources import load_real
from ...files import remove_left_over, sha256
from ...json_files import read_object_or_none
from ...limits import check_jobs
from ...locks import locked
from ...ownership import Outputs, object_with
from ...paths import as_path
from ...prepare.atrium import Settings as AtriumSettings
from ...prepare.atrium import prepare
from ...prepare.like import settings_like
from ...prepare.pseudonymise import pseudonymise
from ...provenance.audits import given_audit, passed
from ...report.pictures import check_picture
from ..gate import Gate, GateOptions, Thresholds
from ..workflow import inference_config, is_own, weights_of
from .estimate import estimate
from .generator import MapGenerator
from .maps import MAPS, Maps
from .plan import FORMATS, STYLES, AugmentSettings, Prepared, check_draws, draws_of, is_prepared
from .rounds import Made, Rounds
from .sets import MAKER, NNUNET, check_folders, items_of, listing, segmenter_labels, write_datalist, write_folders
from .sheet import SHEET, save_sheet

logger = logging.getLogger(__name__)
SUMMARY, RECORDS, BEGUN = "augment.json", "records", "begun.json"
HIDDEN, HIDDEN_STYLES = "cases", "style_scans"
"""Folders of copies of the input under pseudonyms."""
DRAWN_BY = "map_weights_sha256"
HOURS = 240.0
"""That a process waits for the others."""


NO_GATE = GateOptions()


@dataclass(frozen=True)
class Summary:
    """What an augmentation made.

    Attributes:
        wanted: so many volumes.
        taken: so many are in the training set.
        refused: so many were refused, those drawn again too.
        thresholds: thresholds of the gate; None without one.
        files: files that were written, by format.
    """

    wanted: int
    taken: int
    refused: int
    thresholds: Thresholds | None
    files: Mapping[str, Path]

    def text(self) -> str:
        """The summary in words."""
        lines = [f"{self.taken} of {self.wanted} volumes are in the training set"]
        if self.thresholds is not None:
            lines.append(f"the gate refused {self.refused} of {self.taken + self.refused} that were made")
        if not self.taken:
            lines.append("no volume shows what its map says: look at the pictures, and at the voxel size of the maps")
        lines += [f"{name}: {path}" for name, path in self.files.items()]
        if "nnunet" in self.files:
            lines.append(
                f"copy {self.files['nnunet'] / 'splits_final.json'} into the folder of {NNUNET.name} in nnU-Net's "
                "preprocessed data before you train: its own folds would mix patients"
            )
        return "\n".join(lines)


def augment(
    source: str | Path,
    bundle: str | Path,
    output: str | Path,
    settings: AugmentSettings,
    *,
    gate: GateOptions = NO_GATE,
    formats: Sequence[str] = ("datalist",),
    labels: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    jobs: int = 1,
    dry_run: bool = False,
    wait: bool = False,
    inference: Mapping[str, Any] | None = None,
    map_bundle: str | Path | None = None,
    map_weights: str | Path | None = None,
    map_inference: Mapping[str, Any] | None = None,
    pseudonyms: str | Path | None = None,
    anonymous_names: bool = False,
    audit: str | Path | None = None,
    despite_audit: bool = False,
    show: bool = False,
) -> Summary | str:
    """Make a training set; see ``semsynth augment --help``.

    Args:
        source, bundle, output, settings, gate, formats, labels, device, jobs, dry_run, wait: as its options.
        inference: settings of the bundle's ``inference.json`` in place of its own, such as ``weights`` and ``steps``.
        map_bundle, map_weights, map_inference: as its options.
        pseudonyms, anonymous_names, audit, despite_audit: as its options.
        show: say in the log what was, or would be, made.

    Returns:
        What was made; with ``dry_run`` what would be, in words; in processes of torchrun but the first nothing.

    Raises:
        InputError: for whatever is wrong with the input, in all processes.
    """
    bundle, output = _place(bundle, "bundle"), _place(output, "output")
    hidden = Hidden.of(pseudonyms, anonymous_names, output)
    device = None if device is None else str(device)
    formats = formats.split(",") if isinstance(formats, str) else formats
    labels = labels.split(",") if isinstance(labels, str) else labels
    own = dict(inference or {}) | ({} if device is None else {"device": f"$torch.device({device!r})"})
    if own.get("weights") is not None:
        own["weights"] = str(_place(own["weights"], "weights"))
    weights = weights_of(bundle, own.get("weights"))
    if not is_own(bundle, weights) and not is_prepared(source):
        raise InputError(
            f"--input {source}: raw cases are prepared as the bundle's own weights need it, which may not be what "
            f"{weights.name} needs; prepare them as its training data was (semsynth prepare --like DATA), and give that"
        )
    drawer = _drawer(settings, map_bundle, map_weights, map_inference)
    given_audit(audit, despite=despite_audit)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(f"--format must be of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")
    check_jobs(jobs)
    if world_size() > 1:
        local_device()
        start(backend="gloo", hours=HOURS)
    try:
        with locked(output, "semsynth augment", wait=wait, shared=True):
            if hidden is not None:
                source, settings = _hidden(source, output, settings, hidden)
            prepared = _prepared(source, bundle, output, jobs)
            job = together(lambda: _Job.of(prepared, bundle, output, settings, gate, formats, labels, device,
                                            own | {"weights": str(weights)}, drawer))  # fmt: skip
            assert job is not None
            job = replace(job, audit=None if audit is None else as_path(audit, "--audit"), despite=despite_audit)
            found = job.run(dry_run=dry_run)
    except BaseException:
        leave()
        raise
    stop()
    if show and rank() == 0:
        logger.info("%s", found if isinstance(found, str) else found.text())
    return found


def _drawer(
    settings: AugmentSettings,
    map_bundle: str | Path | None,
    map_weights: str | Path | None,
    map_inference: Mapping[str, Any] | None,
) -> tuple[Path, Path | None, Mapping[str, Any]] | None:
    """The bundle that draws label maps, its weights and its settings; None where no map is generated."""
    if (map_bundle is None) != (settings.generate == 0):
        raise InputError(
            "--map-bundle and generated maps go together: give --maps generated (in a config generate) and the bundle, "
            "or neither"
        )
    if map_bundle is None and (map_weights is not None or map_inference):
        told = "--map-inference" if map_weights is None else "--map-weights"
        raise InputError(f"{told} goes with --map-bundle, the bundle that it is of")
    own_weights = None if map_weights is None else _place(map_weights, "map-weights")
    return None if map_bundle is None else (_place(map_bundle, "map-bundle"), own_weights, map_inference or {})


def _place(path: str | Path, option: str) -> Path:
    """An absolute path that MONAI's configs take as it is."""
    found = as_path(path, f"--{option}").absolute()
    if "#" in str(found) or "::" in str(found):
        raise InputError(
            f"--{option} {found}: MONAI's configs turn '#' into '::', and look for another folder; give a path with "
            "neither of them"
        )
    return found


def _hidden(
    source: str | Path, output: Path, settings: AugmentSettings, hidden: Hidden
) -> tuple[Path, AugmentSettings]:
    """The input under pseudonyms, and the scans whose styles are taken: all that follows knows no other names."""
    together(lambda: pseudonymise(source, output / HIDDEN, hidden), first=True)
    if settings.style not in STYLES:
        style = settings.style
        together(lambda: pseudonymise(style, output / HIDDEN_STYLES, hidden), first=True)
        settings = replace(settings, style=str(output / HIDDEN_STYLES))
    return output / HIDDEN, settings


def _prepared(source: str | Path, bundle: Path, output: Path, jobs: int) -> Prepared:
    """The prepared cases; raw ones are prepared first, as the data of the bundle's weights was."""
    if not is_prepared(source):
        folder = output / "prepared"
        together(lambda: prepare(source, folder, settings_like(AtriumSettings, bundle, ()), jobs=jobs), first=True)
        source = folder
    found = together(lambda: Prepared.read(source))
    assert found is not None
    return found


@dataclass
class _Job:
    """All that was checked before the work."""

    rounds: Rounds
    gate: Gate | None
    options: GateOptions
    formats: Sequence[str]
    labels: Mapping[str, int]
    audit: Path | None = None
    despite: bool = False

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        bundle: Path,
        output: Path,
        settings: AugmentSettings,
        options: GateOptions,
        formats: Sequence[str],
        labels: Sequence[str] | None,
        device: str | None,
        own: Mapping[str, Any],
        drawer: tuple[Path, str | Path | None, Mapping[str, Any]] | None = None,
    ) -> _Job:
        """Check everything, before any work."""
        wanted = segmenter_labels(prepared.classes, labels)
        generator = None
        if drawer is not None:
            size = dict(prepared.content.get("settings") or {}).get("spacing")
            generator = MapGenerator.of(*drawer[:2], prepared.classes, spacing=size, device=device, inference=drawer[2])
        maps = Maps(prepared, settings, output, _styles(bundle, settings), generator)
        draws = draws_of(list(prepared.cases), settings)
        check_draws(draws, prepared)
        for files in (listing(output), _summaries(output), _begun(output)):
            files.check()
        check_picture(output / SHEET)
        check_folders(prepared, draws, output, formats)
        if rank() == 0:
            for folder in (output / MAPS, output / RECORDS, output / NNUNET, output / "decathlon"):
                remove_left_over(folder)
            _refuse_other_settings(maps, str(own["weights"]), output)
        gate = _gate(options, prepared, output, device)
        rounds = Rounds(bundle, maps, settings, output, own=own, tries=options.tries)
        return cls(rounds, gate, options, formats, wanted)

    def run(self, *, dry_run: bool) -> Summary | str:
        """Make what is missing, and write the training set."""
        rounds, maps = self.rounds, self.rounds.maps
        draws = draws_of(list(maps.entries), rounds.settings)
        said = together(lambda: estimate(draws, rounds, self.formats), first=True)
        if dry_run:
            return said or ""
        together(lambda: self._begin(said or ""), first=True)
        maps.make(draws)
        if self.gate is not None:
            rounds.gate, rounds.thresholds = self.gate, self.options.thresholds(self.gate)
        made = rounds.run(draws)
        return together(lambda: self._write(made), first=True) or ""

    def _begin(self, said: str) -> None:
        """Say what will be made, and note with which settings."""
        logger.info("%s", said)
        before = read_object_or_none(self.rounds.folder / BEGUN) or {}
        kept = {DRAWN_BY: before[DRAWN_BY]} if DRAWN_BY in before else {}
        text = json.dumps(kept | _settings(self.rounds.maps, self.rounds.weights), indent=1)
        _begun(self.rounds.folder).write_text(BEGUN, text)

    def _write(self, made: Sequence[Made]) -> Summary:
        """Records, pictures, training sets, and what was made."""
        rounds, output, prepared = self.rounds, self.rounds.folder, self.rounds.maps.prepared
        records = Outputs(output / RECORDS, MAKER, {})
        for one in made:
            records.write_text(_record_name(one), _record(one, rounds))
        records.remove_others([_record_name(one) for one in made])
        taken = [one for one in made if not one.refused]
        files = {"pictures": save_sheet(made, output / SHEET, seed=rounds.settings.seed)}
        files["datalist"] = write_datalist(prepared, taken, output, rounds.maps)
        audited = passed(self.audit, [one.image for one in taken], despite=self.despite)  # the list is what is audited
        files |= write_folders(
            items_of(prepared, taken, rounds.maps), self.labels, output, self.formats, rounds.settings.seed
        )
        names = {one.draw.name for one in made}
        about = {
            "augmented_by": f"semsynth {__version__}",
            "settings": _without_paths(rounds.settings),
            "weights_sha256": sha256(rounds.weights),
            "thresholds": None if rounds.thresholds is None else asdict(rounds.thresholds),
            "made": len(made),
            "taken": len(taken),
            "refused": dict(Counter(one.refused.split()[0] for one in made if one.refused)),
            "left_out": sorted(names - {one.draw.name for one in taken}),
            "audit": audited,
            "judge_knows_patient": [] if self.gate is None else sorted(n for n, saw in self.gate.saw.items() if saw),
        }
        _summaries(output).write_text(SUMMARY, json.dumps(about, indent=1))
        return Summary(len(names), len(taken), len(made) - len(taken), rounds.thresholds, files)


def _without_paths(settings: AugmentSettings) -> dict[str, Any]:
    """The settings as they are written: of files only what they are, since paths may name patients."""
    rules = None if settings.rules is None else Path(settings.rules).name
    return asdict(settings) | {"rules": rules, "style": settings.style if settings.style in STYLES else "other scans"}


def _summaries(output: Path) -> Outputs:
    return Outputs(output, MAKER, {SUMMARY: object_with("augmented_by")})


def _begun(output: Path) -> Outputs:
    return Outputs(output, MAKER, {BEGUN: object_with("begun_with")})


def _settings(maps: Maps, weights: str) -> dict[str, Any]:
    """What all volumes of a folder have in common; how many there are may change."""
    styles = maps.styles
    return {
        "begun_with": f"semsynth {__version__}",
        "seed": maps.settings.seed,
        "style": maps.settings.style if styles is None else sorted(map(str, styles.people)),
        "resample": maps.settings.resample,
        "rules": json.loads(json.dumps(asdict(maps.transform.rules))),
        "weights_sha256": sha256(weights),
        **({} if maps.generator is None else {DRAWN_BY: maps.generator.sha256}),
    }


def _refuse_other_settings(maps: Maps, weights: str, output: Path) -> None:
    """Raise where what stands in the folder was begun with other settings, naming them."""
    begun, own = read_object_or_none(output / BEGUN), _settings(maps, weights)
    # a folder may be begun without generated maps
    told = (
        [] if begun is None else [name for name in own if name != "begun_with" and (name in begun or name != DRAWN_BY)]
    )
    differ = [name for name in told if begun is not None and begun.get(name) != own[name]]
    if differ:
        raise InputError(
            f"{output}: was begun with another {' and '.join(differ)}; give the same as before, or another --output"
        )


def _styles(bundle: Path, settings: AugmentSettings) -> Prepared | None:
    """The scans whose styles are taken; None where it is the cases' own, or the network draws them."""
    config = inference_config(bundle)
    if settings.style != "drawn" and "style_from" not in config:
        raise InputError(f"--style {settings.style}: this bundle's network has no styles; leave --style out")
    if settings.style in STYLES:
        return None
    needs = ("image", "label") if "style_map" in config else ("image",)
    return Prepared.read(settings.style, option="style", needs=needs)


def _gate(options: GateOptions, prepared: Prepared, output: Path, device: str | None) -> Gate | None:
    if options.judge is None:
        return None
    real = load_real(prepared.path)
    cases = {name: replace(real[name], patient=prepared.people[name]) for name in prepared.cases}
    gate = Gate(cases, prepared.classes, options.judge, options.second, store=output / "measured",
                device=str(local_device()) if device is None else device)  # fmt: skip
    gate.check(learns=options.min_dice is None)
    return gate


def _record_name(one: Made) -> str:
    return f"{one.draw.name}.{one.attempt}.json"


def _record(one: Made, rounds: Rounds) -> str:
    """All that a volume came from."""
    gate: dict[str, Any] = {}
    if rounds.gate is not None and rounds.thresholds is not None:
        figures = {name: value if math.isfinite(value) else None for name, value in one.figures.items()}
        gate = {"gate": {**figures, "refused": one.refused, **rounds.gate.judged_by(one.draw.case),
                         "thresholds": asdict(rounds.thresholds)}}  # fmt: skip
    known = rounds.maps.record(one.draw) or {}
    drawn = {"map": known} if one.draw.generated else {}
    content = {**one.record(), "attempt": one.attempt, "morph": known.get("morph"), **drawn, **gate}
    return json.dumps(content, indent=1)
