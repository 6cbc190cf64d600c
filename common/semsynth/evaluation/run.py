"""The whole evaluation: pair, measure, score, write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.datalists import datalist_path, read_datalist
from ..data.hidden import Hidden, Names, has_pseudonyms, warn_of_names
from ..data.nesting import refuse_found
from ..data.sizes import check_resampling
from ..errors import InputError
from ..files import remove_left_over
from ..limits import check_number
from ..locks import one_at_a_time
from ..metrics import lpips
from ..networks.features.registry import EXTRACTORS, JUDGE, FeatureExtractor, FeaturesUnavailable
from ..networks.frozen import FrozenSegmenter
from ..paths import as_path
from ..provenance.frozen import load_features
from ..provenance.seen import Seen
from .collect import collect
from .distributions import all_distributions, check_n
from .files import Results, result_files, worst_pictures, write_results
from .groups import as_trained, group_cases, other_maps
from .judge import Panel, fitting, judge_features
from .layout import Facts, Layout
from .measure import MeasurementStore, Measurer
from .scores import ROWS, Collected, all_scores, differences
from .seen import judge_has_seen
from .sources import RealCase, load_names, load_real, under_pseudonyms
from .summary import summarise
from .systems import System, check_grids, load_system, pair, renamed, with_scaling

logger = logging.getLogger(__name__)
DEFAULT_EXTRACTORS = ("medicalnet_resnet34", "efficientnet_lite0", "la_unet_judge")
SLICEWISE = "efficientnet_lite0"
MOST = {"draws": 100_000, "seed": 2**63 - 1, "pictures": 1000}
COMPARED = ("psnr", "mse", "ms_ssim", "dice")


def open_extractors(
    names: Sequence[str],
    weights: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    spacing: float = 1.0,
    judge: FrozenSegmenter | None = None,
    *,
    download: bool = False,
) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The feature networks that are to be had, and for the others why not.

    Args:
        names: names of :data:`semsynth.networks.features.registry.EXTRACTORS`.
        weights: name → file, where it does not come from a package or a hub.
        device: device on which they compute.
        spacing: see :func:`~semsynth.provenance.frozen.load_features`.
        judge: la_unet_judge, whose encoder is a feature network as well, where no file is given for that.
        download: ask the hub for weights that are not here; without it no network is ever asked.

    Examples:
        >>> found, missing = open_extractors(["la_unet_judge"])  # no file of weights was given for it
        >>> found, list(missing)
        ([], ['la_unet_judge'])
    """
    there: list[FeatureExtractor] = []
    absent: dict[str, str] = {}
    for name in dict.fromkeys(names):
        encoder = judge_features(judge) if name == JUDGE and not (weights or {}).get(name) else None
        if encoder is not None:
            there.append(encoder.to(device))
            continue
        try:
            file = (weights or {}).get(name)
            there.append(load_features(name, weights=file, device=device, spacing=spacing, download=download))
        except FeaturesUnavailable as error:
            absent[name] = str(error)
            logger.warning("%s", error)
    return there, absent


