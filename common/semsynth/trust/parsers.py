"""A bundle's config for those who build a part of it: judged first, and nothing of it evaluated yet."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser

from ..errors import InputError
from ..json_files import read_object
from .running import refuse_bundle


def parser_of(bundle: str | Path, file: str) -> ConfigParser:
    """MONAI's parser of a bundle's config that has been found to do no more than a bundle's do.

    Args:
        bundle: its folder.
        file: name below ``configs``, such as ``inference.json``.

    Raises:
        InputError: no such config; one that is no JSON; one that :func:`semsynth.trust.running.refuse_bundle` refuses.
    """
    config = Path(bundle) / "configs" / file
    if not config.is_file():
        raise InputError(f"{bundle}: no configs/{file} in it; give the folder of a bundle")
    refuse_bundle(bundle, file)
    parser = ConfigParser()
    parser.read_config(read_object(config, damaged="take the bundle's own"))
    return parser
