"""Tiny real inputs of every command: raw and prepared cases, synthetic volumes, weights, a checkpoint, a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import torch
import yaml
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets import AutoencoderKL
from semsynth.cli.main import main
from semsynth.convert import convert_file
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.networks.segmentation import residual_unet
from semsynth.training.checkpoints import CheckpointFolder
from semsynth.training.weights import save_weights

ROOT = Path(__file__).resolve().parents[2]
SIZE = 20
JUDGE = (2, 4)  # channels of its levels
FOREIGN = ("kept/cases.csv", "kept/notes.txt", "kept/phantom_000/mine.txt", "kept/phantom_001/contours.json")
"""Files in an output folder that no command has written."""


def write_inputs(folder: Path, spoil: Callable[[Path], None] | None = None, name: str = "phantom") -> Path:
    """All of them, in ``folder``.

    ``raw``: three phantoms with their datalist; ``nrrd``: two of them in that format, with named segments;
    ``prepared``: what ``prepare`` makes of them; ``made``: synthetic volumes of their maps, as a bundle's inference
    leaves them; ``scores``: of segmenters; ``weights``: a judge, a block of MONAI's; ``run``: a training's checkpoints;
    ``audited``: real scans on both sides of an audit, and synthetic volumes;
    ``study``: its file; ``bundle``: a tiny latent diffusion, also as a zip; ``keys``: a pair, and its signature;
    ``kept``: an earlier, unfinished preparation with
    somebody's own files in it (:data:`FOREIGN`).

    Args:
        folder: where.
        spoil: what is done with ``raw`` before all else is made of it, such as other names in its headers.
        name: what the cases are called after that, but for their number.
    """
    raw = folder / "raw"
    size, spacing = ",".join([str(SIZE)] * 3), "4,4,4"
    _run("phantom", "--output", str(raw), "--cases", "3", "--size", size, "--spacing", spacing)
    if spoil is not None:
        spoil(raw)
    _run("prepare", "--input", str(raw), "--output", str(folder / "prepared"), "--spacing", spacing)
    _write_nrrd(raw, folder / "nrrd", name)
    _write_made(folder / "prepared", folder / "made")
    _write_weights(folder / "weights")
    _write_checkpoints(folder / "run")
    _write_bundle(folder / "bundle")
    _write_scores(folder / "scores", name)
    _write_study(folder / "study", name)
    (folder / "classes.txt").write_text("endo\nwall\nscar\n")
    _write_kept(folder / "prepared", folder / "kept", name)
    _write_signed(folder)
    _write_audited(folder / "audited")
    return folder


def _run(*arguments: str) -> None:
    assert main(arguments) == 0, arguments


def _write_nrrd(raw: Path, folder: Path, prefix: str) -> None:
    for case in (f"{prefix}_000", f"{prefix}_001"):
        (folder / case).mkdir(parents=True)
        for name in ("image", "endo"):
            volume = nib.load(raw / case / f"{name}.nii.gz")
            lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine  # type: ignore[attr-defined]
            header = {
                "space": "left-posterior-superior",
                "space directions": lps[:3, :3].T,
                "space origin": lps[:3, 3],
                "kinds": ["domain"] * 3,
            }
            if name == "endo":
                header |= {"Segment0_ID": "Segment_1", "Segment0_Name": "endo", "Segment0_LabelValue": "1",
                           "Segment0_Layer": "0", "Segment0_Extent": " ".join([f"0 {SIZE - 1}"] * 3)}  # fmt: skip
            path = folder / case / ("seg.seg.nrrd" if name == "endo" else "image.nrrd")
            nrrd.write(str(path), np.asarray(volume.dataobj), header)  # type: ignore[attr-defined]


def _write_made(prepared: Path, folder: Path) -> None:
    folder.mkdir()
    listed = json.loads((prepared / "datalist.json").read_text())
    entries = []
    for entry in [entry for split in ("training", "validation", "testing") for entry in listed.get(split, [])]:
        name, case = f"{entry['case']}_synthetic", entry["case"]
        shutil.copy(prepared / entry["image"], folder / f"{name}.nii.gz")
        about = {"case": case, "source_case": case, "sample": 0, "trained_on": False}
        (folder / f"{name}.json").write_text(json.dumps(about))
        entries.append({"case": case, "source_case": case, "sample": 0, "image": f"{name}.nii.gz",
                        "label": str(Path("..") / prepared.name / entry["label"])})  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps({"num_classes": listed["num_classes"], "training": entries}))


def _write_weights(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    save_weights(residual_unet(2, channels=JUDGE), folder / "judge.pt")  # and its card
    torch.save(SPADE(3, 4, 3, 3, 4).state_dict(), folder / "spade.pt")
    convert_file(folder / "spade.pt", folder / "ours.pt")  # and its card
    plain = AutoencoderKL(3, 1, 1, (1,), (4,), (False,), norm_num_groups=2, with_encoder_nonlocal_attn=False,
                          with_decoder_nonlocal_attn=False)  # fmt: skip
    torch.save(plain.state_dict(), folder / "plain.pt")


def _write_scores(folder: Path, prefix: str) -> None:
    """Of two segmenters: a table, la_unet's folder, and nnU-Net's summary."""
    dice = {f"{prefix}_{i:03d}": 0.9 - 0.02 * i for i in range(6)}
    (folder / "raw").mkdir(parents=True)
    rows = "".join(f"{case},{value},{10 * (1 - value)}\n" for case, value in dice.items())
    (folder / "table.csv").write_text(f"case,Dice,HD95\n{rows}")
    rows = "".join(f"{case},{value - 0.01},{value - 0.01}\n" for case, value in dice.items())
    (folder / "raw" / "dice_raw.csv").write_text(f"filename,class0,mean\n{rows}")
    listed = [{"prediction_file": f"/out/{case}.nii.gz", "metrics": {"1": {"Dice": value, "IoU": value / (2 - value)}}}
              for case, value in dice.items()]  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": listed}))
    entries = [{"image": f"{case}.nii.gz", "case": case, "patient": f"p{i // 2}"} for i, case in enumerate(dice)]
    (folder / "datalist.json").write_text(json.dumps({"testing": entries}))


def _write_study(folder: Path, prefix: str) -> None:
    """The file of a study, of which only the plan is asked, and a datalist: eight times one case, by other names."""
    (folder / "segmenter" / "configs").mkdir(parents=True)
    for name in ("train", "inference"):
        config = {"max_epochs": 1, "epoch_cases": None, "dataset_dir": "data"}
        (folder / "segmenter" / "configs" / f"{name}.json").write_text(json.dumps(config))
    prepared = json.loads((folder.parent / "prepared" / "datalist.json").read_text())
    files = {role: f"../prepared/{prefix}_000/{role}.nii.gz" for role in ("image", "label")}
    listed = [{"case": f"case_{i}", "patient": f"p{i}", **files} for i in range(8)]
    (folder / "datalist.json").write_text(json.dumps({"settings": prepared["settings"], "training": listed}))
    generator = {"bundle": "../bundle", "weights": "../bundle/models/model.pt"}
    content = {
        "data": "datalist.json", "output": "out", "test": 0.7, "cases": [1], "arms": ["R", "S"],
        "primary": "S", "segmenter": {"bundle": "segmenter", "epochs": 1, "epoch_cases": 2},
        "generators": {"ldm": generator},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content))


def _write_checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    network = Pix2PixGenerator(4, channels=(4, 8))
    CheckpointFolder(folder).save(
        {"objects": {"network": network.state_dict()}, "epoch": 1, "iteration": 2}, epoch=1, iteration=2
    )


def _write_bundle(folder: Path) -> None:
    """The latent diffusion's configs with the changes of its tiny overlay, and its random weights."""
    from bundle_runs import read
    from semsynth.synthesis.reproduce import write_golden
    from tiny_synthesis import random_weights

    bundle = ROOT / "bundles" / "spade_ldm"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(read(bundle, "inference", "tiny")))
    shutil.copy(bundle / "configs" / "metadata.json", folder / "configs")
    random_weights(bundle, folder / "models" / "model.pt")
    (folder / "docs").mkdir()
    write_golden(folder)


def _write_audited(folder: Path) -> None:
    """Three scans of a training, six others, and two synthetic volumes."""
    from tiny_patients import scans, volumes

    scans(folder / "train", range(3))
    scans(folder / "heldout", range(10, 16), "validation")
    volumes(folder / "made", [20], own=[1])


def _write_signed(folder: Path) -> None:
    """The bundle as a zip, a pair of keys, and a signature of it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    shutil.make_archive(str(folder / "bundle"), "zip", folder, "bundle")
    key, pem = Ed25519PrivateKey.from_private_bytes(bytes(range(32))), serialization.Encoding.PEM
    (folder / "keys").mkdir()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "keys" / "private.pem").write_bytes(private)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "keys" / "public.pem").write_bytes(public)
    _run("sign", "--path", str(folder / "bundle"), "--key", str(folder / "keys" / "private.pem"),
         "--output", str(folder / "keys" / "bundle.json"))  # fmt: skip


def _write_kept(prepared: Path, folder: Path, prefix: str) -> None:
    shutil.copytree(prepared, folder)
    shutil.rmtree(folder / f"{prefix}_002")
    (folder / "datalist.json").unlink()
    for name in FOREIGN:
        (folder.parent / name.replace("phantom", prefix)).write_text("somebody's own\n")
