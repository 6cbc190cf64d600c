"""What a test needs of the machine."""

from __future__ import annotations

import pytest
from semsynth.precision import reduced_type

needs_bfloat16 = pytest.mark.skipif(
    reduced_type("cpu") is None,
    reason="this processor has no kernels for bfloat16 (AVX-512); PyTorch's own leave channels-last",
)
