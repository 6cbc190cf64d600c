"""Results are whole or not there, kept where they are what was written, and never replaced unasked."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from semsynth.data.volumes import read_volume, write_image, write_label
from semsynth.errors import InputError
from semsynth.files import atomic_folder, atomic_path
from semsynth.handlers import PreviewHandler, TensorBoardStats
from semsynth.prepare.atrium import Settings, prepare
from tiny_synthesis import random_weights, refused, synthesise

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- files and folders


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    write_image(path, np.zeros((8, 8, 8), np.float32), np.eye(4), "float32")
    before = path.read_bytes()
    noise = np.random.default_rng(0).random((32, 32, 32), np.float32)
    with full_disk(1000), pytest.raises(OSError, match=r"image\.nii\.gz"):
        write_image(path, noise, np.eye(4), "float32")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["image.nii.gz"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    with atomic_folder(folder) as new:
        (new / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(folder) as new:
        (new / "a").write_text("new")
        raise RuntimeError
    assert contents(tmp_path) == {"case/a": b"old"}
    with atomic_folder(folder) as new:
        (new / "b").write_text("new")
    assert contents(tmp_path) == {"case/b": b"new"}


def test_names_of_two_writers_never_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / ".partial.c1.nii.gz") as first, atomic_path(tmp_path / ".partial.c1.nii.gz") as second:
        assert first != second and first.name.endswith(".nii.gz") and second.name.endswith(".nii.gz")
        first.write_text("first")
        second.write_text("second")
    long = tmp_path / f"{'n' * 240}.nii.gz"
    with atomic_path(long) as temporary:
        temporary.write_text("")
    assert long.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(number: int, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nfrom semsynth.files import atomic_folder, atomic_path\n"
        "from semsynth.signals import end_on_sigterm\nend_on_sigterm()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born without it\n"
        "with atomic_folder(sys.argv[1]) as f, atomic_path(f / 'x.nii.gz') as p:\n"
        "    p.write_text('half')\n    print('in', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "case")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "in\n"
        assert list(tmp_path.iterdir())
        run.send_signal(number)
    assert run.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert not list(tmp_path.iterdir())


# ---- prepared cases


@pytest.fixture(scope="module")
def prepared_once(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    raw, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    entries = []
    for folder in sorted(path for path in tiny_dataset.iterdir() if path.is_dir())[:3]:
        (raw / folder.name).mkdir()
        image = read_volume(folder / "image.nii.gz")
        write_image(raw / folder.name / "image.nii.gz", image.data, image.affine, "float32")
        mask = read_volume(folder / "label.nii.gz").data == 1
        write_label(raw / folder.name / "endo.nii.gz", mask.astype(np.uint8), image.affine)
        entries.append({role: f"{folder.name}/{role}.nii.gz" for role in ("image", "endo")})
    (raw / "datalist.json").write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    prepare(raw, output, Settings())
    return raw, output


@pytest.fixture
def prepared(prepared_once: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Raw cases, a folder that they were prepared in, and the folder of the first case in that."""
    raw, output = prepared_once
    shutil.copytree(output, tmp_path / "out")
    return raw, tmp_path / "out", min(path for path in (tmp_path / "out").iterdir() if path.is_dir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def forget_hashes(case: Path) -> None:
    """A record as version 0.1.0 wrote it."""
    record = json.loads((case / "prepare.json").read_text())
    del record["written"]
    (case / "prepare.json").write_text(json.dumps(record))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda case: (case / "image.nii.gz").unlink(), "image.nii.gz is missing"),
    "truncated": (lambda case: truncate(case / "label.nii.gz"), "label.nii.gz is damaged"),
    "picture": (lambda case: truncate(case / "qc.png"), "qc.png is damaged"),
    "record": (lambda case: truncate(case / "prepare.json"), "prepare.json is damaged"),
    "no list": (lambda case: (case / "prepare.json").write_text("[]"), "prepare.json is damaged"),
    "0.1.0": (lambda case: (forget_hashes(case), truncate(case / "image.nii.gz")), "image.nii.gz is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_prepared_case_that_is_not_whole_is_made_again(
    kind: str, prepared: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    raw, output, case = prepared
    before = contents(output)
    DAMAGE[kind][0](case)
    with caplog.at_level(logging.WARNING):
        prepare(raw, output, Settings())
    assert DAMAGE[kind][1] in caplog.text and "the case is made again" in caplog.text
    after = contents(output)
    assert after.keys() == before.keys()
    volumes = [name for name in before if name.endswith(".nii.gz")]
    assert all(np.array_equal(read_volume(output / n).data, read_volume(prepared_of(before, n)).data) for n in volumes)


def prepared_of(before: dict[str, bytes], name: str) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / Path(name).name
    path.write_bytes(before[name])
    return path


def test_cases_of_version_0_1_0_are_kept_where_they_are_whole(prepared: tuple[Path, Path, Path]) -> None:
    raw, output, case = prepared
    forget_hashes(case)
    before = contents(case)
    prepare(raw, output, Settings())
    assert contents(case) == before


def test_a_corrected_label_map_is_not_replaced_unasked(prepared: tuple[Path, Path, Path]) -> None:
    raw, output, case = prepared
    label = read_volume(case / "label.nii.gz")
    write_label(case / "label.nii.gz", label.data * 0, label.affine)
    before = contents(output)
    with pytest.raises(InputError, match=r"label\.nii\.gz changed since the preparation wrote it"):
        prepare(raw, output, Settings())
    assert contents(output) == before
    prepare(raw, output, Settings(), overwrite=True)
    assert np.array_equal(read_volume(case / "label.nii.gz").data, label.data)


def test_foreign_files_in_a_case_folder_are_not_deleted(prepared: tuple[Path, Path, Path]) -> None:
    raw, output, case = prepared
    (case / "notes.txt").write_text("precious")
    prepare(raw, output, Settings())  # nothing is to be done
    before = contents(output)
    with pytest.raises(InputError, match=r"would be replaced, but holds notes\.txt, which no preparation wrote"):
        prepare(raw, output, Settings(k=3), overwrite=True)
    assert contents(output) == before


def test_a_full_disk_leaves_the_prepared_cases(prepared: tuple[Path, Path, Path]) -> None:
    raw, output, _ = prepared
    before = contents(output)
    with full_disk(1500), pytest.raises(OSError, match="too large"):
        prepare(raw, output, Settings(k=3), overwrite=True)
    assert contents(output) == before


# ---- synthetic volumes


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(BUNDLES / "pix2pix3d", tmp_path_factory.mktemp("weights") / "model.pt")


@pytest.fixture(scope="module")
def synthetic_once(weights: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("volumes")
    synthesise(BUNDLES / "pix2pix3d", weights, tiny_dataset, output)
    return output


@pytest.fixture
def synthetic(synthetic_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(synthetic_once, tmp_path / "out")
    return tmp_path / "out"


def again(weights: Path, data: Path, output: Path, **options: object) -> None:
    synthesise(BUNDLES / "pix2pix3d", weights, data, output, **options)


def test_another_seed_does_not_replace_volumes_unasked(weights: Path, tiny_dataset: Path, synthetic: Path) -> None:
    before = contents(synthetic)
    with refused(r"would be replaced.*--overwrite True\n.*: seed 0, now 5"):
        again(weights, tiny_dataset, synthetic, seed=5)
    assert contents(synthetic) == before
    again(weights, tiny_dataset, synthetic, seed=5, overwrite=True)
    after = contents(synthetic)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before if name.endswith(".nii.gz"))


def test_a_damaged_volume_is_made_again_and_a_changed_one_is_not(
    weights: Path, tiny_dataset: Path, synthetic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = next(synthetic.glob("*.nii.gz"))
    was = read_volume(volume)
    truncate(volume)
    again(weights, tiny_dataset, synthetic)
    assert f"{volume} is damaged; it is made again" in capsys.readouterr().out  # the bundle's logging goes there
    assert np.array_equal(read_volume(volume).data, was.data)
    write_image(volume, was.data * 0.5, was.affine, "float32")
    before = contents(synthetic)
    with refused("it has changed since it was made"):
        again(weights, tiny_dataset, synthetic)
    assert contents(synthetic) == before


def test_a_file_of_a_volumes_name_without_a_record_stays(weights: Path, tiny_dataset: Path, synthetic: Path) -> None:
    for path in synthetic.glob("*.json"):
        path.unlink()
    before = contents(synthetic)
    with refused("so no inference wrote it"):
        again(weights, tiny_dataset, synthetic, overwrite=True)
    assert contents(synthetic) == before
    (synthetic / "datalist.json").write_text('{"mine": 1}')
    with refused("datalist.json: was not written by semsynth's inference"):
        again(weights, tiny_dataset, synthetic, overwrite=True)


def test_an_edited_list_of_volumes_stays(weights: Path, tiny_dataset: Path, synthetic: Path) -> None:
    content = json.loads((synthetic / "datalist.json").read_text())
    content["name"] += ", my split"
    (synthetic / "datalist.json").write_text(json.dumps(content))
    before = contents(synthetic)
    with refused("datalist.json: was changed since semsynth's inference wrote it"):
        again(weights, tiny_dataset, synthetic, seed=5, overwrite=True)
    assert contents(synthetic) == before


def test_a_full_disk_leaves_volumes_records_and_list(weights: Path, tiny_dataset: Path, synthetic: Path) -> None:
    before = contents(synthetic)
    with full_disk(3000), refused(r"_synthetic\.nii\.gz"):
        again(weights, tiny_dataset, synthetic, seed=5, overwrite=True)
    assert contents(synthetic) == before


@pytest.mark.parametrize("bundle", ["pix2pix3d", "la_unet"])
def test_weights_with_nan_make_no_volumes(bundle: str, tiny_dataset: Path, tmp_path: Path) -> None:
    import bundle_runs

    path = random_weights(BUNDLES / bundle, tmp_path / "model.pt")
    state = torch.load(path)
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = state[name] * float("nan")
    torch.save(state, path)
    paths = {"dataset_dir": tiny_dataset, "output_dir": tmp_path / "out", "weights": path}
    run = bundle_runs.workflow(BUNDLES / bundle, ["inference"], "infer", paths)
    with refused(r"model\.pt: NaN or infinite values in "):
        run.run()
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_an_output_that_is_not_finite_is_no_volume(tiny_dataset: Path, tmp_path: Path) -> None:
    path = random_weights(BUNDLES / "pix2pix3d", tmp_path / "model.pt")
    state = torch.load(path)
    torch.save({name: value * 1e30 if value.is_floating_point() else value for name, value in state.items()}, path)
    with refused(r"case .*: the network's output is not finite .*model\.pt"):
        again(path, tiny_dataset, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.nii.gz"))


# ---- trainings


def test_a_preview_that_cannot_be_written_does_not_end_a_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "preview").write_text("a file where the folder should be")
    item = {"image": torch.ones(1, 8, 8, 8), "label": torch.ones(1, 8, 8, 8), "pred": torch.ones(1, 8, 8, 8)}
    engine = Engine(lambda engine, batch: [item])
    PreviewHandler(tmp_path / "preview").attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0], max_epochs=2)
    assert engine.state.epoch == 2 and "not drawn" in caplog.text


def test_numbers_that_cannot_be_written_do_not_end_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    engine = Engine(lambda engine, batch: {"loss": 1.0})
    stats = TensorBoardStats(tmp_path / "file" / "tensorboard", output_transform=lambda output: output["loss"])
    stats.attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0, 0], max_epochs=2)
    stats.close()
    assert engine.state.iteration == 4 and caplog.text.count("no more numbers are written for TensorBoard") == 1


def test_numbers_are_written_from_the_first_one_on(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: {"loss": 1.0})
    stats = TensorBoardStats(tmp_path / "tensorboard", output_transform=lambda output: output["loss"])
    stats.attach(engine)
    assert not list(tmp_path.iterdir())
    engine.run([0, 0], max_epochs=1)
    stats.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))
