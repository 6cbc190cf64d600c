"""Weights of MONAI's and monai-generative's SPADE networks as ours, with the same output.

Both packages name and shape most tensors alike. Their activations, the groups and ε of their norms, the heads of their
attention leave no trace in a state dict: what is not the packages' default is an argument here.

A further kind of network is one more function that returns a :class:`Conversion`, and one more line of :data:`KINDS`.
"""

from .autoencoder import convert_autoencoder
from .common import LABEL_SLOPE, Conversion, Weights
from .denoiser import convert_denoiser
from .files import KINDS, Kind, bare_weights, convert, convert_file
from .spade import convert_spade, convert_spade_block, convert_spade_net

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
    "convert_spade",
    "convert_spade_block",
    "convert_spade_net",
]
