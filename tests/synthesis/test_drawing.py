"""Drawn maps: finished, checked, drawn again, written and compared; what is asked for wrongly is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from semsynth.cli.main import main
from semsynth.data.volumes import write_label
from semsynth.errors import InputError
from semsynth.provenance.cards import write_model_card
from semsynth.synthesis.drawing import DerivedWall, DrawnMapInferer, Finishing, RequestedMapd, load_requests
from semsynth.synthesis.drawing.evaluate import evaluate_maps
from semsynth.synthesis.drawing.scores import Portrayed, score
from semsynth.synthesis.workflow import run_inference
from tiny_anatomy import ball
from tiny_maps import CHECKED, NAMES, SPACING, blank, egg, map_in, model, write_eggs

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "la_maps"
ONE = (1.0, 1.0, 1.0)


# ------------------------------------------------------------------------------------------------------------ finishing


def test_crumbs_become_what_is_next_to_them_and_hollows_are_filled():
    label = ball()
    label[2:4, 2:4, 2:4] = 1
    label[24, 24, 24] = 3
    made, changes = Finishing((1,))(label, ONE)
    assert np.array_equal(made, ball()) and changes == {"crumbs": 8, "hollows": 1, "changed": 9}


@pytest.mark.parametrize("mm", [2.5, 4.0])
def test_a_derived_wall_is_laid_anew_with_its_thickness(mm):
    label = ball(wall=6.0)
    made, _ = Finishing((1,), DerivedWall(2, 1, mm))(label, ONE)
    assert np.array_equal(made == 1, label == 1)
    middle = made[:, 24, 24]
    assert abs(np.count_nonzero(middle == 2) / 2 - mm) <= 0.5
    assert (made[24, 24, :] == 2).sum() == 0  # in axial slices alone, as where it is derived
    assert not (made == 0).any()  # where the old wall was, tissue goes on


def test_a_wall_in_space_is_there_on_all_sides():
    made, _ = Finishing((1,), DerivedWall(2, 1, 3.0, "3d"))(ball(), ONE)
    assert 4 <= (made[24, 24, :] == 2).sum() <= 8


def test_classes_that_are_known_stay_as_they_are_as_a_whole():
    label = ball()
    label[2:4, 2:4, 2:4] = 1
    label[24, 24, 24] = 3
    finishing = Finishing((1,), DerivedWall(2, 1, 5.0))
    made, _ = finishing(label, ONE, np.isin(label, (1, 2)))
    assert np.array_equal(made, label)  # neither crumbs nor hollows nor another wall
    made, _ = finishing(label, ONE, label == 1)
    assert np.array_equal(made == 1, label == 1) and (made == 2).sum() > (label == 2).sum()


def test_walls_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="wall_mm"):
        DerivedWall(2, 1, 9.0)
    with pytest.raises(InputError, match="axial or 3d"):
        DerivedWall(2, 1, 2.5, "acquisition")
    with pytest.raises(InputError, match="thinner than a voxel"):
        DerivedWall(2, 1, 2.5).mask(ball() == 1, (3.0, 1.0, 1.0))
    with pytest.raises(InputError, match="have no derived wall"):
        Finishing.of([1], None, 2.0)


# ------------------------------------------------------------------------------------------------------------- requests


def test_requests_are_named_and_sized():
    entries = load_requests(3, seed=2, field_of_view=[72, 64, 56])
    assert [e["case"] for e in entries] == ["drawn2_0000", "drawn2_0001", "drawn2_0002"]
    made = RequestedMapd(SPACING)(entries[0])["image"]
    assert made.shape == (1, 36, 32, 28) and (made == -1).all()
    assert np.allclose(made.affine[:3, 3], [-35, -31, -27])  # around the origin
    assert RequestedMapd(SPACING)(load_requests(1)[0])["image"].shape == (1, 1, 1, 1)
    assert [e["case"] for e in load_requests(1, names=["a", "b"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"count": 0}, "count"),
        ({"field_of_view": [50, 50]}, "three lengths in mm"),
        ({"field_of_view": [50, 5, 50]}, "field_of_view"),
        ({"known": ["endo"]}, "given and known go together"),
        ({"names": ["a", "a"]}, "must differ"),
        ({"names": ["a/b"]}, "case names become folder and file names"),
        ({"given": "x.nii.gz", "known": ["endo"], "field_of_view": [50, 50, 50]}, "do not go with given"),
        ({"known": 3, "given": "x.nii.gz"}, "known must be a list of names"),
    ],
)
def test_requests_that_cannot_be_are_refused(given, match):
    with pytest.raises(InputError, match=match):
        load_requests(**({"count": 1} | given))


def test_padding_of_given_maps_is_no_part_of_them(tmp_path):
    folder = write_eggs(tmp_path / "eggs", 1, 0)
    content = json.loads((folder / "datalist.json").read_text())
    padded = np.pad(map_in(folder / "egg0_label.nii.gz"), 4)
    write_label(folder / "egg0_label.nii.gz", padded, np.diag([*SPACING, 1.0]))
    content["training"][0]["content"] = {"start": [4, 4, 4], "shape": [36, 32, 28]}
    (folder / "datalist.json").write_text(json.dumps(content))
    metadata = BUNDLE / "configs" / "metadata.json"
    entries = load_requests(1, given="datalist", dataset_dir=folder, known=["endo"], num_classes=4, metadata=metadata)
    assert RequestedMapd(SPACING)(entries[0])["image"].shape == (1, 36, 32, 28)


def test_a_known_class_comes_from_a_file_on_the_networks_grid(tmp_path):
    folder = write_eggs(tmp_path / "eggs", 2, 0)
    metadata = BUNDLE / "configs" / "metadata.json"
    entries = load_requests(1, given="datalist", dataset_dir=folder, known=["endo"], num_classes=4, metadata=metadata)
    made = RequestedMapd((1.0, 1.0, 1.0))(entries[0])["image"]
    label = map_in(folder / "egg0_label.nii.gz")
    assert made.shape == (1, 72, 64, 56) and set(made.unique().tolist()) == {-1.0, 1.0}
    assert (made == 1).sum() == pytest.approx(8 * (label == 1).sum(), rel=0.03)
    # whose cavity it is goes with it
    assert (
        entries[0]["source_case"] == "egg0" and entries[0]["patient"] == "p0" and entries[0]["source_voxels"]["label"]
    )
    typed = load_requests(2, given="datalist", dataset_dir=folder, known="endo,wall", num_classes=4, metadata=metadata)
    assert typed[0]["image"]["known"] == [1, 2] and len({e["case"] for e in typed}) == len(typed)
    with pytest.raises(InputError, match="known: no class lung; the maps have"):
        load_requests(1, given="datalist", dataset_dir=folder, known=["lung"], num_classes=4, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------- draws


class Eggs(torch.nn.Module):
    """Draws eggs of a radius that follows from the seed, and keeps the limits of a shape model."""

    def __init__(self, radii: dict[int, float]) -> None:
        super().__init__()
        shape = model()
        self.radii, self.figures, self.limits, self.spacing = radii, shape.figures, shape.limits, SPACING
        self.limits.set([(8.0, 20.0), (1.0, 1.0), (0.0, 0.0), (1.0, 6.0)])
        self.asked: list[int] = []

    def field_of_view(self, seed: int) -> tuple[int, int, int]:
        return (36, 32, 28)

    def synthesize(self, label: torch.Tensor, seeds: list[int], *, style=None) -> torch.Tensor:
        self.asked += seeds
        radius = self.radii.get(seeds[0], 14.0)
        return torch.from_numpy(egg(radius, 1.0, tuple(label.shape[2:])))[None, None]


def test_a_map_in_place_of_a_request_keeps_its_cavity(tmp_path):
    """As MONAI Label gives a path, and MONAI Deploy an array."""
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    path = write_label(tmp_path / "map.nii.gz", ball(wall=6.0)[::2, ::2, ::2], affine)
    array = MetaTensor(torch.from_numpy(ball(wall=6.0)[::2, ::2, ::2].copy()), affine=torch.from_numpy(affine))
    step = RequestedMapd(ONE)
    of_file, of_array = (step({"image": given})["image"] for given in (str(path), array))
    wanted = step({"image": {"file": str(path), "known": [1]}})["image"]
    for made in (of_file, of_array):
        assert torch.equal(made.as_tensor(), wanted.as_tensor()) and torch.allclose(made.affine, wanted.affine)
        assert np.allclose(made.meta["original_affine"], made.affine) and set(made.unique().tolist()) == {-1.0, 1.0}
    write_label(path, np.where(ball() == 1, 2, 0).astype(np.uint8), affine)
    with pytest.raises(InputError, match=r"map\.nii\.gz: no voxel of class 1, around which"):
        step({"image": str(path)})


def test_without_seeds_the_first_map_has_seed_0():
    inferer, network = DrawnMapInferer(), model()
    assert torch.equal(inferer(blank(), network), inferer(blank(), network, noise_seeds=[0]))


def test_a_map_beyond_the_limits_is_drawn_again():
    network, inferer = Eggs({5: 20.0}), DrawnMapInferer()
    made = inferer(torch.full((1, 1, 1, 1, 1), -1.0), network, noise_seeds=[5])
    assert made.shape == (1, 1, 36, 32, 28) and made.dtype == torch.float32
    assert inferer.records[0]["tries"] == 2 and inferer.records[0]["refused"] == {"endo.volume_ml": 1}
    assert len(set(network.asked)) == 2
    assert set(inferer.records[0]["figures"]) == {*NAMES, *CHECKED}


def test_where_no_map_is_within_the_limits_it_says_why():
    inferer = DrawnMapInferer({"endo.volume_ml": 18.0}, tries=3)
    with pytest.raises(InputError, match=r"in 3 tries \(endo.volume_ml 3; the last one: endo.volume_ml .*wanted 18\)"):
        inferer(blank(), Eggs({}), noise_seeds=[0])
    with pytest.raises(InputError, match=r"do not know lung.volume_ml; they know endo.volume_ml"):
        DrawnMapInferer({"lung.volume_ml": 1.0})(blank(), Eggs({}), noise_seeds=[0])
    known = torch.from_numpy(egg(20.0, 1.0)).float()[None, None]  # a cavity beyond the limits stays, and is let be
    known = torch.where(known == 1, 1.0, -1.0)
    assert inferer_of(known).records[0]["tries"] == 1
    with pytest.raises(InputError, match="can not be asked for where that class is known"):
        inferer_of(known, {"endo.volume_ml": 18.0})
    for wrong in ({"tries": 0}, {"tolerance": "0.1"}, {"figures": "endo=1"}, {"figures": {"endo.volume_ml": "a"}}):
        with pytest.raises(InputError):
            DrawnMapInferer(**wrong)


def inferer_of(known: torch.Tensor, figures=None) -> DrawnMapInferer:
    inferer = DrawnMapInferer(figures, tries=2)
    inferer(known, Eggs({}), noise_seeds=[0])
    return inferer


# ------------------------------------------------------------------------------------------------------- bundle, files


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Prepared eggs, and la_maps made of them: its own configs at the eggs' size."""
    folder = tmp_path_factory.mktemp("drawing")
    write_eggs(folder / "eggs", 10, 4)
    configs = folder / "la_maps" / "configs"
    configs.mkdir(parents=True)
    for path in (BUNDLE / "configs").glob("*.json"):
        content = json.loads(path.read_text())
        if path.stem in ("train", "inference"):
            content |= {"spacing": list(SPACING), "frame": [36, 32, 28], "modes": 6, "shape_modes": 6}
        if path.stem == "train":
            content |= {"sigmas": [3.0], "steps": 10, "num_workers": 0}
        (configs / path.name).write_text(json.dumps(content))
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    parser.update({"dataset_dir": str(folder / "eggs"), "run_dir": str(folder / "run")})
    parser.get_parsed_content("run")
    (folder / "la_maps" / "models").mkdir()
    for name in ("model.pt", "model.json"):
        (folder / "run" / name).rename(folder / "la_maps" / "models" / name)
    return folder


