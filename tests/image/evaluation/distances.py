"""Fréchet distances between sets of features."""

from immiscible_policy.image.evaluation.frechet import feature_statistics, frechet_distance


def feature_distance(features1, features2) -> float:
    """Squared Fréchet distance between two sets of features (N1, D) and (N2, D)."""
    return frechet_distance(*feature_statistics(features1), *feature_statistics(features2))
