"""The project's pages as a site of static files, which a browser reads without internet.

    python ci/docs_site.py [--output DIR]

The pages are copied into ``dist/pages`` with the folders that they have in the repository, so that their links hold. A
link to a file that is no page or picture becomes its text. Pages of the package are made of its docstrings. MkDocs then
builds the site (``mkdocs.yml``). A page without a place in it, or a link that leads nowhere, is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from markdown_links import Link, relink

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "bundles/*/docs/*.md")
PICTURES = ("docs/*.png", "bundles/*/docs/*.png")
FILES = ("docs/*.txt", "bundles/*/docs/*.txt")
BUNDLE_PAGES = {"README.md": "in short", "commands.md": "commands and settings", "experiments.md": "experiments"}
API: dict[str, tuple[str, tuple[str, ...]]] = {
    "metrics": ("Metrics on tensors", ()),
    "evaluation": ("Synthetic against real volumes", ()),
    "prepare.composite": (
        "Composite label maps",
        ("CompositeLabel", "CompositeLabeld", "IntensityHistogram", "fit_histogram", "fit_centers", "kmeans_1d"),
    ),
    "prepare.morph": ("Morphed label maps", ()),
    "prepare.phantom": ("Phantom cases", ("write_phantom_cases", "make_phantom", "Phantom")),
    "data.datalists": ("Datalists", ("read_datalist",)),
    "data.entries": (
        "Cases of a datalist",
        ("load_datalist", "load_training_images", "load_label_maps", "load_images"),
    ),
    "data.check": ("The check of cases", ("check_cases", "Entry", "Rules")),
    "data.classes": ("Classes of maps and of weights", ("compare_classes",)),
    "data.headers": ("Headers", ("read_header", "Header")),
    "data.volumes": ("Volumes", ("read_volume", "read_label", "write_image", "write_label", "Volume")),
    "data.label_files": (
        "Label files for viewers",
        ("write_labels", "write_segmentation", "write_label_tables", "colour_of"),
    ),
    "data.transforms": ("Transforms", ()),
    "data.voxels": ("Hashes of voxels", ("voxel_hash", "hash_file")),
    "networks.blocks.spade": (
        "SPADE blocks",
        ("SPADE", "SPADEResBlock", "SPADEOptions", "Modulation", "NoiseInjection", "label_pyramid"),
    ),
    "networks.blocks.label_encoder": ("Encoder of label maps", ("LabelEncoder",)),
    "networks.blocks.codebook": ("Codebook", ("Codebook", "Quantized")),
    "networks.autoencoder": ("Autoencoder", ("SPADEAutoencoder", "DecoderModulation")),
    "networks.denoiser": ("Denoiser", ("SPADEUNet", "DenoiserModulation")),
    "networks.slice_unet": ("Denoiser over slices", ("SliceUNet",)),
    "networks.latent_diffusion": ("Latent diffusion", ("LatentDiffusion", "Denoised", "intensity_style")),
    "networks.label_autoencoder": ("Autoencoder of label maps", ("LabelAutoencoder", "LabelReconstruction")),
    "networks.map_diffusion": ("Diffusion of label maps", ("MapDiffusion",)),
    "networks.shape_model": ("Shape model of label maps", ("ShapeModel",)),
    "networks.sampling.samplers": ("Schedules and samplers", ()),
    "networks.sampling.guided": ("Options of sampling", ("SamplingOptions",)),
    "networks.spade_gan": ("SPADE generator", ("SPADEGenerator", "LabelModulation", "Reconstruction")),
    "networks.pix2pix": ("pix2pix generator", ("Pix2PixGenerator",)),
    "networks.vqgan": ("VQ-GAN", ("VQGAN", "QuantizedReconstruction")),
    "networks.discriminators": (
        "Discriminators",
        ("ConditionalPatchDiscriminator", "MultiScaleDiscriminator", "SliceAndVolumeDiscriminator"),
    ),
    "networks.segmentation": (
        "Segmentation networks",
        ("residual_unet", "subvoxel_swin", "StandardizedSegmenter"),
    ),
    "handlers": ("Handlers of MONAI's engines", ()),
    "convert": ("Weights from elsewhere", ()),
    "study": ("Two segmenters compared", ()),
    "study.statistics": ("Arms of a study compared", ("contrast", "Trained", "Contrast")),
    "provenance.cards": (
        "Cards of weights",
        ("write_model_card", "record_of", "weights_hash", "datalist_hash", "versions", "TrainingRecord"),
    ),
    "provenance.seen": ("Cases that weights have seen", ("Seen", "refuse_seen_cases", "read_card")),
    "provenance.frozen": ("Frozen networks", ("load_segmenter", "load_features", "load_perceptual")),
    "provenance.audits": ("Audits", ("read_audit", "Audit", "passed")),
    "provenance.pseudonyms": ("Pseudonyms in cards", ("pseudonym", "pseudonym_key", "key_id")),
    "privacy.copies": (
        "Copies among volumes",
        ("Calibration", "Sides", "judge", "Judged", "count_copies", "Counts", "Count"),
    ),
    "trust.verify": ("Bundles, before they are used", ("verify", "sign", "Verdict")),
}
"""Modules that are used from Python: title of their page, and the names on it (none: all public ones)."""
STYLE = ".md-grid { max-width: 80rem; }\n.md-typeset table:not([class]) { font-size: .6rem; }\n"


def stage(folder: Path) -> None:
    """Write the pages, pictures and the pages of the package into an empty folder.

    Args:
        folder: it is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    known = {path.relative_to(ROOT) for pattern in (*PAGES, *PICTURES, *FILES) for path in ROOT.glob(pattern)}
    for path in sorted(known):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = (ROOT / path).read_text(encoding="utf-8")
            target.write_text(relink(text, lambda link, page=path: _elsewhere(link, page, known)), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, target)
    for module, (title, names) in API.items():
        page = folder / _api_page(module)
        page.parent.mkdir(parents=True, exist_ok=True)
        chosen = f"    options:\n      members: [{', '.join(names)}]\n" if names else ""
        page.write_text(f"# {title}\n\n::: semsynth.{module}\n{chosen}", encoding="utf-8")
    (folder / "site.css").write_text(STYLE, encoding="utf-8")