def draw(world: Path, output: Path, **more) -> Path:
    run_inference(world / "la_maps", output_dir=str(output), num_workers=0, **({"count": 3} | more))
    return output


@pytest.fixture(scope="module")
def drawn(world, tmp_path_factory) -> Path:
    return draw(world, tmp_path_factory.mktemp("drawn") / "maps")


def test_maps_are_written_with_their_records_and_listed_for_generators(world, drawn):
    content = json.loads((drawn / "datalist.json").read_text())
    assert [e["case"] for e in content["testing"]] == [f"drawn_{i:04d}" for i in range(3)]
    assert content["num_classes"] == 4 and content["classes"]["1"] == "endo"
    for entry in content["testing"]:
        label = map_in(drawn / entry["label"])
        assert set(np.unique(label)) == {0, 1, 2, 3}
        record = json.loads((drawn / f"{entry['case']}.json").read_text())
        assert record["drawn"] and record["tries"] >= 1 and record["figures"]["endo.volume_ml"] > 0
        assert record["weights_sha256"] == content["drawn_by"]["weights_sha256"]
    maps = [map_in(drawn / e["label"]) for e in content["testing"]]
    assert not np.array_equal(maps[0], maps[1])


def test_the_same_command_goes_on_and_gives_the_same_maps(world, drawn, tmp_path):
    first = draw(world, tmp_path / "maps", count=2)
    kept = (first / "drawn_0000.nii.gz").stat().st_mtime_ns
    draw(world, first)
    assert (first / "drawn_0000.nii.gz").stat().st_mtime_ns == kept
    for name in ("drawn_0000", "drawn_0001", "drawn_0002"):
        assert np.array_equal(map_in(first / f"{name}.nii.gz"), map_in(drawn / f"{name}.nii.gz"))
    with pytest.raises(InputError, match=r"map\(s\) would be replaced"):
        draw(world, first, wall_mm=4.0)
    write_label(first / "drawn_0001.nii.gz", np.ones((4, 4, 4), np.uint8), np.eye(4))  # corrected by hand
    with pytest.raises(InputError, match=r"map\(s\) would be replaced"):
        draw(world, first)
    draw(world, first, seed=1, count=1)  # other names: both stand in the list
    listed = [e["case"] for e in json.loads((first / "datalist.json").read_text())["testing"]]
    assert listed == ["drawn_0000", "drawn_0001", "drawn_0002", "drawn1_0000"]
    draw(world, first, wall_mm=4.0, overwrite=True)
    assert (map_in(first / "drawn_0000.nii.gz") == 2).sum() > (map_in(drawn / "drawn_0000.nii.gz") == 2).sum()


