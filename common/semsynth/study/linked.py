"""Cases that may be of one patient, beyond what the data states: the contrasts again, as if they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from .arms import ALL
from .plan import Plan
from .splits import read_split, sets_of
from .statistics import Trained

Key = tuple[str, str]
"""Number of labelled patients, or ``all``, and name of an arm."""


def joined_patients(people: Mapping[str, str], linked: Iterable[Sequence[str]]) -> dict[str, str]:
    """Case → patient, where the patients of linked cases are one, called as the first of them in order.

    Args:
        people: case → patient, as stated.
        linked: groups of cases; cases that ``people`` does not hold are left out.

    Examples:
        >>> joined_patients({"a": "P1", "b": "P2", "c": "P3", "d": "P3"}, [["a", "c"]])
        {'a': 'P1', 'b': 'P2', 'c': 'P1', 'd': 'P1'}
    """
    name = {patient: patient for patient in people.values()}
    for group in linked:
        known = {name[people[case]] for case in group if case in people}
        name |= {patient: min(known) for patient, now in name.items() if now in known}
    return {case: name[patient] for case, patient in people.items()}


def seen_by_links(plans: Sequence[Plan]) -> dict[Key, tuple[str, ...]]:
    """Arm → the test cases, of all folds, whose patient it has seen if linked cases are of one patient.

    What an arm has seen are the training cases of its generators, judges and segmenters: the labelled ones; of the
    positive control and of arms with unlabelled images all. Weights from elsewhere are not looked at.
    """
    found = dict[Key, tuple[str, ...]]()
    for plan in plans:
        study, split = plan.study, read_split(plan.out)
        people, held = joined_patients(split["patients"], study.linked), set(split["test"])
        every = [case for case in people if case not in held and case not in set(split["unused"])]
        sets = {**sets_of(study), ALL: every}
        for cases, arm, _ in plan.tests():
            own = study.arm(arm)
            own_cases = every if own.pseudo or own.unlabelled else sets[cases]
            patients = {people[case] for case in own_cases}
            seen = tuple(case for case in sorted(held) if people[case] in patients)
            found[cases, arm] = tuple(dict.fromkeys([*found.get((cases, arm), ()), *seen]))
    return {key: cases for key, cases in found.items() if cases}


def without(trained: Trained, cases: Iterable[str]) -> Trained:
    """An arm's scores without those of some cases."""
    out = set(cases)
    kept = {
        seed: {metric: {c: v for c, v in values.items() if c not in out} for metric, values in scores.items()}
        for seed, scores in trained.scores.items()
    }
    return replace(trained, scores=kept)
