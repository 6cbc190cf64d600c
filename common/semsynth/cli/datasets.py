"""The commands of ``semsynth`` that make and check data, one thin function each; its docstring is its help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..errors import InputError
from ..seeds import checked_seed
from .options import FilePath, Words, given, lines_or_words, number, numbers, numbers_or_text, two_numbers, whole


class FailedCheck(Exception):  # noqa: N818 - a result, not a mistake
    """What ``semsynth check`` prints where it found errors."""


def phantom(
    *,
    output: FilePath,
    cases: int = 12,
    seed: int = 0,
    size: Sequence[int] = (128, 96, 64),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    k: int = 2,
    wait: bool = False,
) -> str:
    """Write synthetic left-atrium cases (image, endo, wall, scar, composite map) and their datalist.

    Args:
        output: folder to write; made if it is not there.
        cases: number of cases; about 15 % of them each go to validation and testing.
        seed: seed of the cases: the same seed gives the same cases, and case i does not depend on their number.
        size: voxels along right, anterior, superior, for example 128,96,64.
        spacing: mm per voxel, for example 1,1,1.
        k: number of intensity clusters of the composite maps, 0 to 10 (0: expert masks alone).
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
    """
    from ..prepare.phantom import write_phantom_cases

    path = write_phantom_cases(
        str(output), whole("cases", cases), seed=checked_seed(seed, "--seed"), size=numbers("size", size, int),
        spacing=numbers("spacing", spacing, float), k=whole("k", k), wait=bool(wait),
    )  # fmt: skip
    return str(path)


def prepare(
    *,
    input: FilePath,  # the name that users type
    output: FilePath,
    endo: FilePath | None = None,
    wall: FilePath | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    size: Sequence[int] | None = None,
    k: int = 2,
    sigma: float = 1.0,
    background: str = "auto",
    centers: FilePath | Sequence[float] | None = None,
    wall_mm: float = 2.5,
    wall_plane: str = "axial",
    scale: str | None = None,
    percentiles: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    dtype: str = "int16",
    like: FilePath | None = None,
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    group_patients: bool = False,
    seed: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
    wait: bool = False,
) -> str:
    """Raw cases to training data: images and composite maps on one spacing, datalist, one picture per case.

    All cases are checked first and every bad one is listed. An interrupted run goes on where it was when the same
    command is started again.

    Args:
        input: a datalist (or its folder), a folder of the 2018 challenge's case folders, or a quoted pattern of images
            or of DICOM folders (docs/dicom.md).
        output: folder to write; made if it is not there.
        endo: for a pattern of images: the cavity masks' pattern with the same stars; one segment of a .seg.nrrd file by
            its name: 'scans/*/seg.seg.nrrd#cavity'; one value of a label map: 'labelsTr/*.nii.gz#1'.
        wall: for a pattern of images: the wall masks' pattern with the same stars.
        spacing: mm per voxel along right, anterior, superior.
        size: voxels to crop and pad to around the cavity, for example 256,256,64; without it each case keeps its own.
        k: number of intensity clusters, 0 to 10 (0: expert masks alone).
        sigma: Gaussian smoothing before clustering, in voxels.
        background: auto, zero, lowest or none: which cluster becomes class 0.
        centers: 'dataset' fits the cluster centres once over the training cases; a folder of prepared data gives those
            that it has; numbers in [0, 1] give them; without it each volume has its own.
        wall_mm: width of the wall derived where no mask is given (0: no wall).
        wall_plane: axial, acquisition or 3d: that width is measured in the patient's axial plane, in the plane of the
            stack's slices, or in space.
        scale: percentiles, min-max or window: how intensities become [0, 1]; without it percentiles, or what the
            input's datalist states. With min-max one defective voxel can set the scale of its volume.
        percentiles: percentiles of each volume's non-zero voxels, 0,99.9 by default; 0 is the minimum of all
            voxels.
        window: intensities of the files that become 0 and 1, the same for all volumes.
        dtype: uint8, int16 or float32: how intensities are stored.
        like: folder of data prepared before, such as that of trained weights: all settings of its preparation, centres
            too, are taken, except those that are given here.
        fractions: shares of training, validation and (optionally) testing, 0.8,0.2 by default; for input
            without splits, or with all its cases in one.
        patient_regex: pattern whose first group in a case's name is the patient; no patient stands in two splits, and
            splits that the input gives are checked for it. Names of BIDS (sub-01_ses-1) tell the patient without it.
        group_patients: find scans of one patient by registering the images (100 cases take about five minutes), state
            them as "patient" in the datalist and keep them in one split; pairs.csv, pairs.png and same_patient.json say
            what was found and how sure it is.
        seed: seed of the draw of splits.
        jobs: cases at the same time.
        overwrite: replace cases that were prepared with other settings or from other files.
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
    """
    from ..prepare.atrium import Settings
    from ..prepare.atrium import prepare as run
    from ..prepare.like import settings_like

    fit_once = centers == "dataset"
    settings = settings_like(
        Settings, like, given(),
        spacing=numbers("spacing", spacing, float),
        size=None if size is None else numbers("size", size, int),
        k=whole("k", k),
        sigma=number("sigma", sigma),
        background=background,
        centers=_centers(centers, whole("k", k), like, Settings),
        wall_mm=number("wall-mm", wall_mm),
        wall_plane=wall_plane,
        scale=scale,
        percentiles=None if percentiles is None else two_numbers("percentiles", percentiles),
        window=None if window is None else two_numbers("window", window),
        dtype=dtype,
    )  # fmt: skip
    _check_centers(centers, settings)
    shares = None if fractions is None else numbers("fractions", fractions, float)
    return str(run(
        str(input), str(output), settings, endo=endo, wall=wall, fractions=shares, patient_regex=patient_regex,
        find_patients=bool(group_patients), seed=checked_seed(seed, "--seed"), frozen_centers=fit_once,
        jobs=whole("jobs", jobs), overwrite=bool(overwrite), wait=bool(wait),
    ))  # fmt: skip


def prepare_maps(
    *,
    input: FilePath,
    output: FilePath,
    label: FilePath | None = None,
    unlabelled: FilePath | None = None,
    classes: Words | None = None,
    relabel: bool = False,
    spacing: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    scale: str | None = None,
    percentiles: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    hu_offset: float | None = None,
    k: int = 0,
    centers: FilePath | Sequence[float] | None = None,
    sigma: float = 1.0,
    margin: float | None = None,
    axes: str | None = None,
    dtype: str = "int16",
    like: FilePath | None = None,
    modality: str | None = None,
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    group_patients: bool = False,
    seed: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
    wait: bool = False,
) -> str:
    """Images with label maps of any classes to training data: one grid, intensities in [0, 1], datalist, pictures.

    The classes keep their indices, unless --relabel is given. Images without a map (a datalist's "unlabelled") are
    prepared for the training of autoencoders. An interrupted run goes on where it was when the same command is started
    again.

    Args:
        input: a datalist (or its folder), or a quoted pattern of images or of DICOM folders (docs/dicom.md).
        output: folder to write; made if it is not there.
        label: for a pattern of images: the label maps' pattern with the same stars (.nii.gz, .nrrd, .seg.nrrd),
            or that of DICOM SEG or RTSTRUCT files.
        unlabelled: pattern of further images, without label maps.
        classes: names of the classes from 1 on, with commas, or a text file with one per line; without it those that
            the datalist states, or those of the segments. Segments of .seg.nrrd, DICOM SEG and RTSTRUCT files are found
            by these names, in whatever order they stand. 'totalsegmentator' gives the 117 names of that tool.
        relabel: makes classes 1, 2, … of the values that the label maps hold, the same in all cases; --classes names
            them by rising value. The datalist holds the table back ("original_values").
        spacing: mm per voxel along right, anterior, superior; without it each case keeps its own.
        size: voxels to crop and pad to around the classes, for example 256,256,32; without it each case keeps its own.
        scale: percentiles, min-max or window: how intensities become [0, 1]; without it percentiles, or what the
            input's datalist states. With min-max one defective voxel can set the scale of its volume.
        percentiles: percentiles of each volume's non-zero voxels, 0,99.9 by default; 0 is the minimum of all
            voxels.
        window: intensities of the files that become 0 and 1 (CT), for example -1000,1000, the same for all volumes.
        hu_offset: number to add to the files' values to get Hounsfield units (CT), for example -1024 where they hold
            HU + 1024; without it 0 for CT. Synthetic CT is then written in Hounsfield units.
        k: clusters of the intensities outside the classes: the darkest is background, the others become tissue 1,
            tissue 2, … behind the classes (0: none).
        centers: 'dataset' fits the clusters once over the training cases; a folder of prepared data gives those that it
            has; numbers in [0, 1] give them; without it each volume has its own.
        sigma: Gaussian smoothing before clustering, in voxels.
        margin: crop to the body and the classes with so many mm around; without it nothing is cut.
        axes: the directions in which the files' axes really run, such as PLI, where their headers say otherwise.
        dtype: uint8, int16 or float32: how intensities are stored.
        like: folder of data prepared before, such as that of trained weights: all settings of its preparation, centres
            too, are taken, except those that are given here.
        modality: modality that the datalist states; without it CT for DICOM series that say so, else MRI.
        fractions: shares of training, validation and (optionally) testing, 0.8,0.2 by default; for input
            without splits, or with all its cases in one.
        patient_regex: pattern whose first group in a case's name is the patient; no patient stands in two splits. Names
            of BIDS (sub-01_ses-1) tell the patient without it.
        group_patients: find scans of one patient by registering the images (100 cases take about five minutes), state
            them as "patient" in the datalist and keep them in one split; pairs.csv, pairs.png and same_patient.json say
            what was found and how sure it is.
        seed: seed of the draw of splits.
        jobs: cases at the same time.
        overwrite: replace cases that were prepared with other settings or from other files.
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
    """
    from ..data.dicom import same_modality
    from ..prepare.like import modality_of, settings_like
    from ..prepare.maps import CT, MapSettings, find_maps
    from ..prepare.maps import prepare_maps as run
    from ..prepare.relabel import classes_of

    fit_once = centers == "dataset"
    modality = modality_of(like, MapSettings) if like is not None and modality is None else modality
    offset = None if hu_offset is None else number("hu-offset", hu_offset)
    cases = find_maps(input, label=label, unlabelled=unlabelled)
    if modality is None:
        modality = CT if same_modality(case.files["image"] for case in cases) == CT else "MRI"
    offset = 0.0 if offset is None and window is not None and modality.upper() == CT else offset
    names, values = classes_of(
        input, cases, None if classes is None else lines_or_words(classes), relabel=bool(relabel),
        jobs=max(whole("jobs", jobs), 1),
    )  # fmt: skip
    typed = {*given(), *(("classes", "original_values") if relabel else ())}
    typed |= set() if offset is None else {"hu_offset"}
    settings = settings_like(
        MapSettings, like, typed, classes=names, original_values=values or None, hu_offset=offset, axes=axes,
        dtype=dtype, scale=scale, k=whole("k", k), centers=_centers(centers, whole("k", k), like, MapSettings),
        **_map_numbers(
            spacing=spacing, size=size, percentiles=percentiles, window=window, sigma=sigma, margin=margin
        ),
    )  # fmt: skip
    if "classes" not in typed and names and settings.classes != names:
        raise InputError(
            f"--like {like}: its classes are {', '.join(settings.classes)}, those of {input} are {', '.join(names)}; "
            "give --classes if the numbers mean the same"
        )
    _check_centers(centers, settings)
    shares = None if fractions is None else numbers("fractions", fractions, float)
    return str(run(
        str(input), str(output), settings, label=label, unlabelled=unlabelled, fractions=shares,
        patient_regex=patient_regex, find_patients=bool(group_patients), seed=checked_seed(seed, "--seed"),
        frozen_centers=fit_once, modality=str(modality), jobs=whole("jobs", jobs), overwrite=bool(overwrite),
        wait=bool(wait),
    ))  # fmt: skip


def _map_numbers(**typed: Any) -> dict[str, Any]:
    """Options of prepare-maps that are numbers, checked; None where one was not given."""
    read: dict[str, Callable[[str, Any], Any]] = {
        "spacing": partial(numbers, kind=float), "size": partial(numbers, kind=int),
        "percentiles": two_numbers, "window": two_numbers,
    }  # fmt: skip
    return {name: None if value is None else read.get(name, number)(name, value) for name, value in typed.items()}


def _centers(
    typed: str | Sequence[float] | None, k: int, like: str | None, kind: type[Any]
) -> tuple[float, ...] | None:
    """The centres that --centers gives: numbers, or those of data prepared before; None where they are to be fitted."""
    from ..prepare.like import k_of, prepared_centers

    if typed is None or typed == "dataset":
        return None
    found = numbers_or_text("centers", typed)
    if not isinstance(found, str):
        return found
    return prepared_centers(found, k if like is None or "k" in given() else k_of(like, k, kind), kind)


def _check_centers(typed: str | Sequence[float] | None, settings: Any) -> None:
    """Warn of centres of data that was scaled by another rule."""
    from ..prepare.like import warn_of_rule

    found = None if typed is None or typed == "dataset" else numbers_or_text("centers", typed)
    if isinstance(found, str):
        warn_of_rule(found, settings)


def check(
    *,
    input: FilePath | None = None,
    endo: FilePath | None = None,
    wall: FilePath | None = None,
    label: FilePath | None = None,
    num_classes: int | None = None,
    patch_size: Sequence[int] | None = None,
    patient_regex: str | None = None,
    bundle: FilePath | None = None,
    same_patient: bool = False,
    output: FilePath | None = None,
    jobs: int | None = None,
    json: bool = False,
) -> str:
    """Check all cases of a data set, raw or prepared, and list what is wrong: one table, exit status 1 on errors.

    The same checks run before every preparation, training and synthesis. Only --same-patient writes anything.

    Args:
        input: a datalist (or its folder), a folder of the 2018 challenge's case folders, or a quoted pattern of images
            or of DICOM folders (docs/dicom.md).
        endo: for a pattern of images: the cavity masks' pattern with the same stars; one segment of a .seg.nrrd file by
            its name: 'scans/*/seg.seg.nrrd#cavity'; one value of a label map: 'labelsTr/*.nii.gz#1'.
        wall: for a pattern of images: the wall masks' pattern with the same stars.
        label: for a pattern of images: the pattern of their label maps of any classes, with the same stars; without
            --input the label maps alone are checked.
        num_classes: number of classes of the label maps; without it what the datalist states.
        patch_size: voxels that training will crop, for example 128,96,64; smaller cases are named.
        patient_regex: pattern whose first group in a case's name is the patient; no patient may stand in two splits.
            Names of BIDS (sub-01_ses-1) tell the patient without it.
        bundle: folder of a bundle whose weights are to know the maps' classes, voxel size and field of view, and the
            rule by which the images were scaled.
        same_patient: find scans of one patient, and one scan twice, by registering the images (100 cases take about
            five minutes); writes pairs.csv, same_patient.json and pairs.png, on which to look at the pairs.
        output: folder for what --same-patient writes; without it same_patient.
        jobs: cases at the same time; without it one per core.
        json: print one JSON object instead of tables.
    """
    from ..data.findings import Report
    from ..data.findings import error as finding
    from ..data.nesting import refuse_found
    from ..data.raw import check_input
    from ..prepare.patients.groups import check_patients

    if output is not None and not same_patient:
        raise InputError("--output is where --same-patient writes; without that nothing is written")
    if same_patient:
        refuse_found(output or "same_patient", [input, endo, wall, label])
    count = None if num_classes is None else whole("num-classes", num_classes)
    patch = None if patch_size is None else numbers("patch-size", patch_size, int)
    threads = None if jobs is None else whole("jobs", jobs)
    try:
        report = check_input(
            input, endo=endo, wall=wall, label=label, num_classes=count, patch_size=patch, patient_regex=patient_regex,
            bundle=None if bundle is None else str(bundle), jobs=threads,
            search=partial(check_patients, output=output or "same_patient") if same_patient else None,
        )  # fmt: skip
    except InputError as error:
        if not json:
            raise
        problem = finding(
            input or label or "", "input cannot be used", found=str(error), expected="a data set", fix="see 'found'"
        )
        report = Report((problem,), 0)
    text = report.json() if json else report.table()
    if report.errors:
        raise FailedCheck(text)
    return text


def pseudonymise(
    *,
    input: FilePath,  # the name that users type
    output: FilePath,
    pseudonyms: FilePath | None = None,
    anonymous_names: bool = False,
    wait: bool = False,
) -> str:
    """Copy a data set so that its folders, files, headers and datalist name no patient.

    All that is made of the copy (volumes, records, evaluations, a study's report) names no patient either. Voxels
    are the same, so that weights that have seen a case still recognise it. The scans themselves are still patients'
    scans.

    Args:
        input: a datalist (or its folder) of NIfTI files, such as semsynth prepare writes.
        output: folder to write; made if it is not there.
        pseudonyms: key file, in which each case and patient has a pseudonym; names that are new get one. It is made if
            it is not there, and must lie outside of --output.
        anonymous_names: pseudonyms without a key file, from the hash of each case's voxels.
        wait: wait until another run that writes into --output has ended; without it such a run is an error.
    """
    from ..data.hidden import Hidden
    from ..prepare.pseudonymise import pseudonymise as run

    hidden = Hidden.of(pseudonyms, bool(anonymous_names), str(output))
    if hidden is None:
        raise InputError("--pseudonyms FILE says where the key is kept; or give --anonymous-names, which needs none")
    return str(run(str(input), str(output), hidden, wait=bool(wait)))


def choose_k(
    *,
    input: FilePath,
    output: FilePath | None = None,
    endo: FilePath | None = None,
    k_max: int = 10,
    cases: int = 20,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    sigma: float = 1.0,
    scale: str | None = None,
    percentiles: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    seed: int = 0,
) -> str:
    """Silhouette and Davies-Bouldin scores of k = 2 to k-max intensity clusters: a table, and a plot with --output.

    Args:
        input: as for prepare.
        output: folder for choose_k.csv and choose_k.png; without it only the table is printed.
        endo: for a pattern of images: the cavity masks' pattern.
        k_max: largest k, up to 10.
        cases: largest number of volumes (of the training split where there is one), drawn by seed.
        spacing: mm per voxel that volumes are resampled to.
        sigma: Gaussian smoothing before clustering, in voxels.
        scale: percentiles, min-max or window: how intensities become [0, 1]; without it percentiles, or what the
            input's datalist states. With min-max one defective voxel can set the scale of its volume.
        percentiles: percentiles of each volume's non-zero voxels, 0,99.9 by default; 0 is the minimum of all
            voxels.
        window: intensities of the files that become 0 and 1, the same for all volumes.
        seed: seed of the draw of volumes and voxels.
    """
    from ..data.intensity import chosen_scaling
    from ..data.nesting import refuse_found
    from ..prepare.choose_k import choose_k as run
    from ..prepare.choose_k import save_scores, score_files, table

    if output is not None:
        refuse_found(output, [input, endo])
        score_files(output).check()
    scaling = chosen_scaling(
        scale,
        None if percentiles is None else two_numbers("percentiles", percentiles),
        None if window is None else two_numbers("window", window),
    )
    scores = run(
        str(input), endo=endo, k_max=whole("k-max", k_max), cases=whole("cases", cases),
        spacing=numbers("spacing", spacing, float), sigma=number("sigma", sigma), scaling=scaling,
        seed=checked_seed(seed, "--seed"),
    )  # fmt: skip
    written = [f"\n{path}" for path in save_scores(scores, str(output))] if output is not None else []
    return table(scores) + "".join(written)
