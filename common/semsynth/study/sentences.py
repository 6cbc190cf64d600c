"""What a study's intervals say, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..texts import counted
from .arms import ALL, CONTROL, REAL, Arm, kind
from .compare import LEAST
from .layout import title
from .results import MAIN, Findings
from .statistics import Contrast

_AGAINST_REAL = {
    "S": {"no evidence": "So there is no evidence that new images of the same maps (their styles) add something."},
    "O": {"worse": "So there is a gap between synthetic volumes and scans."},
    "P": {},
}
"""Arm → verdict against R → what it means."""
_EXPLORATORY = (
    "The sentences below are exploratory: each has a 95 % interval of its own, so that of twenty arms that do nothing "
    "about one would be called better or worse."
)


def verdict(found: Findings) -> list[str]:
    """The study's sentence, and what stands behind it; nothing is concluded without a positive control that works."""
    main = next(c for c in found.primary if c.metric == MAIN)
    control = next((c for c in found.control if c.metric == MAIN), None)
    if control is not None and control.verdict != "better":
        return [
            f"No verdict: the positive control ({name(control.arm)}) is not clearly better than "
            f"{name(control.against)} ({_figures(control)}). Where more real cases make no difference that this study "
            "can see, it cannot say what synthetic ones are worth. More test patients, more seeds or longer trainings "
            "are needed.",
            f"For completeness, not as a result: {title(main.metric)} of {name(main.arm)} less {name(main.against)} is "
            f"{_figures(main)}.",
        ]
    said = [compared(main)]
    if control is None:
        said.append("There is no positive control (arm C), so that a difference that was not found says little.")
    else:
        said.append(f"Positive control: {compared(control)}")
        if main.verdict == "better":
            said[-1] += f" The primary arm has about {main.difference / control.difference:.0%} of that gain."
    return said


def if_linked(found: Findings) -> list[str]:
    """The verdict again, by the same rules, if linked cases are of one patient."""
    if found.linked is None:
        return []
    again = replace(found, primary=found.linked.primary, control=found.linked.control)
    said = [f"If the linked cases are of one patient: {sentence}" for sentence in verdict(again)]
    left_out = [f"{name(arm)}: {', '.join(cases)}" for arm, cases in found.linked.left_out.items()]
    if left_out:
        said.append("Test cases that an arm has seen then, and that are left out of its contrasts: "
                    f"{'; '.join(left_out)}.")  # fmt: skip
    return said


def compared(c: Contrast) -> str:
    """One contrast."""
    what, first, second = title(c.metric), name(c.arm), name(c.against)
    n = len(c.patients)
    if c.verdict == "unequal":
        return (f"{what}: no verdict on {first} and {second}. Of each seed's cases {c.lost[0]:.2g} have no value with "
                f"the first, {c.lost[1]:.2g} with the second (mean over seeds): what is left favours the one that "
                f"lacks more (difference there {_signed(c, c.difference)}).")  # fmt: skip
    if not n:
        return f"{what}: no case has a value with both {first} and {second}."
    if c.verdict == "no interval":
        why = f"fewer than {LEAST} patients" if n < LEAST else "all differences are the same"
        return f"{what}: {first} less {second} is {_signed(c, c.difference)}; there is no interval: {why}."
    if c.verdict == "no evidence":
        could = "" if not c.detectable else (f" A true difference of about {c.detectable:.2g} or more would probably "
                                             "have been found.")  # fmt: skip
        return f"{what}: no evidence that {first} and {second} differ ({_figures(c)}).{could}"
    size = _signed(c, abs(c.difference)).lstrip("+")
    return f"{what}: {first} is {c.verdict} than {second} by {size} ({_figures(c)})."


def reasons(found: Findings, arms: Sequence[Arm]) -> list[str]:
    """What the other arms say of the primary one, in Dice, one sentence each; nothing where there is no verdict.

    The first sentence says how to take the others: each has an interval of its own.

    Args:
        found: the findings.
        arms: the study's arms.
    """
    kinds = {arm.name: kind(arm) for arm in arms}
    if any(c.metric == MAIN and c.verdict != "better" for c in found.control):
        return []
    main = next(c for c in found.primary if c.metric == MAIN)
    others, said = [c for c in found.others if c.metric == MAIN], []
    for c in (c for c in others if c.against == main.against and kinds.get(c.arm[1]) in _AGAINST_REAL):
        meaning = _AGAINST_REAL[kinds[c.arm[1]]].get(c.verdict)
        said.append(compared(c) + (f" {meaning}" if meaning else ""))
    for c in (c for c in others if c.arm == main.arm and c.against != main.against):
        if c.verdict == "no evidence":
            about = {"P": "that the network's texture adds something to the label maps",
                     "S": "that new anatomies add something to new images of the same maps"}  # fmt: skip
            told = about.get(kinds.get(c.against[1], ""))
            said.append(compared(c) + (f" So there is no evidence {told}." if told else ""))
        else:
            said.append(compared(c))
    return [_EXPLORATORY, *said] if said else []


def name(arm: tuple[str, str]) -> str:
    """An arm with its number of labelled patients."""
    cases, of = arm
    if arm == (ALL, REAL):
        return f"{CONTROL} (all training cases)"
    return f"{of} ({'all training cases' if cases == ALL else counted(int(cases), 'patient')})"


def _figures(c: Contrast) -> str:
    seeds = " and ".join(str(k) for k in dict.fromkeys(c.seeds))
    alone = "; one seed of an arm: how far its trainings differ is not in the interval" if 1 in c.seeds else ""
    without = f", {counted(len(c.left_out), 'case')} without a value left out" if c.left_out else ""
    of_seeds = "1 seed" if seeds == "1" else f"{seeds} seeds"
    return (f"{_signed(c, c.difference)}, 95 % interval {_signed(c, c.low)} to {_signed(c, c.high)}, "
            f"{counted(len(c.patients), 'patient')}{without}, {of_seeds}{alone}")  # fmt: skip


def _signed(c: Contrast, value: float | None) -> str:
    places = 2 if c.metric.endswith("_mm") else 4
    return "none" if value is None else f"{value:+.{places}f}"
