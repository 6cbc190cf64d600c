"""The commands of ``semsynth``: one thin function each, whose docstring is its help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .arguments import lines_or_words, number, numbers, one_or_more, pairs, whole, words
from .errors import InputError


class FailedCheck(Exception):  # noqa: N818 - a result, not a mistake
    """What ``semsynth check`` prints where it found errors."""


def phantom(
    *,
    output: str,
    cases: int = 12,
    seed: int = 0,
    size: Sequence[int] = (128, 96, 64),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    k: int = 2,
) -> str:
    """Write synthetic left-atrium cases (image, endo, wall, scar, composite map) and their datalist.

    Args:
        output: folder to write; made if it is not there.
        cases: how many; about 15 % of them each go to validation and testing.
        seed: same seed, same cases; case i does not depend on how many there are.
        size: voxels along right, anterior, superior, for example 128,96,64.
        spacing: mm per voxel, for example 1,1,1.
        k: number of intensity clusters of the composite maps, 0 to 10 (0: expert masks alone).
    """
    from .phantom import write_phantom_cases

    path = write_phantom_cases(
        str(output), whole("cases", cases), seed=whole("seed", seed), size=numbers("size", size, int),
        spacing=numbers("spacing", spacing, float), k=whole("k", k),
    )  # fmt: skip
    return str(path)


def prepare(
    *,
    input: str,  # the name that users type
    output: str,
    endo: str | None = None,
    wall: str | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    size: Sequence[int] | None = None,
    k: int = 2,
    sigma: float = 1.0,
    background: str = "auto",
    centers: str | Sequence[float] | None = None,
    wall_mm: float = 2.5,
    dtype: str = "int16",
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
) -> str:
    """Raw cases to training data: images and composite maps on one spacing, datalist, one picture per case.

    All cases are checked first and every bad one is listed. An interrupted run goes on where it was when the same
    command is started again.

    Args:
        input: a datalist (or its folder), a folder of the 2018 challenge's case folders, or a quoted pattern of images.
        output: folder to write; made if it is not there.
        endo: for a pattern of images: the cavity masks' pattern with the same stars.
        wall: for a pattern of images: the wall masks' pattern with the same stars.
        spacing: mm per voxel along right, anterior, superior.
        size: voxels to crop and pad to around the cavity, for example 256,256,64; without it each case keeps its own.
        k: number of intensity clusters, 0 to 10 (0: expert masks alone).
        sigma: Gaussian smoothing before clustering, in voxels.
        background: auto, zero, lowest or none: which cluster becomes class 0.
        centers: 'dataset' fits the cluster centres once over the training cases; numbers in [0, 1] give them; without
            it each volume has its own.
        wall_mm: width of the wall derived where no mask is given (0: no wall).
        dtype: uint8, int16 or float32: how intensities are stored.
        fractions: shares of training, validation and (optionally) testing, 0.8,0.2 unless said otherwise; for input
            without splits, or with all its cases in one.
        patient_regex: pattern whose first group in a case's name is the patient; no patient stands in two splits, and
            splits that the input gives are checked for it.
        seed: of the draw of splits.
        jobs: cases at the same time.
        overwrite: replace cases that were prepared with other settings or from other files.
    """
    from .prepare import Settings
    from .prepare import prepare as run

    fit_once = centers == "dataset"
    settings = Settings(
        spacing=numbers("spacing", spacing, float),  # type: ignore[arg-type]
        size=None if size is None else numbers("size", size, int),  # type: ignore[arg-type]
        k=whole("k", k),
        sigma=number("sigma", sigma),
        background=background,  # type: ignore[arg-type]
        centers=None if centers is None or fit_once else numbers("centers", centers, float),
        wall_mm=number("wall-mm", wall_mm),
        dtype=dtype,  # type: ignore[arg-type]
    )
    shares = None if fractions is None else numbers("fractions", fractions, float)
    return str(run(
        str(input), str(output), settings, endo=endo, wall=wall, fractions=shares, patient_regex=patient_regex,
        seed=whole("seed", seed), frozen_centers=fit_once, jobs=whole("jobs", jobs), overwrite=bool(overwrite),
    ))  # fmt: skip


def prepare_maps(
    *,
    input: str,
    output: str,
    label: str | None = None,
    unlabelled: str | None = None,
    classes: str | Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    window: Sequence[float] | None = None,
    k: int = 0,
    centers: str | Sequence[float] | None = None,
    sigma: float = 1.0,
    margin: float | None = None,
    axes: str | None = None,
    dtype: str = "int16",
    modality: str = "MRI",
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
) -> str:
    """Images with label maps of any classes to training data: one grid, intensities in [0, 1], datalist, pictures.

    The classes keep their indices. Images without a map (a datalist's "unlabelled") are prepared for the training of
    autoencoders. An interrupted run goes on where it was when the same command is started again.

    Args:
        input: a datalist (or its folder), or a quoted pattern of images.
        output: folder to write; made if it is not there.
        label: for a pattern of images: the label maps' pattern with the same stars.
        unlabelled: pattern of further images, without label maps.
        classes: names of the classes from 1 on, with commas, or a text file with one per line; without it those that
            the datalist states.
        spacing: mm per voxel along right, anterior, superior; without it each case keeps its own.
        size: voxels to crop and pad to around the classes, for example 256,256,32; without it each case keeps its own.
        window: intensities of the files that become 0 and 1 (CT), for example -1000,1000; without it each volume's
            own minimum and maximum.
        k: clusters of the intensities outside the classes: the darkest is background, the others become tissue 1,
            tissue 2, … behind the classes (0: none).
        centers: 'dataset' fits the clusters once over the training cases; numbers in [0, 1] give them; without it each
            volume has its own.
        sigma: Gaussian smoothing before clustering, in voxels.
        margin: crop to the body and the classes with so many mm around; without it nothing is cut.
        axes: the directions in which the files' axes really run, such as PLI, where their headers say otherwise.
        dtype: uint8, int16 or float32: how intensities are stored.
        modality: what the datalist says of the images.
        fractions: shares of training, validation and (optionally) testing, 0.8,0.2 unless said otherwise; for input
            without splits, or with all its cases in one.
        patient_regex: pattern whose first group in a case's name is the patient; no patient stands in two splits.
        seed: of the draw of splits.
        jobs: cases at the same time.
        overwrite: replace cases that were prepared with other settings or from other files.
    """
    from .prepare_maps import MapSettings, stated_names
    from .prepare_maps import prepare_maps as run

    fit_once = centers == "dataset"
    settings = MapSettings(
        classes=tuple(stated_names(str(input)) if classes is None else lines_or_words(classes)),
        spacing=None if spacing is None else numbers("spacing", spacing, float),  # type: ignore[arg-type]
        size=None if size is None else numbers("size", size, int),  # type: ignore[arg-type]
        window=None if window is None else numbers("window", window, float),  # type: ignore[arg-type]
        k=whole("k", k),
        centers=None if centers is None or fit_once else numbers("centers", centers, float),
        sigma=number("sigma", sigma),
        margin=None if margin is None else number("margin", margin),
        axes=None if axes is None else str(axes),
        dtype=dtype,  # type: ignore[arg-type]
    )
    shares = None if fractions is None else numbers("fractions", fractions, float)
    return str(run(
        str(input), str(output), settings, label=label, unlabelled=unlabelled, fractions=shares,
        patient_regex=patient_regex, seed=whole("seed", seed), frozen_centers=fit_once, modality=str(modality),
        jobs=whole("jobs", jobs), overwrite=bool(overwrite),
    ))  # fmt: skip


def check(
    *,
    input: str,
    endo: str | None = None,
    wall: str | None = None,
    num_classes: int | None = None,
    patch_size: Sequence[int] | None = None,
    patient_regex: str | None = None,
    bundle: str | None = None,
    jobs: int | None = None,
    json: bool = False,
) -> str:
    """Check all cases of a data set, raw or prepared, and list what is wrong: one table, exit status 1 on errors.

    The same checks run before every preparation, training and synthesis. Nothing is written.

    Args:
        input: a datalist (or its folder), a folder of the 2018 challenge's case folders, or a quoted pattern of images.
        endo: for a pattern of images: the cavity masks' pattern with the same stars.
        wall: for a pattern of images: the wall masks' pattern with the same stars.
        num_classes: number of classes of the label maps; without it what the datalist states.
        patch_size: voxels that training will crop, for example 128,96,64; smaller cases are named.
        patient_regex: pattern whose first group in a case's name is the patient; no patient may stand in two splits.
        bundle: folder of a bundle: do its weights know the classes of the label maps?
        jobs: cases at the same time; without it one per core.
        json: print one JSON object instead of tables.
    """
    from .cases import check_input
    from .findings import Report
    from .findings import error as finding

    count = None if num_classes is None else whole("num-classes", num_classes)
    patch = None if patch_size is None else numbers("patch-size", patch_size, int)
    threads = None if jobs is None else whole("jobs", jobs)
    try:
        report = check_input(
            str(input), endo=endo, wall=wall, num_classes=count, patch_size=patch, patient_regex=patient_regex,
            bundle=None if bundle is None else str(bundle), jobs=threads,
        )  # fmt: skip
    except InputError as error:
        if not json:
            raise
        problem = finding(input, "input cannot be used", found=str(error), expected="a data set", fix="see 'found'")
        report = Report((problem,), 0)
    text = report.json() if json else report.table()
    if report.errors:
        raise FailedCheck(text)
    return text


def choose_k(
    *,
    input: str,
    output: str | None = None,
    endo: str | None = None,
    k_max: int = 10,
    cases: int = 20,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    sigma: float = 1.0,
    seed: int = 0,
) -> str:
    """Silhouette and Davies-Bouldin scores of k = 2 to k-max intensity clusters: a table, and a plot with --output.

    Args:
        input: as for prepare.
        output: folder for choose_k.csv and choose_k.png; without it only the table is printed.
        endo: for a pattern of images: the cavity masks' pattern.
        k_max: largest k, up to 10.
        cases: at most this many volumes (of the training split where there is one), drawn by seed.
        spacing: mm per voxel that volumes are resampled to.
        sigma: Gaussian smoothing before clustering, in voxels.
        seed: of the draw of volumes and voxels.
    """
    from .choose_k import choose_k as run
    from .choose_k import save_scores, table

    scores = run(
        str(input), endo=endo, k_max=whole("k-max", k_max), cases=whole("cases", cases),
        spacing=numbers("spacing", spacing, float), sigma=number("sigma", sigma), seed=whole("seed", seed),
    )  # fmt: skip
    written = [f"\n{path}" for path in save_scores(scores, str(output))] if output is not None else []
    return table(scores) + "".join(written)


def picture(
    *,
    synthetic: str | Sequence[str],
    output: str,
    real: str | None = None,
    cases: int = 3,
    samples: int = 1,
    planes: str | Sequence[str] = "axial,coronal,sagittal",
) -> str:
    """One PNG of label map, synthetic and (where there is one) real volume, in three planes.

    Args:
        synthetic: folder that a bundle's inference wrote (with its datalist.json), or several as NAME=FOLDER, whose
            volumes stand side by side.
        output: the PNG to write.
        real: datalist (or its folder) with the real images of the same case names.
        cases: how many cases, the first ones by name.
        samples: how many volumes of each map, where there are several.
        planes: with commas, of axial, coronal and sagittal.
    """
    from .report import save_comparison

    folders = pairs("synthetic", synthetic, alone="synthetic")
    several = [name for name, values in folders.items() if len(values) > 1]
    if several:
        raise InputError(
            f"--synthetic {several[0]}: {len(folders[several[0]])} folders of one name; name each NAME=FOLDER"
        )
    return str(save_comparison(
        {name: values[0] for name, values in folders.items()}, str(output), real=real, cases=whole("cases", cases),
        samples=whole("samples", samples), planes=words(planes),
    ))  # fmt: skip


def weights(*, checkpoint: str, output: str, name: str = "network") -> str:
    """Take a network's weights out of a training checkpoint, as float16, to ship them as a bundle's model.pt.

    Args:
        checkpoint: a training's run folder (its newest good checkpoint is taken), or one checkpoint_….pt.
        output: the file to write.
        name: which network of the checkpoint.
    """
    from .handlers.weights import extract_weights

    return str(extract_weights(str(checkpoint), str(output), name=name))


def convert(
    *,
    weights: str,
    output: str,
    name: str | None = None,
    groups: int | None = None,
    eps: float | None = None,
    slope: float | None = None,
    head_channels: int | Sequence[int] | None = None,
    stride: int | None = None,
    spade_eps: float | None = None,
    blocks_only: bool = False,
    overwrite: bool = False,
) -> str:
    """Weights of MONAI's or monai-generative's SPADE networks as ours, with the same output.

    SPADE, its residual block, SPADENet's blocks, SPADEAutoencoderKL and SPADEDiffusionModelUNet.

    What they are is recognised by the names of their tensors; they must be of a 3D network. The card beside the result
    (.json) says from which file it came, and with which arguments to build the module that it belongs to.

    Args:
        weights: state dict, or a checkpoint that holds one; nothing in it is executed.
        output: the file to write, for example model.pt; its card is model.json.
        name: entry of a checkpoint, or what stands before the keys, for example generator or decoder.blocks.0.
        groups: of the group norms (num_groups, norm_num_groups). Without it the packages' default: instance norm under
            SPADE; 32 groups in autoencoders and U-Nets.
        eps: of the norms; without it 1e-5, in autoencoders and U-Nets 1e-6.
        slope: negative slope of the residual blocks' activations; 0.2 unless said otherwise.
        head_channels: of a U-Net's attention (num_head_channels), one number or one per level; 8 unless said otherwise.
        stride: voxels of the label map per voxel of a U-Net's latent; 8 unless said otherwise.
        spade_eps: of the norms under an autoencoder's SPADE, where it is not that of the package.
        blocks_only: of a SPADENet the residual blocks alone; its other layers, some of one input size, do not fit.
        overwrite: replace the file and its card where they are there.
    """
    from .convert import convert_file

    settings = {
        "groups": None if groups is None else whole("groups", groups),
        "eps": None if eps is None else number("eps", eps),
        "slope": None if slope is None else number("slope", slope),
        "head_channels": one_or_more("head-channels", head_channels),
        "stride": None if stride is None else whole("stride", stride),
        "spade_eps": None if spade_eps is None else number("spade-eps", spade_eps),
        "blocks_only": True if blocks_only else None,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    return str(convert_file(
        str(weights), str(output), name=None if name is None else str(name), overwrite=bool(overwrite), **given,
    ))  # fmt: skip


def export(
    *,
    bundle: str,
    output: str,
    size: Sequence[int],
    weights: str | None = None,
    steps: int | None = None,
    overwrite: bool = False,
) -> str:
    """A latent diffusion bundle as three torch.export graphs and a description, for a server that has torch alone.

    The graphs are of one size of label map, in float32. The bundle's docs/README.md has the loop that runs them.

    Args:
        bundle: folder of the bundle, for example bundles/spade_ldm.
        output: folder for conditioning.pt2, denoiser.pt2, decoder.pt2 and sampling.json.
        size: voxels of the label maps along right, anterior, superior, for example 144,112,64.
        weights: instead of the bundle's models/model.pt.
        steps: that sampling.json describes; without it the bundle's own.
        overwrite: replace graphs that are there.
    """
    from .export import export_bundle

    return str(export_bundle(
        str(bundle), str(output), numbers("size", size, int), weights=None if weights is None else str(weights),
        steps=None if steps is None else whole("steps", steps), overwrite=bool(overwrite),
    ))  # fmt: skip


def evaluate(
    *,
    synthetic: str | Sequence[str],
    real: str,
    output: str = "evaluation",
    train_real: str | None = None,
    labels: str | None = None,
    judge: str | None = None,
    extractors: str | Sequence[str] | None = None,
    weights: str | Sequence[str] = (),
    in_loss: str | Sequence[str] = (),
    lpips: bool = False,
    draws: int = 100,
    n: int | None = None,
    seed: int = 0,
    pictures: int = 16,
    device: str | None = None,
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
        judge: weights of la_unet_judge (models/judge.pt of the bundle la_unet): faithfulness, and its features.
        extractors: feature networks with commas: medicalnet_resnet34, medicalnet_resnet50, efficientnet_lite0,
            la_unet_judge; the first, third and fourth unless said otherwise.
        weights: NAME=FILE of a feature network's weights, where they are not in a package or on the hub.
        in_loss: NAME=NETWORK that was in that system's own loss, beside those that its records name.
        lpips: also LPIPS (needs pip install 'semsynth[lpips]' and its weights).
        draws: of reference cases, 20 or more.
        n: volumes on each side of a draw; without it as many as every group allows.
        seed: of the draws.
        pictures: cases per system and group in the HTML report, worst first.
        device: cpu, cuda …; without it a GPU where there is one.
    """
    import torch

    from .evaluation import DEFAULT_EXTRACTORS
    from .evaluation import evaluate as run
    from .networks.frozen import load_segmenter
    from .networks.segmentation import subvoxel_segresnet

    place = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {place}: no GPU that torch can use is here; leave it out, or give cpu")
    files = {name: values[-1] for name, values in pairs("weights", weights).items()}
    network = None
    if judge is not None:
        if not Path(str(judge)).is_file():
            raise InputError(f"--judge {judge}: no such file; give models/judge.pt of the bundle la_unet")
        network = load_segmenter(
            subvoxel_segresnet(), str(judge), use="faithfulness", name="la_unet_judge", device=place
        )
        files.setdefault("la_unet_judge", str(judge))
    result = run(
        pairs("synthetic", synthetic, alone="synthetic"), str(real), str(output),
        train_real=None if train_real is None else str(train_real), labels=None if labels is None else str(labels),
        extractors=DEFAULT_EXTRACTORS if extractors is None else words(extractors), weights=files, judge=network,
        in_loss=pairs("in-loss", in_loss), with_lpips=bool(lpips), draws=whole("draws", draws),
        n=None if n is None else whole("n", n), seed=whole("seed", seed), pictures=whole("pictures", pictures),
        device=place,
    )  # fmt: skip
    return f"{result.text()}\n\n{result.output / 'evaluation.html'}"


COMMANDS: dict[str, Callable[..., str]] = {
    "phantom": phantom,
    "check": check,
    "prepare": prepare,
    "prepare-maps": prepare_maps,
    "choose-k": choose_k,
    "evaluate": evaluate,
    "picture": picture,
    "weights": weights,
    "convert": convert,
    "export": export,
}
