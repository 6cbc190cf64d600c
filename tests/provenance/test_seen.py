"""What weights have seen: cases recognised by their voxels, and all that earlier trainings saw as well."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from semsynth.data.datalists import read_datalist
from semsynth.data.entries import load_datalist
from semsynth.errors import InputError
from semsynth.provenance.cards import TrainingRecord, write_model_card
from semsynth.provenance.pseudonyms import FILE_VARIABLE, VARIABLE, key_id, pseudonym, pseudonym_key
from semsynth.provenance.seen import Seen, read_card, refuse_seen_cases, training_cases
from semsynth.training.checkpoints import CheckpointFolder
from semsynth.training.weights import extract_weights, save_weights

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def entries(tiny_dataset):
    return load_datalist(tiny_dataset / "datalist.json", "training")


@pytest.fixture
def other(tiny_dataset):
    return load_datalist(tiny_dataset / "datalist.json", "validation")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path)
    return path


def card_of(weights: Path, cases, **facts) -> Seen:
    write_model_card(weights, training_cases=cases, unknown_parents=[], **facts)
    return Seen.of(weights)


# ---- one case


def test_a_card_holds_voxels_and_no_names_unless_there_is_a_key(entries, monkeypatch):
    cases = training_cases(entries)
    assert cases == training_cases(entries[::-1]) and len(cases) == 2, "in an order that tells nothing"
    assert all(set(case) == {"voxels"} and {"image", "label"} <= set(case["voxels"]) for case in cases)
    monkeypatch.setenv(VARIABLE, KEY)
    named = training_cases(entries)
    assert {case["pseudonym"] for case in named} == {pseudonym(e["case"], KEY.encode()) for e in entries}
    assert [case["voxels"] for case in sorted(named, key=lambda c: str(c["voxels"]))] == [
        case["voxels"] for case in sorted(cases, key=lambda c: str(c["voxels"]))
    ]


def test_guessing_names_gives_nothing_without_the_key(monkeypatch):
    entries = [{"case": f"pt_{i}", "voxels": {"image": str(i)}} for i in range(1, 101)]
    bare = json.dumps(training_cases(entries))
    monkeypatch.setenv(VARIABLE, KEY)
    keyed = json.dumps(training_cases(entries))
    for i in range(1, 101):
        guesses = [
            hashlib.sha256(f"{salt}pt_{i}".encode()).hexdigest()[:16] for salt in ("", "semsynth:", "semsynth case:")
        ]
        guesses.append(pseudonym(f"pt_{i}", b"another key of the same length.."))
        assert not any(guess in text for guess in guesses for text in (bare, keyed))


def test_a_case_is_recognised_in_another_file_under_another_name(weights, entries, other, tmp_path):
    seen = card_of(weights, training_cases(entries))
    assert seen.known and seen.complete
    image = nib.load(entries[0]["image"])
    moved = tmp_path / "renamed.nii"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, ::-1].astype(np.float32) * 9, np.diag([2.0, 3, 4, 1])), moved)
    assert seen.reasons("another name", {"image": moved}) == ["image"]
    assert seen.reasons("another name", {"label": entries[0]["label"]}) == ["label map"]
    assert seen.of_entry({k: entries[1][k] for k in ("case", "image", "label")}) == ["image", "label map"]
    assert seen.of_entry(other[0]) == [] and seen.reasons(entries[0]["case"]) == [], "no name in the card"


def test_another_spacing_does_not_hide_a_case(weights, tmp_path, tiny_dataset):
    from semsynth.prepare.atrium import Settings, prepare

    fine, coarse = (
        prepare(tiny_dataset, tmp_path / name, Settings(spacing=(mm, mm, mm), k=k))
        for name, mm, k in (("fine", 3.0, 2), ("coarse", 6.0, 3))
    )
    seen = card_of(weights, training_cases(load_datalist(fine, "training")))
    entries = load_datalist(coarse, "training")
    assert all(seen.of_entry(e) == ["image", "label map"] for e in entries)
    assert all(seen.of_entry(e) == [] for e in load_datalist(coarse, "validation"))
    raw = read_datalist(tiny_dataset / "datalist.json")["training"][0]
    assert seen.reasons("raw", {"image": tiny_dataset / raw["image"]}) == ["image"], "the raw scan itself"


def test_names_are_compared_under_the_key_that_they_were_hidden_with(weights, entries, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    seen = card_of(weights, training_cases(entries), pseudonym_key=key_id(KEY.encode()))
    assert seen.reasons(entries[0]["case"]) == ["name"] and seen.reasons("nobody") == []
    monkeypatch.setenv(VARIABLE, KEY[::-1])
    assert seen.reasons(entries[0]["case"]) == []
    monkeypatch.delenv(VARIABLE)
    assert seen.reasons(entries[0]["case"]) == []


def test_a_key_comes_from_the_environment_or_a_file_and_is_long_enough(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert pseudonym_key() is None
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "key"))
    assert pseudonym_key() == KEY.encode()
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"SEMSYNTH_PSEUDONYM_KEY_FILE=.*gone: the key cannot be read"):
        pseudonym_key()
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(InputError, match="a key of 5 bytes can be guessed, 16 or more are needed"):
        pseudonym_key()


def test_cards_of_version_0_1_0_are_still_understood(weights, entries, other, caplog):
    old = [
        {"name": hashlib.sha256(f"semsynth:{e['case']}".encode()).hexdigest()[:16],
         "image": hashlib.sha256(Path(e["image"]).read_bytes()).hexdigest()} for e in entries
    ]  # fmt: skip
    write_model_card(weights, training_cases=old)
    seen = Seen.of(weights)
    assert seen.known and not seen.complete, "such a card leaves out what was trained on before"
    assert seen.of_entry(entries[0]) == ["name", "image"] and seen.of_entry(other[0]) == []
    refuse_seen_cases(seen, other)
    assert "the training cases of model.pt are unknown" in caplog.text


# ---- whose card


def test_seen_cases_are_refused_with_the_reason(weights, entries, other, caplog):
    seen = card_of(weights, training_cases(entries))
    refuse_seen_cases(seen, other)
    assert not caplog.records
    with pytest.raises(InputError, match=r"model.pt: 2 of 3 cases were used to train these weights") as error:
        refuse_seen_cases(seen, [*other, *entries])
    assert error.value.problems == [f"{e['case']}: same image and label map as a training case" for e in entries]


def test_weights_without_a_card_are_unknown_and_those_with_that_of_another_file_refused(
    weights, entries, other, caplog
):
    assert not Seen.of(weights).known
    refuse_seen_cases(Seen.of(weights), entries)
    assert "the training cases of model.pt are unknown" in caplog.text
    card_of(weights, training_cases(entries))
    torch.save({"w": torch.zeros(2)}, weights)
    with pytest.raises(
        InputError, match=r"model.pt: is not the file that its card model.json describes .*remove model.j"
    ):
        Seen.of(weights)
    for text in ("{", "[]", '{"training_cases": 1}', "{}"):
        weights.with_suffix(".json").write_text(text)
        with pytest.raises(InputError, match="not a model card"):
            Seen.of(weights)
    with pytest.raises(InputError, match="no such model card"):
        read_card(weights.with_name("gone.json"))


def test_a_smaller_file_of_weights_does_not_sign_what_is_not_known_to_be_the_cards(weights, entries, tmp_path):
    card_of(weights, training_cases(entries))
    torch.save({"w": torch.zeros(2)}, weights)
    with pytest.raises(InputError, match=r"model.pt: is not the file that its card model.json describes"):
        extract_weights(weights, tmp_path / "small.pt", mantissa_bits=8)
    assert not list(tmp_path.glob("small*"))
    card = weights.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": None}))
    extract_weights(weights, tmp_path / "small.pt", mantissa_bits=8)
    assert not Seen.of(tmp_path / "small.pt").known and Seen.of(tmp_path / "small.pt").gaps == ("model.pt",)
    card.write_text("[]")
    with pytest.raises(InputError, match="not a model card"):
        extract_weights(weights, tmp_path / "small.pt", mantissa_bits=8)


def test_cases_without_an_image_are_all_listed(entries):
    bad = [entries[0], {"case": "gone", "image": "gone.nii.gz"}, {"case": "none"}]
    with pytest.raises(InputError, match=r"(?s)needs an image that can be read.*- gone: .*- none: no image") as error:
        training_cases(bad)
    assert len(error.value.problems) == 2


# ---- what came before


def record(entries, path: Path, **kwargs) -> TrainingRecord:
    path.write_text(json.dumps({"training": [{"case": e["case"], "image": e["image"]} for e in entries]}))
    return TrainingRecord(SimpleNamespace(data=entries), path, **kwargs)


def test_a_fine_tuned_network_has_seen_what_its_parents_saw_and_was_guided_by(tmp_path, entries, other):
    network = torch.nn.Linear(2, 2)
    own, first = {"name": "la_unet", "sha256": "1"}, {"name": "efficientnet_lite0", "sha256": "2"}
    parent, child = tmp_path / "a.pt", tmp_path / "b.pt"
    save_weights(network, parent, record=record(entries, tmp_path / "a.json5", in_loss=[first]))
    torch.nn.init.zeros_(network.weight)
    save_weights(network, child, record=record(other, tmp_path / "b.json5", in_loss=[own], builds_on=[None, parent]))
    seen = Seen.of(child)
    assert seen.complete and all(seen.of_entry(e) for e in (*entries, *other))
    assert json.loads(child.with_suffix(".json").read_text())["in_loss"] == [own, first]
    grandchild = tmp_path / "c.pt"
    save_weights(network, grandchild, record=record([], tmp_path / "c.json5", builds_on=[child]))
    assert all(Seen.of(grandchild).of_entry(e) for e in (*entries, *other))


def test_a_parent_without_a_card_makes_its_children_unknown(tmp_path, entries, other, caplog):
    bare, child = tmp_path / "bare.pt", tmp_path / "b.pt"
    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), bare)
    save_weights(network, child, record=record(entries, tmp_path / "a.json5", builds_on=[bare]))
    assert "no model card next to these weights" in caplog.text
    seen = Seen.of(child)
    assert seen.known and not seen.complete and seen.gaps == ("bare.pt",)
    assert seen.of_entry(entries[0]) and not seen.of_entry(other[0])
    refuse_seen_cases(seen, other)
    assert "the training cases of bare.pt are unknown" in caplog.text
    second = tmp_path / "c.pt"
    save_weights(network, second, record=record(other, tmp_path / "b.json5", builds_on=[child]))
    assert Seen.of(second).gaps == ("bare.pt",), "and theirs"


def test_a_checkpoint_is_a_parent_with_its_own_record(tmp_path, entries, other):
    state = {"objects": {"network": {"w": torch.ones(2)}}, "epoch": 1, "iteration": 1}
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = folder.save(state | {"record": record(entries, tmp_path / "a.json5").facts()}, epoch=1, iteration=1)
    facts = record(other, tmp_path / "b.json5", builds_on=[path]).facts()
    assert facts["unknown_parents"] == [] and len(facts["training_cases"]) == 3
    bare = folder.save(state, epoch=2, iteration=2)
    assert record(other, tmp_path / "b.json5", builds_on=[bare]).facts()["unknown_parents"] == [bare.name]
    extract_weights(path, tmp_path / "out.pt")
    assert Seen.of(tmp_path / "out.pt").of_entry(entries[0]) == ["image", "label map"]
    extract_weights(tmp_path / "out.pt", tmp_path / "small.pt", mantissa_bits=8)
    assert Seen.of(tmp_path / "small.pt").complete and Seen.of(tmp_path / "small.pt").of_entry(entries[1])
    extract_weights(bare, tmp_path / "bare_out.pt")
    assert Seen.of(tmp_path / "bare_out.pt").gaps == (bare.name,)


def test_going_on_with_other_data_keeps_what_was_seen_and_names_what_is_new(tmp_path, entries, other):
    then = record(entries, tmp_path / "a.json5").facts()
    now = record([*entries[:1], *other], tmp_path / "b.json5")
    assert now.goes_on_from(then, "checkpoint.pt") == [other[0]["case"]]
    seen = Seen.from_card(now.facts(), "x")
    assert seen.complete and all(seen.of_entry(e) for e in (*entries, *other))
    unknown = record(other, tmp_path / "b.json5")
    assert unknown.goes_on_from(None, "checkpoint.pt") == [] and unknown.facts()["unknown_parents"] == ["checkpoint.pt"]


def test_an_image_that_was_replaced_under_its_name_is_noticed(tmp_path, tiny_dataset):
    data = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    first = load_datalist(data / "datalist.json", "training")
    then = record(first, tmp_path / "a.json5").facts()
    image = nib.load(first[0]["image"])
    changed = np.asarray(image.dataobj)
    changed[2, 2, 2] += 50
    nib.save(nib.Nifti1Image(changed, image.affine), first[0]["image"])
    second = load_datalist(data / "datalist.json", "training")
    now = record(second, tmp_path / "a.json5")
    assert now.goes_on_from(then, "checkpoint.pt") == [first[0]["case"]]
    assert len(now.facts()["training_cases"]) == 3, "the old image was seen too"


def test_the_card_states_the_geometry_of_the_training_cases_and_extraction_carries_it(tiny_dataset, tmp_path):
    entries, path = load_datalist(tiny_dataset / "datalist.json"), tmp_path / "datalist.json"
    stated = record(entries, path).facts(for_card=True)["geometry"]
    assert stated["spacing"] == [3.0] * 3 and stated["field_of_view_range"] == [[96.0] * 3] * 2
    resampled = record(entries, path, spacing=(1.5, 1.5, 3.0)).facts(for_card=True)["geometry"]
    assert resampled["spacing"] == [1.5, 1.5, 3.0] and resampled["shape_range"] == [[64, 64, 32]] * 2
    save_weights(torch.nn.Linear(2, 2), tmp_path / "model.pt", record=record(entries, path))
    small = extract_weights(tmp_path / "model.pt", tmp_path / "small.pt", mantissa_bits=8)
    state = {
        "objects": {"network": {"w": torch.ones(2)}},
        "epoch": 1,
        "iteration": 1,
        "record": record(entries, path).facts(),
    }
    CheckpointFolder(tmp_path / "checkpoints").save(state, epoch=1, iteration=1)
    taken = extract_weights(tmp_path / "checkpoints", tmp_path / "taken.pt")
    for weights in (tmp_path / "model.pt", small, taken):
        assert json.loads(weights.with_suffix(".json").read_text())["geometry"] == stated
