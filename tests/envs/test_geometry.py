"""Laws of the T in the plane: coverage is the exact area, the mirror is a mirror."""

import numpy as np
import pytest
from shapely.geometry import Polygon

from immiscible_envs.geometry import (
    BAR,
    CENTER_OF_GRAVITY,
    GOAL_POSE,
    KEYPOINTS,
    STEM,
    coverage,
    keypoints,
    mirror_point,
    mirror_state,
    place,
)

TAU = 2 * np.pi


OUTLINE = [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)]


def tee(pose):
    return Polygon(place(OUTLINE, pose))


def exact(pose, goal):
    target = tee(goal)
    return tee(pose).intersection(target).area / target.area


def random_poses(random, count):
    return np.column_stack([random.uniform(100, 400, (count, 2)), random.uniform(-10, 10, count)])


def random_states(random, count):
    return np.column_stack([random.uniform(0, 512, (count, 4)), random.uniform(0, TAU, count)])


def test_coverage_is_shapelys_over_random_poses():
    random = np.random.default_rng(0)
    poses, goals = random_poses(random, 2000), random_poses(random, 2000)
    pairs = [(coverage(pose, goal), exact(pose, goal)) for pose, goal in zip(poses, goals, strict=True)]
    ours, theirs = np.array(pairs).T
    assert np.abs(ours - theirs).max() < 1e-12
    assert (ours > 0.01).sum() > 300  # the sample does overlap


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-6, 1e-3, 1.0, 30.0])
def test_coverage_is_shapelys_near_the_goal(scale):
    random = np.random.default_rng(1)
    for goal in random_poses(random, 200):
        pose = goal + scale * random.standard_normal(3) * (1, 1, 0.02)
        assert coverage(pose, goal) == pytest.approx(exact(pose, goal), abs=1e-12)


def test_coverage_of_axis_parallel_shifts_by_hand():
    goal = (200.0, 200.0, 0.0)
    assert coverage((260.0, 200.0, 0.0), goal) == pytest.approx(60 * 30 / 6300)  # half of the bar, no stem
    assert coverage((200.0, 230.0, 0.0), goal) == pytest.approx((30 * 30 + 60 * 30) / 6300)
    assert coverage((200.0, 200.0, np.pi), goal) == pytest.approx(0, abs=1e-12)  # they share an edge
    assert coverage((500.0, 200.0, 0.0), goal) == 0.0


def test_coverage_at_the_goal_is_exactly_one():
    for goal in [GOAL_POSE, *random_poses(np.random.default_rng(2), 500)]:
        assert coverage(goal, goal) == 1.0


def test_coverage_is_symmetric_periodic_and_moves_with_the_plane():
    random = np.random.default_rng(3)
    for pose in random_poses(random, 200) * (0.1, 0.1, 0.1) + (230, 230, 0.6):
        value = coverage(pose)
        assert 0.0 <= value <= 1.0
        assert coverage(GOAL_POSE, pose) == pytest.approx(value, abs=1e-12)
        assert coverage(pose + (0, 0, TAU)) == pytest.approx(value, abs=1e-12)
        assert coverage(pose + (7, -9, 0), np.add(GOAL_POSE, (7, -9, 0))) == pytest.approx(value, abs=1e-12)


def test_keypoints_are_rigid_and_batched():
    poses = random_poses(np.random.default_rng(4), 300).reshape(3, 100, 3)
    points = keypoints(poses)
    assert points.shape == (3, 100, 9, 2) and points.dtype == np.float64
    for index in np.ndindex(3, 100):
        np.testing.assert_array_equal(points[index], keypoints(poses[index]))
        distances = np.linalg.norm(points[index] - poses[index][:2], axis=-1)
        np.testing.assert_allclose(distances, np.linalg.norm(KEYPOINTS, axis=-1), atol=1e-9)
    np.testing.assert_array_equal(keypoints([0.0, 0.0, 0.0]), KEYPOINTS)
    np.testing.assert_allclose(keypoints([10.0, 20.0, np.pi / 2])[0], (10 - 90.04, 20 + 9.27))


def test_bar_and_stem_make_up_the_outline():
    parts = [Polygon(part) for part in (BAR, STEM)]
    assert sum(part.area for part in parts) == Polygon(OUTLINE).area == 6300
    assert parts[0].union(parts[1]).equals(Polygon(OUTLINE))


def test_center_of_gravity_is_the_mean_of_the_centres_of_bar_and_stem():
    np.testing.assert_array_equal((BAR.mean(axis=0) + STEM.mean(axis=0)) / 2, CENTER_OF_GRAVITY)


def test_constants_cannot_be_changed():
    for array in (BAR, STEM, KEYPOINTS):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0


@pytest.mark.parametrize("goal", [GOAL_POSE, (100.0, 300.0, 5.0)])
def test_mirror_is_an_involution_that_keeps_distances(goal):
    states = random_states(np.random.default_rng(5), 500)
    mirrored = mirror_state(states, goal)
    np.testing.assert_allclose(mirror_state(mirrored, goal), states, atol=1e-9)
    between = np.linalg.norm(states[:, :2] - states[:, 2:4], axis=1)
    np.testing.assert_allclose(np.linalg.norm(mirrored[:, :2] - mirrored[:, 2:4], axis=1), between)
    assert ((0 <= mirrored[:, 4]) & (mirrored[:, 4] <= TAU)).all()


@pytest.mark.parametrize("goal", [GOAL_POSE, (250.0, 260.0, 4.0)])
def test_mirror_keeps_coverage_and_carries_the_block_to_its_image(goal):
    random = np.random.default_rng(6)
    for state in random_states(random, 200) * (1, 1, 0.1, 0.1, 1) + (0, 0, 230, 230, 0):
        mirrored = mirror_state(state, goal)
        assert coverage(mirrored[2:], goal) == pytest.approx(coverage(state[2:], goal), abs=1e-12)
        image = Polygon(mirror_point(np.array(tee(state[2:]).exterior.coords), goal))
        assert image.symmetric_difference(tee(mirrored[2:])).area < 1e-6


def test_mirrored_keypoints_are_those_of_the_mirrored_block():
    # A keypoint (x, y) of the block becomes the block's point (-x, y).
    states = random_states(np.random.default_rng(7), 50)
    flipped = place(KEYPOINTS * (-1, 1), mirror_state(states)[:, 2:])
    np.testing.assert_allclose(mirror_point(keypoints(states[:, 2:])), flipped, atol=1e-9)


def test_mirror_leaves_the_axis_and_the_goal_in_place():
    along = np.array(GOAL_POSE[:2]) + np.outer([-80, 0, 200], [-np.sin(GOAL_POSE[2]), np.cos(GOAL_POSE[2])])
    np.testing.assert_allclose(mirror_point(along), along, atol=1e-9)
    goal_state = np.array([256.0, 256.0, *GOAL_POSE])
    np.testing.assert_allclose(mirror_state(goal_state), goal_state, atol=1e-12)
    np.testing.assert_allclose(mirror_point([100.0, 200.0]), [312.0, 412.0])  # the axis: x + y = 512