@one_at_a_time("semsynth evaluate")
def evaluate(
    synthetic: Mapping[str, str | Sequence[str]] | str | Path,
    real: str | Path,
    output: str | Path,
    *,
    name: str = "synthetic",
    train_real: str | Path | None = None,
    labels: str | None = None,
    extractors: Sequence[str] = DEFAULT_EXTRACTORS,
    weights: Mapping[str, str | Path] | None = None,
    judge: FrozenSegmenter | None = None,
    second_judge: FrozenSegmenter | None = None,
    targets: Mapping[int, int] | Sequence[int] | None = None,
    feature_spacing: float = 1.0,
    in_loss: Mapping[str, Sequence[str]] | None = None,
    with_lpips: bool = False,
    draws: int = 100,
    n: int | None = None,
    seed: int = 0,
    pictures: int = 16,
    show: bool = False,
    download: bool = False,
    device: torch.device | str = "cpu",
    pseudonyms: str | Path | None = None,
    anonymous_names: bool = False,
    wait: bool = False,
) -> Results:
    """Compare synthetic volumes with real ones by every metric, and write tables and a report.

    Cases are paired by name. Those that the generators were trained on stand apart. In memory are one case's volumes at
    a time and the features of all. What is measured stays in ``<output>/measured``: the same command goes on after an
    interruption, and a further system costs only its own volumes.

    Args:
        synthetic: name of a system → folders or patterns, see :func:`semsynth.evaluation.systems.load_system`; or the
            folder of one system.
        real: real images, see :func:`semsynth.evaluation.sources.load_real`.
        output: folder for ``evaluation.md``, ``.csv``, ``.json``, ``.html`` and ``cases.csv``.
        name: name of the system whose folder alone is given.
        train_real: real images that the generators were trained on.
        labels: label maps by case name, instead of those that ``real`` names.
        extractors: feature networks of distribution metrics.
        weights: extractor → file of weights.
        judge: a segmentation network that was in no system's loss.
        second_judge: second judge of the same classes, trained on other patients: it judges the cases of patients that
            ``judge`` has been trained on. Features are those of ``judge`` alone.
        targets: class of the judge → class of the label maps, or the latter in the order of the judge's; None: by name,
            see :func:`semsynth.evaluation.judge.targets_of`. A judge that knows no class of the maps is off.
        feature_spacing: mm per voxel at which ``efficientnet_lite0`` takes slices, which are four of it apart and
            interpolated to half of it: more for large fields of view.
        in_loss: system → networks that were in its loss, beside those that its records name.
        with_lpips: also LPIPS (extra ``lpips``).
        draws: number of draws of reference cases.
        n: volumes on each side of a draw, each of another patient; unless given see
            :func:`semsynth.evaluation.distributions.sizes`.
        seed: seed of the draws.
        pictures: cases per system and group in the report, worst first.
        show: log the tables, for those who do not print the result.
        download: ask the hub for feature networks' weights that are not here; without it no network is ever asked.
        device: device of metrics and networks.
        pseudonyms: key file by which real and synthetic cases are paired under pseudonyms, and are called in all that
            is written; names that are new get one, see :mod:`semsynth.data.hidden`.
        anonymous_names: pseudonyms without a key file.
        wait: wait until another evaluation that writes into ``output`` has ended; without it such an evaluation is an
            error.

    Raises:
        InputError: nothing to compare, files that cannot be used, volumes on different grids, too few cases; files in
            ``output`` that would be replaced and are not ours.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.data.volumes import read_volume, scale_intensity, write_image
        >>> from semsynth.prepare.phantom import write_phantom_cases
        >>> with TemporaryDirectory() as folder:
        ...     real = write_phantom_cases(f"{folder}/real", 4, size=(32, 32, 32), progress=False).parent
        ...     synthetic = Path(folder, "synthetic")
        ...     synthetic.mkdir()
        ...     for case in real.glob("phantom_*"):  # in place of a generator
        ...         scan = read_volume(case / "image.nii.gz")
        ...         image = scale_intensity(scan.data)
        ...         _ = write_image(synthetic / f"{case.name}.nii.gz", image, scan.affine, "float32")
        ...     results = evaluate(synthetic, real, f"{folder}/report", extractors=[], draws=20, pictures=0)
        >>> results.tables[0].title
        'Table 1, unseen label maps (n = 2)'
    """
    output = as_path(output, "output")
    hidden = Hidden.of(pseudonyms, anonymous_names, output)
    if isinstance(synthetic, str | Path):
        synthetic = {name: str(synthetic)}
    folders = [folder for given in synthetic.values() for folder in ([given] if isinstance(given, str) else given)]
    refuse_found(output, [real, train_real, labels, *folders], ["measured"])
    result_files(output).check()
    check_feature_spacing(feature_spacing)
    _check_settings(synthetic, weights or {}, in_loss or {}, draws=draws, seed=seed, pictures=pictures)
    given = load_real(real, train=train_real, labels=labels)
    cases, names = _called(given, real, hidden)
    check_feature_memory(cases, extractors, feature_spacing)
    if judge is not None:
        images = {name: case.image for name, case in cases.items()}
        check_resampling(images, judge.spacing, fix="give a larger --judge-spacing, that of its training")
    systems, cases, scored = _paired(synthetic, cases, names, {*cases, *given}, in_loss or {})
    classes = load_names(real)
    judge, pairs, off = fitting(judge, classes, targets)
    second_judge = None if judge is None else second_judge
    networks, absent = open_extractors(extractors, weights, device, feature_spacing, judge=judge, download=download)
    reasons = _reasons(judge, with_lpips)
    if off:
        reasons["judge"] = off
        absent = {name: off if name == JUDGE else why for name, why in absent.items()}
    remove_left_over(output / "measured")
    store = MeasurementStore(output / "measured")
    found = Collected(group_cases(scored, cases, systems), systems, other_maps(cases, systems, scored))
    found.cases = cases = as_trained(cases, systems)
    found.seen = _seen(cases, [judge, second_judge], networks)
    panel = Panel.of(judge, second_judge, cases, found.seen)
    found.judged = panel.seen(found.seen)
    measurer = Measurer(networks, panel, targets=pairs, with_lpips=with_lpips and "lpips" not in reasons,
                        store=store, device=device)  # fmt: skip
    check_n(found, list(cases), n)
    counts = ", ".join(f"{group}: {len(members)} cases" for group, members in found.groups.items())
    logger.info("%s; %d real images in all", counts, len(cases))
    collect(found, cases, scored, measurer)
    results = _written(
        found, networks, panel, Draws(draws, n, seed), output, pictures=pictures,
        absent=absent, reasons=reasons, classes=classes,
    )  # fmt: skip
    if show:
        logger.info("\n%s\n\n%s", results, output / "evaluation.html")
    return results


