"""The commands of ``semsynth`` about what a change is worth, one thin function each; its docstring is its help."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..seeds import checked_seed
from .options import FilePath, Words, pairs, whole, words


def study(
    *,
    config: FilePath,
    output: FilePath | None = None,
    cores: int = 1,
    profile: FilePath | None = None,
    fold: str | int | None = None,
    dry_run: bool = False,
    trust_unknown_weights: bool = False,
    wait: bool = False,
) -> str:
    """Whether synthetic volumes make a segmenter better: the whole study, from the patients' split to the report.

    The study's file says what is compared (docs/study.md). Generators, judges and what else has a part in it are
    trained on the study's labelled cases alone, and nothing is tested on patients that any of them has seen. An
    interrupted study goes on where it was when the same command is started again. "semsynth study compare A B" compares
    the scores of two segmenters, as "semsynth compare --scores A --baseline B" does.

    Args:
        config: YAML file of the study, such as examples/study_phantom.yaml.
        output: folder to write, in place of the file's.
        cores: jobs at the same time, one core each.
        profile: folder of a Snakemake profile, for a cluster, such as the package's study/profiles/slurm.
        fold: number of a fold, from 1, or all: a cross-validation inside the training patients in place of the test.
        dry_run: only say which jobs there are, and about how long and how much disk they take.
        trust_unknown_weights: take weights whose training cases are unknown; the report says so in red.
        wait: wait until another run of the same study has ended; without it such a run is an error.
    """
    from ..study.config import read_study
    from ..study.run import run_folds, run_study

    def told(fold: int | None) -> Any:
        return read_study(str(config), output=None if output is None else str(output), fold=fold,
                          trust=trust_unknown_weights)  # fmt: skip

    options: dict[str, Any] = {"cores": whole("cores", cores), "profile": None if profile is None else str(profile),
                               "dry_run": bool(dry_run), "wait": bool(wait)}  # fmt: skip
    if fold == "all":
        first = told(1)
        return run_folds([first, *(told(number) for number in range(2, first.fold[1] + 1))], **options)
    if fold is not None and not str(fold).isdigit():
        raise InputError(f"--fold must be the number of a fold, from 1, or all, got {fold!r}")
    return run_study(told(None if fold is None else int(fold)), **options)


def compare(
    *,
    scores: Words,
    baseline: Words,
    patients: FilePath | None = None,
    metrics: Words | None = None,
    output: FilePath | None = None,
    draws: int = 10_000,
    seed: int = 0,
    pseudonyms: FilePath | None = None,
) -> str:
    """Two segmenters on the same cases: paired differences with 95 % intervals, tests, median and worst case.

    Scores are read from the folder that la_unet's evaluate.json wrote, from a CSV (first column: the case, all others:
    metrics), or from nnU-Net's summary.json. Cases are paired by name, and scans of one patient count once.

    Args:
        scores: scores of the segmenter in question, a folder or a file, or NAME=PATH to give it a name.
        baseline: scores that it is compared with, in the same forms.
        patients: datalist (or its folder) whose entries say whose scan each case is; without it every case counts as a
            patient of its own.
        metrics: names of metrics with commas, for example dice,hd95_mm; without it all that both have.
        output: folder for comparison.md, .csv and .png, and comparison_cases.csv; without it nothing is written.
        draws: number of draws of the bootstrap, 1000 or more.
        seed: seed of the bootstrap.
        pseudonyms: key file, by which cases and patients have pseudonyms in all that is written and printed; names that
            are new get one. It must lie outside of --output.
    """
    from ..data.hidden import Hidden
    from ..study import compare as run
    from ..study import read_patients, read_scores
    from ..study.layout import files, save, sentence, tables
    from ..study.scores import only, under_pseudonyms

    (name, ours), (other, theirs) = _one("scores", scores, "new"), _one("baseline", baseline, "baseline")
    if name == other:
        raise InputError(f"--scores and --baseline are both called {name!r}; give them two names, NAME=PATH")
    if output is not None:
        files(str(output)).check()
    found, against = read_scores(ours), read_scores(theirs)
    if metrics is not None:
        found, against = only(found, words(metrics)), only(against, words(metrics))
    people = None if patients is None else read_patients(str(patients))
    if (hidden := Hidden.of(pseudonyms, False, output)) is not None:
        (found, against), people = under_pseudonyms(hidden, (found, against), people)
    result = run(
        found, against, people, names=(name, other),
        draws=whole("draws", draws), seed=checked_seed(seed, "--seed"),
    )  # fmt: skip
    lines = ["\n".join(sentence(result, paired) for paired in result.metrics), *(t.text() for t in tables(result))]
    return "\n\n".join([*lines, *([] if output is None else [str(save(result, str(output)))])])


def _one(option: str, typed: Words, name: str) -> tuple[str, str]:
    """What one side is called, ``name`` unless it is given, and its path."""
    given = [(key, path) for key, paths in pairs(option, typed, alone=name).items() for path in paths]
    if len(given) != 1:
        raise InputError(f"--{option} takes one folder or file, got {len(given)}; compare two at a time")
    return given[0]
