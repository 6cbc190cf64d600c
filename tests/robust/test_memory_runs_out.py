"""Where memory runs out, the message says with what, and which setting needs less."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandomizableTransform
from semsynth.cli import main as cli
from semsynth.cli.options import as_typed
from semsynth.data.check import Entry, check_cases
from semsynth.data.volumes import write_image
from semsynth.errors import InputError, is_out_of_memory, say_plainly
from semsynth.evaluation.collect import collect
from semsynth.evaluation.scores import Collected
from semsynth.evaluation.sources import load_real
from semsynth.memory import check_fits, free_memory, memory_advice, too_much
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.prepare.job import run_all
from semsynth.synthesis.inferers import NoisyWindowInferer, WholeOrWindowInferer, WholeVolumeInferer
from semsynth.training.loading import TrainingDataset, TrainingLoader

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]


def endless() -> np.ndarray:
    """More than any machine has: NumPy's own error."""
    return np.empty((1 << 20, 1 << 20, 1 << 10))


@pytest.fixture
def huge() -> torch.Tensor:
    """A label map whose network input no machine can hold; itself it is one voxel, many times over."""
    return torch.zeros(1, dtype=torch.uint8).expand(1, 1, 1 << 16, 1 << 16, 1 << 16)


@contextmanager
def limited(more: int) -> Iterator[None]:
    """This process may take ``more`` bytes than it has."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ------------------------------------------------------------------------------------------------ what is free


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much a process has")
def test_a_limit_of_the_process_is_what_is_free() -> None:
    with limited(2 * GIB):
        free = free_memory()
        assert free is not None and GIB < free <= 2 * GIB
        assert too_much(GIB) is None
        with pytest.raises(
            InputError, match=r"this would need at least 3 GiB of memory, and .* GiB are free; that helps"
        ):
            check_fits(3 * GIB, "this", "that helps")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux holds a process to its limit")
def test_a_file_beyond_the_limit_is_a_finding_and_the_others_are_checked(tmp_path: Path) -> None:
    small = write_image(tmp_path / "a.nii.gz", np.random.default_rng(0).random((16, 16, 16)), np.eye(4), "int16")
    large = write_image(tmp_path / "b.nii.gz", np.zeros((512, 512, 256)), np.eye(4), "int16")
    cases = [Entry("small", {"image": small}), Entry("large", {"image": large})]
    with limited(GIB // 4):
        report = check_cases(cases, jobs=1)
    assert [(f.case, f.finding) for f in report.errors] == [("large", "more voxels than memory")]


# ---------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried",
        "DefaultCPUAllocator: can't allocate memory: you tried",
        "std::bad_alloc",
        "DataLoader worker (pid 1) is killed by signal: Killed. ",
    ],
)
def test_every_kind_of_error_of_memory_is_known(text: str) -> None:
    with pytest.raises(InputError, match=r"work: out of memory .*; less"), memory_advice("work", "less"):
        raise RuntimeError(text)
    wrapped = RuntimeError("applying transform <X>")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped) and is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(InputError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice("work", "less"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    "command", ["prepare", "prepare-maps", "evaluate", "choose-k", "check", "export", "convert", "dicom"]
)
def test_each_command_names_its_setting(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> str:
        return str(endless())

    monkeypatch.setitem(cli.COMMANDS, command, as_typed(work))
    assert cli.main([command]) == 1
    error = capsys.readouterr().err
    named = {"check": "--jobs", "choose-k": "--spacing", "evaluate": "--feature-spacing", "export": "--size"}
    named |= {"convert": "a larger machine", "dicom": "--label none"}
    setting = named.get(command, "a larger --spacing, a smaller --size or fewer --jobs")
    assert error.startswith(f"error: {command}: out of memory (Unable to allocate") and setting in error


def test_a_preparation_names_the_case() -> None:
    with pytest.raises(InputError, match=r"case b: out of memory \(Unable to allocate .*; give a larger --spacing"):
        run_all("abc", lambda case: endless() if case == "b" else case, jobs=2, title="", name=str)


def test_an_evaluation_names_the_case(tiny_dataset: Path) -> None:
    class Greedy:
        extractors = (None,)

        def features(self, key: Any, image: Any) -> Any:
            return endless()

    cases = load_real(tiny_dataset)
    found = Collected({}, [], {})
    with pytest.raises(InputError, match=r"case phantom_00\d: out of memory .* a larger --feature-spacing"):
        collect(found, cases, [], Greedy())  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- synthesis


@pytest.mark.parametrize("bundle", ["pix2pix3d", "spade_gan3d"])
@pytest.mark.parametrize("overlay", [None, "sliding_window"])
def test_a_synthesis_names_windows_or_smaller_ones(bundle: str, overlay: str | None, huge: torch.Tensor) -> None:
    folder = ROOT / "bundles" / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / f"{name}.json") for name in ("inference", "tiny", overlay) if name])
    parser["bundle_root"], parser["device"] = str(folder.parent), "cpu"
    inferer, network = (parser.get_parsed_content(name) for name in ("inferer", "network_def"))
    found = "sliding_window.json" if overlay is None else "a smaller --roi_size"
    with pytest.raises(InputError, match=rf"a volume of \(65536, 65536, 65536\) voxels .*out of memory .*{found}"):
        inferer(huge, network)


def test_other_inferers_name_their_own(huge: torch.Tensor) -> None:
    network = Pix2PixGenerator(num_classes=4, channels=(8, 8))
    with pytest.raises(InputError, match="crop them"):
        WholeVolumeInferer("crop them")(huge, network)
    with pytest.raises(InputError, match="a smaller --roi_size"):
        NoisyWindowInferer(noise=True, roi_size=(32, 32, 32))(huge, network)
    with pytest.raises(InputError, match="a smaller window_size"):
        WholeOrWindowInferer(roi_size=(32, 32, 32))(huge, network)
    with pytest.raises(RuntimeError, match="expected input"):  # every other error is its own
        WholeVolumeInferer()(torch.zeros(1, 1, 8, 8, 8), torch.nn.Conv3d(3, 1, 1))


# ---------------------------------------------------------------------------------------------------- training


class Greedy(RandomizableTransform):
    """A random transform that needs more than there is."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return dict(data) | {"image": endless()}


