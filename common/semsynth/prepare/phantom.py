"""The built-in left-atrium phantom: a synthetic chest with LGE-MRI contrast that demo and tests use as patient data.

Every organ is a signed distance field (ellipsoids and tapered tubes, joined by a smooth minimum) in millimetres around
the centre of the left atrium; a smooth random deformation of the coordinates makes them look grown. Tissue means,
partial volume, coil shading and Rician noise turn anatomy into grey levels.

Directions are nibabel's RAS+: x grows to the patient's right, y to the front, z to the head.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from ..data.volumes import write_label
from ..errors import InputError
from ..files import remove_left_over
from ..limits import check_number
from ..locks import one_at_a_time
from ..memory import check_size
from ..ownership import Outputs, beside, object_with, refuse
from ..vocabulary import class_names, num_classes
from .composite import MAX_K, CompositeLabel

logger = logging.getLogger(__name__)

AIR, MUSCLE, FAT, LUNG, ENDO, WALL, SCAR = range(7)
VENTRICLE, MYOCARDIUM, AORTA, SPINE, RIGHT_HEART, VESSEL, CONNECTIVE, LIVER = range(7, 15)
# By id: name, mean grey level where blood is 1, relative texture. The levels follow LGE scans of the 2018 LA challenge:
# nulled myocardium is dark, the blood pool mid-bright, scar brighter than blood.
_TISSUES = (
    ("air", 0.0, 0.0),
    ("body/muscle", 0.42, 0.12),
    ("fat", 1.0, 0.08),
    ("lung", 0.1, 0.35),
    ("left atrium blood (endo)", 1.0, 0.04),
    ("left atrium wall", 0.5, 0.06),
    ("left atrium scar", 1.42, 0.06),
    ("left ventricle blood", 0.98, 0.04),
    ("myocardium", 0.34, 0.08),
    ("aorta", 0.95, 0.03),
    ("spine", 0.26, 0.15),
    ("right heart blood", 0.92, 0.06),
    ("pulmonary vessel", 0.9, 0.04),
    ("mediastinal connective tissue", 0.34, 0.35),
    ("liver", 0.55, 0.06),
)
ANATOMY: dict[int, str] = {index: name for index, (name, _, _) in enumerate(_TISSUES)}

# Field of view (mm) that the atrium with its vein stumps needs; a smaller one gets a smaller body.
_NEEDED_MM = np.array([100.0, 74.0, 54.0])
_MIN_SIZE = 16
VOXEL_BYTES = 140
"""That making a phantom takes per voxel; 159 were measured."""
MOST_CASES = 100_000

_Pair: TypeAlias = tuple[float, float]
_Vector: TypeAlias = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Phantom:
    """One synthetic case; all arrays share the grid ``(H, W, D)`` = (right, front, head); masks are uint8 0/1."""

    image: np.ndarray  # float32 whole-number grey levels; exactly 0 in the air around the body, at least 1 in tissue
    endo: np.ndarray  # blood pool of the left atrium with four pulmonary vein stumps and the appendage
    wall: np.ndarray  # 2-3 mm shell around endo, disjoint from it, open at the vein ends and the mitral valve
    scar: np.ndarray  # bright patches inside wall
    anatomy: np.ndarray  # uint8, the ids of ANATOMY
    affine: np.ndarray  # (4, 4) float64, voxel index to RAS+ millimetres


@dataclass(frozen=True)
class _Atrium:
    """What a seed decides about the left atrium, in mm around its centre."""

    radii: np.ndarray
    wall: float
    veins: tuple[tuple[np.ndarray, np.ndarray, _Pair], ...]  # start inside the atrium, end in the lung, radii there
    stumps: np.ndarray  # how far along its vein each stump ends


def _dot(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("i,i...->...", vector.astype(np.float32), points))


def _tube(points: np.ndarray, start: np.ndarray, end: np.ndarray, radii: _Pair) -> np.ndarray:
    """Distance to a tapered tube with round ends; ``points`` are ``(3, …)`` in mm."""
    axis = end - start
    length = np.sum(axis**2)
    along = np.clip((_dot(axis, points) - np.float32(np.sum(axis * start))) / np.float32(length), 0, 1)
    squared = sum((p - np.float32(s) - np.float32(a) * along) ** 2 for p, s, a in zip(points, start, axis, strict=True))
    return np.asarray(np.sqrt(squared) - np.float32(radii[0]) - np.float32(radii[1] - radii[0]) * along)


def _ellipsoid(points: np.ndarray, centre: _Vector, radii: _Vector) -> np.ndarray:
    """First-order distance to an ellipsoid: exact on its surface, close enough a few millimetres away."""
    scaled = [(p - np.float32(c)) / np.float32(r) for p, c, r in zip(points, centre, radii, strict=True)]
    norm = np.sqrt(sum(s**2 for s in scaled))
    slope = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return np.asarray(norm * (norm - 1) / np.maximum(slope, np.float32(1e-6)))


def _join(*fields: np.ndarray, blend: float) -> np.ndarray:
    """Union with seams rounded over ``blend`` mm (polynomial smooth minimum, iquilezles.org/articles/smin)."""
    joined = fields[0]
    for field in fields[1:]:
        share = np.clip(0.5 + np.float32(0.5 / blend) * (field - joined), 0, 1)
        joined = field + (joined - field) * share - np.float32(blend) * share * (1 - share)
    return joined


def _waves(points: np.ndarray, rng: np.random.Generator, wavelength: _Pair, *, count: int = 5) -> np.ndarray:
    """Smooth random field of unit variance: plane waves, so that it does not depend on the grid it is sampled on."""
    field = np.zeros(points.shape[1:], np.float32)
    for _ in range(count):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / rng.uniform(*wavelength) / np.sqrt(np.sum(direction**2))
        field += np.cos(_dot(direction, points) + np.float32(rng.uniform(0, 2 * np.pi)))
    return field * np.float32(np.sqrt(2 / count))


def _grid(size: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Coordinates ``(3, H, W, D)``, float32; 0 lies on voxel ``size // 2``, which is thus always inside the atrium."""
    axes = [((np.arange(n) - n // 2) * step).astype(np.float32) for n, step in zip(size, steps, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _draw_atrium(rng: np.random.Generator) -> _Atrium:
    radii = np.array([rng.uniform(26, 31), rng.uniform(14.5, 18), rng.uniform(16, 20.5)])
    veins = []
    # Right superior, right inferior, left superior, left inferior: superior veins leave upwards, inferior ones
    # backwards and down.
    for side, forward, up in ((1, -0.1, 0.45), (1, -0.5, -0.35), (-1, -0.2, 0.5), (-1, -0.6, -0.25)):
        start = radii * np.array([0.45 * side, 0.45 * forward, 0.8 * up])
        direction = np.array([side, forward, up]) + rng.normal(scale=0.1, size=3)
        direction *= rng.uniform(46, 54) / np.sqrt(np.sum(direction**2))
        ostium = rng.uniform(6.0, 8.0)
        veins.append((start, start + direction, (ostium, ostium * 0.55)))
    return _Atrium(radii, float(rng.uniform(2, 3)), tuple(veins), 0.55 * radii[0] + rng.uniform(7, 12, size=4))


def _cavity(points: np.ndarray, atrium: _Atrium, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distance fields of the blood pool with stumps and appendage, and of the veins all the way to the lungs."""
    veins = [_tube(points, *vein) for vein in atrium.veins]
    stumps = []
    for (start, end, _), field, length in zip(atrium.veins, veins, atrium.stumps, strict=True):
        axis = (end - start) / np.sqrt(np.sum((end - start) ** 2))
        stumps.append(np.maximum(field, _dot(axis, points) - np.float32(np.sum(axis * start) + length)))
    # Two overlapping lobes: a real atrium is a flattened, askew box rather than an egg.
    skew = rng.uniform(-2, 2, size=2)
    right = _ellipsoid(points, (0.3 * atrium.radii[0], *skew), atrium.radii * np.array([0.7, 1, 0.95]))
    left = _ellipsoid(points, (-0.3 * atrium.radii[0], *-skew), atrium.radii * np.array([0.7, 0.95, 1]))
    neck = atrium.radii * np.array([-0.75, 0.5, 0.2])
    elbow = neck + np.array([-9, 5, 3]) + rng.normal(scale=1.5, size=3)
    tip = elbow + np.array([1, 8, -5]) + rng.normal(scale=2, size=3)
    appendage = (_tube(points, neck, elbow, (5.5, 4.5)), _tube(points, elbow, tip, (5.5, 3.5)))
    return _join(_join(right, left, blend=10), *stumps, *appendage, blend=5), np.minimum.reduce(veins)


def _chambers(points: np.ndarray, atrium: _Atrium, rng: np.random.Generator) -> list[tuple[int, np.ndarray, float]]:
    """The rest of the heart as (blood id, distance field, thickness of its muscle in mm), bottom layer first."""
    front, top = atrium.radii[1] + atrium.wall, atrium.radii[2] + atrium.wall
    mitral = np.array([-15.0, 0.6 * front, -6.0])
    apex = np.array([-0.8, 0.42, -0.38]) + rng.normal(scale=0.05, size=3)
    ventricle = _tube(points, mitral + 17 * apex, mitral + 45 * apex, (rng.uniform(15, 18), 9))
    inflow = _tube(points, mitral - 6 * apex, mitral + 20 * apex, (10, 14))
    root = np.array([3, front + 13, 2]) + rng.normal(scale=1.5, size=3)
    calibre = rng.uniform(11, 13.5)
    outflow = _tube(points, mitral + np.array([2, 15, -8]), root, (9, calibre - 1))
    ascending = _tube(points, root, root + np.array([9, 2, 50]), (calibre, calibre))
    right = np.array([32, front + 5, -6]) + rng.normal(scale=1.5, size=3)
    atrium_right = _ellipsoid(points, right, (rng.uniform(15, 19), 16, 23))
    cava = _tube(points, right + np.array([1, -3, -60]), right + np.array([-1, -6, 60]), (11, 8.5))
    ventricle_right = _ellipsoid(points, (2, front + 23, -20), (32, 13, 22))
    trunk = _tube(points, np.array([-10, front + 25, -8]), np.array([-20, front + 2, 42]), (11, 12))
    artery = _tube(points, np.array([-20, front, top + 14]), np.array([52, -6, top + 11]), (10, 8))
    return [
        (RIGHT_HEART, _join(ventricle_right, trunk, blend=8), 3.0),
        (RIGHT_HEART, _join(atrium_right, cava, blend=5), 2.0),
        (RIGHT_HEART, artery, 1.5),
        (VENTRICLE, _join(ventricle, inflow, blend=5), rng.uniform(7, 9.5)),
        (AORTA, _join(outflow, ascending, blend=4), 1.8),
    ]


def _branches(points: np.ndarray, atrium: _Atrium, rng: np.random.Generator) -> np.ndarray:
    """Distance field of the lung vessels that fan out from the pulmonary veins; ``points`` is ``(3, N)``."""
    nearest = np.full(points.shape[1], np.inf, np.float32)
    for vein_start, vein_end, _ in atrium.veins:
        for _ in range(14):
            start = vein_start + (vein_end - vein_start) * rng.uniform(0.45, 1) + rng.normal(scale=5, size=3)
            end = start + 18 * (np.array([0.7 * np.sign(vein_end[0]), -0.3, 0]) + rng.normal(scale=0.9, size=3))
            np.minimum(nearest, _tube(points, start, end, (rng.uniform(1.4, 3.2), 1.1)), out=nearest)
    return nearest


def _chest(points: np.ndarray, atrium: _Atrium, heart: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ids of everything behind and around the heart; ``heart`` is the distance field of the whole heart."""
    x, y, z = points
    # A compact chest, so that even a field of view around the heart sees air beyond its front corners.
    width, front, middle = np.float32(rng.uniform(70, 78)), np.float32(rng.uniform(83, 87)), np.float32(-38)
    across, level = np.abs(x) / width, np.abs(y - middle) / np.where(y > middle, front, np.float32(58))
    body = ((across**2.3 + level**2.3) ** (1 / 2.3) - 1) * width
    fat = rng.uniform(2.5, 5)
    labels = np.full(x.shape, AIR, np.uint8)
    for inset, tissue in ((0, FAT), (fat, MUSCLE), (fat + 4, LUNG)):
        labels[body < -inset] = tissue
    inside = labels == LUNG

    back, radius = -atrium.radii[1] - atrium.wall, rng.uniform(16, 18.5)
    spine = _ellipsoid(points, (3, back - 8 - radius, 0), (radius + 2, radius, 1e4))
    centre = np.array([-radius - 5, back - rng.uniform(12.5, 15), 0])
    drift, calibre = np.array([rng.uniform(-8, 8), rng.uniform(-8, 2), 120]), rng.uniform(10.5, 12.5)
    aorta = _tube(points, centre - drift, centre + drift, (calibre, calibre))
    gullet = _ellipsoid(points, (-6, back - 4, 0), (6, 3.5, 1e4))

    labels[inside & (_ellipsoid(points, (30, -5, -98), (78, 75, 62)) < 0)] = LIVER
    labels[inside & (_join(heart, spine, aorta, gullet, blend=9) < 3)] = CONNECTIVE
    muscles = _ellipsoid(points, (3, back - 8 - 2.6 * radius, 0), (40, 17, 1e4))  # of the back, beside the spine
    labels[inside & (np.minimum(gullet, muscles) < 0)] = MUSCLE
    for tissue, field, rim, rim_tissue in ((SPINE, spine, 2.0, FAT), (AORTA, aorta, 1.2, MYOCARDIUM)):
        labels[(field < rim) & (body < -fat)] = rim_tissue
        labels[(field < 0) & (body < -fat)] = tissue
    # Discs between the vertebrae, one every 28 mm.
    labels[(labels == SPINE) & (np.abs((z + 9) % 28 - 14) > 11.5)] = MUSCLE
    return labels


def _shell(endo: np.ndarray, spacing: np.ndarray, thickness: float) -> np.ndarray:
    """Voxels outside ``endo`` within ``thickness`` mm of its surface, and never less than one voxel."""
    # Distances run between voxel centres; the surface lies half a voxel nearer.
    half = 0.5 * float(spacing.min())
    distance = ndimage.distance_transform_edt(~endo, sampling=spacing)
    return np.asarray(~endo & (distance <= max(thickness + half, 2 * half + 1e-6)))


def _anatomy(size: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one patient: ids of ``ANATOMY`` on the grid, uint8."""
    scale = min(1.0, float(np.min(size * spacing / _NEEDED_MM)))
    points = _grid(size, spacing / scale)
    coarse = np.stack([np.float32(1.4) * _waves(points, rng, (45, 90)) for _ in range(3)])
    points = points + coarse + np.stack([np.float32(0.4) * _waves(points, rng, (16, 28)) for _ in range(3)])
    atrium = _draw_atrium(rng)
    tilt = Rotation.from_euler("xyz", rng.uniform(-8, 8, size=3), degrees=True).as_matrix()
    heart = np.stack([_dot(row, points) for row in tilt])
    cavity, veins = _cavity(heart, atrium, rng)
    chambers = _chambers(heart, atrium, rng)
    muscles = [field - np.float32(thickness) for _, field, thickness in chambers]
    labels = _chest(points, atrium, np.minimum.reduce([cavity - np.float32(atrium.wall), *muscles]), rng)

    # The heart does not push the chest wall aside: it ends where the chest does.
    inside = np.isin(labels, (AIR, FAT, MUSCLE), invert=True)
    lungs = np.isin(labels, (LUNG, CONNECTIVE))
    veins[lungs] = np.minimum(veins[lungs], _branches(heart[:, lungs], atrium, rng))
    labels[inside & (veins < 0)] = VESSEL
    for (blood, field, _), muscle in zip(chambers, muscles, strict=True):
        labels[inside & (muscle < 0)] = MYOCARDIUM
        labels[inside & (field < 0)] = blood

    endo = cavity < 0
    wall = _shell(endo, spacing, atrium.wall * scale)
    wall &= (veins >= 0) & (labels != VENTRICLE)  # open at the vein ends and the mitral valve
    # Scar: the peaks of a smooth field over the wall, raised at the back and around the ostia.
    where = heart[:, wall]
    field = _waves(where, rng, (14, 32), count=12) - where[1] / 20 + np.abs(where[0]) / 30
    labels[wall] = np.where(field > np.quantile(field, 1 - rng.uniform(0.12, 0.35)), SCAR, WALL)
    labels[endo] = ENDO
    return labels


def _blurred(noise: np.ndarray, sigma: float | np.ndarray) -> np.ndarray:
    """Noise of the given grain in voxels, scaled back to unit variance."""
    smooth = ndimage.gaussian_filter(noise, sigma, truncate=3)
    return np.asarray(smooth / max(float(smooth.std()), 1e-6))


def _scan(labels: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey levels of an LGE acquisition: means, texture, partial volume, coil shading, Rician noise; float32."""
    levels, grain = (np.array(column, np.float32) for column in list(zip(*_TISSUES, strict=True))[1:])
    levels *= rng.uniform(0.94, 1.06, size=len(levels)).astype(np.float32)
    texture = _blurred(rng.standard_normal(labels.shape, np.float32), 1.8 / spacing)
    # Scanners interpolate: the true resolution is coarser than the grid.
    blur = np.maximum(0.55, 0.55 / spacing)
    signal = ndimage.gaussian_filter(levels[labels] * (1 + grain[labels] * texture), blur, truncate=3)

    place = _grid(np.array(labels.shape), np.full(3, 1 / max(labels.shape)))
    shading = np.float32(rng.uniform(0.05, 0.12)) * _waves(place, rng, (1.2, 2.5), count=4)
    # Surface coils lie on the chest: its front comes out brighter.
    signal *= np.exp(shading + np.float32(rng.uniform(0, 0.4)) * place[1])

    sigma = np.float32(rng.uniform(0.04, 0.1))
    real, imaginary = (sigma * _blurred(rng.standard_normal(labels.shape, np.float32), 0.45) for _ in range(2))
    grey = np.rint(np.float32(rng.uniform(100, 320)) * np.sqrt((signal + real) ** 2 + imaginary**2))
    return np.where(labels == AIR, np.float32(0), np.maximum(grey, 1)).astype(np.float32)


def _check(seed: int, size: Sequence[int], spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if seed != int(seed) or seed < 0:
        raise InputError(f"seed must be a whole number from 0 on, got {seed}; give e.g. 0")
    if len(size) != 3 or any(n != int(n) or n < _MIN_SIZE for n in size):
        raise InputError(f"size must be three whole numbers of at least {_MIN_SIZE} voxels, got {size}; enlarge it")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"spacing must be three positive lengths in mm, got {spacing}; give e.g. (1.0, 1.0, 1.0)")
    check_size(size, "a phantom", "give a smaller --size", voxel=VOXEL_BYTES)
    return np.array(size, dtype=np.int64), np.array(spacing, dtype=np.float64)


def make_phantom(
    seed: int, *, size: Sequence[int] = (128, 96, 64), spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> Phantom:
    """Make one synthetic left-atrium case; the same arguments give the same arrays, bit for bit.

    The shape depends on the seed alone, so one patient can be sampled on several grids. Where the field of view
    (``size`` times ``spacing``) is too small for the atrium, the whole anatomy shrinks until it fits.

    Args:
        seed: whole number from 0 on; decides shape, contrast, shading and noise.
        size: voxels per axis ``(H, W, D)``, each at least 16.
        spacing: voxel edge per axis in mm.

    Raises:
        InputError: negative seed, an axis below 16 voxels, or a spacing that is not positive.

    Examples:
        >>> phantom = make_phantom(0, size=(32, 32, 32), spacing=(3.0, 3.0, 3.0))
        >>> phantom.image.shape, bool(phantom.endo.any())
        ((32, 32, 32), True)
    """
    voxels, edges = _check(seed, size, spacing)
    # Two streams: what the noise draws depends on the grid, what the anatomy draws must not.
    shape_rng, image_rng = np.random.default_rng(int(seed)).spawn(2)
    anatomy = _anatomy(voxels, edges, shape_rng)
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = -edges * (voxels // 2)
    endo, wall, scar = (np.isin(anatomy, ids).astype(np.uint8) for ids in ((ENDO,), (WALL, SCAR), (SCAR,)))
    return Phantom(_scan(anatomy, edges, image_rng), endo, wall, scar, anatomy, affine)


_ROLES = ("image", "endo", "wall", "scar", "label")
_IS_PHANTOMS = object_with("phantom", name="left-atrium phantom")


def _listing(output: Path) -> Outputs:
    return Outputs(output, "semsynth phantom", {"datalist.json": _IS_PHANTOMS})


def _volumes(output: Path, index: int) -> Outputs:
    """The volumes of a case; those of version 0.1.0 are known by the datalist. A ledger of its own: it stays short."""
    by_datalist = beside("../datalist.json", _IS_PHANTOMS)
    return Outputs(output / f"phantom_{index:03d}", "semsynth phantom", {f"{r}.nii.gz": by_datalist for r in _ROLES})


def _write_case(files: Outputs, phantom: Phantom, k: int) -> dict[str, str]:
    """Write one case; return its datalist entry with paths relative to the datalist."""
    # Raw grey levels, as scanners store them; volumes.write_image is for intensities in [0, 1].
    make_image: Any = nib.Nifti1Image  # nibabel's calls are untyped
    image = make_image(phantom.image.astype(np.int16), phantom.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(phantom.affine, code=1)
    image.set_sform(phantom.affine, code=1)
    with files.path("image.nii.gz") as temporary:
        nib.save(image, temporary)
    masks = {"endo": phantom.endo, "wall": phantom.wall, "scar": phantom.scar}
    masks["label"] = CompositeLabel(k=k)(phantom.image, phantom.endo, phantom.wall)
    for role, mask in masks.items():
        with files.path(f"{role}.nii.gz") as temporary:
            write_label(temporary, mask, phantom.affine)
    name = files.folder.name
    return {"case": name} | {role: f"{name}/{role}.nii.gz" for role in _ROLES}


@one_at_a_time("semsynth phantom")
def write_phantom_cases(
    output: Path | str,
    cases: int,
    *,
    seed: int = 0,
    size: Sequence[int] = (128, 96, 64),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    k: int = 2,
    progress: bool = True,
    wait: bool = False,
) -> Path:
    """Write phantoms as ``<output>/phantom_<iii>/{image,endo,wall,scar,label}.nii.gz`` with a datalist for MONAI.

    Case ``i`` depends on ``seed`` and ``i`` only, not on how many there are. The last 15 % of the cases (at least one)
    go to testing, as many before them to validation, the rest to training.

    Args:
        output: folder, made if needed.
        cases: number of cases, at least 3.
        seed, size, spacing: as in :func:`make_phantom`.
        k: number of intensity clusters of the composite maps, 0 to 10.
        progress: show a progress bar.
        wait: wait until another run that writes into ``output`` has ended; without it such a run is an error.

    Returns:
        Path of ``<output>/datalist.json``.

    Raises:
        InputError: ``output`` is a file or holds files that would be replaced and are no phantoms of ours, fewer than 3
            cases, ``k`` outside 0 to 10, or as in :func:`make_phantom`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     datalist = write_phantom_cases(folder, 3, size=(32, 32, 32), progress=False)
        ...     datalist.name
        'datalist.json'
    """
    output = Path(output)
    if output.is_file():
        raise InputError(f"output must be a folder, {output} is a file; name another path or remove the file")
    if cases != int(cases) or cases < 3:
        raise InputError(f"cases must be at least 3 (one per split), got {cases}; ask for more")
    check_number("cases", cases, 3, MOST_CASES)
    if k != int(k) or not 0 <= k <= MAX_K:
        raise InputError(f"k must be a whole number from 0 to {MAX_K}, got {k}; give e.g. 2")
    _check(seed, size, spacing)
    listing, folders = _listing(output), [_volumes(output, index) for index in range(int(cases))]
    refuse([reason for files in (listing, *folders) for reason in files.foreign()])
    entries = []
    for index, files in enumerate(tqdm(folders, desc="phantoms", disable=not progress)):
        remove_left_over(files.folder)
        case_seed = int(np.random.SeedSequence([int(seed), index]).generate_state(1)[0])
        phantom = make_phantom(case_seed, size=size, spacing=spacing)
        entries.append(_write_case(files, phantom, k))
    recipe = {"seed": int(seed), "size": [int(n) for n in size], "spacing": [float(s) for s in spacing], "k": int(k)}
    logger.info("wrote %d phantom cases to %s", cases, output)
    return listing.write_text("datalist.json", json.dumps(_datalist(entries, recipe), indent=2) + "\n")


def _datalist(entries: list[dict[str, str]], recipe: dict[str, object]) -> dict[str, object]:
    held_out = max(1, round(0.15 * len(entries)))
    count = num_classes(int(str(recipe["k"])))
    return {
        "name": "left-atrium phantom",
        "description": "synthetic left-atrium LGE-MRI made by semsynth; no patient data",
        "modality": {"0": "LGE-MRI (phantom)"},
        "num_classes": count,
        "classes": {str(index): name for index, name in class_names(count).items()},
        "phantom": recipe,
        "training": entries[: -2 * held_out],
        "validation": entries[-2 * held_out : -held_out],
        "testing": entries[-held_out:],
    }
