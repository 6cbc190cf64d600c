"""Files of our weights as MONAI's: what network they are of is in their card, or in a bundle's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, is_out_of_memory
from ..provenance.seen import read_card
from ..provenance.weights import read_weights
from ..trust.parsers import parser_of
from .common import Conversion, Weights
from .files import bare_weights, check_paths, write_conversion
from .to_monai import to_monai_autoencoder, to_monai_denoiser
from .to_monai_spade import to_monai_spade, to_monai_spade_block, to_monai_spade_net

_KINDS: dict[str, Callable[..., Conversion[Any]]] = {
    "spade": to_monai_spade,
    "spade_block": to_monai_spade_block,
    "spade_net": to_monai_spade_net,
    "autoencoder": to_monai_autoencoder,
    "denoiser": to_monai_denoiser,
}
_CLASSES = {
    "SPADE": "spade",
    "SPADEResBlock": "spade_block",
    "SPADEAutoencoder": "autoencoder",
    "SPADEUNet": "denoiser",
}
_REASONS = {
    "LatentDiffusion": "it is made of several networks; name one of them, with --name autoencoder or --name denoiser",
    "SPADEGenerator": "it starts from the label map, its style scales and shifts the features of every block, noise "
    "enters there, and it upsamples trilinearly; SPADENet is given a style in a linear layer of one input size alone, "
    "takes no noise, upsamples by the nearest neighbour, and passes γ and β through an instance norm",
    "Pix2PixGenerator": "it has no SPADE, and MONAI no network of its kind (U-Net with noise, one-hot labels and tanh)",
    "SliceUNet": "it works within slices, with attention across them; MONAI's U-Nets do not",
    "VQGAN": "its codebook, norms and resampling are others than those of MONAI's VQVAE, and it has no SPADE",
    "residual_unet": "it has no SPADE; it is MONAI's UNet already, under 'network.', behind the standardisation of "
    "its input",
    "subvoxel_swin": "it has no SPADE; it is MONAI's SwinUNETR already, under 'network.network.', on blocks of 2³ "
    "voxels",
}
_NONE = "there is no such network in MONAI"


def to_monai(kind: str, weights: Weights, arguments: Mapping[str, Any], *, mean_only: bool = False) -> Conversion[Any]:
    """Our weights as MONAI's.

    Args:
        kind: "spade", "spade_block", "spade_net", "autoencoder" or "denoiser".
        weights: a bare state dict of ours.
        arguments: arguments of our network.
        mean_only: option of an autoencoder, see :func:`~semsynth.convert.to_monai_autoencoder`.

    Raises:
        InputError: for another kind; for a network that MONAI has no equal of, with all parts that have no counterpart.

    Examples:
        >>> from semsynth.networks.blocks.spade import SPADE, SPADEOptions
        >>> options = {"norm": "instance", "label_slope": 0.01, "normalized_modulation": True}  # as MONAI's
        >>> ours = SPADE(4, 8, SPADEOptions(**options))
        >>> conversion = to_monai("spade", ours.state_dict(), {"label_channels": 4, "channels": 8, "options": options})
        >>> conversion.kind, type(conversion.module()).__module__
        ('SPADE', 'monai.networks.blocks.spade_norm')
    """
    if kind not in _KINDS:
        raise InputError(f"weights of kind {kind!r} cannot go to MONAI; those of {', '.join(_KINDS)} can")
    if mean_only and kind != "autoencoder":
        raise InputError(f"--mean-only says nothing about weights of kind {kind}; leave it out")
    given = {"mean_only": True} if mean_only else {}
    try:
        return _KINDS[kind](weights, arguments, **given)
    except InputError:
        raise
    except Exception as error:  # of any kind that arguments raise which are none
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"no network of kind {kind} can be built with the stated arguments ({reason[0]}); give the weights with "
            "their own card, or bundle"
        ) from error


def convert_file_to_monai(
    weights: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    bundle: str | Path | None = None,
    mean_only: bool = False,
    overwrite: bool = False,
) -> Path:
    """Convert a file of our weights for MONAI, and write a card beside the result.

    Args:
        weights: the file; nothing in it is executed.
        output: the file to write; its card holds under ``arguments`` MONAI's class (``_target_``) and its arguments, as
            MONAI's ConfigParser builds it, and what the weights have seen.
        name: name of the network, where the file holds several.
        bundle: folder of the bundle whose ``network_def`` (configs/train.json) they are of. None: their card says what
            they are, as that of a conversion does.
        mean_only: see :func:`to_monai`.
        overwrite: replace what is there, if it is ours.

    Raises:
        InputError: as in :func:`to_monai`; where nothing says how the network is built; a file that is missing, cannot
            be read, or would be overwritten; weights that are NaN or infinite.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from monai.networks.blocks.spade_norm import SPADE
        >>> from semsynth.convert import convert_file
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(SPADE(label_nc=4, norm_nc=8, spatial_dims=3).state_dict(), f"{folder}/theirs.pt")
        ...     ours = convert_file(f"{folder}/theirs.pt", f"{folder}/ours.pt")  # its card says what network it is of
        ...     convert_file_to_monai(ours, f"{folder}/back.pt").name
        'back.pt'
    """
    source, output = Path(weights), Path(output)
    check_paths(source, output, overwrite=overwrite)
    content: Any = read_weights(source, fix="give weights of semsynth, as a bundle's model.pt")
    try:
        kind, arguments = _of_card(source, name) if bundle is None else _of_bundle(Path(bundle), name)
        conversion = to_monai(kind, bare_weights(content, name=name), arguments, mean_only=mean_only)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return write_conversion(conversion, source, output)


def _of_card(source: Path, name: str | None) -> tuple[str, dict[str, Any]]:
    card = source.with_suffix(".json")
    content = read_card(card) if card.is_file() else {}
    kind, arguments = content.get("kind"), content.get("arguments")
    if not isinstance(kind, str) or not isinstance(arguments, dict):
        raise InputError(
            f"{'its card does not say' if content else 'there is no card beside it that says'} how the network is "
            "built; give the folder of the bundle that it was trained in with --bundle"
        )
    if "_target_" in arguments:
        raise InputError(f"these are weights of MONAI's {kind} already")
    if name is not None:
        raise InputError("--name says which network of a bundle is meant; leave it out, or give --bundle")
    return kind, arguments


def _of_bundle(bundle: Path, name: str | None) -> tuple[str, dict[str, Any]]:
    config = bundle / "configs" / "train.json"
    parser = parser_of(bundle, config.name)
    part = "network_def" if name is None else f"network_def::{name.replace('.', '::')}"
    try:
        found = parser.get_parsed_content(part, instantiate=False)
        definition = dict(found.get_config()) if hasattr(found, "get_config") else None
    except Exception as error:  # of any kind that a config's references raise
        if is_out_of_memory(error):
            raise
        raise InputError(f"{config}: has no {part.replace('::', '.')} that can be read; check --name") from error
    if definition is None or not isinstance(definition.get("_target_"), str):
        raise InputError(f"{config}: {part.replace('::', '.')} names no network; check --name")
    network = str(definition.pop("_target_")).rpartition(".")[2]
    if network not in _CLASSES:
        raise InputError(f"a {network} is not converted to MONAI: {_REASONS.get(network, _NONE)}")
    return _CLASSES[network], definition