def test_weights_of_another_voxel_size_are_refused(world, tmp_path):
    with pytest.raises(InputError, match=r"draws on voxels of 2,2,2 mm, and spacing is \[1.0, 1.0, 1.0\]"):
        draw(world, tmp_path / "maps", spacing=[1.0, 1.0, 1.0])


def test_another_given_map_under_the_same_name_is_another_map(world, tmp_path):
    source = tmp_path / "given.nii.gz"
    write_label(source, egg(14.0, 1.2), np.diag([*SPACING, 1.0]))
    options = {"given": str(source), "known": ["endo"], "count": 1, "tries": 60}
    draw(world, tmp_path / "maps", **options)
    entry = json.loads((tmp_path / "maps" / "datalist.json").read_text())["testing"][0]
    assert entry["source_case"] == entry["patient"] and entry["patient"].endswith("given")
    assert entry["source_voxels"]["label"]
    write_label(source, egg(13.0, 1.2), np.diag([*SPACING, 1.0]))
    with pytest.raises(InputError, match="would be replaced"):
        draw(world, tmp_path / "maps", **options)


def test_files_of_others_are_not_replaced(world, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "drawn_0001.nii.gz").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        draw(world, tmp_path / "maps")
    assert (tmp_path / "maps" / "drawn_0001.nii.gz").read_text() == "mine"
    (tmp_path / "maps" / "drawn_0001.nii.gz").unlink()
    (tmp_path / "maps" / "drawn_0002.json").write_text('{"my": "notes"}')
    with pytest.raises(InputError, match="holds other files"):
        draw(world, tmp_path / "maps")
    assert "notes" in (tmp_path / "maps" / "drawn_0002.json").read_text()


