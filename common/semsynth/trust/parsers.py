"""A bundle's config for those who build a part of it: judged first, and nothing of it evaluated yet."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser

from ..errors import InputError
from ..json_files import read_object
from .running import refuse_bundle


def parser_of(bundle: str | Path, file: str, *overlays: str) -> ConfigParser:
    """MONAI's parser of a bundle's config that has been found to do no more than a bundle's do.

    Args:
        bundle: its folder.
        file: name below ``configs``, such as ``inference.json``.
        overlays: names there of what is merged into it, in this order.

    Raises:
        InputError: no such config; one that is no JSON; one that :func:`semsynth.trust.running.refuse_bundle` refuses.
    """
    configs = [Path(bundle) / "configs" / name for name in (file, *overlays)]
    for config in configs:
        if not config.is_file():
            raise InputError(f"{bundle}: no configs/{config.name} in it; give the folder of a bundle")
        read_object(config, damaged="take the bundle's own")
    refuse_bundle(bundle, file, *overlays)
    parser = ConfigParser()
    parser.read_config([str(config) for config in configs])
    return parser
