"""Every window is a stretch of one episode, its edges repeated; the index arithmetic equals a plain loop."""

import numpy as np
import pytest
import torch

from immiscible_policy.demos import Layout, make_windows, open_store, write_store
from immiscible_policy.demos.windows import window_index
from tests.demos.stores import PUSHT, small_arrays

PUBLISHED = Layout(16, 2, 8)
LAYOUTS = [PUBLISHED, Layout(16, 1, 1), Layout(16, 2, 15), Layout(4, 3, 2), Layout(1, 1, 1), Layout(32, 4, 16)]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    arrays, ends = small_arrays((12, 30, 9, 40))
    return open_store(write_store(tmp_path_factory.mktemp("windows") / "a.zarr", arrays, ends))


def windows_of(demos, obs="keypoints", layout=PUBLISHED):
    return make_windows(PUSHT.observation(demos, obs), demos["action"], demos.episode_ends, layout)


def sampled_by_loop(length: int, layout: Layout) -> list[list[int]]:
    """The protocol, word for word: windows that overhang an episode by the paddings, edges repeated."""
    before, after = layout.obs_steps - 1, layout.action_steps - 1
    starts = range(-before, length - layout.horizon + after + 1)
    return [[min(max(start + i, 0), length - 1) for i in range(layout.horizon)] for start in starts]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_index_equals_a_plain_loop(demos, layout):
    index = window_index(demos.episode_ends, layout)
    expected = [
        ([episode.start + step for step in window], number)
        for number, episode in enumerate(demos.episodes)
        for window in sampled_by_loop(episode.stop - episode.start, layout)
    ]
    assert index.step.tolist() == [steps for steps, _ in expected]
    assert index.episode.tolist() == [number for _, number in expected]
    assert layout.n_windows(demos.lengths).sum() == len(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_stay_in_their_episode_and_pad_its_edges(demos, layout):
    index = window_index(demos.episode_ends, layout)
    first = (demos.episode_ends - demos.lengths)[index.episode, None]
    last = demos.episode_ends[index.episode, None] - 1
    assert ((first <= index.step) & (index.step <= last)).all()
    moves = np.diff(index.step, axis=1)
    both_real = index.real[:, 1:] & index.real[:, :-1]
    assert (moves[both_real] == 1).all() and (moves[~both_real] == 0).all()
    assert (~index.real).sum(axis=1).max() <= layout.obs_steps + layout.action_steps - 2


def test_every_action_sent_is_a_recorded_one_and_every_recorded_one_is_sent(demos):
    layout = PUBLISHED
    index = window_index(demos.episode_ends, layout)
    assert index.real[:, layout.executed].all()
    assert set(index.step[:, layout.executed].ravel()) == set(range(len(demos)))


@pytest.mark.parametrize("obs", ["keypoints", "state"])
def test_windows_hold_the_steps_of_their_index(demos, obs):
    layout = PUBLISHED
    windows, index = windows_of(demos, obs, layout), window_index(demos.episode_ends, layout)
    np.testing.assert_array_equal(windows.action, demos["action"][index.step])
    np.testing.assert_array_equal(windows.real, index.real)
    np.testing.assert_array_equal(windows.episode, index.episode)
    seen = index.step[:, :2]
    if obs == "state":
        np.testing.assert_array_equal(windows.obs, demos["state"][seen])
    else:
        np.testing.assert_array_equal(windows.obs[..., :18], demos["keypoint"][seen].reshape(*seen.shape, 18))
        np.testing.assert_array_equal(windows.obs[..., 18:], demos["state"][seen][..., :2])
    assert windows.obs.shape == (len(windows), 2, 20 if obs == "keypoints" else 5)


def test_types(demos):
    windows = windows_of(demos)
    assert (windows.obs.dtype, windows.action.dtype) == (torch.float32, torch.float32)
    assert (windows.real.dtype, windows.episode.dtype) == (torch.bool, torch.int64)
    assert windows.to("cpu").action.equal(windows.action)


def test_a_batch_is_the_windows_asked_for(demos):
    windows = windows_of(demos)
    index = torch.tensor([5, 0, 5, len(windows) - 1])
    batch = windows[index]
    assert len(batch) == 4
    for name in ("obs", "action", "real", "episode"):
        assert getattr(batch, name).equal(getattr(windows, name)[index])


def test_windows_of_a_selection_are_those_of_its_episodes(demos):
    everything, some = windows_of(demos), windows_of(demos.select([1, 3]))
    kept = (everything.episode == 1) | (everything.episode == 3)
    assert some.action.equal(everything.action[kept]) and some.obs.equal(everything.obs[kept])
    assert some.episode.unique().tolist() == [0, 1]


def test_episodes_too_short_give_none_and_none_at_all_is_refused(demos):
    layout = Layout(horizon=30, obs_steps=1, action_steps=1)
    assert windows_of(demos, layout=layout).episode.unique().tolist() == [1, 3]
    with pytest.raises(ValueError, match="longest episode has 40 steps. Got horizon=41"):
        windows_of(demos, layout=Layout(horizon=41, obs_steps=1, action_steps=1))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((8, 2, 8), "must not exceed horizon.*Got horizon=8, obs_steps=2, action_steps=8"),
        ((0, 1, 1), "Got horizon=0"),
        ((16, 0, 1), "Got obs_steps=0"),
        ((16, 1, -1), "Got action_steps=-1"),
        ((16.0, 1, 1), "Got horizon=16.0"),
        ((16, True, 1), "Got obs_steps=True"),
    ],
)
def test_layouts_that_cannot_be_are_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Layout(*values)


def test_human_windows(human_store):
    demos = open_store(human_store)
    windows = windows_of(demos)
    assert len(windows) == 24_208 == (demos.lengths - 7).sum()
    assert windows.obs.shape == (24_208, 2, 20)
    assert (~windows.real).sum() == 206 * (1 + 7 * 8 // 2)