def test_figures_field_of_view_and_voxel_size_are_as_asked_for(world, tmp_path):
    asked = {"figures": {"endo.volume_ml": 17.0}, "field_of_view": [66, 60, 52], "voxel_size": [1.5, 1.5, 2.0]}
    folder = draw(world, tmp_path / "maps", count=2, tries=60, **asked)
    for name in ("drawn_0000", "drawn_0001"):
        label = map_in(folder / f"{name}.nii.gz")
        assert label.shape == (44, 40, 26)
        assert np.count_nonzero(label == 1) * 1.5 * 1.5 * 2 / 1000 == pytest.approx(17.0, rel=0.12)


def test_the_surroundings_of_given_cavities_are_drawn(world, tmp_path):
    given = str(world / "eggs" / "egg1*_label.nii.gz")
    folder = draw(world, tmp_path / "maps", count=2, given=given, known=["endo"], tries=60)
    listed = [e["case"] for e in json.loads((folder / "datalist.json").read_text())["testing"]]
    assert len(listed) == 2 * len(list((world / "eggs").glob("egg1*_label.nii.gz")))
    source = map_in(world / "eggs" / "egg1_label.nii.gz")
    own = [name for name in listed if name.startswith("egg1_label")]
    for name in own:
        assert np.array_equal(map_in(folder / f"{name}.nii.gz") == 1, source == 1)


