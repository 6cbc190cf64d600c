"""What a config's ``_target_`` may name: networks, transforms, losses and the like, and a few functions.

Only what is installed here is looked up, never anything of the bundle, and nothing is called. A name has to stand below
an allowed room, and what it means has to be defined there: ``semsynth.files.os.system`` is what Python finds under a
name of ours.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from monai.bundle.config_item import ComponentLocator

PACKAGE = __package__.rpartition(".")[0]
"""This package: ``semsynth``, or ``scripts.semsynth`` in a packed bundle."""
_OURS = re.compile(r"(?:scripts\.)?semsynth(?=\.)")
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")  # no name that begins with an underscore
ROOMS = {
    "semsynth": (
        "anatomy", "data", "evaluation", "handlers", "metrics", "networks", "provenance", "synthesis", "training",
    ),
    "monai": (
        "data", "engines", "handlers", "inferers", "losses", "metrics", "networks", "optimizers", "transforms",
    ),
    "torch": ("nn", "optim", "utils.data"),
}  # fmt: skip
"""Package → the rooms whose classes are allowed."""
OUR_FUNCTIONS = frozenset({
    "data.entries.load_datalist", "data.entries.load_images", "data.entries.load_label_maps",
    "data.entries.load_training_images", "distributed.distribute", "distributed.local_device", "distributed.start",
    "distributed.stop", "errors.say_plainly", "evaluation.run.evaluate", "files.sha256", "locks.hold",
    "networks.segmentation.residual_unet", "networks.segmentation.subvoxel_swin", "provenance.frozen.load_perceptual",
    "provenance.frozen.load_segmenter", "synthesis.augment.run.augment", "synthesis.drawing.evaluate.evaluate_maps",
    "synthesis.drawing.requests.load_requests", "synthesis.gating.check_gate", "synthesis.gating.gate_volumes",
    "synthesis.jobs.run", "synthesis.jobs.settings", "training.loading.load_sources", "training.loading.load_unseen",
    "training.losses.segmentation.class_weights",
})  # fmt: skip
"""Functions of ours that configs call, by where they are defined; others (of files, of commands) are not theirs."""
OUR_METHODS = frozenset({"synthesis.drawing.finishing.Finishing.of"})
THEIR_FUNCTIONS = frozenset({"monai.handlers.utils.from_engine", "monai.utils.misc.set_determinism"})
DANGEROUS = {
    **dict.fromkeys(("LMDBDataset", "PersistentDataset", "CacheNTransDataset", "GDSDataset", "NPZDictItemDataset"),
                    "unpickles files"),
    **dict.fromkeys(("Lambda", "Lambdad", "RandLambda", "RandLambdad"), "calls whatever it is given"),
    **dict.fromkeys(("MedicalNetPerceptualSimilarity", "RadImageNetPerceptualSimilarity",
                     "TorchvisionModelPerceptualSimilarity", "PerceptualLoss", "TorchVisionFCModel",
                     "TorchVisionFullyConvModel", "HoVerNet", "HoverNet",
                     "BertMixin", "MultiModal", "Transchex"), "fetches code or weights from a network"),
    **dict.fromkeys(("CSVDataset", "CSVIterableDataset"), "reads tables from any address"),
    **dict.fromkeys(("VideoDataset", "VideoFileDataset", "CameraDataset"), "reads cameras and addresses"),
    **dict.fromkeys(("TrtCompiler", "TrtHandler"), "loads programs of a GPU from files"),
    "GaussianMixtureModel": "starts a compiler",
    **dict.fromkeys(("MLFlowHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "ClearMLHandler"),
                    "sends what it sees to a server"),
}  # fmt: skip
"""Classes of MONAI that do more than compute."""


def problem(target: Any) -> str | None:
    """Why a ``_target_`` is not allowed, or None.

    Args:
        target: as the config has it: a path such as ``torch.optim.Adam``, or the bare name of something of MONAI's.
    """
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        return "is no plain name of a class or function"
    return _problem(target)


@cache
def _problem(target: str) -> str | None:
    if "." not in target:
        found = _locator().get_component_module_name(target)
        if not isinstance(found, str):
            return "is no name of MONAI's" if found is None else "is a name of several things of MONAI's"
    path = _path(target)
    package = path.partition(".")[0]
    if package not in ROOMS:
        return f"is not of {', '.join(ROOMS)}"
    component, chain = _resolve(path)
    if component is None:
        return "is no class or function of what is installed here"
    return _of_component(package, component, chain)


def fetches(target: str) -> bool:
    """Whether an allowed target asks a network where nothing is said of ``pretrained``."""
    try:
        said = inspect.signature(_resolve(_path(target))[0]).parameters.get("pretrained")
    except (TypeError, ValueError):  # classes of C
        return False
    return said is not None and said.default is not inspect.Parameter.empty and bool(said.default)


def _path(target: str) -> str:
    """Where a target is defined, for the bare name of something of MONAI's too."""
    found = None if "." in target else _locator().get_component_module_name(target)
    return _OURS.sub("semsynth", f"{found}.{target}" if isinstance(found, str) else target)


