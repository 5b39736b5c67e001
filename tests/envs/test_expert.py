"""The expert's demonstrations: what they hold, that they replay and are made again."""

import numpy as np
import pytest

from immiscible_envs import expert
from immiscible_envs.geometry import Array, coverage, keypoints
from immiscible_envs.pusht import SUCCESS_COVERAGE
from immiscible_envs.simulation import Simulation
from immiscible_envs.starts import published_starts
from immiscible_policy.demos import Demonstrations, open_store
from tests.demos.stores import PUSHT


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return open_store(PUSHT.demonstrations())


@pytest.fixture(scope="module")
def coverages(demos: Demonstrations) -> list[Array]:
    """Coverage of every step, by episode."""
    return [np.array([coverage(pose) for pose in demos["state"][steps, 2:]]) for steps in demos.episodes]


def test_search_plans_ahead() -> None:
    """The push with the best second one behind it is not always the best single push."""
    random = np.random.default_rng(4)
    gains = []
    for _ in range(8):
        pose = expert.Episode(expert.draw_start(random)).pose
        costs = []
        for lookahead in (1, 3):
            target = expert.search(pose, lookahead)
            here = np.array([[pose.centre.real, pose.centre.imag, pose.angle, -1.0]])
            _, states, steps = expert.possible_pushes(here, pose)
            index = np.flatnonzero((states == target).all(axis=1))[0]
            _, after, more = expert.possible_pushes(states[index][None], pose)
            costs.append(steps[index] + (more + expert.remaining_steps(after)).min())
        gains.append(costs[0] - costs[1])
    assert max(gains) > 1


def test_search_refuses_where_no_push_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert, "_REACH", (300.0, 310.0))
    with pytest.raises(ValueError, match="no push is possible from Pose"):
        expert.search(expert.Pose(100 + 100j, 256 + 256j, 0.4))


def test_a_demonstration_that_does_not_arrive_is_said() -> None:
    episode = expert.Episode(expert.draw_start(np.random.default_rng(0)))
    assert not expert.demonstrate(episode, np.zeros((20, 2)))
    assert len(episode.states) == 20


def test_the_expert_recovers_from_disturbances() -> None:
    arrived, felt = 0, 0.0
    for seed in range(4):
        random = np.random.default_rng(seed)
        episode = expert.Episode(expert.draw_start(random))
        arrived += expert.demonstrate(episode, expert.bumps(random, expert.STEPS))
        strides = np.linalg.norm(np.diff(episode.actions, axis=0), axis=1)
        felt = max(felt, float(strides.max()))
    assert arrived >= 3 and felt > expert.STRIDE - 1


def test_bumps_are_smooth_and_bounded() -> None:
    offsets = expert.bumps(np.random.default_rng(3), 400)
    size = np.linalg.norm(offsets, axis=1)
    low, high = expert.BUMP_HEIGHT
    assert 0.9 * low < size.max() <= high
    assert not size[: expert.BUMP_PAUSE[0]].any()
    assert np.linalg.norm(np.diff(offsets, axis=0), axis=1).max() <= high * np.sin(np.pi / 6) + 1e-9


@pytest.mark.parametrize("spot", range(len(expert.SPOTS)))
def test_push_model_agrees_with_the_simulation(spot: int) -> None:
    pose = expert.Pose(0j, 256 + 256j, 0.4)
    origin = pose.world(-expert.COG)
    agent = pose.world(expert.TOUCHING[spot] + 1.0 * expert.OUTWARD[spot])
    simulation = Simulation()
    simulation.reset([agent.real, agent.imag, origin.real, origin.imag, pose.angle])
    for depth in np.linspace(0, 40, 60):
        aim = pose.world(expert.push_aim(spot, depth))
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
        episode = expert.Episode(expert.draw_start(random))
        if expert.clearance(episode.pose.local_agent) < expert.AGENT_RADIUS + expert.CLEAR + 1:
            continue
        for spot in range(len(expert.SPOTS)):
            way = expert.way_to(spot, episode.pose)
            assert way[-1] == expert.READY[spot]
            assert all(expert.passable(np.array(way[:-1]), np.array(way[1:])))
            checked += 1
    assert checked > 100


def test_agent_goes_around_the_block_without_touching_it() -> None:
    random = np.random.default_rng(8)
    steps_away = 0
    for _ in range(6):
        episode = expert.Episode(expert.draw_start(random))
        target = expert.search(episode.pose, lookahead=1)
        off = False
        for action in expert.follow(episode, target):
            if expert.in_front(episode.pose, int(target[3]), pushing=False):
                break
            episode.step(action)
            off |= bool(expert.clearance(episode.pose.local_agent) > expert.AGENT_RADIUS + expert.CLEAR)
            if off:
                steps_away += 1
                assert episode.state[2:].tolist() == episode.states[-1][2:].tolist()
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


def assert_same_episodes(demos: Demonstrations, made: list[dict[str, np.ndarray]]) -> None:
    for steps, episode in zip(demos.episodes, made, strict=False):
        for name, values in episode.items():
            assert demos[name].dtype == values.dtype
            np.testing.assert_array_equal(demos[name][steps], values)


def test_store_is_made_again_bit_for_bit(demos: Demonstrations) -> None:
    assert_same_episodes(demos, list(expert.make_episodes(3)))


@pytest.mark.slow
def test_whole_store_is_made_again_bit_for_bit(demos: Demonstrations) -> None:
    made = list(expert.make_episodes(demos.n_episodes, workers=2))
    assert len(made) == demos.n_episodes
    assert_same_episodes(demos, made)


@pytest.mark.parametrize("number", ["episodes", "seed", "workers"])
def test_numbers_out_of_range_are_refused(number: str) -> None:
    with pytest.raises(ValueError, match=f"{number}=-1: must be at least"):
        next(expert.make_episodes(**{"episodes": 1, number: -1}))
