"""Likeness of volumes after registration."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from semsynth.data.volumes import Volume
from semsynth.privacy.levels import best_dice
from semsynth.privacy.likeness import Gallery, Pair, Seen, see
from semsynth.privacy.planted import KINDS, plant
from tiny_patients import AFFINE, patient


def _volume(data: NDArray[np.generic]) -> Volume:
    return Volume(data, AFFINE)


def _seen(seed: int) -> Seen:
    image, label = patient(seed)
    return see(f"P{seed}", _volume(image), _volume(label), 2.0)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    scans = [_seen(seed).scan for seed in range(8)]
    return Gallery(scans, [f"patient {i}" for i in range(8)], [True] * 4 + [False] * 4)


def _with(gallery: Gallery, volume: Seen, scan: int) -> Pair:
    pairs, _ = gallery.pairs(volume, also=scan)
    return next(pair for pair in pairs if pair.scan == scan)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_copy_is_like_its_scan_in_all_respects(gallery: Gallery, kind: str) -> None:
    image, label = patient(2)
    copy, moved = plant(kind, _volume(image), _volume(label), 5)
    pairs, shifted = gallery.pairs(see("copy", copy, moved, 2.0))
    best = max(pairs, key=lambda pair: pair.image)
    assert best.scan == 2 and int(np.argmax(shifted)) == 2
    assert best.image > 0.8 and best.patch > 0.8 and best.texture > 0.6
    assert best.flipped == (kind == "mirrored")


def test_scans_of_other_patients_are_not_alike(gallery: Gallery) -> None:
    pairs, _ = gallery.pairs(_seen(50))
    assert max(pair.image for pair in pairs) < 0.6
    assert {pair.scan < 4 for pair in pairs} == {True, False}


def test_people_can_be_left_out(gallery: Gallery) -> None:
    pairs, _ = gallery.pairs(_seen(2), ["patient 2"])
    assert 2 not in {pair.scan for pair in pairs}


def test_texture_tells_a_copy_from_what_the_map_gives(gallery: Gallery) -> None:
    image, label = patient(1)
    painted = np.array([image[label == i].mean() for i in range(4)])[label]
    noise = np.random.default_rng(0).normal(0, 0.03, image.shape)
    own = _with(gallery, see("own map", _volume((painted + noise).astype(np.float32)), _volume(label), 2.0), 1)
    assert own.image > 0.5 and own.painted > 0.5 and abs(own.texture) < 0.2
    assert _with(gallery, _seen(1), 1).texture > 0.99


def test_half_a_copy_shows_in_its_patches(gallery: Gallery) -> None:
    one, label = patient(3)
    other, _ = patient(60)
    half = np.where(np.arange(one.shape[0])[:, None, None] < one.shape[0] * 0.6, one, other).astype(np.float32)
    pair = _with(gallery, see("half", _volume(half), _volume(label), 2.0), 3)
    assert pair.patch > 0.9 > pair.image


def test_shapes_are_compared_at_their_best_shift() -> None:
    mask = np.zeros((10, 12, 8), np.float32)
    mask[2:7, 3:9, 2:6] = 1
    mask[2:4, 3:5, 2:6] = 0
    assert best_dice(mask[1:8], np.roll(mask, 1, axis=0)) == pytest.approx(1.0, abs=1e-5)
    assert best_dice(mask, np.ascontiguousarray(mask[::-1])) == pytest.approx(1.0, abs=1e-5)
    assert best_dice(mask, np.ones((10, 12, 8), np.float32)) < 0.3
