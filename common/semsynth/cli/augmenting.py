"""The command of ``semsynth`` that makes training sets; its docstring is its help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..seeds import checked_seed
from .options import FilePath, Words, given, number, usable_device, whole, words


def augment(
    *,
    input: FilePath,  # the name that users type
    bundle: FilePath,
    output: FilePath,
    weights: FilePath | None = None,
    inference: str | None = None,
    per_case: int = 4,
    morph: float = 0.5,
    maps: Words | None = None,
    map_bundle: FilePath | None = None,
    map_weights: FilePath | None = None,
    map_inference: str | None = None,
    rules: FilePath | None = None,
    style: FilePath = "drawn",
    judge: FilePath | None = None,
    second_judge: FilePath | None = None,
    min_dice: float | None = None,
    max_hd95: float | None = None,
    tries: int = 3,
    format: Words = "datalist",  # the name that users type
    labels: Words | None = None,
    resample: bool = False,
    device: str | None = None,
    jobs: int = 1,
    seed: int = 0,
    pseudonyms: FilePath | None = None,
    anonymous_names: bool = False,
    audit: FilePath | None = None,
    despite_audit: bool = False,
    dry_run: bool = False,
    wait: bool = False,
) -> str:
    """Labelled scans to a training set of real and synthetic volumes, some with an anatomy that was never scanned.

    Label maps are taken from the training cases alone; some are morphed (docs/morphing.md), or drawn from nothing
    (docs/generated_maps.md); the bundle's generator makes a volume of each; a judge refuses those that do not show what
    their map says. Before it starts, it says how many volumes it makes, how long and how much disk. An interrupted
    run goes on where it was when the same command is started again; torchrun shares the work among GPUs.

    Args:
        input: a datalist (or its folder) of prepared cases, or of raw ones with an image and a mask of the cavity,
            which are prepared first as the bundle's training data was.
        bundle: folder of the generator's bundle, for example bundles/spade_ldm.
        output: folder to write; made if it is not there.
        weights: file of weights of the generator, for prepared data; without it the bundle's models/model.pt.
        inference: further settings of the bundle's inference.json in place of its own, as a JSON object such as
            {"steps": 20}.
        per_case: volumes of each training case.
        morph: share of them that is made of morphed maps, from 0 to 1.
        maps: in place of --morph, kinds of label maps with commas: given, morphed, generated, each with =SHARE or
            without; given=1,generated=3 makes three of four volumes of maps that --map-bundle draws.
        map_bundle: folder of a bundle that draws label maps, for example bundles/la_maps; for generated maps.
        map_weights: file of its weights; without it the bundle's models/model.pt.
        map_inference: further settings of that bundle's inference.json, as a JSON object.
        rules: YAML file that says how much morphing may change; without it the built-in rules.
        style: drawn (by the network), own (that of the case's scan), or a datalist of prepared scans, of which each
            volume takes the style of one.
        judge: file of weights of la_unet's judge, models/judge_1.pt; without it nothing is refused.
        second_judge: file of the judge of the other half, models/judge_2.pt, for cases that the first was trained on.
        min_dice: Dice that a volume needs; without it the 5th percentile over real scans that their judge did not
            see.
        max_hd95: HD95 in mm that a volume may have; without it the 95th percentile, or any with --min-dice.
        tries: largest number of draws of a refused volume; after them it is left out.
        format: datalist, nnunet and decathlon, with commas: forms of the training set; a datalist is always written.
        labels: classes that a segmenter is to learn from nnunet and decathlon, with commas; without it endo, or all.
        resample: bring maps to the voxel size that the weights were trained at, and the volumes back.
        device: cuda, cuda:1 or cpu; without it a GPU where there is one.
        jobs: cases that are prepared at the same time.
        seed: seed of morphs, styles and volumes.
        pseudonyms: key file, in which each case and patient has a pseudonym; names that are new get one. Nothing in
            --output is called otherwise. The file is made if it is not there, and must lie outside of --output.
        anonymous_names: pseudonyms without a key file, from the hash of each case's voxels.
        audit: folder of 'semsynth audit' of the volumes in --output, for a second run: augment.json holds its verdict,
            and where it found copies of scans, the folders for other programs are not written.
        despite_audit: write them although the audit found copies; augment.json says so.
        dry_run: only say what would be made; raw cases are prepared, and one volume is made, to know how long it takes.
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
    """
    from ..synthesis.augment import AugmentSettings, GateOptions, shares_of
    from ..synthesis.augment import augment as run
    from ..synthesis.workflow import check_settings

    if judge is None:
        needless = [name for name in ("second_judge", "min_dice", "max_hd95", "tries") if name in given()]
        if needless:
            raise InputError(f"--{needless[0].replace('_', '-')} goes with --judge, the file of weights of a judge")
    if maps is not None and "morph" in given():
        raise InputError("--maps says how many maps are morphed; leave --morph out")
    morphed, generated = (number("morph", morph), 0.0) if maps is None else shares_of(words(maps))
    settings = AugmentSettings(
        per_case=whole("per-case", per_case), morph=morphed, generate=generated, style=str(style),
        rules=None if rules is None else str(rules), seed=checked_seed(seed, "--seed"), resample=bool(resample),
    )  # fmt: skip
    gate = GateOptions(
        None if judge is None else str(judge), None if second_judge is None else str(second_judge),
        None if min_dice is None else number("min-dice", min_dice),
        None if max_hd95 is None else number("max-hd95", max_hd95), whole("tries", tries),
    )  # fmt: skip
    own = check_settings(Path(bundle), _settings("inference", inference), "--inference")
    made = run(
        str(input), str(bundle), str(output), settings, gate=gate, formats=words(format),
        labels=None if labels is None else words(labels), device=None if device is None else usable_device(device),
        jobs=whole("jobs", jobs), dry_run=bool(dry_run), wait=bool(wait),
        inference=own | ({} if weights is None else {"weights": str(weights)}),
        map_bundle=None if map_bundle is None else str(map_bundle),
        map_weights=None if map_weights is None else str(map_weights),
        map_inference=_settings("map-inference", map_inference),
        pseudonyms=None if pseudonyms is None else str(pseudonyms), anonymous_names=bool(anonymous_names),
        audit=None if audit is None else str(audit), despite_audit=bool(despite_audit),
    )  # fmt: skip
    return made if isinstance(made, str) else made.text()


def _settings(option: str, typed: str | None) -> dict[str, Any]:
    """A JSON object that is typed; the options of the command are no settings of it."""
    if typed is None:
        return {}
    try:
        found = json.loads(typed)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"--{option} must be a JSON object in single quotes, such as '{{\"steps\": 20}}', got {typed!r}"
        )
    taken = found.keys() & {"weights", "dataset_dir", "output_dir", "seed", "device", "bundle_root"}
    if taken:
        raise InputError(f"--{option}: {', '.join(sorted(taken))} is an option of its own; give it there")
    return found
