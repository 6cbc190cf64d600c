"""What a pull request to MONAI's model zoo holds for a bundle: its folder, a unit test, and what else is to be changed.

The zoo takes no file over 25 MB: such a file stays out, and ``large_files.yml`` says where it is and its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import pprint
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote, urlsplit

import yaml
from bundle_configs import WEIGHTS, config_path, known_settings, read, stages, with_tiny
from bundle_contents import MAX_FILE, collect, of_this_bundle
from semsynth.files import atomic_folder, write_text

LARGE_FILES = "large_files.yml"
MADE = "# Made by ci/pack_bundle.py of semsynth."
FEW_STEPS = 4  # of a sampler: a test asks whether it runs

_TEST = Template('''$made
# SPDX-License-Identifier: Apache-2.0
"""$title: each training runs for one short epoch on small phantoms, and the shipped weights infer."""

import os
import shutil
import sys
import tempfile
import unittest

from monai.bundle import ConfigWorkflow
from parameterized import parameterized
from utils import check_workflow

BUNDLE = "models/$name"
sys.path.insert(0, BUNDLE)  # the phantoms are made by the bundle's own code

from scripts.semsynth.prepare.phantom import write_phantom_cases  # noqa: E402

# in this order: a training may begin with the weights of those before it ("uses": setting and training)
TRAIN_CASES = $train

INFERENCE_CASES = $inference


def workflow(kind, configs, settings):
    return ConfigWorkflow(
        workflow_type=kind,
        config_file=[os.path.join(BUNDLE, "configs", f"{name}.json") for name in configs],
        logging_file=os.path.join(BUNDLE, "configs/logging.conf"),
        meta_file=os.path.join(BUNDLE, "configs/metadata.json"),
        bundle_root=BUNDLE,
        **settings,
    )


class $test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        for name, spacing in (("coarse", (1.5, 1.5, 1.5)), ("as_trained", $spacing)):
            write_phantom_cases(cls.path(name), $cases, size=(32, 32, 32), spacing=spacing, k=$k, progress=False)

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @parameterized.expand(TRAIN_CASES)
    def test_train(self, params):
        name = params["configs"][0]
        settings = dict(params["settings"], dataset_dir=self.path("coarse"), run_dir=self.path(name))
        for setting, training in params["uses"].items():
            settings[setting] = self.path(training, "model_final.pt")
        check_workflow(workflow("train", params["configs"], settings), check_properties=True)
        self.assertTrue(os.path.isfile(self.path(name, "model_final.pt")))

    @parameterized.expand(INFERENCE_CASES)
    def test_z_inference(self, params):
        settings = dict(params["settings"], dataset_dir=self.path("as_trained"), output_dir=self.path("output"))
        check_workflow(workflow("infer", params["configs"], settings), check_properties=True)
        written = [name for _, _, names in os.walk(self.path("output")) for name in names]
        self.assertTrue(any(name.endswith(".nii.gz") for name in written), written)


if __name__ == "__main__":
    unittest.main()
''')


def write_zoo(
    bundle: Path, zoo: Path, large_files_url: str | None = None, further: Mapping[str, bytes] | None = None
) -> list[Path]:
    """Write what the pull request adds, each part whole or not at all, and return the paths.

    Args:
        bundle: its folder.
        zoo: a clone of the zoo, or a folder that is laid out as one.
        large_files_url: the address below which the files over 25 MB lie, by their paths in the bundle.
        further: files of the bundle that are added, path → content.

    Raises:
        ValueError: a bundle without weights, files over 25 MB without an address, something else where the parts go,
            and as in :func:`bundle_contents.collect`.
    """
    contents = collect(bundle, largest=None) | dict(further or {})
    if WEIGHTS not in contents:
        raise ValueError(f"{bundle}: the model zoo asks for {WEIGHTS}, which is not there")
    contents, large = split_large(contents, large_files_url)
    folder = zoo / "models" / bundle.name
    test = zoo / "ci" / "unit_tests" / f"test_{bundle.name}.py"
    note = zoo / f"{bundle.name}_pull_request.txt"
    of_this_bundle(folder, bundle.name, {LARGE_FILES})
    for path in (test, note):
        if os.path.lexists(path) and not _made_here(path):
            raise ValueError(f"{path}: is there and was not made here; move it away, or name another folder")
    write_folder(folder, contents)
    write_text(test, unit_test(bundle))
    write_text(note, pull_request(bundle, large))
    return [folder, test, note]


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder beside its place and rename it.

    Args:
        folder: folder that is written; one that is there is replaced.
        contents: path in it → content.
    """
    with atomic_folder(folder) as temporary:
        for name, content in sorted(contents.items()):
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def split_large(contents: Mapping[str, bytes], url: str | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """The contents without what the zoo does not take but with ``large_files.yml``, and what was left out.

    Args:
        contents: contents of the packed bundle, path → content.
        url: the address below which the large files lie, by their paths in the bundle.

    Returns:
        The contents, and path → address of each large file.

    Raises:
        ValueError: for large files without an address, or one that is no address.
    """
    heavy = sorted(name for name, content in contents.items() if len(content) > MAX_FILE)
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
        raise ValueError(f"--large-files-url: must be an address such as https://server/folder, got {url}")
    if not heavy:
        return dict(contents), {}
    if url is None:
        raise ValueError(
            f"files over {MAX_FILE / 1e6:g} MB, which the model zoo does not take: {', '.join(heavy)}; upload them and "
            "give --large-files-url, the address below which they lie by these paths"
        )
    where = {name: f"{url.rstrip('/')}/{quote(name)}" for name in heavy}
    rows = [
        {
            "path": name,
            "url": where[name],
            "hash_val": hashlib.sha256(contents[name]).hexdigest(),
            "hash_type": "sha256",
        }
        for name in heavy
    ]
    kept = {name: content for name, content in contents.items() if name not in where}
    kept[LARGE_FILES] = yaml.safe_dump({"large_files": rows}, sort_keys=False, width=1000).encode("utf-8")
    return kept, where


def unit_test(bundle: Path) -> str:
    """The Python file that the zoo's runner calls from the zoo's root: trainings and an inference on phantoms."""
    about = read(bundle, "metadata")
    short = {"max_epochs": 1, "epoch_cases": 2}
    train: list[list[dict[str, Any]]] = []
    uses: dict[str, str] = {}
    for stage in [*(name for name in stages(bundle)[2:] if name.startswith("train")), "train"]:
        configs = with_tiny(bundle, stage)
        here = known_settings(bundle, configs, uses)
        train.append([{"configs": configs, "settings": known_settings(bundle, configs, short), "uses": here}])
        uses[f"{stage.removeprefix('train_')}_weights"] = stage
    steps = known_settings(bundle, ["inference"], {"steps": FEW_STEPS})
    inference = [[{"configs": ["inference"], "settings": steps}]]
    drawn = "load_requests" in str(read(bundle, "inference")["dataset"]["data"])  # compared with several patients
    return _TEST.substitute(
        made=MADE,
        title=about["name"],
        name=bundle.name,
        test="Test" + "".join(part.capitalize() for part in bundle.name.split("_")),
        train=pprint.pformat(train, width=110, sort_dicts=False),
        inference=pprint.pformat(inference, width=110, sort_dicts=False),
        spacing=tuple(about.get("trained_on", {}).get("model.pt", {}).get("spacing", (1.0, 1.0, 1.0))),
        cases=12 if drawn else 3,
        k=max(int(read(bundle, "train").get("num_classes", 4)) - 2, 0),
    )


def pull_request(bundle: Path, large: Mapping[str, str]) -> str:
    """What the author of the pull request still has to do by hand.

    Args:
        bundle: its folder.
        large: path → address of each file that was left out.
    """
    about = json.loads(config_path(bundle, "metadata").read_text(encoding="utf-8"))
    parts = f"models/{bundle.name} and ci/unit_tests/test_{bundle.name}.py"
    lines = [MADE, f"{bundle.name} {about['version']}: add {parts}, not this file.", ""]
    if "export_exemption" in about:
        lines += [
            "In ci/bundle_custom_data.py, add to exclude_verify_torchscript_list:",
            f'    "{bundle.name}",',
            f"The reason, as its README has it: {about['export_exemption']}.",
        ]
    else:
        lines += ["Nothing has to be added to ci/bundle_custom_data.py."]
    if large:
        lines += ["", f"Upload these files before; {LARGE_FILES} names their addresses and SHA-256:"]
        lines += [f"    {name} to {address}" for name, address in large.items()]
    return "\n".join(lines) + "\n"


def _made_here(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes().startswith(MADE.encode())
