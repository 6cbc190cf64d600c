"""How much of a label map may change, class by class: a small YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..data.classes import plain_name
from ..errors import InputError

LEFT_ATRIUM = Path(__file__).with_name("left_atrium.yaml")
LARGEST = {"amplitude": 20.0, "wavelength": 1000.0, "rotation": 45.0, "scale": 0.5, "shear": 0.5, "widen": 10.0,
           "volume": 0.8, "branches": 50.0, "thickness": 5.0, "share": 1.0, "patch": 200.0}  # fmt: skip
_AMOUNTS = ("amplitude", "rotation", "scale", "shear")
_CLASS_AMOUNTS = ("volume", "branches", "thickness", "share")
LEAST = {"wavelength": 10.0, "patch": 2.0}


@dataclass(frozen=True)
class ClassRule:
    """What may change of one class, beyond what the deformation of all does.

    Args:
        volume: change of its volume, as a share of it, at most.
        branches: change of the length of each part that stands out (such as pulmonary veins), mm, at most.
        topology: True where the numbers of its parts, hollows and tunnels must not grow.
        wall_of: the class that it is the wall of.
        thickness: change of the wall's mean thickness, mm, at most.
        patches_on: the class on which it lies in patches, such as scar on the wall.
        share: change of the share that the patches have of both classes, at most.
        patch: mm across a patch, about.

    Examples:
        >>> wall = ClassRule(wall_of="endo", thickness=1.0)
        >>> rules = MorphRules(classes={"endo": ClassRule(volume=0.3), "wall": wall})
        >>> rules.scaled(0.5).classes["wall"].thickness
        0.5
    """

    volume: float = 0.0
    branches: float = 0.0
    topology: bool = True
    wall_of: str = ""
    thickness: float = 0.0
    patches_on: str = ""
    share: float = 0.0
    patch: float = 12.0


@dataclass(frozen=True)
class MorphRules:
    """How much a label map may change.

    Args:
        amplitude: standard deviation of the random velocity along each axis, mm.
        wavelength: mm over which it turns to its opposite and back, about.
        rotation: degrees about each axis, at most.
        scale: change of size along each axis, as a share, at most.
        shear: change of an angle, in radians, at most.
        widen: share of their range by which limits that are learned from maps are widened at either end.
        classes: name → what may change of it. All other classes move along.

    Examples:
        >>> rules = MorphRules.of({"amplitude": 2.0, "classes": {"liver": {"volume": 0.2}}})
        >>> rules.amplitude, rules.classes["liver"].volume, rules.rotation
        (2.0, 0.2, 6.0)
    """

    amplitude: float = 1.5
    wavelength: float = 40.0
    rotation: float = 6.0
    scale: float = 0.06
    shear: float = 0.04
    widen: float = 0.1
    classes: Mapping[str, ClassRule] = field(default_factory=dict)

    def scaled(self, strength: float) -> MorphRules:
        """The same rules with amounts ``strength`` times as large."""
        classes = {
            name: dataclasses.replace(rule, **{key: strength * getattr(rule, key) for key in _CLASS_AMOUNTS})
            for name, rule in self.classes.items()
        }
        amounts = {key: strength * getattr(self, key) for key in _AMOUNTS}
        return dataclasses.replace(self, classes=classes, **amounts)

    @classmethod
    def read(cls, path: str | Path) -> MorphRules:
        """The rules of a YAML file with these names; what it leaves out is as above.

        Raises:
            InputError: for a file that cannot be read, unknown names, values that are none or too large, and classes
                that are the wall of, or lie on, a class without rules.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read as YAML rules of morphing ({reason}); correct it") from None
        return cls.of({} if content is None else content, path)

    @classmethod
    def of(cls, content: Any, source: str | Path = "rules") -> MorphRules:
        """The rules of a table such as a YAML file or a MONAI config holds.

        Args:
            content: names → values.
            source: place where it stands, for messages.

        Raises:
            InputError: as :meth:`read`.
        """
        table = dict(_table(content, source))
        classes = _table(table.pop("classes", None) or {}, f"{source}: classes")
        rules: dict[str, ClassRule] = {}
        for typed, rule in classes.items():
            name = plain_name(str(typed))
            if name in rules:
                raise InputError(f"{source}: class {name!r} stands there twice; leave one out")
            rules[name] = ClassRule(**_values({} if rule is None else rule, ClassRule, f"{source}: class {typed!r}"))
            _refuse_idle(rules[name], f"{source}: class {typed!r}")
        for name, rule in rules.items():
            for key, other in (("wall_of", rule.wall_of), ("patches_on", rule.patches_on)):
                if other and (other == name or other not in rules or (key == "wall_of" and rules[other].wall_of)):
                    raise InputError(
                        f"{source}: class {name!r}: {key} must name another class with a rule, found {other!r}; there "
                        f"are rules for {', '.join(rules)}"
                    )
        return cls(classes=rules, **_values(table, cls, source))