def _api_page(module: str) -> Path:
    return Path("docs") / "api" / f"{module}.md"


def _elsewhere(link: Link, page: Path, known: set[Path]) -> str | None:
    """The text of a link to a file that is not part of the site; None for a link that stays."""
    if not link.relative or not link.path:
        return None
    target = (ROOT / page).parent.joinpath(link.path).resolve().relative_to(ROOT)
    return None if target in known else link.text


def config(pages: Path, output: Path) -> dict[str, Any]:
    """``mkdocs.yml`` with the pages of bundles and of the package in its navigation, and all paths absolute.

    Args:
        pages: folder of :func:`stage`.
        output: folder for the site.
    """
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    settings["nav"] = [_filled(entry) for entry in settings["nav"]]
    settings |= {"docs_dir": str(pages), "site_dir": str(output)}
    settings["hooks"] = [str(ROOT / name) for name in settings["hooks"]]
    handlers = next(p["mkdocstrings"]["handlers"] for p in settings["plugins"] if isinstance(p, dict))
    handlers["python"]["paths"] = [str(ROOT / name) for name in handlers["python"]["paths"]]
    return settings


def _filled(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, content),) = entry.items()
    if content == "docs/api":
        return {title: [{name: str(_api_page(module))} for module, (name, _) in API.items()]}
    if isinstance(content, str) and content.startswith("bundles/"):
        pages = [{said: f"{content}/{name}"} for name, said in BUNDLE_PAGES.items()]
        return {title.removeprefix("bundles/"): pages}
    return {title: [_filled(one) for one in content] if isinstance(content, list) else content}


def build(output: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """Let MkDocs build the site of the pages that :func:`stage` has written into ``<work>/pages``.

    Without ``--quiet``, under which MkDocs counts no warning as an error.

    Args:
        output: folder for the site; it is replaced.
        work: folder with the staged pages.
    """
    written = work / "mkdocs.yml"
    written.write_text(yaml.safe_dump(config(work / "pages", output), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(written)]
    known = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "dist" / "site", metavar="DIR", help="folder for the site"
    )
    options = parser.parse_args()
    output = options.output.resolve()
    stage(ROOT / "dist" / "pages")
    done = build(output, ROOT / "dist")
    print(done.stderr + done.stdout if done.returncode else output / "index.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
