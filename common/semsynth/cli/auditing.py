"""The command of ``semsynth`` about patients' privacy; its docstring is its help."""

from __future__ import annotations

from .options import FilePath, Words, number, pairs, usable_device, whole, words


def audit(
    *,
    synthetic: Words,
    train: FilePath,
    heldout: Words,
    output: FilePath = "audit",
    weights: Words = (),
    bundle: FilePath | None = None,
    judge: FilePath | None = None,
    extractors: Words = (),
    feature_spacing: float = 1.0,
    false_positives: float = 0.05,
    seed: int = 0,
    device: str | None = None,
    wait: bool = False,
) -> str:
    """Whether synthetic volumes show scans that their generator was trained on: copies, leaks, membership.

    Every part stands beside its floor: real scans of other patients, planted copies, the painted map, members against
    members. The verdict is "copies found", "no sign found" or "cannot tell", by rules that docs/audit.md states. An
    interrupted audit goes on where it was when the same command is started again.

    Args:
        synthetic: folders that an inference or an augmentation wrote, datalists, or quoted patterns of volumes; several
            with spaces.
        train: datalist (or its folder) of the real scans that the generator was trained on; of several splits the
            training one.
        heldout: datalists (or folders, or quoted patterns) of real scans that it was not trained on; of several splits
            all but the training one. Scans of patients in --train are left out.
        output: folder for audit.json, .md, .html and volumes.csv, which name no case; and for closest_pairs.png and
            .csv, which show patients.
        weights: files of the generator's weights: their cards say what they have seen; with --bundle they are attacked.
        bundle: folder of the bundle that the weights belong to, for membership inference on the diffusion loss.
        judge: weights of la_unet_judge, whose features are compared too.
        extractors: feature networks with commas, such as efficientnet_lite0; without it none but the judge's.
        feature_spacing: mm per voxel at which efficientnet_lite0 sees volumes; a larger value, such as 4, makes CTs of
            a whole body region faster.
        false_positives: share of real scans of other patients that the threshold flags.
        seed: seed of draws.
        device: device of networks, cuda or cpu.
        wait: wait until another audit that writes into --output has ended; without it such an audit is an error.
    """
    from ..evaluation.judge import load_judge
    from ..networks.features.registry import JUDGE
    from ..privacy.layout import tables
    from ..privacy.run import audit as run

    def paths(name: str, typed: Words) -> list[str]:
        return [path for each in pairs(name, typed, alone=name).values() for path in each]

    place = usable_device(device)
    found = run(
        paths("synthetic", synthetic), str(train), paths("heldout", heldout), str(output),
        weights=paths("weights", weights) if weights else [], bundle=None if bundle is None else str(bundle),
        extractors=[*(words(extractors) if extractors else []), *([JUDGE] if judge is not None else [])],
        judge=None if judge is None else load_judge(str(judge), device=place),
        feature_spacing=number("feature-spacing", feature_spacing),
        false_positives=number("false-positives", false_positives), seed=whole("seed", seed), device=place,
        wait=bool(wait),
    )  # fmt: skip
    lines = [f"Verdict: {found.verdict.word}", *(f"  {reason}" for reason in found.verdict.reasons)]
    return "\n".join(["\n\n".join(table.text() for table in tables(found)), "", *lines, f"  {output}/audit.html"])
