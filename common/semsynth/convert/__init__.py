"""Weights of MONAI's and monai-generative's networks as ours, and of our SPADE networks as MONAI's: the same output.

Both packages name and shape most tensors alike. Their activations, the groups and ε of their norms, the heads of their
attention leave no trace in a state dict: what is not the packages' default is an argument here.

A further kind of network is one more function that returns a :class:`Conversion`, and one more line of :data:`KINDS`.
"""

from .autoencoder import convert_autoencoder
from .common import LABEL_SLOPE, Conversion, Weights
from .denoiser import convert_denoiser
from .files import KINDS, Kind, bare_weights, convert, convert_file
from .plain import convert_plain_autoencoder, convert_plain_denoiser
from .spade import convert_spade, convert_spade_block, convert_spade_net
from .to_monai import to_monai_autoencoder, to_monai_denoiser
from .to_monai_files import convert_file_to_monai, to_monai
from .to_monai_spade import to_monai_spade, to_monai_spade_block, to_monai_spade_net

__all__ = [
    "KINDS",
    "LABEL_SLOPE",
    "Conversion",
    "Kind",
    "Weights",
    "bare_weights",
    "convert",
    "convert_autoencoder",
    "convert_denoiser",
    "convert_file",
    "convert_file_to_monai",
    "convert_plain_autoencoder",
    "convert_plain_denoiser",
    "convert_spade",
    "convert_spade_block",
    "convert_spade_net",
    "to_monai",
    "to_monai_autoencoder",
    "to_monai_denoiser",
    "to_monai_spade",
    "to_monai_spade_block",
    "to_monai_spade_net",
]
