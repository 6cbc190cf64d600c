"""What a bundle would evaluate, import and configure is judged before it runs; not all that is refused is an enemy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bundles_of_enemies import CONFIG, configured, good_bundle
from bundles_of_more_enemies import IN_LOGGING, logging_of
from semsynth.errors import InputError
from semsynth.synthesis.workflow import run_inference, weights_of
from semsynth.trust.code import INSTALLED
from semsynth.trust.parsers import parser_of
from semsynth.trust.running import refuse_bundle
from semsynth.trust.verify import verify

USES = {
    "augment, study": lambda bundle: weights_of(bundle),
    "reproduce": lambda bundle: run_inference(bundle),
    "export, convert": lambda bundle: parser_of(bundle, "inference.json"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("torch.py", r"torch\.py: would be imported in the place of an installed package"),
        ("lpips.so", r"lpips\.so: would be imported in the place"),
        ("numpy/__init__.py", r"numpy: would be imported in the place"),
        ("scripts/net.py", r"scripts/net\.py: Python that is not of the semsynth which is installed here"),
        ("scripts/semsynth/files.py", r"scripts/semsynth/files\.py: Python that is not of the semsynth"),
        ("scripts/semsynth/__pycache__/files.cpython-311.pyc", r"compiled Python, which Python prefers to its source"),
    ],
)
def test_python_of_others_is_refused(use: str, place: str, why: str, tmp_path: Path) -> None:
    bundle = good_bundle(tmp_path / "bundle")
    (bundle / place).parent.mkdir(parents=True, exist_ok=True)
    (bundle / place).write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    with pytest.raises(InputError, match=rf"is not run(.|\n)*{why}"):
        USES[use](bundle)
    assert not (tmp_path / "canary").exists()


def test_a_logging_conf_that_evaluates_is_refused(tmp_path):
    bundle = good_bundle(tmp_path / "bundle")
    (bundle / "configs" / "logging.conf").write_text(logging_of(IN_LOGGING.format(canary=tmp_path / "canary")))
    with pytest.raises(InputError, match=r"is not run(.|\n)*logging\.conf: handler_console: args: .*takes in other"):
        refuse_bundle(bundle)


def test_metadata_belongs_to_what_is_evaluated(tmp_path):
    """MONAI puts it beside the config, where ``@_meta_#…`` finds it."""
    bundle = good_bundle(tmp_path / "bundle")
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"evil": {"_target_": "os.system"}}))
    with pytest.raises(InputError, match=r"metadata\.json: evil#_target_: the target 'os\.system'"):
        weights_of(bundle)


def test_what_is_not_imported_or_is_our_own_is_left_alone(tmp_path):
    bundle = good_bundle(tmp_path / "bundle")
    shutil.copytree(INSTALLED, bundle / "scripts" / "semsynth", ignore=shutil.ignore_patterns("__pycache__"))
    (bundle / "scripts" / "__init__.py").touch()
    for place in ("runs/train/notes.py", "docs/example.py", "tools/plot.py"):
        (bundle / place).parent.mkdir(parents=True, exist_ok=True)
        (bundle / place).write_text("x = 1\n")
    refuse_bundle(bundle, "inference.json", "train.json")
    weights_of(bundle)


# ---- bundles as the model zoo has them

ZOO = {
    "bundle_root": ".",
    "dataset_dir": "/workspace/data/Task09_Spleen",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "data": "$sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz'))",
}
PLAIN = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "data",
    "network_def": CONFIG["network_def"],
    "network": "$@network_def.to(@device)",
    "device": {"_target_": "torch.nn.Identity", "_desc_": "one per line; $ and .. and /x mean nothing here"},
    "preprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "LoadImaged", "keys": "image", "reader": "ITKReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1},
    ]},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "sw_batch_size": 4, "overlap": 0.5},
    "postprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "writer": "NibabelWriter"},
    ]},
    "handlers": [{"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
                  "_disabled_": False, "load_dict": {"model": "@network"}}],
    "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "network": "@network",
                  "val_handlers": "@handlers", "amp": True},
    "run": ["$@evaluator.run()"],
}  # fmt: skip


def test_a_plain_bundle_of_others_is_found_good(tmp_path):
    verdict = verify(configured(good_bundle(tmp_path / "bundle"), **PLAIN))
    assert not verdict.refused, verdict.text()


def test_of_a_zoo_bundle_the_lines_to_be_read_are_named_and_no_others(tmp_path):
    folder = configured(good_bundle(tmp_path / "bundle"), **PLAIN | ZOO | {"imports": ["$import glob"]})
    (folder / ".gitattributes").write_text("*.pt filter=lfs")
    (folder / "models" / "model.ts").write_bytes(b"x")
    found = [f"{finding.file}: {finding.text}" for finding in verify(folder).findings if finding.refused]
    starts = [".gitattributes: a kind of file", "models/model.ts: a kind of file",
              "configs/inference.json: imports#0: the expression '$import glob' is not allowed",
              "configs/inference.json: dataset_dir: the path '/workspace/data/Task09_Spleen' is absolute",
              "configs/inference.json: device: the expression \"$torch.device(",
              "configs/inference.json: data: the expression \"$sorted(glob"]  # fmt: skip
    assert len(found) == len(starts) and all(any(line.startswith(start) for line in found) for start in starts), found
