"""A bundle's inference, run from Python as ``python -m monai.bundle run`` runs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from ..errors import InputError, is_out_of_memory
from ..json_files import read_object
from ..provenance.weights import is_as_stated
from ..trust.running import refuse_bundle

SHIPPED = Path("models") / "model.pt"
"""Of a bundle's folder."""
METADATA = "metadata.json"


def weights_of(bundle: Path, given: str | Path | None = None) -> Path:
    """The weights that a bundle's inference takes: the given ones, or those that it ships.

    Raises:
        InputError: for a folder that is no bundle, or one that :func:`semsynth.trust.running.refuse_bundle` refuses;
            for weights that are not there, or that are not those of their card.
    """
    if not (bundle / "configs" / "inference.json").is_file():
        raise InputError(f"{bundle}: no configs/inference.json in it; give the folder of a bundle")
    refuse_bundle(bundle, "inference.json", METADATA)  # before the work that it is needed for, as its weights
    if given is not None and not Path(given).is_file():
        raise InputError(f"--weights {given}: no such file; give weights that this bundle has trained")
    path = bundle / SHIPPED if given is None else Path(given)
    if not path.is_file():
        raise InputError(f"{path}: no such weights; copy the bundle whole")
    is_as_stated(path)
    return path


def is_own(bundle: Path, weights: Path) -> bool:
    """Whether a file of weights is the one that a bundle ships, by whatever path; a bundle may ship none."""
    shipped = bundle / SHIPPED
    return shipped.is_file() and weights.samefile(shipped)


def inference_config(bundle: Path) -> dict[str, Any]:
    """The content of a bundle's ``configs/inference.json``.

    Raises:
        InputError: where it cannot be read.
    """
    return read_object(bundle / "configs" / "inference.json", damaged="take the bundle's own")


def known_settings(bundle: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that a bundle's inference has; ``network_def#channels`` is one within ``network_def``."""
    config = inference_config(bundle)
    return {key: value for key, value in settings.items() if key.split("#")[0] in config}


def check_settings(bundle: Path, settings: Mapping[str, Any], option: str) -> dict[str, Any]:
    """The settings, all of which a bundle's inference must have.

    Raises:
        InputError: naming those that it has not.
    """
    unknown = sorted(settings.keys() - known_settings(bundle, settings).keys())
    if unknown:
        raise InputError(f"{option}: {bundle}/configs/inference.json has no setting {', '.join(unknown)}; look there")
    return dict(settings)


def run_inference(bundle: Path, **settings: Any) -> None:
    """Run a bundle's inference.

    Args:
        bundle: its folder.
        settings: in place of the config's, such as ``dataset_dir`` and ``output_dir``.

    Raises:
        InputError: for a bundle that would do more than it needs to; what a component of the config raises;
            where it is no error of input, naming the config.
    """
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that no logging file is read
    config = bundle / "configs" / "inference.json"
    refuse_bundle(bundle, config.name, METADATA)
    try:
        workflow = ConfigWorkflow(
            config_file=str(config), meta_file=str(bundle / "configs" / METADATA), workflow_type="infer",
            logging_file=False, bundle_root=str(bundle), **settings,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except InputError:
        raise
    except Exception as error:  # of any kind that a config's components raise
        if is_out_of_memory(error):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, InputError | OSError):
            raise cause from error
        reason = str(cause).splitlines() or [type(cause).__name__]
        raise InputError(f"{config}: the inference cannot be run ({reason[0]}); take the bundle's own") from error
