"""Which tensors of theirs ours are made of, in networks of residual blocks with attention."""

from __future__ import annotations

import torch
from torch import nn

from .common import PARTS, Weights, compare, copy_of

UNUSED = "monai-generative creates it and never applies it; here the projection is the identity"


class Pairing:
    """The layers of a network of ours, each with those of theirs that hold its weights.

    The shapes that theirs must have follow from ours: each tensor of ours is one of theirs, or several of equal shape
    one after the other along the first axis (γ and β; q, k and v). A plain norm of theirs with weight w and bias b is a
    SPADE of ours whose label branch is multiplied by 0 and whose 1 + γ and β are w and b: the same for any label map.

    Args:
        weights: theirs.
        own: a state dict of ours, for names and shapes alone; it may be on the meta device.

    Attributes:
        accepted: name → shape of tensors of theirs that are in no pair.
        made: tensors of ours that are in no pair.
        skipped: layers of theirs that are left out, and why.
        plain: SPADE norms of ours → the plain norms of theirs that they are made of.
    """

    def __init__(self, weights: Weights, own: Weights) -> None:
        self._weights, self._own = weights, own
        self._sources: dict[str, list[str]] = {}
        self.accepted: dict[str, tuple[int, ...]] = {}
        self.made: dict[str, torch.Tensor] = {}
        self.skipped: dict[str, str] = {}
        self.plain: dict[str, str] = {}

    def layer(self, ours: str, *theirs: str) -> None:
        """One layer's weight and bias."""
        for part in PARTS:
            self._sources[f"{ours}.{part}"] = [f"{name}.{part}" for name in theirs]

    def block(self, ours: str, theirs: str, *, shortcut: str) -> None:
        """A :class:`~semsynth.networks.blocks.residual.ResBlock`.

        Args:
            ours, theirs: prefixes of the names.
            shortcut: their name of it.
        """
        for number in (0, 1):
            self._norm(f"{ours}.norm_{number}", f"{theirs}.norm{number + 1}")
            self.layer(f"{ours}.conv_{number}", f"{theirs}.conv{number + 1}.conv")
        if f"{ours}.shortcut.weight" in self._own:
            self.layer(f"{ours}.shortcut", f"{theirs}.{shortcut}.conv")
        if f"{ours}.embedding.weight" in self._own:
            self.layer(f"{ours}.embedding", f"{theirs}.time_emb_proj")

    def _norm(self, ours: str, theirs: str) -> None:
        if f"{ours}.shared.weight" not in self._own:
            self.layer(ours, theirs)
            return
        if f"{theirs}.mlp_shared.conv.weight" not in self._weights and f"{theirs}.weight" in self._weights:
            self.plain[ours] = theirs
            return
        self.layer(f"{ours}.shared", f"{theirs}.mlp_shared.conv")
        self.layer(f"{ours}.gamma_beta", f"{theirs}.mlp_gamma.conv", f"{theirs}.mlp_beta.conv")
        if f"{ours}.weight" in self._own:  # monai-generative wraps the norm once more
            self.layer(ours, self._there(f"{theirs}.param_free_norm.N", f"{theirs}.param_free_norm"))

    def attention(self, ours: str, theirs: str) -> None:
        """An :class:`~semsynth.networks.blocks.residual.Attention`, under the names of MONAI or of monai-generative."""
        self.layer(f"{ours}.norm", f"{theirs}.norm")
        inner = theirs if f"{theirs}.to_q.weight" in self._weights else f"{theirs}.attn"
        if f"{inner}.qkv.weight" in self._weights:  # MONAI's use_combined_linear: q, k and v in this order
            self.layer(f"{ours}.qkv", f"{inner}.qkv")
        else:
            self.layer(f"{ours}.qkv", *(f"{inner}.to_{letter}" for letter in "qkv"))
        if f"{inner}.out_proj.weight" in self._weights:
            self.layer(f"{ours}.out", f"{inner}.out_proj")
            return
        channels = self._own[f"{ours}.out.bias"].shape[0]  # MONAI's include_fc=False, or monai-generative
        self.made |= {f"{ours}.out.weight": torch.eye(channels), f"{ours}.out.bias": torch.zeros(channels)}
        unused = f"{theirs}.proj_attn"
        for key in (f"{unused}.{part}" for part in PARTS):
            if key in self._weights:
                self.accepted[key] = tuple(self._weights[key].shape)
                self.skipped[unused] = UNUSED

    def upsampling(self, ours: str, theirs: str) -> None:
        """The convolution of an :class:`~semsynth.networks.blocks.residual.Upsample`."""
        self.layer(f"{ours}.conv", self._there(f"{theirs}.conv.conv", f"{theirs}.postconv.conv"))

    def _there(self, first: str, other: str) -> str:
        return first if f"{first}.weight" in self._weights else other

    def converted(self, what: str) -> dict[str, torch.Tensor]:
        """Our weights.

        Args:
            what: the network's name, for messages.

        Raises:
            InputError: where names or shapes of theirs differ from what they must be.
        """
        shapes = dict(self.accepted)
        for ours, theirs in self._sources.items():
            length, *rest = self._own[ours].shape
            shapes |= dict.fromkeys(theirs, (length // len(theirs), *rest))
        for ours, norm in self.plain.items():
            channels = len(self._own[f"{ours}.gamma_beta.bias"]) // 2
            shapes |= dict.fromkeys((f"{norm}.{part}" for part in PARTS), (channels,))
        compare(self._weights, shapes, what)
        own = {
            ours: torch.cat([copy_of(self._weights[name]) for name in theirs]) for ours, theirs in self._sources.items()
        }
        return own | self.made | self._without_labels()

    def _without_labels(self) -> dict[str, torch.Tensor]:
        """The SPADE norms that are made of plain ones; what their label branches begin with is always the same."""
        own: dict[str, torch.Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for ours, theirs in self.plain.items():
                hidden, labels, *kernel = self._own[f"{ours}.shared.weight"].shape
                branch = nn.Conv3d(labels, hidden, tuple(kernel))  # type: ignore[arg-type]
                own |= {f"{ours}.shared.{part}": copy_of(getattr(branch, part)) for part in PARTS}
                weight, bias = (copy_of(self._weights[f"{theirs}.{part}"]).float() for part in PARTS)
                own[f"{ours}.gamma_beta.weight"] = torch.zeros(self._own[f"{ours}.gamma_beta.weight"].shape)
                own[f"{ours}.gamma_beta.bias"] = torch.cat([weight - 1, bias])
        return own

    def returned(self, own: Weights) -> dict[str, torch.Tensor]:
        """Their weights made of ours: the inverse of :meth:`converted`, for the tensors that are in a pair.

        Args:
            own: weights of the names and shapes that this pairing was built with.
        """
        theirs: dict[str, torch.Tensor] = {}
        for ours, names in self._sources.items():
            parts = copy_of(own[ours]).chunk(len(names))
            theirs |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
        return theirs
