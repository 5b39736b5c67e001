"""Laws of the physics: a reset is a pure function of the start; the agent obeys its equation."""

import numpy as np
import pymunk
import pytest

from immiscible_envs.geometry import BAR, CENTER_OF_GRAVITY, STEM
from immiscible_envs.simulation import DT, FRICTION, STIFFNESS, SUBSTEPS, Simulation

PUSHED = (256.0, 180.0, 256.0, 220.0, 0.3)  # the agent a little above the bar
ORDERS = ("angle_first", "position_first")


def trajectory(simulation, start, actions, order="angle_first"):
    simulation.reset(start, order)
    rows = [simulation.state]
    for action in actions:
        simulation.step(action)
        rows.append(np.append(simulation.state, [*simulation.agent.velocity, simulation.n_contacts]))
    return np.concatenate(rows)


def pushes(seed, count=60):
    """Commands that wander towards the middle, where the block is."""
    random = np.random.default_rng(seed)
    return np.clip(256 + random.normal(0, 120, (count, 2)), 0, 512)


@pytest.mark.parametrize("order", ORDERS)
def test_a_reset_forgets_everything_before_it(order):
    start = np.array(PUSHED)
    fresh = trajectory(Simulation(), start, pushes(0), order)
    used = Simulation()
    for seed in range(1, 6):  # each ends in the middle of contact
        trajectory(used, np.array([200.0, 300.0, 230.0, 250.0, seed]), pushes(seed))
        used.step((230.0, 250.0))
    np.testing.assert_array_equal(trajectory(used, start, pushes(0), order), fresh)
    assert np.abs(fresh[-8:-3] - start).max() > 1.0  # there was something to repeat


def test_twins_side_by_side_do_not_touch_each_other():
    alone = trajectory(Simulation(), PUSHED, pushes(3))
    twins = [Simulation(), Simulation()]
    for twin in twins:
        twin.reset(PUSHED)
    for action in pushes(3):
        for twin in twins:
            twin.step(action)
    for twin in twins:
        np.testing.assert_array_equal(twin.state, alone[-8:-3])


def test_reset_returns_the_start_it_was_given():
    simulation, random = Simulation(), np.random.default_rng(0)
    for _ in range(100):
        start = np.concatenate([random.uniform(50, 450, 4), random.uniform(-20, 20, 1)])
        simulation.reset(start)
        np.testing.assert_allclose(simulation.state[:4], start[:4], rtol=0, atol=1e-9)
        assert simulation.state[4] == pytest.approx(start[4] % (2 * np.pi), abs=1e-12)
        assert simulation.n_contacts == 0 and simulation.agent.velocity == (0, 0)


def test_position_first_turns_the_block_about_its_centre_of_gravity():
    # The position is set while the angle is 0: the centre of gravity lies at position + cog, and stays there.
    simulation, random = Simulation(), np.random.default_rng(1)
    for _ in range(100):
        start = np.concatenate([random.uniform(100, 400, 4), random.normal(0, 6, 1)])
        simulation.reset(start, "position_first")
        cos, sin = np.cos(start[4]), np.sin(start[4])
        turned = np.array([[cos, -sin], [sin, cos]]) @ CENTER_OF_GRAVITY
        np.testing.assert_allclose(simulation.state[2:4], start[2:4] + CENTER_OF_GRAVITY - turned, atol=1e-9)
        np.testing.assert_array_equal(simulation.state[:2], start[:2])


def test_setting_the_angle_moves_a_pymunk_bodys_position_when_its_centre_of_gravity_is_off_the_origin():
    body = pymunk.Body(1.0, 1.0)
    body.center_of_gravity = CENTER_OF_GRAVITY
    body.position = 100.0, 100.0
    body.angle = np.pi
    assert tuple(body.position) == pytest.approx((100.0, 190.0))


def test_a_free_agent_follows_its_difference_equation():
    simulation = Simulation()
    simulation.reset((60.0, 60.0, 400.0, 300.0, 0.0))
    position, velocity, target = np.array([60.0, 60.0]), np.zeros(2), np.array([200.0, 90.0])
    for _ in range(5):
        simulation.step(target)
        for _ in range(SUBSTEPS):
            velocity = velocity + (STIFFNESS * (target - position) - FRICTION * velocity) * DT
            position = position + velocity * DT
        np.testing.assert_allclose(simulation.state[:2], position, rtol=0, atol=1e-9)
        np.testing.assert_allclose(simulation.agent.velocity, velocity, rtol=0, atol=1e-9)
    np.testing.assert_allclose(simulation.state[2:], (400.0, 300.0, 0.0), atol=1e-9)  # nobody touched it


def test_the_agent_stays_in_the_workspace_whatever_is_commanded_inside_it():
    simulation, random = Simulation(), np.random.default_rng(2)
    for _ in range(20):
        simulation.reset([*random.uniform(0, 512, 2), 256.0, 256.0, 0.0])
        for corner in random.integers(0, 2, (30, 2)) * 512.0:
            simulation.step(corner)
            assert (simulation.state[:2] >= 0).all() and (simulation.state[:2] <= 512).all()


def test_contacts_are_counted_only_while_the_block_is_touched():
    simulation = Simulation()
    simulation.reset(PUSHED)
    simulation.step((256.0, 180.0))
    assert simulation.n_contacts == 0
    for _ in range(5):
        simulation.step((256.0, 260.0))
    assert simulation.n_contacts == 1
    simulation.reset(PUSHED)
    assert simulation.n_contacts == 0


def test_walls_hold_the_block():
    simulation = Simulation()
    simulation.reset((256.0, 60.0, 256.0, 120.0, 0.0))
    for _ in range(40):
        simulation.step((256.0, 370.0))
    assert simulation.state[3] + 120 == pytest.approx(504, abs=1)  # the stem's end rests against the wall
    assert simulation.n_contacts >= 1


def test_moment_of_inertia_is_twice_the_bars():
    moment = Simulation().block.moment
    assert moment == 2 * pymunk.moment_for_poly(1.0, BAR.tolist())
    assert moment != pytest.approx(sum(pymunk.moment_for_poly(1.0, part.tolist()) for part in (BAR, STEM)))


@pytest.mark.parametrize(
    ("state", "order", "message"),
    [
        ([1, 2, 3], "angle_first", "state must have shape"),
        ([1, 2, 3, 4, np.nan], "angle_first", "state must be finite"),
        (PUSHED, "together", "unknown order 'together'; known: angle_first, position_first"),
    ],
)
def test_bad_starts_are_refused_in_one_line(state, order, message):
    with pytest.raises(ValueError, match=message) as error:
        Simulation().reset(state, order)
    assert "\n" not in str(error.value)
