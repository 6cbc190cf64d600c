"""The commands of ``semsynth`` about volumes and weights, one thin function each; its docstring is its help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..seeds import checked_seed
from .datasets import FailedCheck
from .options import FilePath, Words, lines_or_words, number, numbers, one_or_more, pairs, usable_device, whole, words


def picture(
    *,
    synthetic: Words,
    output: FilePath,
    real: FilePath | None = None,
    cases: int = 3,
    samples: int = 1,
    planes: Words = "axial,coronal,sagittal",
    pseudonyms: FilePath | None = None,
) -> str:
    """One PNG of label map, synthetic and (where there is one) real volume, in three planes.

    Args:
        synthetic: folder that a bundle's inference wrote (with its datalist.json), or several as NAME=FOLDER, whose
            volumes stand side by side.
        output: the PNG to write.
        real: datalist (or its folder) with the real images of the same case names.
        cases: number of cases, the first ones by name.
        samples: number of volumes of each map, where there are several.
        planes: planes with commas, of axial, coronal and sagittal.
        pseudonyms: key file, by whose pseudonyms cases are paired and named; names that are new get one.
    """
    from ..data.hidden import Hidden
    from ..report.pictures import save_comparison

    folders = pairs("synthetic", synthetic, alone="synthetic")
    several = [name for name, values in folders.items() if len(values) > 1]
    if several:
        raise InputError(
            f"--synthetic {several[0]}: {len(folders[several[0]])} folders of one name; name each NAME=FOLDER"
        )
    return str(save_comparison(
        {name: values[0] for name, values in folders.items()}, str(output), real=real, cases=whole("cases", cases),
        samples=whole("samples", samples), planes=words(planes), hidden=Hidden.of(pseudonyms, False),
    ))  # fmt: skip


def weights(*, checkpoint: FilePath, output: FilePath, name: str = "network", mantissa_bits: int | None = None) -> str:
    """Take a network's weights out of a training checkpoint, as float16, to ship them as a bundle's model.pt.

    Args:
        checkpoint: a training's run folder (its newest good checkpoint is taken), or one checkpoint_….pt; or a file of
            weights, to be made smaller, or from a server of federated learning.
        output: the file to write.
        name: name of the network in the checkpoint.
        mantissa_bits: compress the file, with mantissas of so many bits (10 changes nothing, 8 values by up to 0.2 %).
    """
    from ..training.weights import extract_weights

    bits = None if mantissa_bits is None else whole("mantissa-bits", mantissa_bits)
    return str(extract_weights(str(checkpoint), str(output), name=name, mantissa_bits=bits))


def convert(
    *,
    weights: FilePath,
    output: FilePath,
    name: str | None = None,
    groups: int | None = None,
    eps: float | None = None,
    slope: float | None = None,
    head_channels: int | Sequence[int] | None = None,
    stride: int | None = None,
    spade_eps: float | None = None,
    num_classes: int | None = None,
    signed: bool = False,
    blocks_only: bool = False,
    to: str | None = None,
    bundle: FilePath | None = None,
    mean_only: bool = False,
    overwrite: bool = False,
) -> str:
    """Weights of MONAI's or monai-generative's networks as ours, with the same output; or ours as MONAI's.

    SPADE, its residual block, SPADENet's blocks, SPADEAutoencoderKL and SPADEDiffusionModelUNet. AutoencoderKL,
    AutoencoderKlMaisi and DiffusionModelUNet, to train on with label maps.

    What they are is recognised by the names of their tensors; they must be of a 3D network. The card beside the result
    (.json) says from which file it came, and with which arguments to build the module that it belongs to.

    Args:
        weights: state dict, or a checkpoint that holds one; nothing in it is executed.
        output: the file to write, for example model.pt; its card is model.json.
        name: entry of a checkpoint, or prefix of its keys, for example generator or decoder.blocks.0; with
            --bundle one of its networks, for example denoiser.
        groups: number of groups of the group norms (num_groups, norm_num_groups). Without it the packages' default:
            instance norm under SPADE; 32 groups in autoencoders and U-Nets.
        eps: epsilon of the norms; without it 1e-5, in autoencoders and U-Nets 1e-6.
        slope: negative slope of the residual blocks' activations; 0.2 by default.
        head_channels: number of channels of a U-Net's attention (num_head_channels), one number or one per level; 8
            unless said otherwise.
        stride: voxels of the label map per voxel of a U-Net's latent; 8 by default.
        spade_eps: epsilon of the norms under an autoencoder's SPADE, where it is not that of the package.
        num_classes: number of classes of your label maps, background included, for networks that were trained without
            any.
        signed: intensities in [-1, 1] in the training of an AutoencoderKL; [0, 1] unless said otherwise.
        blocks_only: only the residual blocks of a SPADENet; its other layers, some of one input size, do not fit.
        to: monai for the way back, of weights whose card or --bundle says how the network is built.
        bundle: folder of the bundle that the weights were trained in; only with --to monai.
        mean_only: only the mean of an autoencoder's posterior, with --to monai, where log σ² has no counterpart.
        overwrite: replace the file and its card where they are there, if they are weights with their card.
    """
    from ..convert import convert_file, convert_file_to_monai

    settings = {
        "groups": None if groups is None else whole("groups", groups),
        "eps": None if eps is None else number("eps", eps),
        "slope": None if slope is None else number("slope", slope),
        "head_channels": one_or_more("head-channels", head_channels),
        "stride": None if stride is None else whole("stride", stride),
        "spade_eps": None if spade_eps is None else number("spade-eps", spade_eps),
        "num_classes": None if num_classes is None else whole("num-classes", num_classes),
        "signed": True if signed else None,
        "blocks_only": True if blocks_only else None,
    }
    said = {key: value for key, value in settings.items() if value is not None}
    part = None if name is None else str(name)
    if to is None:
        _refuse_with(to, {"bundle": bundle is not None, "mean_only": mean_only})
        return str(convert_file(str(weights), str(output), name=part, overwrite=bool(overwrite), **said))
    if to != "monai":
        raise InputError(f"--to must be monai, got {to!r}; without it the weights become ours")
    _refuse_with(to, dict.fromkeys(said, True))
    return str(convert_file_to_monai(
        str(weights), str(output), name=part, bundle=None if bundle is None else str(bundle),
        mean_only=bool(mean_only), overwrite=bool(overwrite),
    ))  # fmt: skip


def _refuse_with(to: str | None, said: Mapping[str, bool]) -> None:
    """Raise for options of ``convert`` that belong to the other direction."""
    options = [f"--{name.replace('_', '-')}" for name, given in said.items() if given]
    if options:
        where = "without --to" if to else "with --to monai"
        raise InputError(f"{' and '.join(options)} can be said {where} alone; leave it out")


def export(
    *,
    bundle: FilePath,
    output: FilePath,
    size: Sequence[int] | None = None,
    format: str = "torch",
    weights: FilePath | None = None,
    steps: int | None = None,
    overwrite: bool = False,
) -> str:
    """A bundle's network as graphs for a server without this package: torch.export (torch alone), or ONNX.

    Latent diffusion becomes three graphs of one size of label map and a description; the bundle's docs/commands.md has
    the loop that runs them. ONNX (pip install 'semsynth[onnx]') takes networks that are one graph too, as model.onnx
    and model.json, of any size of volume where the network allows it. All are in float32, and an ONNX graph is compared
    with its network before it is written (docs/deploy.md).

    Args:
        bundle: folder of the bundle, for example bundles/spade_ldm.
        output: folder for conditioning, denoiser, decoder and sampling.json, or for model.onnx and model.json.
        size: voxels of the label maps along right, anterior, superior, for example 144,112,64; needed by latent
            diffusion and spade_gan3d, others take any size without it.
        format: torch or onnx.
        weights: file of weights in place of the bundle's models/model.pt.
        steps: number of steps that sampling.json describes; without it the bundle's own.
        overwrite: replace graphs that are there, if an export wrote them.
    """
    from ..synthesis.export import export_bundle

    return str(export_bundle(
        str(bundle), str(output), None if size is None else numbers("size", size, int), form=format,  # type: ignore[arg-type]
        weights=None if weights is None else str(weights), steps=None if steps is None else whole("steps", steps),
        overwrite=bool(overwrite),
    ))  # fmt: skip


def dicom(
    *,
    volume: FilePath,
    output: FilePath,
    like: FilePath | None = None,
    label: FilePath | None = None,
    classes: Words | None = None,
    drawn_by: str = "expert",
    modality: str | None = None,
    body_part: str | None = None,
    patient_id: str | None = None,
    synthetic: bool = False,
    audit: FilePath | None = None,
    despite_audit: bool = False,
    overwrite: bool = False,
    wait: bool = False,
) -> str:
    """Synthetic volumes as DICOM for viewers and archives: a series each, and its label map as a SEG.

    semsynth dicom VOLUME --output FOLDER. All UIDs are new, every file says that it is synthetic, and nothing of a
    source's headers, names or series is in any (docs/dicom_out.md). Needs pip install 'semsynth[dicom]'.

    Args:
        volume: a synthetic volume with its record, or a datalist (or its folder) of an inference or an augmentation, of
            which the synthetic volumes are written.
        output: folder to write; made if it is not there. Each volume gets a folder by its Patient ID.
        like: folder of a DICOM series whose modality, body part and plane of slices are taken, and nothing else.
        label: the label map of one volume, where its record does not say it; 'none' writes no SEG.
        classes: names of the map's classes from 1 on, with commas, a text file with one per line, or
            'totalsegmentator'; without it those of the datalist, or of the map's segments.
        drawn_by: expert, or the name of the program that drew the label maps of real cases.
        modality: MR or CT, where records do not say it.
        body_part: Body Part Examined, such as HEART or HEADNECK; without it what --like or the classes say.
        patient_id: Patient ID in place of SYN- and a part of the volume file's hash; several volumes are numbered.
        synthetic: take volumes without a record for synthetic, because you know that they are.
        audit: folder of 'semsynth audit' of these volumes; its verdict stands in every file, and copies of scans stop
            the export.
        despite_audit: write volumes although the audit found copies; every file says so.
        overwrite: replace what an earlier run wrote there.
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
    """
    from ..data.totalsegmentator import CLASSES, NAME
    from ..interop.dicom import DicomSettings, write_dicom

    named = [] if classes is None else lines_or_words(classes)
    settings = DicomSettings(
        like=like, label=label, classes=CLASSES if named == [NAME] else tuple(named), drawn_by=drawn_by,
        modality=None if modality is None else modality.upper(),
        body_part=None if body_part is None else body_part.upper(), patient_id=patient_id, synthetic=bool(synthetic),
        audit=None if audit is None else str(audit), despite_audit=bool(despite_audit),
    )  # fmt: skip
    written = write_dicom(str(volume), str(output), settings, overwrite=bool(overwrite), wait=bool(wait))
    return "\n".join(one.text() for one in written)


def evaluate(
    *,
    synthetic: Words,
    real: FilePath,
    output: FilePath = "evaluation",
    train_real: FilePath | None = None,
    labels: FilePath | None = None,
    judge: FilePath | None = None,
    second_judge: FilePath | None = None,
    judge_classes: Sequence[int] | None = None,
    judge_spacing: Sequence[float] | None = None,
    judge_channels: Sequence[int] | None = None,
    extractors: Words | None = None,
    feature_spacing: float = 1.0,
    weights: Words = (),
    in_loss: Words = (),
    lpips: bool = False,
    draws: int = 100,
    n: int | None = None,
    seed: int = 0,
    pictures: int = 16,
    device: str | None = None,
    wait: bool = False,
    download: bool = False,
    pseudonyms: FilePath | None = None,
    anonymous_names: bool = False,
) -> str:
    """Synthetic against real volumes by every metric, with floors and intervals: tables, CSV, JSON and an HTML report.

    Cases are paired by name. An interrupted evaluation goes on where it was; a further system costs only its volumes.

    Args:
        synthetic: NAME=FOLDER of a bundle's inference, several of them for several systems; a pattern of folders gives
            several samples per map.
        real: datalist (or its folder) of the real images and label maps; or a folder or quoted pattern of images.
        output: folder for evaluation.md, .csv, .json, .html and cases.csv; finished measurements stay in it.
        train_real: real images that the systems were trained on, in the same forms; without it the training split of
            --real. They stand apart, and distribution metrics take their real images as reference.
        labels: folder or quoted pattern of label maps by case name, instead of those that --real names.
        judge: weights of la_unet_judge (models/judge_1.pt of the bundle la_unet): faithfulness, and its features. With
            --judge-classes those of a residual U-Net that the bundle la_unet trained with ct.json or duke.json.
        second_judge: weights of a judge of the same kind that was trained on other patients (models/judge_2.pt of the
            bundle la_unet): it judges the cases whose patients --judge was trained on.
        judge_classes: the label maps' classes that it segments, in its order, for example 1,2,3,4,5,6,7: Dice of each
            and their mean.
        judge_spacing: mm per voxel that it was trained at, 1,1,1 unless given; only with --judge-classes.
        judge_channels: widths of its levels, 16,32,64,128,128 unless given; only with --judge-classes.
        extractors: feature networks with commas: medicalnet_resnet34, medicalnet_resnet50, efficientnet_lite0,
            la_unet_judge; the first, third and fourth unless said otherwise.
        feature_spacing: mm per voxel at which efficientnet_lite0 sees volumes (its slices are four of it apart, its
            pixels half of it); more for large fields of view, such as 4 for a CT. Numbers at different spacings
            cannot be compared.
        weights: NAME=FILE of a feature network's weights, where they are not in a package or the hub's cache.
        in_loss: NAME=NETWORK that was in that system's own loss, beside those that its records name.
        lpips: also LPIPS (needs pip install 'semsynth[lpips]' and its weights).
        draws: number of draws of reference cases, 20 or more.
        n: volumes on each side of a draw, each of another patient; without it as many as the unseen cases allow.
        seed: seed of the draws.
        pictures: cases per system and group in the HTML report, worst first.
        device: cpu, cuda …; without it a GPU where there is one.
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
        download: ask the Hugging Face hub for feature networks' weights that are not here; without it no network is
            ever asked, and what is missing is left out and named.
        pseudonyms: key file of case and patient names. Volumes under pseudonyms are paired by it with real cases under
            their names, and all that is written has pseudonyms. It must lie outside of --output.
        anonymous_names: pair volumes that were made with --anonymous-names, which need no key file.
    """
    from ..evaluation import DEFAULT_EXTRACTORS
    from ..evaluation import evaluate as run
    from ..evaluation.judge import load_judge

    place = usable_device(device)
    files = {name: values[-1] for name, values in pairs("weights", weights).items()}
    classes = None if judge_classes is None else numbers("judge-classes", judge_classes, int)
    spacing = None if judge_spacing is None else numbers("judge-spacing", judge_spacing, float)
    channels = None if judge_channels is None else numbers("judge-channels", judge_channels, int)
    kind: dict[str, Any] = {"classes": classes, "spacing": spacing, "channels": channels, "device": place}
    network = load_judge(None if judge is None else str(judge), **kind)
    if second_judge is not None and network is None:
        raise InputError("--second-judge goes with --judge, the file of weights that judges the other cases")
    second = None if second_judge is None else load_judge(str(second_judge), option="second-judge", **kind)
    result = run(
        pairs("synthetic", synthetic, alone="synthetic"), str(real), str(output),
        train_real=None if train_real is None else str(train_real), labels=None if labels is None else str(labels),
        extractors=DEFAULT_EXTRACTORS if extractors is None else words(extractors), weights=files, judge=network,
        second_judge=second,
        targets=classes,
        feature_spacing=number("feature-spacing", feature_spacing),
        in_loss=pairs("in-loss", in_loss), with_lpips=bool(lpips), draws=whole("draws", draws),
        n=None if n is None else whole("n", n), seed=checked_seed(seed, "--seed"), pictures=whole("pictures", pictures),
        device=place, download=bool(download), wait=bool(wait),
        pseudonyms=None if pseudonyms is None else str(pseudonyms), anonymous_names=bool(anonymous_names),
    )  # fmt: skip
    return f"{result.text()}\n\n{result.output / 'evaluation.html'}"


def reproduce(*, bundle: FilePath, device: str | None = None) -> str:
    """Whether a bundle gives the same result here as where it was made: one volume against its golden file.

    The built-in phantom is made, the bundle's own inference makes a volume of it with the shipped weights and a fixed
    seed, and the volume is compared with docs/golden.nii.gz of the bundle. It takes seconds, and says by its exit
    status (1) where weights, preprocessing or platform do not agree.

    Args:
        bundle: folder of the bundle, for example bundles/spade_ldm.
        device: cpu, cuda …; without it a GPU where there is one. The golden files were made on a CPU.
    """
    from ..synthesis.reproduce import reproduce as run

    findings = run(str(bundle), device=None if device is None else usable_device(device))
    width = max(len(finding.what) for finding in findings)
    lines = [f"  {'agrees' if f.agrees else 'DIFFERS':8}{f.what:{width}}  {f.found}" for f in findings]
    agrees = all(finding.agrees for finding in findings)
    text = "\n".join([f"{bundle}: {'reproduced' if agrees else 'NOT reproduced'}", *lines])
    if not agrees:
        raise FailedCheck(text)
    return text