class Refusing(RandomizableTransform):
    """A random transform that finds a bad file."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        raise InputError("a.nii.gz: cannot be used", ["one", "two"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_names_its_case_and_the_settings_of_the_training(workers: int) -> None:
    data = TrainingDataset([{"case": "P1"}], Compose([Greedy()]), cache_rate=0.0, progress=False)
    with pytest.raises(InputError) as caught:
        list(TrainingLoader(data, num_workers=workers, sampler=[(0, 1)]))
    assert str(caught.value).startswith("case P1 while it is augmented: out of memory (")
    assert "fewer --num_workers" in str(caught.value) and "--cache_rate" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_cache_names_its_case() -> None:
    def load(data: Mapping[str, Any]) -> Any:
        return endless()

    from monai.transforms import Lambda

    with pytest.raises(InputError, match=r"case P1 while it is loaded: out of memory .* a smaller --cache_rate"):
        TrainingDataset([{"case": "P1"}], Compose([Lambda(load)]), cache_rate=1.0, progress=False, num_workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_a_bundle_is_one_message(
    workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from monai.data import DataLoader, Dataset

    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["x"])
    say_plainly()
    for transform, expected in ((Refusing(), "error: a.nii.gz: cannot be used\n  - one\n  - two\n"),
                                (Greedy(), "error: out of memory (")):  # fmt: skip
        try:
            list(DataLoader(Dataset([{"image": 1}], Compose([transform])), num_workers=workers))
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        said = capsys.readouterr().err
        assert said.startswith(expected), said
        assert "Traceback" not in said and ("--num_workers" in said or isinstance(transform, Refusing))


@pytest.mark.slow
def test_a_process_ends_although_a_worker_met_an_error(tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(
        "from semsynth.training.loading import TrainingLoader\n"
        "class Data(list):\n    def __getitem__(self, i): raise ValueError('x')\n"
        "list(TrainingLoader(Data([1]), num_workers=1))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)  # it hung for ever
    assert ended.returncode == 1 and "ValueError" in ended.stderr and "killed" not in ended.stderr


def test_workers_have_a_limit() -> None:
    with pytest.raises(InputError, match=r"num_workers must lie in 0…256, got 1000000"):
        TrainingLoader([1], num_workers=1_000_000)
