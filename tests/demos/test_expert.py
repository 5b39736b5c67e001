"""The expert's demonstrations: what they hold, that they replay and are made again; the planner by itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from immiscible_envs.geometry import coverage, keypoints
from immiscible_envs.pusht import SUCCESS_COVERAGE
from immiscible_envs.simulation import Simulation
from immiscible_envs.starts import published_starts
from immiscible_policy.cli import CommandError
from immiscible_policy.demos import expert
from immiscible_policy.demos.planner import Array, Expansion, bumps, demonstrate, search
from immiscible_policy.demos.store import Demonstrations, content_hash, open_store
from tests.demos.stores import PUSHT


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return open_store(PUSHT.demonstrations())


@pytest.fixture(scope="module")
def coverages(demos: Demonstrations) -> list[Array]:
    """Coverage of every step, by episode."""
    return [np.array([coverage(pose) for pose in demos["state"][steps, 2:]]) for steps in demos.episodes]


class _Walk:
    """A toy task: a point walks to the origin; each plan follows one axis, each action says where to go."""

    def __init__(self, position: tuple[float, float]) -> None:
        self.position = np.array(position)
        self.visited = [self.position]

    def observe(self) -> Array:
        return self.position

    def expand(self, states: Array) -> Expansion:
        moves = np.array([(sign * far, 0) for sign in (-1, 1) for far in (1.0, 4.0)])
        moves = np.concatenate([moves, moves[:, ::-1]])
        ends = states[:, None] + moves
        parent = np.repeat(np.arange(len(states)), len(moves))
        effort = np.tile(1 + np.abs(moves).sum(1), len(states))
        return Expansion(parent, ends.reshape(-1, 2), ends.reshape(-1, 2), effort)

    def remaining(self, states: Array) -> Array:
        return 3 * np.linalg.norm(states, axis=1)

    def follow(self, plan: Array) -> Iterator[Array]:
        while np.linalg.norm(plan - self.position) > 0.3:
            yield plan

    def step(self, action: Array) -> None:
        way = action - self.position
        self.position = self.position + way / max(1.0, float(np.linalg.norm(way)))
        self.visited.append(self.position)

    def done(self) -> bool:
        return bool(np.linalg.norm(self.position) < 0.7)


def test_planner_solves_a_task_that_is_not_pusht() -> None:
    walk = _Walk((8.0, -5.0))
    assert demonstrate(walk, np.zeros((40, 2)), closing=3)
    assert len(walk.visited) - 1 <= 8 + 5 + 3
    assert np.linalg.norm(walk.visited[-1]) < 0.7


def test_planner_recovers_from_disturbances() -> None:
    walk = _Walk((8.0, -5.0))
    disturbance = bumps(np.random.default_rng(0), 200, 2, height=(2.0, 3.0), pause=(2, 6))
    assert demonstrate(walk, disturbance, closing=0)
    off_axis = np.abs(np.diff(walk.visited, axis=0)).min(1)
    assert off_axis.max() > 0.1  # the disturbance was felt


def test_planner_says_when_it_does_not_arrive() -> None:
    assert not demonstrate(_Walk((80.0, 0.0)), np.zeros((20, 2)))


def test_search_looks_beyond_the_first_plan() -> None:
    class _Detour(_Walk):
        """Every first plan leads away from the goal but one, which only pays off at the second."""

        def remaining(self, states: Array) -> Array:
            at_goal = np.abs(states).sum(1) < 0.1
            return np.where(at_goal, 0.0, 20.0 - 1.5 * states[:, 0])

    assert np.array_equal(search(_Detour((1.0, 4.0)), depth=1), (5.0, 4.0))
    assert tuple(search(_Detour((1.0, 4.0)), depth=2)) in {(1.0, 0.0), (0.0, 4.0)}


def test_search_refuses_a_task_without_plans() -> None:
    class _Stuck(_Walk):
        def expand(self, states: Array) -> Expansion:
            return Expansion(np.empty(0, int), np.empty((0, 2)), np.empty((0, 2)), np.empty(0))

    with pytest.raises(ValueError, match="offers no plan"):
        search(_Stuck((1.0, 1.0)))


def test_bumps_are_smooth_and_bounded() -> None:
    offsets = bumps(np.random.default_rng(3), 400, 2, height=(10.0, 20.0))
    size = np.linalg.norm(offsets, axis=1)
    assert 9.0 < size.max() <= 20.0
    assert not size[:15].any()
    assert np.linalg.norm(np.diff(offsets, axis=0), axis=1).max() <= 20.0 * np.sin(np.pi / 6) + 1e-9


@pytest.mark.parametrize("spot", range(len(expert.SPOTS)))
def test_push_model_agrees_with_the_simulation(spot: int) -> None:
    pose = expert.Pose(0j, 256 + 256j, 0.4)
    origin = pose.world(-expert.COG)
    agent = pose.world(expert.TOUCHING[spot] + 1.0 * expert.OUTWARD[spot])
    simulation = Simulation()
    simulation.reset([agent.real, agent.imag, origin.real, origin.imag, pose.angle])
    for depth in np.linspace(0, 40, 60):
        aim = pose.world(expert._push_aim(spot, depth))
        simulation.step([aim.real, aim.imag])
    for _ in range(10):
        simulation.step([aim.real, aim.imag])
    slide, turn = expert.pushed(spot, 40.0)
    end = expert.Pose(0j, pose.world(slide), pose.angle + turn)
    corner = end.world(-expert.COG)
    expected = [corner.real, corner.imag, end.angle % (2 * np.pi)]
    error = np.abs(simulation.state[2:] - expected)
    assert error[:2].max() < 1.5 and error[2] < 0.03


def test_push_is_a_one_parameter_motion() -> None:
    for spot in range(len(expert.SPOTS)):
        (first, turn), (second, more), (both, all_) = (expert.pushed(spot, d) for d in (30.0, 50.0, 80.0))
        assert abs(first + np.exp(1j * turn) * second - both) < 1e-9
        assert abs(turn + more - all_) < 1e-12


def test_clearance_is_the_distance_from_the_outline() -> None:
    outside = expert.ON_FACE + 7.0 * expert.OUTWARD
    np.testing.assert_allclose(expert.clearance(outside), 7.0)
    np.testing.assert_allclose(expert.clearance(expert.ON_FACE - 2.0 * expert.OUTWARD), -2.0)


def test_ways_keep_clear_of_the_block() -> None:
    random = np.random.default_rng(5)
    checked = 0
    for _ in range(20):
        task = expert.PushT(expert.draw_start(random))
        if expert.clearance(task.pose.local_agent) < expert.AGENT_RADIUS + expert.CLEAR + 1:
            continue
        for spot in range(len(expert.SPOTS)):
            way = task._way(spot)
            assert way[-1] == expert.READY[spot]
            assert all(expert.passable(np.array(way[:-1]), np.array(way[1:])))
            checked += 1
    assert checked > 100


def test_agent_goes_around_the_block_without_touching_it() -> None:
    random = np.random.default_rng(8)
    steps_away = 0
    for _ in range(6):
        task = expert.PushT(expert.draw_start(random))
        plan = search(task, depth=1)
        off = False
        for action in task.follow(plan):
            spot, pose = int(plan[0]), task.pose
            if expert._in_front(pose, spot, pushing=False):
                break
            task.step(action)
            off |= bool(expert.clearance(task.pose.local_agent) > expert.AGENT_RADIUS + expert.CLEAR)
            if off:
                steps_away += 1
                assert task._simulation.state[2:].tolist() == task.states[-1][2:].tolist()
    assert steps_away > 30


def test_store_figures(demos: Demonstrations, coverages: list[Array]) -> None:
    best = np.array([episode.max() for episode in coverages])
    assert demos.n_episodes >= 200
    assert best.mean() >= 0.97
    assert (best > 0.95).all()
    assert demos.lengths.min() >= 20 and demos.lengths.max() <= expert.STEPS + 5
    assert 60 <= np.median(demos.lengths) <= 200
    size = sum(file.stat().st_size for file in PUSHT.demonstrations().rglob("*") if file.is_file())
    assert size < 5e6


def test_store_stops_soon_after_success(coverages: list[Array]) -> None:
    for episode in coverages:
        assert (episode[:-6] <= SUCCESS_COVERAGE).all()


def test_store_turns_both_ways(demos: Demonstrations) -> None:
    turns = np.array([np.ptp(np.unwrap(demos["state"][steps, 4])[[0, -1]]) for steps in demos.episodes])
    signs = np.array([np.diff(np.unwrap(demos["state"][steps, 4])[[0, -1]])[0] > 0 for steps in demos.episodes])
    assert 0.3 <= signs.mean() <= 0.7
    assert (turns > np.pi / 2).mean() > 0.3


def test_store_has_human_pace(demos: Demonstrations) -> None:
    lead = np.linalg.norm(demos["action"] - demos["state"][:, :2], axis=1)
    strides = np.concatenate(
        [np.linalg.norm(np.diff(demos["action"][steps], axis=0), axis=1) for steps in demos.episodes]
    )
    assert 10 < np.median(lead) < 30 and np.percentile(lead, 95) < 40
    assert strides.max() < expert.STRIDE + 0.2
    assert demos["action"].min() >= 0 and demos["action"].max() <= 512


def test_store_rows_fit_together(demos: Demonstrations) -> None:
    assert demos["state"].dtype == np.float64 and not demos.frames
    np.testing.assert_allclose(demos["keypoint"], keypoints(demos["state"][:, 2:]), atol=1e-4)
    assert 0.3 < (demos["n_contacts"] > 0).mean() < 0.7


def test_store_replays_every_state_and_every_contact(demos: Demonstrations) -> None:
    simulation = Simulation()
    states, contacts = np.empty_like(demos["state"]), np.empty(len(demos))
    for steps in demos.episodes:
        simulation.reset(demos["state"][steps.start])
        for step in range(steps.start, steps.stop):
            states[step] = simulation.state
            simulation.step(demos["action"][step])
            contacts[step] = simulation.n_contacts
    assert np.abs(states - demos["state"]).max() < 1e-3
    np.testing.assert_array_equal(contacts, demos["n_contacts"][:, 0])


def test_store_avoids_the_published_starts(demos: Demonstrations) -> None:
    starts = demos["state"][[steps.start for steps in demos.episodes]]
    _, published = published_starts()
    distance = np.abs(starts[:, None, :4] - published[None, :, :4]).max(-1)
    assert distance.min() > 0.5
    assert len(np.unique(starts, axis=0)) == len(starts)


def assert_same_episodes(first: Demonstrations, arrays: dict[str, np.ndarray], ends: np.ndarray) -> None:
    steps = slice(0, int(ends[-1]))
    assert np.array_equal(first.episode_ends[: len(ends)], ends)
    for name in ("state", "action", "keypoint", "n_contacts"):
        stored, made = first[name][steps], arrays[name]
        assert stored.dtype == made.dtype and np.array_equal(stored, made)


def test_store_is_made_again_bit_for_bit(demos: Demonstrations) -> None:
    assert_same_episodes(demos, *expert.make(episodes=3))


@pytest.mark.slow
def test_whole_store_is_made_again_bit_for_bit(demos: Demonstrations) -> None:
    arrays, ends = expert.make(demos.n_episodes, workers=2)
    assert_same_episodes(demos, arrays, ends)
    assert len(demos) == ends[-1]


def test_command_makes_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "two.zarr"
    expert.main([f"out={out}", "episodes=2", "seed=1"])
    made = open_store(out)
    assert made.n_episodes == 2
    assert content_hash(out) in capsys.readouterr().out


def test_command_refuses_before_it_works(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exists already"):
        expert.main([f"out={tmp_path}"])
    with pytest.raises(ValueError, match="episodes=0"):
        expert.main([f"out={tmp_path / 'x'}", "episodes=0"])
    with pytest.raises(ValueError, match="workers=0"):
        expert.make(1, workers=0)
    assert not (tmp_path / "x").exists()
