"""What the repository of a bundle on the Hugging Face hub holds: the unpacked bundle, and its page as a model card.

MONAI takes such a repository as it is: ``monai.bundle.download(name, source="huggingface_hub", repo="OWNER/NAME")``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from bundle_configs import WEIGHTS
from bundle_contents import collect, of_this_bundle, with_manifest
from markdown_links import Link, relink
from pack_zoo import write_folder
from semsynth.trust.hashes import MANIFEST

CARD = "README.md"
PAGE = "docs/README.md"
SEGMENTATION, IMAGES, MAPS = "image-segmentation", "image-to-image", "unconditional-image-generation"
"""What the hub calls: an image becomes a label map, a label map an image, and label maps of nothing."""
TAGS = {
    SEGMENTATION: ("segmentation",),
    IMAGES: ("image synthesis", "synthetic data"),
    MAPS: ("label map synthesis", "synthetic data"),
}
_USE = """> {use} The data that the weights were trained on have terms of their own:
> [docs/data_license.txt](docs/data_license.txt).

```python
import sys
import monai.bundle

# OWNER as in this page's address; the bundle's own code needs its folder on the module path
monai.bundle.download("{name}", source="huggingface_hub", repo="OWNER/{name}", bundle_dir=".")
sys.path.insert(0, "{name}")
network = monai.bundle.load("{name}", bundle_dir=".")
```
"""
_UNSEEN = re.compile(r"(.+)_unseen_(\d+)")


def write_hf(bundle: Path, folder: Path, further: Mapping[str, bytes] | None = None) -> Path:
    """Write ``<folder>/<name>``, whole or not at all, and return it.

    Args:
        bundle: its folder.
        folder: folder of the repositories' trees.
        further: files of the bundle that are added, path → content.

    Raises:
        ValueError: a bundle without weights, something else where the tree goes, and as in
            :func:`bundle_contents.collect`; files of any size are taken.
    """
    contents = collect(bundle, largest=None) | dict(further or {})
    if WEIGHTS not in contents:
        raise ValueError(f"{bundle}: a repository without weights is of no use, {WEIGHTS} is not there")
    place = folder / bundle.name
    of_this_bundle(place, bundle.name, {CARD, MANIFEST})
    about = json.loads(contents["configs/metadata.json"])
    contents[CARD] = model_card(about, contents[PAGE].decode("utf-8")).encode("utf-8")
    write_folder(place, with_manifest(contents))
    return place


def model_card(about: Mapping[str, Any], page: str) -> str:
    """The repository's front page: what the hub reads, and the bundle's page with links as from the root.

    Args:
        about: the content of ``metadata.json``.
        page: the packed bundle's ``docs/README.md``.
    """
    task = task_of(about)
    head: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "monai",
        "pipeline_tag": task,
        "tags": ["medical", "monai", "3D", *TAGS[task], *modalities(about)],
    }
    results = model_index(about, task)
    if results:
        head["model-index"] = [{"name": about["bundle"], "results": results}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    return (
        f"---\n{front}---\n\n{_USE.format(use=about['intended_use'], name=about['bundle'])}\n{relink(page, _from_root)}"
    )


def _from_root(link: Link) -> str | None:
    if not link.relative or not link.path:
        return None
    target = f"docs/{link.target}" if not link.target.startswith("../") else link.target.removeprefix("../")
    return f"{'!' * link.picture}[{link.text}]({target})"


def task_of(about: Mapping[str, Any]) -> str:
    """The hub's name for what the network does, by what it takes and gives.

    Args:
        about: the content of ``metadata.json``.
    """
    sides = about["network_data_format"]
    if sides["outputs"]["pred"]["format"] != "segmentation":
        return IMAGES
    return MAPS if sides["inputs"]["image"]["format"] == "segmentation" else SEGMENTATION


def modalities(about: Mapping[str, Any]) -> list[str]:
    """What the images are, in words of the metadata; CT too, where weights say that their unit is HU.

    Args:
        about: the content of ``metadata.json``.
    """
    sides = about["network_data_format"]
    named = [sides["inputs"]["image"].get("modality"), sides["outputs"]["pred"].get("modality")]
    found = [str(name).removeprefix("synthetic ") for name in named if name]
    units = [trained.get("unit") for trained in about.get("trained_on", {}).values()]
    return list(dict.fromkeys([*found, *(["CT"] if "HU" in units else [])]))


def model_index(about: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """The metrics of the metadata by their own names, each with the data that it is of.

    A name that ends in ``_unseen_10`` is of ten cases that no training saw, which the hub calls a split.

    Args:
        about: the content of ``metadata.json``.
        task: the hub's name of it.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, value in about.get("eval_metrics", {}).items():
        unseen = _UNSEEN.fullmatch(key)
        kind, split = (unseen[1], f"{unseen[2]} unseen cases") if unseen else (key, "")
        name = ", ".join(part for part in (kind.replace("_", " "), split) if part)
        metric = {"type": kind, "value": value, "name": name}
        found.setdefault((data_of(key, about["data_source"]), split), []).append(metric)
    return [
        {
            "task": {"type": task, "name": about["task"]},
            "dataset": {"name": data, "type": _identifier(data)} | ({"split": split} if split else {}),
            "metrics": metrics,
        }
        for (data, split), metrics in found.items()
    ]


def data_of(metric: str, sources: str) -> str:
    """The data set of a metric: of ``model_ct.pt`` for one whose name begins with ``ct_``, else of ``model.pt``.

    Args:
        metric: its name in the metadata.
        sources: the metadata's ``data_source``: what ``model.pt`` was trained on, then ``; <file>: <data>`` of others.
    """
    first, *others = sources.split("; ")
    for other in others:
        file, _, data = other.partition(": ")
        prefix = file.removeprefix("model_").removesuffix(".pt")
        if data and metric.startswith(f"{prefix}_"):
            return data
    return first


def _identifier(data: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.split(r"[,(]", data)[0].lower()).strip("-")