def rules_for(names: Mapping[int, str], rules: str | Path | Mapping[str, Any] | MorphRules | None) -> MorphRules:
    """Rules for maps with these classes.

    Args:
        names: index → name.
        rules: a YAML file, a table, the rules, or None for those of the left atrium, where these classes are there, or
            else deformation alone.

    Raises:
        InputError: for rules of classes of which the maps have none.

    Examples:
        >>> rules_for({0: "background", 1: "liver"}, None).classes  # deformation alone
        {}
    """
    known = {plain_name(name) for name in names.values()}
    if rules is None:
        found = MorphRules.read(LEFT_ATRIUM)
        return found if known & set(found.classes) else MorphRules()
    if not isinstance(rules, MorphRules):
        rules = MorphRules.read(rules) if isinstance(rules, str | Path) else MorphRules.of(rules)
    if rules.classes and not known & set(rules.classes):
        raise InputError(
            f"rules of morphing: they are for the classes {', '.join(rules.classes)}, the maps have "
            f"{', '.join(names.values())}; use the maps' names"
        )
    return rules


def _refuse_idle(rule: ClassRule, source: str) -> None:
    """Refuse settings that would do nothing."""
    kind = "wall_of" if rule.wall_of else "patches_on" if rule.patches_on else ""
    idle = {"thickness": kind != "wall_of", "share": kind != "patches_on", "volume": kind, "branches": kind}
    wrong = [name for name, is_idle in idle.items() if is_idle and getattr(rule, name)]
    if rule.wall_of and rule.patches_on:
        raise InputError(f"{source}: is either a wall (wall_of) or patches (patches_on); leave one out")
    if wrong:
        of = f"of a class with {kind}" if kind else "of a class without wall_of or patches_on"
        raise InputError(f"{source}: {wrong[0]} does nothing {of}; leave it out")


def _table(content: Any, source: str | Path) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{source}: must hold names with values, such as amplitude: 1.5, found {content!r}")
    return content


def _values(content: Any, cls: type, source: str | Path) -> dict[str, Any]:
    """Checked values of a dataclass's fields."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(cls) if f.name != "classes"}
    found = {}
    for name, value in _table(content, source).items():
        if name not in kinds:
            raise InputError(f"{source}: unknown setting {name!r}; possible are {', '.join(kinds)}")
        kind = kinds[name]
        if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{source}: {name} must be a number, found {value!r}")
        if kind is not float and not isinstance(value, kind):
            raise InputError(f"{source}: {name} must be {'yes or no' if kind is bool else 'a name'}, found {value!r}")
        if kind is float:
            low, high = LEAST.get(name, 0.0), LARGEST[name]
            if not low <= value <= high:  # NaN too
                raise InputError(f"{source}: {name} must lie in {low:g}…{high:g}, found {value!r}")
            value = float(value)
        found[name] = plain_name(value) if kind is str else value
    return found
