"""Fréchet distance between two sets of features, each taken for a Gaussian (Dowson and Landau, 1982).

It is the formula of FID (Heusel et al., 2017), and like FID it is given without a square root:

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

Only with the features of the Inception network is it FID; callers name the features they use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class FeatureStatistics(NamedTuple):
    """The Gaussian that features are taken for: mean (D,) and unbiased covariance (D, D)."""

    mean: Array
    cov: Array


def feature_statistics(features: ArrayLike) -> FeatureStatistics:
    """Mean and covariance of features (N, D), in float64; ValueError if N < 2 or a feature is not finite."""
    table = np.asarray(features, np.float64)
    if table.ndim != 2 or len(table) < 2:
        raise ValueError(f"features of shape {table.shape}: needs (N, D) with N of 2 or more")
    if not np.isfinite(table).all():
        raise ValueError("features hold NaN or infinite values")
    return FeatureStatistics(table.mean(axis=0), np.atleast_2d(np.cov(table, rowvar=False)))


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Fréchet distance between N(mean1, cov1) and N(mean2, cov2), of means (D,) and covariances (D, D).

    The trace of (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    symmetric: no complex numbers, and singular covariances need no regularisation.
    ValueError if the sizes do not agree.
    """
    m1, m2, c1, c2 = (np.asarray(values, np.float64) for values in (mean1, mean2, cov1, cov2))
    if not m1.shape == m2.shape or not c1.shape == c2.shape == (len(m1), len(m1)):
        raise ValueError(f"means {m1.shape} and {m2.shape}, covariances {c1.shape} and {c2.shape} do not agree")
    values, vectors = np.linalg.eigh(c1)  # rounding may have made eigenvalues slightly negative
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ c2 @ root).clip(min=0)
    return float(np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(cross).sum())
