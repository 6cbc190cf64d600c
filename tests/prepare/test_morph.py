"""Morphed maps: what they keep, what changes by how much, what is refused, and that a seed is a map."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import stats
from semsynth.anatomy.measured import NO_LIMITS, refusal
from semsynth.anatomy.rules import LEFT_ATRIUM
from semsynth.anatomy.shape import topology_of
from semsynth.errors import InputError
from semsynth.prepare.morph import Anatomy, ClassRule, MorphLabel, MorphLabeld, MorphRules, ShapeLimits
from semsynth.prepare.morph.deform import Source, deformed, draw_amounts
from tiny_anatomy import CLASSES, SPACING, ball, heart, places

STILL = {"amplitude": 0.0, "rotation": 0.0, "scale": 0.0, "shear": 0.0}


def still(**classes) -> MorphRules:
    """Rules by which nothing moves but what the classes say."""
    return MorphRules.of({**STILL, "classes": classes})


def changed(label, rules: MorphRules, spacing=(1.0, 1.0, 1.0), limits=NO_LIMITS, seed=0, **amounts):
    """A map after a drawn change, with some of its amounts set; figures before and after."""
    transform = MorphLabel(CLASSES, rules)
    source = Source.of(label, spacing, transform.index, rules)
    drawn = draw_amounts(source, limits, np.random.default_rng(seed))
    for name, own in amounts.items():
        drawn["classes"].setdefault(name, {}).update(own)
    new = deformed(source, drawn)
    return new, source.anatomy, transform.measure(new, spacing)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), heart_seed=st.integers(0, 2))
def test_a_morphed_heart_keeps_its_topology_and_its_classes(seed, heart_seed):
    label = heart(heart_seed)
    new, record = MorphLabel(CLASSES).morphed(label, seed, SPACING)
    assert new.shape == label.shape and new.dtype == label.dtype
    assert set(np.unique(new)) <= set(np.unique(label)) and (new != label).mean() > 0.01
    old = topology_of(label == 1)
    assert all(a <= b for a, b in zip(topology_of(new == 1), old, strict=True))
    assert record["tries"] == 1 + sum(record["refused"].values())
    assert json.loads(json.dumps(record)) == record
    volume = [np.count_nonzero(x == 1) for x in (label, new)]
    assert 0.6 < volume[1] / volume[0] < 1.5


def test_a_seed_is_a_map_and_another_seed_is_another():
    transform, label = MorphLabel(CLASSES), heart()
    first, again = (transform.morphed(label, 5, SPACING) for _ in range(2))
    assert np.array_equal(first.label, again.label) and first.record == again.record
    assert not np.array_equal(first.label, transform.morphed(label, 6, SPACING).label)


def test_it_takes_tensors_with_a_channel_and_their_affine():
    label = heart()
    tensor = MetaTensor(torch.from_numpy(label)[None].float(), affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    found = MorphLabel(dict(enumerate(CLASSES))).morphed(tensor, 5).label
    assert isinstance(found, MetaTensor) and found.dtype == torch.float32 and torch.equal(found.affine, tensor.affine)
    assert np.array_equal(found[0].numpy(), MorphLabel(CLASSES).morphed(label, 5, SPACING).label)


@pytest.mark.parametrize("wanted", [0.8, 1.0, 1.25])
def test_the_volume_of_a_cavity_becomes_what_was_asked_for(wanted):
    label = ball(14.0, 3.0, (64, 64, 64))
    now = float((label == 1).sum()) / 1000
    limits = ShapeLimits({"endo": {"volume_ml": (now * wanted, now * wanted)}})
    new, before, after = changed(label, still(endo={"volume": 0.5}, wall={"wall_of": "endo"}), limits=limits)
    assert after.figures["endo"]["volume_ml"] / now == pytest.approx(wanted, rel=0.07)
    assert after.figures["wall"]["openness"] < 0.01
    assert after.figures["wall"]["thickness_mm"] == pytest.approx(3.0, abs=0.6)
    assert (new == 3)[0].all() and before.figures["endo"]["volume_ml"] == pytest.approx(now)


@pytest.mark.parametrize("wanted", [2.0, 2.5, 3.0, 4.0])
def test_the_wall_becomes_as_thick_as_was_asked_for(wanted):
    rules = still(endo={}, wall={"wall_of": "endo", "thickness": 2.0, "topology": False})
    limits = ShapeLimits({"wall": {"thickness_mm": (wanted, wanted)}})
    label = ball(14.0, 3.0)
    new, _, after = changed(label, rules, limits=limits)
    assert after.figures["wall"]["thickness_mm"] == pytest.approx(wanted, abs=0.35)
    assert np.array_equal(new == 1, label == 1) and set(np.unique(new)) == {1, 2, 3}


@pytest.mark.parametrize("change", [-6.0, 8.0])
def test_a_vein_becomes_longer_or_shorter(change):
    x, y, z = places((90, 50, 50), (1.0, 1.0, 1.0))
    label = np.full(x.shape, 3, np.uint8)
    label[(np.hypot(y, z) < 4.5) & (x > -15) & (x < 19)] = 1
    label[np.linalg.norm([x + 15, y, z], axis=0) < 16] = 1
    _, before, after = changed(label, still(endo={"branches": 10.0}), endo={"branches_mm": [change]})
    found = after.branches["endo"][0].length - before.branches["endo"][0].length
    assert found == pytest.approx(change, abs=3.0)
    assert after.figures["endo"]["branches"] == before.figures["endo"]["branches"] == 1


def test_patches_of_scar_lie_on_the_wall_in_another_place_with_the_share_asked_for():
    label = ball(14.0, 3.0)
    wall = np.argwhere(label == 2)
    label[tuple(wall[wall[:, 0] < 18].T)] = 4
    rules = still(endo={}, wall={"wall_of": "endo"}, scar={"patches_on": "wall", "share": 1.0, "topology": False})
    new, before, after = changed(label, rules, limits=ShapeLimits({"scar": {"share": (0.3, 0.3)}}))
    assert after.figures["scar"]["share"] == pytest.approx(0.3, abs=0.01)
    assert np.array_equal(np.isin(new, [2, 4]), np.isin(label, [2, 4]))
    assert not np.array_equal(new == 4, label == 4)
    assert before.figures["wall"]["openness"] == after.figures["wall"]["openness"] == 0  # scarred wall is wall
    assert topology_of(new == 4).parts <= 8
    order = {"scar": rules.classes["scar"], "endo": ClassRule(), "wall": ClassRule(wall_of="endo", thickness=2.0)}
    rules = replace(MorphRules.of(STILL), classes=order)  # scar before wall
    limits = ShapeLimits({"scar": {"share": (0.3, 0.3)}, "wall": {"thickness_mm": (4.0, 4.0)}})
    assert changed(label, rules, limits=limits)[2].figures["scar"]["share"] == pytest.approx(0.3, abs=0.01)


def test_limits_are_learned_from_maps_and_hold():
    transform = MorphLabel(CLASSES, MorphRules.of({"amplitude": 2.0, "classes": {"endo": {"volume": 0.5}}}))
    transform.learn((heart(seed), SPACING) for seed in range(3))
    low, high = transform.limits.range_of("endo", "volume_ml")
    volumes = [np.count_nonzero(heart(seed) == 1) * np.prod(SPACING) / 1000 for seed in range(3)]
    logs = np.log(volumes)  # of so few maps the interval is wider than their range
    reach = stats.t.ppf(0.975, 2) * np.std(logs, ddof=1) * np.sqrt(4 / 3)
    assert (low, high) == pytest.approx((np.exp(np.mean(logs) - reach), np.exp(np.mean(logs) + reach)))
    for seed in range(4):
        figures = transform.morphed(heart(1), seed, SPACING).record["after"]["endo"]
        for figure, value in figures.items():
            assert transform.limits.range_of("endo", figure)[0] <= value <= transform.limits.range_of("endo", figure)[1]
    many = ShapeLimits.learn([Anatomy({"a": {"x": float(x)}}, {}, {}) for x in range(100, 201)], 0.1)
    assert many.range_of("a", "x") == (85.0, pytest.approx(219.5, abs=0.1))
    assert ShapeLimits.learn([Anatomy({"a": {"x": 1.0}}, {}, {})], 0.1).range_of("a", "x") == (0.9, 1.1)
    none = [Anatomy({"a": {"x": x}}, {}, {}) for x in (0.0, 0.0)]
    assert ShapeLimits.learn(none, 0.1).range_of("a", "x") == (0.0, 0.0)
    again = MorphLabel(CLASSES, transform.rules, limits=json.loads(json.dumps(transform.limits.as_json())))
    assert again.limits == transform.limits
    assert np.array_equal(again.morphed(heart(1), 9, SPACING).label, transform.morphed(heart(1), 9, SPACING).label)


def test_what_tears_pierces_hollows_opens_or_leaves_the_limits_is_refused():
    rules = MorphRules.read(LEFT_ATRIUM)
    transform, label = MorphLabel(CLASSES, rules), ball(14.0, 3.0)

    def reason(change, limits=NO_LIMITS) -> str:
        new = label.copy()
        change(new)
        return refusal(transform.measure(label, (1.0,) * 3), transform.measure(new, (1.0,) * 3), rules, limits)

    def put(value, *where):
        return lambda new: new.__setitem__(where, value)

    assert reason(put(1, 24, 24, 24)) == ""
    assert reason(put(1, slice(1, 4), slice(1, 4), slice(1, 4))) == "endo: parts"
    assert reason(put(3, 24, 24, 24)) == "endo: hollows"
    assert reason(put(2, 24, 24, slice(None))) == "endo: tunnels"
    assert reason(lambda new: new[:, :, 28:].__setitem__(new[:, :, 28:] == 2, 3)) == "wall: openness"
    assert reason(lambda new: new.__setitem__(new == 1, 3)) == "endo: nothing left"
    assert reason(put(1, 24, 24, 24), ShapeLimits({"endo": {"volume_ml": (1.0, 2.0)}})) == "endo: volume_ml"


def test_where_no_map_is_within_the_limits_the_reasons_are_said():
    rules = {"amplitude": 15.0, "wavelength": 10.0, "classes": {"endo": {}}}
    with pytest.raises(
        InputError, match=r"no morphed map within the limits in 3 tries \(.* \d\); give smaller amounts"
    ):
        MorphLabel(CLASSES, rules, tries=3).morphed(heart(), 0, SPACING)
    tensor = MetaTensor(torch.from_numpy(heart())[None], meta={"filename_or_obj": "P7/label.nii.gz"})
    tensor.affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    with pytest.raises(InputError, match=r"P7/label\.nii\.gz: no morphed map"):
        MorphLabeld(classes=CLASSES, rules=rules, tries=3)({"label": tensor})


def test_a_heart_at_the_edge_of_the_limits_has_morphs_that_are_close_to_it():
    label = heart()
    transform = MorphLabel(CLASSES)
    figures = transform.measure(label, SPACING).figures["endo"]
    limits = ShapeLimits({"endo": {name: (value * 0.985, value * 1.015) for name, value in figures.items()}})
    found = MorphLabel(CLASSES, limits=limits).morphed(label, 1, SPACING)
    assert found.record["strength"] < 1 and found.record["tries"] > 10
    free = transform.morphed(label, 1, SPACING)
    assert 0 < (found.label != label).mean() < (free.label != label).mean()


def test_the_dictionary_form_draws_by_its_own_state_and_leaves_the_rest():
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    data = {"label": MetaTensor(torch.from_numpy(heart())[None], affine=affine), "image": torch.rand(1, 3, 3, 3)}
    before = data["label"].clone()
    transform = Compose([MorphLabeld(classes=CLASSES, record_key="morph")])
    first = transform.set_random_state(3)(data)
    again = transform.set_random_state(3)(data)
    other = transform(data)
    assert torch.equal(first["label"], again["label"]) and not torch.equal(first["label"], other["label"])
    assert first["image"] is data["image"] and torch.equal(data["label"], before) and "morph" not in data
    assert first["morph"]["seed"] == again["morph"]["seed"]
    never = MorphLabeld(classes=CLASSES, prob=0.0)(data)
    assert torch.equal(never["label"], before)


def test_any_class_list_moves_along_and_rules_name_its_classes():
    x, y, z = places((48, 40, 30), (2.0, 2.0, 3.0))
    label = np.zeros(x.shape, np.int16)
    label[np.linalg.norm([x - 15, y, z], axis=0) < 20] = 300
    label[np.linalg.norm([x + 25, y, z], axis=0) < 12] = 7
    names = {0: "background", 7: "Kidney_Left", 300: "liver"}
    free = MorphLabel(names).morphed(label, 1, (2.0, 2.0, 3.0))
    assert set(np.unique(free.label)) == {0, 7, 300} and free.label.dtype == np.int16
    ruled = MorphLabel(names, {"classes": {"kidney left": {"volume": 0.3}}}).morphed(label, 1, (2.0, 2.0, 3.0))
    assert set(ruled.record["after"]) == {"kidney left"}


@pytest.mark.parametrize("shape", [(30, 30, 1), (1, 1, 1), (5, 4, 3)])
def test_small_and_flat_maps_are_no_trouble(shape):
    label = np.zeros(shape, np.uint8)
    label[tuple(n // 2 for n in shape)] = 1
    new = MorphLabel(CLASSES, MorphRules()).morphed(label, 0, (1.0, 1.0, 1.0)).label
    assert new.shape == shape


def test_a_class_that_is_not_in_the_map_has_no_part():
    label = heart()
    label[label == 4] = 2
    record = MorphLabel(CLASSES).morphed(label, 0, SPACING).record
    assert set(record["after"]) == {"endo", "wall"}
    nothing = MorphLabel(CLASSES).morphed(np.zeros_like(label), 0, SPACING)
    assert not nothing.label.any() and nothing.record["after"] == {}


@pytest.mark.parametrize(
    ("label", "spacing", "said"),
    [
        (np.zeros((4, 4)), (1, 1), r"must be \(H, W, D\) or \(1, H, W, D\), got shape \(4, 4\)"),
        (np.full((4, 4, 4), 0.5), (1, 1, 1), "class indices from 0 on, found 0.5"),
        (np.full((4, 4, 4), -1), (1, 1, 1), "class indices from 0 on, found -1"),
        (np.full((4, 4, 4), np.nan), (1, 1, 1), "class indices from 0 on, found nan"),
        (np.zeros((4, 4, 4)), None, "three spacings in mm, got None"),
        (np.zeros((4, 4, 4)), (1, 0, 1), "three spacings in mm"),
    ],
)
def test_what_is_no_map_is_refused(label, spacing, said):
    with pytest.raises(InputError, match=said):
        MorphLabel(CLASSES).morphed(label, 0, spacing)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"amplitud": 1}, "unknown setting 'amplitud'; possible are amplitude, "),
        ({"amplitude": "much"}, "amplitude must be a number, found 'much'"),
        ({"amplitude": True}, "amplitude must be a number, found True"),
        ({"amplitude": 900}, "amplitude must lie in 0…20, found 900"),
        ({"wavelength": 1}, "wavelength must lie in 10…1000, found 1"),
        ({"classes": {"endo": {"topology": "kept"}}}, "class 'endo': topology must be yes or no, found 'kept'"),
        ({"classes": {"wall": {"wall_of": "endo"}}}, "class 'wall': wall_of must name another class with a rule"),
        ({"classes": {"endo": {"thickness": 1}}}, "thickness does nothing of a class without wall_of or patches_on"),
        ({"classes": {"endo": {}, "wall": {"wall_of": "endo", "volume": 0.1}}}, "volume does nothing of a class with"),
        ({"classes": {"endo": {}, "Endo": {}}}, "class 'endo' stands there twice"),
        ({"classes": {"endo": 0}}, "must hold names with values, .* found 0"),
        ({"amplitude": 10**400}, "amplitude must lie in 0…20"),
        ({"amplitude": float("nan")}, "amplitude must lie in 0…20, found nan"),
        ({"classes": ["endo"]}, r"classes: must hold names with values, .* found \['endo'\]"),
        ({"classes": {"liver": {}}}, "for the classes liver, the maps have background, endo"),
        ("missing.yaml", "missing.yaml: cannot be read as YAML rules of morphing"),
    ],
)
def test_rules_that_cannot_be_used_say_why(rules, said):
    with pytest.raises(InputError, match=said):
        MorphLabel(CLASSES, rules)


def test_the_rules_are_a_small_yaml_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("amplitude: 2\nclasses:\n  Endo: {volume: 0.1}\n  wall: {wall_of: endo, topology: no}\n")
    rules = MorphLabel(CLASSES, path).rules
    assert rules.amplitude == 2.0 and rules.classes["endo"].volume == 0.1 and not rules.classes["wall"].topology
    path.write_text("a: [1")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        MorphLabel(CLASSES, path)
    path.write_text("")
    assert MorphRules.read(path) == MorphRules()


@pytest.mark.parametrize("limits", [[1], {"endo": 3}, {"endo": {"volume_ml": ["a", "b"]}}])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(InputError, match="limits of morphing must be such as"):
        MorphLabel(CLASSES, limits=limits)


def test_without_rules_for_classes_there_are_no_limits():
    transform = MorphLabel(["background", "liver"])
    assert transform.learn([(np.ones((4, 4, 4), np.uint8), (1, 1, 1))]).limits == NO_LIMITS


def test_limits_need_a_map_with_such_a_class():
    with pytest.raises(InputError, match="no map has a class with a rule"):
        MorphLabel(CLASSES).learn([(np.zeros((4, 4, 4), np.uint8), (1, 1, 1))])
    with pytest.raises(InputError, match="tries of morphing must be"):
        MorphLabel(CLASSES, tries=0)