def test_the_evaluation_says_how_drawn_maps_compare(world, tmp_path):
    folder = draw(world, tmp_path / "maps", count=12, tries=60)
    scores = evaluate_maps(folder, world / "eggs", tmp_path / "out", weights=world / "la_maps" / "models" / "model.pt",
                           draws=20, pictures=4)  # fmt: skip
    names = {one.name for one in scores.figures}
    assert {"endo.volume_ml", "tissue 1.share", "endo|wall"} <= names
    assert 0 <= scores.copies <= 1 and scores.tries >= 12
    text = (tmp_path / "out" / "maps.md").read_text()
    assert "12 drawn maps, 14 real ones" in text and "10 of the real maps are training maps" in text
    assert (tmp_path / "out" / "maps.png").stat().st_size > 5000
    assert json.loads((tmp_path / "out" / "maps.json").read_text())["per_side"] == 7
    rows = (tmp_path / "out" / "maps.csv").read_text().splitlines()
    assert len(rows) == 1 + 14 + 12


def portrayed(values: np.ndarray, cells: np.ndarray, name: str, *, training: bool = False) -> Portrayed:
    return Portrayed(name, name, {f"f{i}": float(v) for i, v in enumerate(values)}, cells, training)


def test_copies_are_found():
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, 2, (6, 6, 6)) for _ in range(20)]
    real = [portrayed(rng.standard_normal(3), c, f"r{i}", training=True) for i, c in enumerate(cells)]
    drawn = [portrayed(rng.standard_normal(3), c, f"d{i}") for i, c in enumerate(cells[:5])]
    drawn += [portrayed(rng.standard_normal(3), rng.integers(0, 2, (6, 6, 6)), f"n{i}") for i in range(5)]
    assert score(drawn, real, (1,), draws=20).copies == pytest.approx(0.5, abs=0.11)
    with pytest.raises(InputError, match="of 4 patients or more"):
        score(drawn, real[:3], (1,), draws=20)


