"""FID, KID and paired metrics while a generator is evaluated, in one process and in two."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from semsynth.data.volumes import write_image
from semsynth.errors import InputError
from semsynth.handlers.evaluation import EvaluationHandler
from semsynth.metrics.frechet import fid
from semsynth.metrics.mmd import kid
from semsynth.metrics.similarity import psnr
from semsynth.networks.features.registry import JudgeEncoder
from semsynth.networks.segmentation import subvoxel_swin
from semsynth.training.engines.batches import PrepareSynthesisBatch
from torch import nn

SIZE = (48, 46, 45)  # three scales of MS-SSIM need 44


class Painter(nn.Module):
    """Class indices → an intensity per class."""

    gamma = 1.0

    def forward(self, label):
        return (label.float() / 4) ** self.gamma + 0.1


def extractor() -> JudgeEncoder:
    torch.manual_seed(0)
    return JudgeEncoder(subvoxel_swin(window=2, depths=(1, 1, 1, 1)), sha256="0" * 64)


def case(index, *, real=True, size=SIZE):
    generator = torch.Generator().manual_seed(index)
    label = torch.randint(0, 4, (1, *(-(-s // 8) for s in size)), generator=generator)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    label = label[:, : size[0], : size[1], : size[2]]
    entry = {"case": f"case{index}", "label": MetaTensor(label, affine=torch.eye(4))}
    if real:
        image = (label / 5 + 0.2 * torch.rand(label.shape, generator=generator)).clamp(0, 1)
        entry["image"] = MetaTensor(image, affine=torch.eye(4))
    return entry


def evaluate(cases, handler, *, sampler=None, epochs=1, batch_size=1) -> SupervisedEvaluator:
    loader = DataLoader(Dataset(cases), batch_size=batch_size, num_workers=0, sampler=sampler)
    engine = SupervisedEvaluator(
        torch.device("cpu"), loader, Painter(), prepare_batch=PrepareSynthesisBatch(), val_handlers=[handler]
    )
    for epoch in range(epochs):
        engine.run(epoch + 1)
    return engine


def by_hand(cases, of="pred"):
    volumes = [Painter()(c["label"]) if of == "pred" else c["image"] for c in cases]
    features = [extractor().describe(MetaTensor(v.as_tensor(), affine=torch.eye(4))).volume for v in volumes]
    return torch.from_numpy(np.stack(features))


def test_metrics_are_those_of_the_features_taken_by_hand_against_reference_features(caplog):
    cases, others = [case(i) for i in range(3)], [case(i) for i in range(10, 14)]
    real = by_hand(others, "real")
    with caplog.at_level(logging.WARNING, "semsynth"):
        engine = evaluate(cases, EvaluationHandler([extractor()], reference={"la_unet_judge": real}), batch_size=2)
    found = engine.state.metrics
    assert found["fid_la_unet_judge"] == pytest.approx(float(fid(by_hand(cases), real)), rel=1e-5)
    assert found["kid_la_unet_judge"] == pytest.approx(float(kid(by_hand(cases), real)), rel=1e-5)
    single = [float(psnr(Painter()(c["label"])[None], c["image"][None])) for c in cases]
    assert found["psnr"] == pytest.approx(np.mean(single), rel=1e-5) and 0 < found["ms_ssim"] < 1
    assert engine.state.metric_details["psnr"].flatten().tolist() == pytest.approx(single, rel=1e-5)
    assert engine.state.metric_details["ms_ssim"].shape == (3, 1)
    about = engine.state.metric_about["fid_la_unet_judge"]
    assert about["n"] == 3 and about["m"] == 4 and about["reference"] == "given" and about["sha256"] == "0" * 64
    assert about["spacing"] == [1, 1, 1] and about["intensity"]
    assert caplog.text == ""


def write_reals(folder, cases):
    """The real images as files whose minimum is 0 and maximum 1, as loading scales them."""
    entries = []
    for c in cases:
        image = c["image"].as_tensor()[0]
        image = (image - image.min()) / (image.max() - image.min())
        c["image"] = MetaTensor(image[None], affine=torch.eye(4))
        path = write_image(folder / f"{c['case']}.nii.gz", image.numpy(), np.eye(4), "float32")
        entries.append({"case": c["case"], "image": str(path)})
    return entries


def test_reference_images_are_read_once_from_files_or_entries(tmp_path, monkeypatch):
    cases, others = [case(i) for i in range(3)], [case(i) for i in range(10, 13)]
    entries = write_reals(tmp_path, others)
    expected = float(fid(by_hand(cases), by_hand(others, "real")))
    read = []
    real_read = sys.modules["semsynth.data.in_memory"].read_volume
    monkeypatch.setattr("semsynth.data.in_memory.read_volume", lambda p: read.append(p) or real_read(p))
    for reference in (entries, [e["image"] for e in entries]):
        engine = evaluate(cases, EvaluationHandler([extractor()], reference=reference), epochs=2)
        assert engine.state.metrics["fid_la_unet_judge"] == pytest.approx(expected, rel=1e-4)
        assert len(read) == 3  # (raw images are clipped at percentile 99.9)
        read.clear()


def test_padding_of_a_prepared_reference_case_is_cut_away(tmp_path):
    cases, others = [case(i) for i in range(2)], [case(i) for i in range(10, 12)]
    entries = write_reals(tmp_path, others)
    plain = evaluate(cases, EvaluationHandler([extractor()], reference=entries)).state.metrics
    for entry, c in zip(entries, others, strict=True):
        padded = np.pad(c["image"].numpy()[0], ((4, 4), (0, 0), (0, 8)))
        write_image(entry["image"], padded, np.eye(4), "float32")
        entry["content"] = {"start": [4, 0, 0], "shape": list(SIZE)}
    cut = evaluate(cases, EvaluationHandler([extractor()], reference=entries)).state.metrics
    assert cut["fid_la_unet_judge"] == pytest.approx(plain["fid_la_unet_judge"], rel=1e-4)


def test_without_reference_the_scored_cases_own_images_are_the_real_side_and_a_warning_says_so_once(caplog):
    cases = [case(i) for i in range(3)]
    with caplog.at_level(logging.WARNING, "semsynth"):
        engine = evaluate(cases, EvaluationHandler([extractor()], paired=()), epochs=2)
    expected = float(fid(by_hand(cases), by_hand(cases, "real")))
    assert engine.state.metrics["fid_la_unet_judge"] == pytest.approx(expected, rel=1e-5)
    assert engine.state.metric_about["kid_la_unet_judge"]["reference"] == "the scored cases' own"
    assert caplog.text.count("against the real volumes of the scored cases themselves") == 1


def test_reference_cases_that_are_scored_too_are_warned_of(tmp_path, caplog):
    cases = [case(i) for i in range(3)]
    entries = write_reals(tmp_path, [case(i) for i in (2, 10)])
    with caplog.at_level(logging.WARNING, "semsynth"):
        evaluate(cases, EvaluationHandler([extractor()], reference=entries))
    assert "1 reference cases are scored ones too (case2, …)" in caplog.text


def test_without_real_volumes_distances_remain_and_paired_metrics_are_left_out():
    cases = [case(i, real=False) for i in range(2)]
    reference = {"la_unet_judge": by_hand([case(i) for i in (10, 11)], "real")}
    engine = evaluate(cases, EvaluationHandler([extractor()], reference=reference))
    assert engine.state.metrics.keys() == {"fid_la_unet_judge", "kid_la_unet_judge"}


def test_what_cannot_be_computed_is_left_out_with_one_warning(caplog):
    small = [case(0, size=(20, 20, 20))]
    with caplog.at_level(logging.WARNING, "semsynth"):
        engine = evaluate(small, EvaluationHandler([extractor()]), epochs=2)
    assert engine.state.metrics.keys() == {"psnr"}
    assert caplog.text.count("fid_la_unet_judge and kid_la_unet_judge are left out: they need two volumes") == 1
    assert caplog.text.count("ms_ssim of case0 is left out: ") == 1


def test_a_case_that_has_no_value_is_nan_in_the_details_and_not_in_the_mean():
    cases = [case(0), case(1, size=(20, 20, 20)), case(2)]
    state = evaluate(cases, EvaluationHandler([], paired=("ms_ssim",))).state
    values = state.metric_details["ms_ssim"].flatten()
    assert values.isnan().tolist() == [False, True, False] and state.metric_about["ms_ssim"] == {"n": 2}
    assert state.metrics["ms_ssim"] == pytest.approx(float(values[[0, 2]].mean()))


def test_volumes_with_nan_cost_the_distances_and_not_the_run(caplog):
    class Broken(Painter):
        def forward(self, label):
            return super().forward(label) * float("nan")

    reference = {"la_unet_judge": by_hand([case(i) for i in (10, 11)], "real")}
    handler = EvaluationHandler([extractor()], paired=(), reference=reference)
    loader = DataLoader(Dataset([case(0), case(1)]), batch_size=1)
    engine = SupervisedEvaluator(
        torch.device("cpu"), loader, Broken(), prepare_batch=PrepareSynthesisBatch(), val_handlers=[handler]
    )
    engine.run()
    assert engine.state.metrics == {} and "fid_la_unet_judge is left out: " in caplog.text


def test_outputs_that_are_not_taken_apart_are_refused():
    loader = DataLoader(Dataset([case(0)]), batch_size=1)
    engine = SupervisedEvaluator(
        torch.device("cpu"), loader, Painter(), prepare_batch=PrepareSynthesisBatch(), decollate=False,
        val_handlers=[EvaluationHandler([], paired=("psnr",))],
    )  # fmt: skip
    with pytest.raises(InputError, match="leave the evaluator's decollate at true"):
        engine.run()


def test_a_case_counts_once_and_every_epoch_starts_anew():
    cases = [case(0), case(1), case(0)]
    engine = evaluate(cases, EvaluationHandler([extractor()], paired=("psnr",)), epochs=2)
    assert engine.state.metric_details["psnr"].shape == (2, 1)
    assert engine.state.metric_about["fid_la_unet_judge"]["n"] == 2


def test_an_epochs_values_are_those_of_its_own_volumes():
    network, handler = Painter(), EvaluationHandler([extractor()], paired=("mae",))
    loader = DataLoader(Dataset([case(0), case(1)]), batch_size=1)
    engine = SupervisedEvaluator(
        torch.device("cpu"), loader, network, prepare_batch=PrepareSynthesisBatch(), val_handlers=[handler]
    )
    found = []
    for epoch, gamma in enumerate((1.0, 3.0, 1.0), start=1):
        network.gamma = gamma
        engine.run(epoch)
        found.append(dict(engine.state.metrics))
    assert found[0] == found[2]
    assert all(abs(found[0][key] - found[1][key]) > 1e-3 for key in ("mae", "fid_la_unet_judge"))


def test_mistakes_are_named():
    with pytest.raises(InputError, match="no paired metric is called 'lpips'; there are mae, ms_ssim"):
        EvaluationHandler([], paired=("lpips",))
    with pytest.raises(InputError, match="extractors must differ, got la_unet_judge, la_unet_judge"):
        EvaluationHandler([extractor(), extractor()])
    with pytest.raises(InputError, match=r"features \(M, 192\) of la_unet_judge, found shape \(3, 5\)"):
        EvaluationHandler([extractor()], reference={"la_unet_judge": np.zeros((3, 5))})
    with pytest.raises(InputError, match="of la_unet_judge, found those of medicalnet"):
        EvaluationHandler([extractor()], reference={"medicalnet": np.zeros((3, 5))})
    with pytest.raises(InputError, match="reference case c1 has no image"):
        EvaluationHandler([extractor()], reference=[{"case": "c1", "label": "a.nii.gz"}])
    with pytest.raises(InputError, match=r"a list of images or of a datalist's entries, got 'datalist\.json'"):
        EvaluationHandler([extractor()], reference="datalist.json")


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    entries = write_reals(tmp_path, [case(i) for i in range(10, 13)])
    (tmp_path / "reference.json").write_text(json.dumps(entries))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    one = evaluate([case(i) for i in range(3)], EvaluationHandler([extractor()], reference=entries)).state
    assert ranks[0]["seen"] == ranks[1]["seen"] == 2, "the sampler was to repeat a case"
    for found in ranks:
        assert found["metrics"] == pytest.approx(one.metrics, rel=1e-5)
        assert sorted(found["psnr"]) == pytest.approx(sorted(one.metric_details["psnr"].flatten().tolist()), rel=1e-5)
        assert found["n"] == 3


def _in_one_of_two_processes(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    cases = [case(i) for i in range(3)]
    sampler = torch.utils.data.DistributedSampler(cases, shuffle=False)  # four draws of three cases
    handler = EvaluationHandler([extractor()], reference=json.loads((folder / "reference.json").read_text()))
    state = evaluate(cases, handler, sampler=sampler).state
    found = {
        "metrics": state.metrics, "psnr": state.metric_details["psnr"].flatten().tolist(), "seen": state.iteration,
        "n": state.metric_about["fid_la_unet_judge"]["n"],
    }  # fmt: skip
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _in_one_of_two_processes(Path(sys.argv[1]))
