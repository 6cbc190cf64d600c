"""The arms of a study's YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .arms import ARMS, CONTROL, MIXTURE, REAL, Arm
from .reading import Fields, named, ratio, seeds
from .settings import LEAST_SEEDS, Source

KINDS = ("given", "morphed", "generated")


def read_arms(fields: Fields, generators: Mapping[str, Source], maps: Source | None) -> tuple[Arm, ...]:
    """The arms: names of those that every study may have, and tables of others.

    Raises:
        InputError: for an arm that is unknown, there twice, or cannot be what its table says.
    """
    listed = fields.take("arms", list, [REAL, CONTROL, "P", "S", "M", "G", MIXTURE])
    found: dict[str, Arm] = {}
    for item in listed:
        arm = _arm(item, fields, found)
        if arm.name in found:
            raise InputError(f"{fields.where}: arms: {arm.name} is there twice")
        if arm.generator and arm.generator not in generators:
            raise InputError(f"{fields.where}: arms: {arm.name} has the generator {arm.generator!r}, which is none of "
                             f"{', '.join(generators) or '(no generators)'}")  # fmt: skip
        found[arm.name] = arm
    for arm in found.values():
        where = f"{fields.where}: arms: {arm.name}"
        if arm.like and (arm.like not in found or not found[arm.like].maps):
            raise InputError(f"{where} takes the volumes or maps of {arm.like}, which is no arm with maps of its own; "
                             "add it, or give volumes_of")  # fmt: skip
        if arm.maps and not generators:
            raise InputError(f"{where} needs a generator; add generators")
        if arm.maps.get("generated") and maps is None:
            raise InputError(f"{where} has generated maps; add maps: with the bundle that draws them")
    return tuple(found.values())


def _arm(item: Any, fields: Fields, found: Mapping[str, Arm]) -> Arm:
    if isinstance(item, str):
        if item not in ARMS:
            raise InputError(f"{fields.where}: arms: unknown arm {item!r}; known are {', '.join(ARMS)}, others are "
                             "tables with name and like")  # fmt: skip
        return ARMS[item]
    inner = Fields(item, f"{fields.where}: arms", fields.root)
    name = named(inner.take("name", str), inner.where)
    inner.where = f"{inner.where}: {name}"
    known = {**ARMS, **found}
    like = inner.take("like", str)
    if name in ARMS:
        raise InputError(f"{inner.where}: is an arm that every study may have; give yours another name")
    if like not in known or known[like].everything:
        raise InputError(f"{inner.where}: is like {like!r}, which is none of "
                         f"{', '.join(key for key, arm in known.items() if not arm.everything)}")  # fmt: skip
    base = known[like]
    _refuse_idle(inner, base)
    about, generator = inner.take("about", str, base.about), inner.take("generator", str, base.generator)
    owner = inner.take("volumes_of", str, base.like)
    arm = replace(base, name=name, about=about, generator=generator, maps={} if owner else _maps(inner, base),
                  like=owner, ratio=ratio(inner, base.ratio), seeds=seeds(inner, base.seeds),
                  real_end=inner.take("real_end", float, base.real_end))  # fmt: skip
    inner.end()
    if not 0 <= arm.real_end < 1:
        raise InputError(
            f"{inner.where}: real_end must lie from 0 to below 1, a share of the steps, found {arm.real_end}"
        )
    return arm


def _refuse_idle(fields: Fields, base: Arm) -> None:
    """Settings that would do nothing in an arm like this one."""
    own = bool(base.maps) and fields.content.get("volumes_of") is None
    uses = {
        "generator": own,
        "maps": own,
        "volumes_of": base.synthetic,
        "ratio": base.two_sources,
        "real_end": base.two_sources and base.real,
    }
    idle = [name for name, used in uses.items() if not used]
    wrong = [name for name in idle if fields.content.get(name) is not None]
    if wrong:
        hint = "; volumes_of says whose volumes or maps it takes" if base.synthetic else ""
        raise InputError(f"{fields.where}: {', '.join(wrong)} would do nothing in an arm like {base.name}{hint}")


def _maps(fields: Fields, base: Arm) -> dict[str, float]:
    told = fields.take("maps", dict, dict(base.maps))
    for kind, share in told.items():
        number = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < math.inf
        if kind not in KINDS or not number:
            raise InputError(f"{fields.where}: maps are {', '.join(KINDS)} with shares above 0, found {told!r}")
    return {str(kind): float(share) for kind, share in told.items()}


def check_seeds(arms: tuple[Arm, ...], primary: str, where: str) -> None:
    """Raise where the primary contrast would rest on too few trainings."""
    for arm in arms:
        if arm.name == primary and arm.seeds is not None and len(arm.seeds) < LEAST_SEEDS:
            raise InputError(f"{where}: arms: {primary} is the primary arm and needs {LEAST_SEEDS} seeds or more, "
                             f"found {len(arm.seeds)}")  # fmt: skip
