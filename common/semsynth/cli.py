"""The ``semsynth`` command line: one thin function per command, shown by ``semsynth COMMAND --help``."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import fire.core

from . import __version__
from .errors import InputError


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
        str(output), _int("cases", cases), seed=_int("seed", seed), size=_numbers("size", size, int),
        spacing=_numbers("spacing", spacing, float), k=_int("k", k),
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
        spacing=_numbers("spacing", spacing, float),  # type: ignore[arg-type]
        size=None if size is None else _numbers("size", size, int),  # type: ignore[arg-type]
        k=_int("k", k),
        sigma=_float("sigma", sigma),
        background=background,  # type: ignore[arg-type]
        centers=None if centers is None or fit_once else _numbers("centers", centers, float),
        wall_mm=_float("wall-mm", wall_mm),
        dtype=dtype,  # type: ignore[arg-type]
    )
    shares = None if fractions is None else _numbers("fractions", fractions, float)
    return str(run(
        str(input), str(output), settings, endo=endo, wall=wall, fractions=shares, patient_regex=patient_regex,
        seed=_int("seed", seed), frozen_centers=fit_once, jobs=_int("jobs", jobs), overwrite=bool(overwrite),
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

    count = None if num_classes is None else _int("num-classes", num_classes)
    patch = None if patch_size is None else _numbers("patch-size", patch_size, int)
    threads = None if jobs is None else _int("jobs", jobs)
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
        raise _FailedCheck(text)
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
        str(input), endo=endo, k_max=_int("k-max", k_max), cases=_int("cases", cases),
        spacing=_numbers("spacing", spacing, float), sigma=_float("sigma", sigma), seed=_int("seed", seed),
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

    folders = _pairs("synthetic", synthetic, alone="synthetic")
    several = [name for name, values in folders.items() if len(values) > 1]
    if several:
        raise InputError(
            f"--synthetic {several[0]}: {len(folders[several[0]])} folders of one name; name each NAME=FOLDER"
        )
    return str(save_comparison(
        {name: values[0] for name, values in folders.items()}, str(output), real=real, cases=_int("cases", cases),
        samples=_int("samples", samples), planes=_words(planes),
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
        "groups": None if groups is None else _int("groups", groups),
        "eps": None if eps is None else _float("eps", eps),
        "slope": None if slope is None else _float("slope", slope),
        "head_channels": _one_or_more("head-channels", head_channels),
        "stride": None if stride is None else _int("stride", stride),
        "spade_eps": None if spade_eps is None else _float("spade-eps", spade_eps),
        "blocks_only": True if blocks_only else None,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    return str(convert_file(
        str(weights), str(output), name=None if name is None else str(name), overwrite=bool(overwrite), **given,
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
    files = {name: values[-1] for name, values in _pairs("weights", weights).items()}
    network = None
    if judge is not None:
        if not Path(str(judge)).is_file():
            raise InputError(f"--judge {judge}: no such file; give models/judge.pt of the bundle la_unet")
        network = load_segmenter(
            subvoxel_segresnet(), str(judge), use="faithfulness", name="la_unet_judge", device=place
        )
        files.setdefault("la_unet_judge", str(judge))
    result = run(
        _pairs("synthetic", synthetic, alone="synthetic"), str(real), str(output),
        train_real=None if train_real is None else str(train_real), labels=None if labels is None else str(labels),
        extractors=DEFAULT_EXTRACTORS if extractors is None else _words(extractors), weights=files, judge=network,
        in_loss=_pairs("in-loss", in_loss), with_lpips=bool(lpips), draws=_int("draws", draws),
        n=None if n is None else _int("n", n), seed=_int("seed", seed), pictures=_int("pictures", pictures),
        device=place,
    )  # fmt: skip
    return f"{result.text()}\n\n{result.output / 'evaluation.html'}"


class _FailedCheck(Exception):  # noqa: N818 - a result, not a mistake
    """What ``semsynth check`` prints where it found errors."""


LISTS = ("--synthetic", "--weights", "--in-loss")  # options of evaluate and picture that take several values
COMMANDS: dict[str, Callable[..., str]] = {
    "phantom": phantom,
    "check": check,
    "prepare": prepare,
    "choose-k": choose_k,
    "evaluate": evaluate,
    "picture": picture,
    "weights": weights,
    "convert": convert,
}


def _int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"--{name} must be a whole number, got {value!r}")
    return value


def _float(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"--{name} must be a number, got {value!r}")
    return float(value)


def _numbers(name: str, value: Any, kind: type[int] | type[float]) -> tuple[Any, ...]:
    values = value if isinstance(value, list | tuple) else (value,)
    check = _int if kind is int else _float
    try:
        return tuple(check(name, v) for v in values)
    except InputError:
        example = "128,96,64" if kind is int else "1,1,1.5"
        raise InputError(f"--{name} must be numbers with commas, such as {example}, got {value!r}") from None


def _one_or_more(name: str, value: Any) -> int | list[int] | None:
    if value is None or isinstance(value, int):
        return None if value is None else _int(name, value)
    return list(_numbers(name, value, int))


def _words(value: Any) -> list[str]:
    """Words of a list, or of a text with commas."""
    return [str(v) for v in value] if isinstance(value, list | tuple) else [w for w in str(value).split(",") if w]


def _pairs(name: str, value: Any, *, alone: str | None = None) -> dict[str, list[str]]:
    """``a=x b=y a=z`` → ``{"a": ["x", "z"], "b": ["y"]}``; a value without a name belongs to ``alone``."""
    pairs: dict[str, list[str]] = {}
    for word in _words(value):
        key, equals, rest = word.partition("=")
        if alone is not None and (not equals or re.search(r"[/\\*]", key)):  # a path may hold a "=" of its own
            key, rest = alone, word
        if not key or not rest:
            raise InputError(f"--{name} takes NAME=VALUE, got {word!r}")
        pairs.setdefault(key, []).append(rest)
    return pairs


def _join_lists(arguments: Sequence[str]) -> list[str]:
    """``--synthetic a=x b=y`` as one value, a list; Fire would take ``b=y`` for an argument of its own."""
    joined: list[str] = []
    values: dict[str, list[str]] = {}
    current: list[str] | None = None
    for argument in arguments:
        name, _, first = argument.partition("=")
        if name.replace("_", "-") in LISTS:
            current = values.setdefault(name.replace("_", "-"), [])  # given twice, it goes on
            current += [first] if first else []
        elif current is not None and not argument.startswith("--"):
            current.append(argument)
        else:
            current = None
            joined.append(argument)
    end = joined.index("--") if "--" in joined else len(joined)
    return [*joined[:end], *(part for name, found in values.items() for part in (name, repr(found))), *joined[end:]]


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse unknown commands and options before anything runs: Fire would run first and complain afterwards."""
    command = arguments[0]
    if command.startswith("-"):
        return
    if command not in COMMANDS:
        raise InputError(f"no command {command!r}; {_hint(command, list(COMMANDS))}")
    known = [name.replace("_", "-") for name in inspect.signature(COMMANDS[command]).parameters]
    for argument in arguments[1:]:
        if argument.startswith("--") and argument not in ("--", "--help"):
            name = argument[2:].split("=")[0].replace("_", "-")
            negated = name.removeprefix("no")
            if name not in known and negated not in known:
                raise InputError(f"semsynth {command} has no option --{name}; {_hint(name, known)}")


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 done, 1 bad input or errors found, 2 wrong usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"semsynth {__version__}")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    fire.core.Display = lambda lines, out: print(*lines, sep="\n", file=out)  # help without a pager
    try:
        if arguments:
            _check_options(arguments)
        arguments = _join_lists(arguments) if arguments[:1] in (["evaluate"], ["picture"]) else arguments
        fire.Fire(COMMANDS, command=arguments or ["--help"], name="semsynth")
    except _FailedCheck as result:
        print(result)
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error.filename or ''}: {error.strerror or error}; check the path and its permissions",
            file=sys.stderr,
        )
        return 1
    except fire.core.FireExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
