"""semsynth: 3D medical images from semantic label maps, as MONAI bundles, and what they are worth."""

from __future__ import annotations

__version__ = "0.2.0"
