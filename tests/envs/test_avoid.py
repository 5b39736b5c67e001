"""Avoid: exactly 24 ways, exact contact, a reset that is a function of the start, rows that are single environments."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from scipy import ndimage

from immiscible_envs.avoid import (
    BEFORE,
    FAR,
    MARGIN,
    NO_WAY,
    PILLARS,
    REACH,
    ROWS,
    STRIDE,
    WAYS,
    AvoidEnv,
    Plane,
    centred,
    crossed,
    touched,
    way_number,
    way_taken,
)
from immiscible_envs.rendering import AGENT_COLOR, BACKGROUND, BLOCK_COLOR, GOAL_COLOR, render_plane

ID = "immiscible/Avoid-v0"
COUNT = 6


def free_space():
    """Whether the middle of the agent may be at each pixel, [y, x]."""
    y, x = np.mgrid[:513, :513].astype(float)
    inside = (np.minimum(x, y) >= MARGIN) & (np.maximum(x, y) <= 512 - MARGIN)
    apart = np.hypot(x[..., None] - PILLARS[:, 0], y[..., None] - PILLARS[:, 1])
    return inside & (apart >= REACH).all(-1)


def test_there_are_24_ways_by_brute_force():
    """Each row's line falls into its gaps, and what lies between two rows is one piece: gaps combine freely."""
    free = free_space()
    gaps = [ndimage.label(free[int(y)])[1] for y, _ in ROWS]
    heights = [512, *(int(y) for y, _ in ROWS), 0]
    pieces = [ndimage.label(free[high + 1 : low])[1] for low, high in zip(heights, heights[1:], strict=False)]
    assert gaps == [4, 3, 2] and pieces == [1, 1, 1, 1]
    assert np.prod(gaps) == len(WAYS) == len(set(WAYS)) == 24


def test_a_ways_number_is_its_place_in_the_list():
    np.testing.assert_array_equal(way_number(WAYS), np.arange(24))
    np.testing.assert_array_equal(way_number([(-1, 0, 0), (0, -1, 1), (3, 2, -1)]), [NO_WAY] * 3)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_can_be_gone(way):
    """From gap to gap by right angles, half-way between the rows; the path alone tells the same way."""
    plane, path = Plane(1), [np.array([256.0, 470.0])]
    plane.place(0, path[0])
    y = 420.0
    for gap, (height, count) in zip(way, ROWS, strict=True):
        x = centred(count + 1)[gap]
        for corner in ([x, y], [x, height - 58.0]):
            while not np.array_equal(plane.position[0], corner):
                plane.advance(np.array([corner]), np.arange(1))
                path.append(plane.position[0].copy())
        y = height - 58.0
    for _ in range(2):
        plane.advance(np.array([[x, 0.0]]), np.arange(1))
        path.append(plane.position[0].copy())
    assert plane.info() == {"collision": False, "is_success": True, "way": WAYS.index(way)}
    assert way_taken(path) == WAYS.index(way) and way_taken(path[:-5]) == NO_WAY


def test_a_row_that_is_crossed_back_counts_as_it_was_crossed_last():
    gaps = np.full((1, 3), NO_WAY)
    y = ROWS[0][0]
    up, back, elsewhere = ([112, y + 5], [112, y - 5]), ([112, y - 5], [112, y + 5]), ([400, y + 5], [400, y - 5])
    seen = []
    for before, after in (up, back, elsewhere):
        gaps = crossed(gaps, np.array([before], float), np.array([after], float))
        seen.append(gaps[0].tolist())
    assert seen == [[0, -1, -1], [-1, -1, -1], [3, -1, -1]]


def test_the_gap_is_that_where_the_motion_meets_the_row():
    """By similar triangles: 2 px before the line and 6 behind it, a quarter of the way across."""
    y = ROWS[2][0]
    for x, gap in ((255.0, 0), (257.0, 1)):
        before, after = np.array([[x - 4, y + 2]]), np.array([[x + 12, y - 6]])
        assert crossed(np.full((1, 3), 0), before, after)[0].tolist() == [0, 0, gap]


def test_contact_is_that_of_a_fine_sampling_of_the_motion():
    random = np.random.default_rng(0)
    position = random.uniform(60, 450, (1200, 2))
    position = position[(np.linalg.norm(position[:, None] - PILLARS, axis=-1) > REACH).all(1)]
    motion = random.normal(0, 20, position.shape)
    share = touched(position, motion)
    along = position[:, None] + np.linspace(0, 1, 301)[:, None] * motion[:, None]  # (N, 301, 2)
    nearest = np.min([np.hypot(*(along - pillar).T).min(0) for pillar in PILLARS], axis=0)
    clear = np.abs(nearest - REACH) > 1e-2
    np.testing.assert_array_equal((share <= 1)[clear], (nearest < REACH)[clear])
    hit = share <= 1
    assert 50 < hit.sum() < len(hit) - 50
    there = position[hit] + share[hit, None] * motion[hit]
    np.testing.assert_allclose(np.linalg.norm(there[:, None] - PILLARS, axis=-1).min(1), REACH, atol=1e-9)


def test_who_stands_still_or_leaves_touches_nothing():
    beside = PILLARS[:1] + [[REACH, 0.0]]
    assert np.isinf(touched(beside, np.zeros((1, 2)))).all() and np.isinf(touched(beside, np.array([[9.0, 0]]))).all()
    assert touched(beside, np.array([[-1.0, 0.0]])) == 0


