"""The order of the cases: shares per source, permutations, processes, seeds; the training data set's seeded draws."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from monai.transforms import Compose
from semsynth.data.entries import load_datalist, load_images
from semsynth.errors import InputError
from semsynth.provenance.cards import write_model_card
from semsynth.provenance.seen import training_cases
from semsynth.training.loading import CaseSampler, TrainingDataset, called_by_file, load_sources, load_unseen
from tiny_training import loader


class dataset:  # noqa: N801
    """Sources of so many cases each."""

    def __init__(self, *sizes: int) -> None:
        self.data = [{"source": s} for s, size in enumerate(sizes) for _ in range(size)]

    def __len__(self) -> int:
        return len(self.data)


def drawn(sampler: CaseSampler, epochs: int) -> list[list[int]]:
    result = []
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        result.append([index for index, _ in sampler])
    return result


def test_every_case_comes_once_per_epoch_in_an_order_of_its_own():
    epochs = drawn(CaseSampler(dataset(10)), 3)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert drawn(CaseSampler(dataset(10)), 3) == epochs != drawn(CaseSampler(dataset(10), seed=1), 3)


def test_each_draw_is_augmented_by_a_seed_of_its_own_in_every_epoch():
    sampler, seeds = CaseSampler(dataset(4), shuffle=False), []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        seeds.append([seed for _, seed in sampler])
    assert len({*seeds[0], *seeds[1]}) == 8
    sampler.set_epoch(1)
    assert [seed for _, seed in sampler] == seeds[0], "of the epoch alone, whenever it is gone through"


def test_a_mixing_ratio_gives_each_source_its_share_and_goes_through_all_of_it():
    epochs = drawn(CaseSampler(dataset(8, 20), ratio=[1, 1]), 5)
    for epoch in epochs:
        assert sum(index < 8 for index in epoch) == 8 and len(epoch) == 16
    synthetic = Counter(index for epoch in epochs for index in epoch if index >= 8)
    assert sorted(synthetic.values()) == [2] * 20  # five epochs of eight are two rounds of twenty


def test_a_small_share_comes_up_over_the_epochs():
    epochs = drawn(CaseSampler(dataset(8, 8), ratio=[1, 9], epoch_cases=4), 5)
    assert sum(index < 8 for epoch in epochs for index in epoch) == 2 and {len(epoch) for epoch in epochs} == {4}


def test_equal_iterations_whatever_the_sources_hold():
    real, mixed = CaseSampler(dataset(8), epoch_cases=12), CaseSampler(dataset(8, 8), ratio=[1, 1], epoch_cases=12)
    assert len(real) == len(mixed) == len(drawn(real, 1)[0]) == 12
    over_two = Counter(index for epoch in drawn(real, 2) for index in epoch)
    assert set(over_two.values()) == {3}  # 24 draws of 8 cases: no case before all others


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_epoch_without_overlap(monkeypatch, processes):
    parts = []
    for rank in range(processes):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", str(rank))
        sampler = CaseSampler(dataset(12), group=2)
        sampler.set_epoch(3)
        parts.append(list(sampler))
    assert sorted(index for part in parts for index, _ in part) == list(range(12))
    assert len({seed for part in parts for _, seed in part}) == 12


def test_going_on_within_an_epoch_gives_the_rest_of_it_once():
    sampler = CaseSampler(dataset(10))
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.skip = 3
    assert list(sampler) == whole[3:] and list(sampler) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"ratio": [1]}, r"one positive share per datalist \(2\)"), ({"ratio": [1, 0]}, "positive share"),
     ({"epoch_cases": 0}, "epoch_cases must be positive")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        CaseSampler(dataset(4, 4), **arguments)


def test_augmentation_depends_on_the_draws_seed_alone(tiny_dataset):
    data = loader(tiny_dataset, "unet", workers=0).dataset
    assert isinstance(data, TrainingDataset)
    first = data[(0, 5)]["image"]
    data[(1, 6)]
    assert torch.equal(data[(0, 5)]["image"], first)
    assert not torch.equal(data[(0, 6)]["image"], first)


def test_the_disk_cache_gives_the_same_samples(tiny_dataset, tmp_path):
    plain = loader(tiny_dataset, "unet", workers=0).dataset
    for _ in range(2):  # once built, once read
        cached = TrainingDataset(plain.data, plain.transform, cache_dir=tmp_path, num_workers=1, progress=False)
        assert torch.equal(cached[(0, 5)]["image"], plain[(0, 5)]["image"])
    assert list(tmp_path.iterdir())
    options = {"cache_dir": tmp_path, "cache_rate": 0.0, "progress": False}
    built = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    from_disk = TrainingDataset(plain.data, plain.transform, **options)
    assert torch.equal(from_disk[(0, 5)]["image"], plain[(0, 5)]["image"])
    assert built == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_sources_are_numbered_and_an_empty_list_is_refused(tiny_dataset):
    path = tiny_dataset / "datalist.json"
    entries = load_sources([path, path])
    assert [entry["source"] for entry in entries] == [0, 0, 1, 1]
    with pytest.raises(InputError, match="needs one datalist"):
        load_sources([])


def test_a_training_case_that_is_held_out_is_refused(tiny_dataset, tmp_path):
    path = tiny_dataset / "datalist.json"
    content = json.loads(path.read_text())
    assert len(load_sources(path, validation=path)) == 2
    entry = {k: str(tiny_dataset / v) if k != "case" else v for k, v in content["validation"][0].items()}
    (tmp_path / "synthetic.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(InputError, match=rf"(?s)1 training cases are held out.*{entry['case']}, in .*, in validation"):
        load_sources([path, tmp_path / "synthetic.json"], validation=path)


def test_images_to_segment_need_no_label(tiny_dataset, tmp_path):
    entries = load_images(tiny_dataset)
    assert len(entries) == 1 and set(entries[0]) == {"case", "image"}
    found = load_images(tmp_path, str(tiny_dataset / "*" / "image.nii.gz"))
    assert len(found) == 4 and entries[0]["case"] in {entry["case"] for entry in found}
    with pytest.raises(InputError, match="no images found"):
        load_images(tmp_path, str(tmp_path / "*.nii"))


def test_weights_are_not_evaluated_on_cases_that_they_have_seen(tiny_dataset, tmp_path, caplog):
    path = tiny_dataset / "datalist.json"
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    assert load_unseen(path, weights=weights) and "are unknown" in caplog.text
    write_model_card(weights, unknown_parents=[], training_cases=training_cases(load_datalist(path, "training")))
    assert len(load_unseen(path, weights=weights)) == 1
    assert len(load_unseen(path, "training", weights=weights)) == 2
    write_model_card(weights, unknown_parents=[], training_cases=training_cases(load_datalist(path, "validation")))
    with pytest.raises(InputError, match="1 of 1 cases were used to train these weights"):
        load_unseen(path, weights=weights)


def test_an_entry_without_a_target_is_named(tmp_path, tiny_dataset):
    content = json.loads((tiny_dataset / "datalist.json").read_text())
    entry = content["training"][0]
    listed = {"training": [{"case": "bare", "image": str(tiny_dataset / entry["image"])}]}
    (tmp_path / "datalist.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match=r"(?s)entries without 'label' or 'endo'.*- bare"):
        load_sources(tmp_path / "datalist.json", needs=("image",))


def test_cases_without_a_name_are_called_by_their_image_and_none_twice(tiny_dataset):
    entries = [
        {"image": "a/scan.nii.gz"},
        {"image": "b/scan.nii.gz"},
        {"image": "c/other.nii"},
        {"case": "scan_2", "image": "d"},
    ]
    assert [e["case"] for e in called_by_file(entries)] == ["scan", "scan_3", "other", "scan_2"]
    with pytest.raises(InputError, match="entry 0 of the training data: needs the path of an image"):
        called_by_file([{"label": "a.nii.gz"}])
    loaded = load_datalist(tiny_dataset / "datalist.json", "training")
    assert not TrainingDataset(loaded, Compose([]), progress=False).handed_over
    bare = [{key: e[key] for key in ("image", "label")} for e in loaded]
    assert TrainingDataset(bare, Compose([]), progress=False).handed_over
