"""Whether drawn samples lie where real ones do, and reach all of them: by nearest neighbours of feature vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ..errors import InputError

NEIGHBOURS = 3
"""k of the nearest neighbours (Kynkäänniemi et al. 2019)."""


class Reach(NamedTuple):
    """Shares of samples, 0…1.

    Attributes:
        precision: share of drawn samples that lie within the reach of a real one (improved precision, Kynkäänniemi et
            al. 2019, eq. 1 and 2): the distance to its k-th nearest real neighbour.
        recall: share of real samples that lie within the reach of a drawn one.
        coverage: share of real samples within whose reach a drawn one lies (Naeem et al. 2020, eq. 6): outliers among
            the drawn ones do not help it.
        nearest: share of all samples whose nearest neighbour is of their own kind (leave-one-out 1-nearest-neighbour
            accuracy, Lopez-Paz & Oquab 2017): 0.5 where they cannot be told apart.
    """

    precision: float
    recall: float
    coverage: float
    nearest: float


def reach(y_pred: NDArray[np.floating], y: NDArray[np.floating], k: int = NEIGHBOURS) -> Reach:
    """Compare drawn samples with real ones.

    Args:
        y_pred: features of the drawn samples, ``(N, F)``.
        y: features of the real ones, ``(M, F)``.
        k: neighbours.

    Raises:
        InputError: for k or fewer samples of a kind.
    """
    if min(len(y_pred), len(y)) <= k:
        raise InputError(f"nearest neighbours need more than {k} samples of each kind, got {len(y_pred)} and {len(y)}")
    real, drawn, between = cdist(y, y), cdist(y_pred, y_pred), cdist(y_pred, y)
    of_real, of_drawn = (np.sort(own, axis=1)[:, k] for own in (real, drawn))  # the first is a sample itself
    whole = np.block([[drawn, between], [between.T, real]])
    np.fill_diagonal(whole, np.inf)
    kinds = np.repeat([0, 1], [len(y_pred), len(y)])
    return Reach(
        precision=float((between <= of_real[None]).any(axis=1).mean()),
        recall=float((between <= of_drawn[:, None]).any(axis=0).mean()),
        coverage=float((between.min(axis=0) <= of_real).mean()),
        nearest=float((kinds[whole.argmin(axis=1)] == kinds).mean()),
    )
