import numpy as np
import pytest
import scipy.linalg

from immiscible_policy.image.evaluation.frechet import feature_statistics, frechet_distance
from tests.image.evaluation.distances import feature_distance


def covariance(rng, size, rank=None):
    root = rng.normal(size=(size, rank or size))
    return root @ root.T


@pytest.mark.parametrize("rank", [None, 2])
def test_a_gaussian_is_at_distance_zero_from_itself(rank):
    rng = np.random.default_rng(0)
    mean, cov = rng.normal(size=5), covariance(rng, 5, rank)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)


def test_equal_covariances_leave_the_squared_distance_of_the_means():
    cov = covariance(np.random.default_rng(1), 2)
    assert frechet_distance([0, 0], cov, [3, 4], cov) == pytest.approx(25)


def test_diagonal_covariances_add_the_squared_differences_of_the_standard_deviations():
    result = frechet_distance([1, 0, 0], np.diag([1.0, 4, 9]), [0, 0, 0], np.diag([4.0, 4, 0]))
    assert result == pytest.approx(1 + (1 - 2) ** 2 + 0 + (3 - 0) ** 2)


def test_it_equals_the_matrix_square_root_and_is_symmetric():
    rng = np.random.default_rng(2)
    first, second = ((rng.normal(size=6), covariance(rng, 6)) for _ in range(2))
    root = scipy.linalg.sqrtm(first[1] @ second[1]).real
    expected = np.square(first[0] - second[0]).sum() + np.trace(first[1] + second[1] - 2 * root)
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*second, *first) == pytest.approx(expected, rel=1e-9)


def test_rotating_both_changes_nothing_and_scaling_both_squares():
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(50, 4)), 1 + 2 * rng.normal(size=(60, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert feature_distance(one @ turn, two @ turn) == pytest.approx(feature_distance(one, two))
    assert feature_distance(3 * one, 3 * two) == pytest.approx(9 * feature_distance(one, two))


def test_features_are_taken_in_double_precision_with_the_unbiased_covariance():
    result = feature_statistics(np.array([[1e4], [1e4 + 2]], np.float32))
    assert result.mean == pytest.approx([1e4 + 1])
    np.testing.assert_allclose(result.cov, [[2.0]])
    assert result.cov.dtype == np.float64


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(4), np.array([[0.0], [np.nan]])])
def test_unusable_features_are_refused(features):
    with pytest.raises(ValueError, match="features"):
        feature_statistics(features)


def test_sizes_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="do not agree"):
        frechet_distance([0, 0], np.eye(2), [0, 0, 0], np.eye(3))