def _of_component(package: str, component: Any, method: str) -> str | None:
    """Why something that is defined in one of the packages is not allowed, or None."""
    module = str(getattr(component, "__module__", ""))
    own = re.sub(rf"^{re.escape(PACKAGE)}(?=\.|$)", "semsynth", module)
    if own.partition(".")[0] != package:
        return f"is {own}.{getattr(component, '__qualname__', '')}, which is not of {package}"
    inside = own.partition(".")[2]
    full = f"{inside}.{component.__qualname__}" + (f".{method}" if method else "")
    if method and (package != "semsynth" or full not in OUR_METHODS):
        return "is a method, which configs call on a component alone"
    if not inspect.isclass(component):
        known = full in OUR_FUNCTIONS if package == "semsynth" else f"{package}.{full}" in THEIR_FUNCTIONS
        return None if known else "is a function that no config needs"
    if not any(inside == room or inside.startswith(f"{room}.") for room in ROOMS[package]):
        return f"is of {own}, which no config needs"
    if package == "torch" and inside.startswith("utils.data.datapipes"):
        return "reads files by itself"
    return DANGEROUS.get(component.__name__) if package == "monai" else None


def _resolve(path: str) -> tuple[Any, str]:
    """A class or function of an installed module by its path, and the method of a class that is meant, or ""."""
    package, *parts = path.split(".")
    found: Any = import_module(PACKAGE if package == "semsynth" else package)
    for i, part in enumerate(parts):
        if isinstance(found, ModuleType):
            found = _member(found, part)
        elif inspect.isclass(found) and i == len(parts) - 1 and callable(getattr(found, part, None)):
            return found, part
        else:
            return None, ""
        if found is None:
            return None, ""
    return (found, "") if inspect.isclass(found) or inspect.isroutine(found) else (None, "")


def _member(module: ModuleType, name: str) -> Any:
    """What a module has under a name; None for another module than one of its own, and where there is nothing."""
    full = f"{module.__name__}.{name}"
    found = getattr(module, name, None)
    if found is None and hasattr(module, "__path__") and _may_import(full) and find_spec(full) is not None:
        found = import_module(full)
    return None if isinstance(found, ModuleType) and found.__name__ != full else found


def _may_import(module: str) -> bool:
    """Whether a module is of a room, or on the way to one: importing others (a command, a compiler) may do things."""
    own = re.sub(rf"^{re.escape(PACKAGE)}(?=\.|$)", "semsynth", module)
    package, _, inside = own.partition(".")
    return package == "semsynth" or any(f"{room}.".startswith(f"{inside}.") or inside.startswith(f"{room}.")
                                        for room in ROOMS[package])  # fmt: skip


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()