def _paired(
    synthetic: Mapping[str, str | Sequence[str]], cases: dict[str, RealCase], names: Names, known: set[str],
    in_loss: Mapping[str, Sequence[str]],
) -> tuple[list[System], dict[str, RealCase], list[str]]:  # fmt: skip
    """The systems, the cases with their systems' scaling, and the names of those that all systems have volumes of."""
    systems = [
        renamed(load_system(system, source, in_loss=in_loss.get(system, ()), known=known), names)
        for system, source in synthetic.items()
    ]
    scored = pair(systems, cases)
    cases = with_scaling(cases, systems)
    check_grids(systems, cases, scored)
    return systems, cases, scored


class Draws(NamedTuple):
    """Draws of reference cases: their number, the volumes on each side (None: as many as there are), their seed."""

    number: int
    n: int | None
    seed: int


def _written(
    found: Collected, networks: Sequence[FeatureExtractor], panel: Panel, draws: Draws, output: Path, *, pictures: int,
    absent: dict[str, str], reasons: dict[str, str], classes: dict[int, str],
) -> Results:  # fmt: skip
    """Tables and report of what was measured."""
    spread, without, sides = all_distributions(found, list(found.cases), networks, *draws)
    scores = all_scores(found, spread, panel.facts())
    compared = differences(found, COMPARED, spread, panel.facts())
    about = {e.name: e.about() for e in networks}
    facts = Facts(about, absent, reasons, without, panel.facts(), found.other_maps, classes, sides)
    results = Results(Layout(found, scores, facts).tables(compared), scores, compared, output)
    summary = summarise(found, scores, compared, facts, found.cases, pictured=pictures > 0)
    write_results(results, found, facts, worst_pictures(found, found.cases, pictures), summary)
    return results


def _called(cases: dict[str, RealCase], real: str | Path, hidden: Hidden | None) -> tuple[dict[str, RealCase], Names]:
    """The cases by the names that all results have, and these names; a warning where they are the cases' own."""
    if hidden is not None:
        return under_pseudonyms(cases, hidden)
    listed = datalist_path(real)
    if listed is None or not has_pseudonyms(read_datalist(listed)):
        warn_of_names()
    return cases, Names()


def check_feature_spacing(spacing: float) -> None:
    """Raise for a voxel size in mm at which no network can see volumes."""
    if not 0 < spacing <= 10:
        raise InputError(f"--feature-spacing must be above 0 and at most 10 mm, got {spacing:g}")


def check_feature_memory(cases: Mapping[str, RealCase], extractors: Sequence[str], spacing: float) -> None:
    """Raise for a voxel size in mm at which a case would not fit into memory, where a network takes it."""
    if SLICEWISE in extractors:
        images = {name: case.image for name, case in cases.items()}
        check_resampling(images, (spacing,) * 3, fix="give a larger --feature-spacing")


def _check_settings(
    synthetic: Mapping[str, Any], weights: Mapping[str, Any], in_loss: Mapping[str, Any], *, draws: int, seed: int,
    pictures: int,
) -> None:  # fmt: skip
    if not synthetic:
        raise InputError("no system to evaluate; give --synthetic NAME=FOLDER")
    taken = sorted(set(synthetic) & set(ROWS))
    if taken:
        raise InputError(f"a system cannot be called {taken[0]!r}, which is a row of the tables; rename it")
    for option, names, known in (("weights", weights, EXTRACTORS), ("in-loss", in_loss, tuple(synthetic))):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise InputError(f"--{option}: no such name {unknown[0]!r}; there are {', '.join(known)}")
    for option, value, least in (("draws", draws, 20), ("seed", seed, 0), ("pictures", pictures, 0)):
        if value < least:
            raise InputError(f"--{option} must be {least} or more, got {value}")
        check_number(f"--{option}", value, least, MOST[option])


def _seen(
    cases: Mapping[str, RealCase], given: Sequence[FrozenSegmenter | None], networks: Sequence[FeatureExtractor]
) -> dict[str, dict[str, bool | None]]:
    """By SHA-256 of its weights, which cases a judge was trained on, as such or as a feature network.

    Args:
        cases: cases by name.
        given: the judges.
        networks: networks, of which the judge may be one.
    """
    judges = {network.sha256: network.source for network in networks if network.name == JUDGE}
    for judge in given:
        if judge is not None:
            judges[judge.sha256] = judge.source or judges.get(judge.sha256)
    return {
        sha256: judge_has_seen(cases, None if source is None else Seen.of(source)) for sha256, source in judges.items()
    }


def _reasons(judge: FrozenSegmenter | None, with_lpips: bool) -> dict[str, str]:
    """Why something is not measured."""
    reasons = {}
    if judge is None:
        reasons["judge"] = "no judge was given or found (of the left atrium: models/judge_1.pt of the bundle la_unet)"
    if with_lpips:
        try:
            lpips(torch.zeros(1, 1, 64, 64, 8), torch.zeros(1, 1, 64, 64, 8))
        except InputError as error:
            reasons["lpips"] = str(error)
            logger.warning("LPIPS: %s", error)
    else:
        reasons["lpips"] = "it was not asked for (--lpips)"
    return reasons