# -------------------------------------------------------------------------------------------------------------- augment


def test_a_training_set_of_generated_maps(world, tmp_path):
    from test_augment import _tiny_bundle

    _tiny_bundle(ROOT / "bundles" / "pix2pix3d", tmp_path / "pix2pix3d")
    paths = {"input": world / "eggs", "bundle": tmp_path / "pix2pix3d", "output": tmp_path / "out",
             "map-bundle": world / "la_maps"}  # fmt: skip
    command = ["augment", *(part for name, path in paths.items() for part in (f"--{name}", str(path)))]
    command += ["--device", "cpu", "--per-case", "2"]
    assert main([*command, "--maps", "given,generated"]) == 0
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    made = [e for e in content["training"] if e.get("synthetic")]
    generated = [e for e in made if e.get("drawn")]
    assert len(made) == 20 and 6 <= len(generated) <= 14
    for entry in generated:
        assert entry["patient"] == entry["case"] and "source_voxels" not in entry and "source_case" not in entry
        assert entry["map_weights_sha256"] and (tmp_path / "out" / entry["label"]).is_file()
        record = json.loads((tmp_path / "out" / "records" / f"{entry['case']}.0.json").read_text())
        assert record["map"]["drawn"] and record["morph"] is None
    maps = {e["case"]: map_in(tmp_path / "out" / e["label"]) for e in generated}
    assert len({m.tobytes() for m in maps.values()}) == len(maps)
    assert main([*command, "--maps", "given,generated"]) == 0  # goes on, changes nothing
    plain = [part for part in command if "map" not in Path(part).name]
    assert main([*plain, "--maps", "given"]) == 0  # and without, and with them again
    assert main([*command, "--maps", "given,generated"]) == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--maps", "generated"], "go together"),
        (["--maps", "drawn"], "--maps must be of given, morphed, generated"),
        (["--maps", "given=0"], "--maps must be of"),
        (["--maps", ","], "--maps must be of"),
        (["--maps", "given", "--morph", "0.2"], "leave --morph out"),
        (["--map-bundle", str(BUNDLE)], "go together"),
        (["--maps", "generated", "--map-bundle", str(ROOT / "bundles" / "pix2pix3d")], "draws no label maps"),
        (["--map-weights", "w.pt"], "goes with --map-bundle"),
    ],
)
def test_options_of_generated_maps_that_do_not_fit_are_refused(world, tmp_path, capsys, options, match):
    command = ["augment", "--input", str(world / "eggs"), "--bundle", str(ROOT / "bundles" / "pix2pix3d"), "--output",
               str(tmp_path / "out")]  # fmt: skip
    assert main([*command, *options]) == 1
    assert match in capsys.readouterr().err


def test_weights_of_unknown_maps_are_no_training_maps(world, tmp_path):
    folder = draw(world, tmp_path / "maps", count=8, tries=60)
    bare = tmp_path / "bare.pt"
    bare.write_bytes((world / "la_maps" / "models" / "model.pt").read_bytes())
    write_model_card(bare, unknown_parents=["earlier.pt"])
    scores = evaluate_maps(folder, world / "eggs", tmp_path / "out", weights=bare, draws=20, pictures=0)
    assert "0 of the real maps are training maps" in (tmp_path / "out" / "maps.md").read_text()
    assert scores.nearest