def test_a_motion_is_straight_and_at_most_a_stride():
    plane = Plane(3)
    plane.position[:] = [[256, 470], [256, 470], [10, 470]]
    plane.advance(np.array([[256.0, 100.0], [259.0, 474.0], [-50.0, 470.0]]), np.arange(3))
    np.testing.assert_allclose(plane.position, [[256, 470 - STRIDE], [259, 474], [MARGIN, 470]])


def test_who_touches_a_pillar_ends_there():
    env = AvoidEnv()
    env.reset(options={"position": [256.0, 400.0]})
    results = [env.step(np.array([256.0, 0.0])) for _ in range(4)]
    (x, y), reward, terminated, truncated, info = results[-1]
    assert (x, y) == (256.0, pytest.approx(ROWS[0][0] + REACH)) and terminated and not truncated and reward == 0
    assert info == {"collision": True, "is_success": False, "way": NO_WAY}


def test_gymnasiums_checker_has_nothing_to_say():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")  # the action is a place in px
        check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped)
    assert gymnasium.spec(ID).max_episode_steps == 150


def wandering(seed, steps):
    """Targets (steps, COUNT, 2), mostly upwards."""
    random = np.random.default_rng(seed)
    return np.stack([random.uniform(90, 420, (steps, COUNT)), random.uniform(-300, 400, (steps, COUNT))], axis=-1)


def ending(positions, wander):
    """Targets (COUNT, 2) of which two go around all pillars, two wander into them, and two stay."""
    aside = (positions[:, 1] > 440) & (positions[:, 0] > 105)
    around = np.where(aside[:, None], (100.0, 460.0), np.stack([positions[:, 0], np.zeros(COUNT)], axis=1))
    return np.concatenate([around[:2], wander[2:4], positions[4:]])


def rollout(env, actions, **start):
    return [env.reset(**start), *(env.step(action) for action in actions)]


def test_a_reset_is_a_pure_function_of_the_start():
    env, fresh = gymnasium.make(ID).unwrapped, gymnasium.make(ID).unwrapped
    actions = wandering(0, 40)[:, 0]
    rollout(env, actions, seed=5)
    for start in ({"seed": 3}, {"options": {"position": [200.0, 400.0]}}):
        assert data_equivalence(rollout(env, actions, **start), rollout(fresh, actions, **start), exact=True)


def make(**arguments):
    return gymnasium.make_vec(ID, num_envs=COUNT, vectorization_mode="vector_entry_point", **arguments)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_every_mode_agrees_bit_for_bit_with_gymnasiums_loop_over_single_environments(mode):
    ours = make(autoreset_mode=mode, max_episode_steps=45)
    theirs = gymnasium.make_vec(
        ID, num_envs=COUNT, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, max_episode_steps=45
    )
    begun = [env.reset(seed=1) for env in (ours, theirs)]
    assert data_equivalence(*begun, exact=True)
    positions, ends = begun[0][0], np.zeros(3, int)
    for now, wander in enumerate(wandering(2, 120)):
        results = [env.step(ending(positions, wander)) for env in (ours, theirs)]
        assert data_equivalence(*results, exact=True), now
        positions, _, terminated, truncated, info = results[0]
        over = info["final_info"] if "final_info" in info else info
        done = terminated | truncated
        ends += [sum(done & over["collision"]), sum(done & over["is_success"]), sum(truncated & ~terminated)]
        if mode is AutoresetMode.DISABLED and done.any():
            options = {"reset_mask": done.copy()}
            assert data_equivalence(*(env.reset(seed=now, options=options) for env in (ours, theirs)), exact=True)
    assert ends.min() >= 1  # collisions, arrivals and time running out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": [1, 2]}, "unknown reset option 'place'; known: position"),
        ({"position": [256.0]}, r"option position must have shape \(2,\), got \(1,\)"),
        ({"position": [256.0, 300.0]}, r"option position \[256.0, 300.0\] is outside"),
    ],
    ids=str,
)
def test_bad_starts_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        AvoidEnv().reset(options=options)


def test_bad_actions_are_refused_before_any_row_advances():
    vector = make()
    before = vector.reset(seed=0)[0]
    with pytest.raises(ValueError, match="action must be finite"):
        vector.step(np.full((COUNT, 2), np.nan))
    np.testing.assert_array_equal(vector.step(before)[0], before)


def test_starts_lie_below_the_first_row():
    starts = make().reset(seed=0)[0]
    assert (starts[:, 1] > BEFORE).all() and (starts.std(0) > 1).all() and (starts[:, 1] > FAR).all()


def lighter(color):
    return [min(round(1.2 * value), 255) for value in color]


def test_the_picture_shows_the_pillars_the_agent_and_the_far_side():
    picture = render_plane([256.0, 470.0], 512)
    assert picture.shape == (512, 512, 3) and picture.dtype == np.uint8
    for x, y in PILLARS.astype(int):
        assert picture[y, x].tolist() == lighter(BLOCK_COLOR) and picture[y, x + 12].tolist() == list(BLOCK_COLOR)
    assert picture[470, 256].tolist() == lighter(AGENT_COLOR) and picture[20, 300].tolist() == list(GOAL_COLOR)
    assert picture[420, 256].tolist() == list(BACKGROUND)
    assert render_plane([256.0, 470.0], 96).shape == (96, 96, 3)
