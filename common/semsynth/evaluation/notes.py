"""What stands under the tables: which cases and weights, what was drawn, what networks have seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..report.tables import NOTHING, Cell
from .distributions import Sides
from .scores import CONDITIONAL, MIN_SAMPLES, Collected, has_conditional
from .uncertainty import by_patient

DAGGER, DOUBLE = "†", "‡"
DAGGER_NOTE = f"{DAGGER} this network was in the system's own loss: not to be compared"
DOUBLE_NOTE = f"{DOUBLE} this network was trained on cases of this table, see below on how many"
OVER_CASES = "mean ± sample standard deviation over cases (n − 1)"


def marks(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """What the signs in a table's cells mean."""
    texts = [cell.text for row in rows for cell in row]
    found = ((DAGGER, DAGGER_NOTE), (DOUBLE, DOUBLE_NOTE))
    return [note for sign, note in found if any(sign in text for text in texts)]


def which(found: Collected, group: str) -> str:
    """The cases of a table by split and patient, and the weights of its systems."""
    members = [found.cases[case] for case in found.groups[group] if case in found.cases]
    splits = Counter(case.split or "no split" for case in members)
    people = len(by_patient(found.groups[group], found.patients()))
    weights = "; ".join(f"{s.name} {s.weights[:12] if s.weights else 'not recorded'}" for s in found.systems)
    cases = ", ".join(f"{count} of {split}" for split, count in splits.items())
    return f"cases: {cases or len(found.groups[group])}; {people} patients; weights (SHA-256): {weights}"


def how_drawn(sides: Sides | None, why: str, slice_draws: int) -> list[str]:
    """What the draws of a group were, and against what both floors hold a system.

    Args:
        sides: sides of the draws; None where there are none.
        why: there are none.
        slice_draws: number of the draws that slice-wise FID takes; 0 where it is not there.
    """
    if sides is None:
        return [f"{NOTHING} because {why}"]
    n, few = sides.n, f", slice-wise over the first {slice_draws}" if slice_draws else ""
    taken = "all in every draw: the range is that of the references" if sides.patients == n else "drawn anew"
    floor_b = f"floor B: {NOTHING} because {sides.without}" if sides.without else (
        f"floor B: n = {n} training scans of other patients than the references', against the same references. "
        "New scans of that kind are at 1 × floor B; what is below imitates these very references"
    )  # fmt: skip
    return [
        f"mean [2.5 %, 97.5 %] of {len(sides.draws)} draws{few}: volumes of n = {n} patients ({taken}) against the "
        f"real images of n = {n} other patients (references), one scan of each patient",
        references(sides),
        "floor A: the real images of the same cases against the same references",
        floor_b,
    ]


def references(sides: Sides) -> str:
    """How many of the references are scans that the systems were trained on."""
    if sides.training is None:
        return f"references: it is unknown which of the {sides.n} are training scans of the systems"
    return f"references: of the {sides.n} of a draw, training scans of the systems: {sides.training.text()}"


def exposures(found: Collected, group: str, sha256: str, name: str, sides: Sides | None = None) -> list[str]:
    """What a judge has seen of a group's cases, and of the references of its draws."""
    exposure = found.exposure(sha256, group)
    if exposure is None:
        return []
    known = sides is not None and exposure.unknown < exposure.of
    more = f"; of the {sides.n} references of a draw: {sides.references_in(found.seen[sha256]).text()}" if (
        sides is not None and known) else ""  # fmt: skip
    return [exposure.text(name) + more]


def conditional_means(found: Collected, group: str) -> list[str]:
    """What a conditional mean is, and why a system has none."""
    several = {s.name: s.samples(found.groups[group])[0] for s in found.systems}
    few = [name for name, fewest in several.items() if fewest > 1 and not has_conditional(found, name, group)]
    notes = [
        f"{name}: no {CONDITIONAL}, which needs {MIN_SAMPLES} samples of every map (fewest: {several[name]})"
        for name in few
    ]
    if any(has_conditional(found, name, group) for name in several):
        notes.append(
            f"{CONDITIONAL}: of infinitely many samples. MSE: a of the fit MSE = a + b/n of each case, unbiased and "
            "kept where it is negative; PSNR and RMSE are those of its mean over all cases (the other rows: means of "
            "each case's PSNR, so compare MSE), ± by the delta method; the other metrics are of the mean of all samples"
        )
    return notes


def network_note(about: Mapping[str, Any]) -> str:
    """What a feature network says of itself."""
    spacing = " × ".join(f"{s:g}" for s in about["spacing"])
    known = ("name", "dimension", "spacing", "intensity", "sha256")
    plain = {key: ", ".join(value) if isinstance(value, list) else value for key, value in about.items()
             if key not in known}  # fmt: skip
    more = "".join(f", {key.replace('_', ' ')} {value}" for key, value in plain.items())
    return (
        f"{about['name']}: {about['dimension']} features, input {spacing} mm, {about['intensity']}{more}, "
        f"SHA-256 {about['sha256']}"
    )
