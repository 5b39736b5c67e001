"""The law of the batch: whatever the backend and the number of threads, the bits are those of `Simulation`."""

import gc
import sys
import threading
import warnings
import weakref

import gymnasium
import numpy as np
import pytest
import zarr
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

from immiscible_envs import backends, compiled
from immiscible_envs.batch import BLOCK, BatchSimulation, simulate
from immiscible_envs.geometry import GOAL_POSE, coverage
from immiscible_envs.pusht import PushTEnv
from immiscible_envs.starts import legacy_starts
from immiscible_envs.vector import PushTVectorEnv
from tests.conftest import ROOT
from tests.envs.test_geometry import exact, random_poses

EXPERT = ROOT / "data" / "pusht_expert.zarr"


def scattered(seed, count, steps):
    """Starts anywhere; half of the agents wander, the others are sent from corner to corner."""
    random = np.random.default_rng(seed)
    starts = np.column_stack([random.uniform(0, 512, (count, 4)), random.normal(0, 6, count)])
    wandering = random.normal(256, 130, (count, steps, 2))
    corners = np.repeat(random.integers(0, 2, (count, steps // 10 + 1, 2)), 10, axis=1)[:, :steps] * 512.0
    return starts, np.where(np.arange(count)[:, None, None] % 2, np.clip(wandering, 0, 512), corners)


def recorded(path):
    """Every episode's first state, and its commands with the last one held until the longest episode ends."""
    store = zarr.open_group(str(path), mode="r")
    state, action, ends = store["data/state"][:], store["data/action"][:], store["meta/episode_ends"][:]
    firsts = np.array([0, *ends[:-1]])
    steps = np.arange(np.max(ends - firsts))
    return state[firsts], action[np.minimum(firsts[:, None] + steps, ends[:, None] - 1)]


def same_bits(one, other):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one.view(np.int64), other.view(np.int64))


def both(states, actions, **arguments):
    """Simulate with both backends, find the same bits, and return them."""
    plain = simulate(states, actions, backend="plain", **arguments)
    for one, other in zip(plain, simulate(states, actions, backend="compiled", **arguments), strict=True):
        same_bits(one, other)
    return plain


def test_random_pushes_give_the_plain_bits():
    result = both(*scattered(0, 40, 100))
    assert (result.n_contacts > 0).mean() > 0.1 and result.n_contacts.max() >= 4
    assert ((result.coverage > 0) & (result.coverage < 1)).mean() > 0.05


def test_demonstrations_give_the_plain_bits():
    states, actions = recorded(EXPERT)
    result = both(states[:15], actions[:15])
    assert (result.n_contacts > 0).mean() > 0.1 and result.coverage.max() > 0.95


def test_human_demonstrations_give_the_plain_bits(human_store):
    states, actions = recorded(human_store)
    result = both(states[:15], actions[:15])
    assert (result.n_contacts > 0).mean() > 0.1 and result.coverage.max() > 0.9


@pytest.mark.slow
def test_a_hundred_thousand_steps_give_the_plain_bits(human_store):
    runs = [scattered(1, 200, 200), recorded(EXPERT), recorded(human_store)]
    result = [both(*run, threads=2) for run in runs]
    assert sum(one.n_contacts[:, 1:].size for one in result) > 100_000
    assert all((one.n_contacts > 0).mean() > 0.1 for one in result)


@pytest.mark.parametrize("order", ["angle_first", "position_first"])
def test_simulate_is_the_single_environments_run(order):
    seeds, goals = [100_000, 100_001, 3], random_poses(np.random.default_rng(2), 3)
    starts = [[222.0, 97.0, 240.0, 260.0, 0.4], [300.0, 300.0, 200.0, 250.0, 9.0], [80.0, 90.0, 256.0, 256.0, -1.0]]
    env, actions = PushTEnv(), scattered(3, 3, 40)[1] * 1.2 - 50  # some outside the workspace
    if order == "position_first":
        starts = legacy_starts(seeds)
    result = simulate(starts, actions, order=order, goal_pose=goals, backend="compiled")
    for row in range(3):
        start = {"state": starts[row]} if order == "angle_first" else {"legacy_seed": seeds[row]}
        observation, info = env.reset(options={**start, "goal_pose": goals[row]})
        for now in range(41):
            np.testing.assert_array_equal(result.states[row, now], observation)
            assert result.coverage[row, now] == info["coverage"]
            assert result.n_contacts[row, now] == info["n_contacts"]
            if now < 40:
                observation, _, _, _, info = env.step(actions[row, now])


def test_neither_threads_nor_the_blocks_they_work_in_change_anything():
    states, actions = scattered(4, 2 * BLOCK + 20, 20)
    one = both(states, actions)
    for threads in (2, 3, 16):
        for alone, shared in zip(one, simulate(states, actions, threads=threads, backend="compiled"), strict=True):
            same_bits(alone, shared)


def test_one_call_for_all_steps_is_step_after_step_and_rows_stand_alone():
    states, actions = scattered(5, 6, 30)
    together, apart = BatchSimulation(6, backend="compiled"), BatchSimulation(6, backend="compiled")
    for row, state in enumerate(states):
        together.reset(row, state)
        apart.reset(row, state)
    same_bits(together.states, apart.states)
    result, n_contacts = together.run(actions, np.arange(6))
    for rows in (np.array([4, 1]), np.array([0, 2, 3, 5])):
        for now in range(30):
            apart.step(actions[rows, now], rows)
            same_bits(apart.states[rows], result[rows, now])
            same_bits(apart.n_contacts[rows], n_contacts[rows, now])
    same_bits(together.states, apart.states)


def test_a_block_pressed_through_the_wall_gives_the_plain_bits():
    random = np.random.default_rng(0)
    starts = np.column_stack(
        [random.uniform(0, 512, (60, 2)), random.uniform(20, 490, (60, 2)), random.uniform(0, 6, 60)]
    )
    actions = np.repeat(random.integers(0, 2, (60, 1, 2)) * 512.0, 60, axis=1)
    positions = both(starts, actions).states[..., 2:4]
    assert ((positions < 0) | (positions > 512)).any()


@pytest.mark.parametrize("obs_type", ["state", "keypoints"])
@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=str)
def test_the_vector_environment_is_the_plain_one_with_resets_on_the_way(obs_type, mode):
    shared = {"num_envs": 9, "obs_type": obs_type, "max_episode_steps": 25, "autoreset_mode": mode}
    plain = PushTVectorEnv(backend="plain", **shared)
    fast = PushTVectorEnv(backend="compiled", threads=2, **shared)
    random = np.random.default_rng(6)
    for now in range(80):
        if now % 20 == 0:
            mask = random.random(9) < 0.5 if now else np.ones(9, bool)
            mask[random.integers(9)] = True
            starts = {"state": scattered(now, 9, 1)[0]} if now % 40 else {"legacy_seed": np.arange(9) + now}
            options = {**starts, "reset_mask": mask, "goal_pose": random_poses(random, 9)}
            result = [env.reset(seed=now, options=options) for env in (plain, fast)]
        else:
            actions = random.normal(256, 130, (9, 2))
            result = [env.step(actions) for env in (plain, fast)]
        assert data_equivalence(*result, exact=True)


def test_compiled_coverage_is_the_plain_bits_and_shapelys_area():
    random = np.random.default_rng(7)
    goals = random_poses(random, 700)
    scales = np.repeat([0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, 30.0], 100)[:, None]
    near = goals + scales * random.standard_normal((700, 3)) * (1, 1, 0.02)
    steps = np.array([0, 15, 30, 60, -30, 120])
    square = np.array([(200 + x, 200 + y, turn * np.pi / 2) for x in steps for y in steps for turn in range(4)])
    backend = compiled.CompiledBackend(1)
    for poses, over in ((near, goals), (goals, goals[::-1]), (square, np.tile((200.0, 200.0, 0.0), (len(square), 1)))):
        covered = backend.coverage(poses, over)
        same_bits(covered, np.array([coverage(pose, goal) for pose, goal in zip(poses, over, strict=True)]))
        areas = [exact(pose, goal) for pose, goal in zip(poses, over, strict=True)]
        np.testing.assert_allclose(covered, areas, rtol=0, atol=1e-12)
    same_bits(backend.coverage(goals, goals), np.ones(700))


def test_worlds_live_as_long_as_their_batch_and_no_longer():
    states, actions = scattered(8, 3, 20)
    kept = BatchSimulation(3, backend="compiled")
    for row, state in enumerate(states):
        kept.reset(row, state)
    before = threading.active_count()
    gone = []
    for _ in range(100):
        batch = BatchSimulation(3, threads=2, backend="compiled")
        for row, state in enumerate(states):
            batch.reset(row, state)
        batch.run(actions, np.arange(3))
        gone.append(weakref.ref(batch._simulations[0]))
        del batch
    gc.collect()
    assert all(reference() is None for reference in gone)
    assert threading.active_count() <= before + 2  # pools end their threads when they are forgotten
    same_bits(kept.run(actions, np.arange(3))[0], simulate(states, actions, backend="plain").states[:, 1:])


@pytest.fixture
def fresh_verdict(monkeypatch, tmp_path):
    """A process that has not asked yet, on a machine that remembers nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backends._fault.cache_clear()
    backends._warn_once.cache_clear()
    yield tmp_path
    backends._fault.cache_clear()
    backends._warn_once.cache_clear()


def differs():
    raise RuntimeError("compiled and plain states differ in 3 of 9 numbers")


@pytest.mark.parametrize(
    "reason", ["states differ in 3 of 9", "numba is not installed", "no compiled backend for win32"]
)
def test_without_a_compiled_backend_one_warning_and_the_same_results(fresh_verdict, monkeypatch, reason):
    states, actions = scattered(9, 4, 20)
    usual = simulate(states, actions, backend="compiled")
    backends._fault.cache_clear()
    if "win32" in reason:
        monkeypatch.setattr(sys, "platform", "win32")
    elif "numba" in reason:
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr(backends, "check", differs)
        monkeypatch.setenv("XDG_CACHE_HOME", str(fresh_verdict / "elsewhere"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make_vec("immiscible/PushT-v0", num_envs=2, vectorization_mode="vector_entry_point")
        assert env.unwrapped.backend == BatchSimulation(2).backend == "plain"
        for one, other in zip(usual, simulate(states, actions), strict=True):
            same_bits(one, other)
    warned = [str(warning.message) for warning in caught if "plain backend" in str(warning.message)]
    assert len(warned) == 1 and reason in warned[0]
    with pytest.raises(RuntimeError, match=f"backend 'compiled' cannot be used here.*{reason}"):
        BatchSimulation(2, backend="compiled")
    assert not (fresh_verdict / "elsewhere").exists()  # a failed check is not remembered


def test_a_passed_check_is_remembered_and_an_unwritable_place_tolerated(fresh_verdict, monkeypatch):
    checks = []
    monkeypatch.setattr(backends, "check", lambda: checks.append(1))
    for _ in range(2):
        backends._fault.cache_clear()
        assert backends._fault() is None
    assert len(checks) == 1 and len(list(fresh_verdict.glob("immiscible-policy/pusht-backend-*"))) == 1
    (fresh_verdict / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh_verdict / "file"))
    for _ in range(2):
        backends._fault.cache_clear()
        assert backends._fault() is None
    assert len(checks) == 3


@pytest.mark.parametrize("name", ["advance", "coverage"])
def test_the_check_notices_a_single_wrong_bit(monkeypatch, name):
    backends.check()
    right = getattr(compiled.CompiledBackend, name)

    def wrong(self, *arguments):
        answer = right(self, *arguments)
        numbers = answer[0] if name == "advance" else answer
        numbers.flat[-1] = np.nextafter(numbers.flat[-1], 9.0)
        return answer

    monkeypatch.setattr(compiled.CompiledBackend, name, wrong)
    with pytest.raises(RuntimeError, match="compiled and plain (states|coverage) differ in"):
        backends.check()


def test_kernels_compile_without_a_directory_to_cache_them():
    def decorator(cache=False):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: function

    assert compiled._cached(decorator)(abs) is abs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"states": np.zeros(5)}, r"states must have shape \(any, 5\), got \(5,\)"),
        ({"states": np.zeros((0, 5))}, r"states must have shape \(any, 5\), got \(0, 5\)"),
        ({"states": [[9, 9, 9, 9, np.nan]] * 2}, "states must be finite"),
        ({"states": [[9.0] * 5, [9, 513, 9, 9, 9]]}, r"states \(positions\) \[9.0, 513.0, 9.0, 9.0\] is outside"),
        ({"actions": np.zeros((3, 4, 2))}, r"action must have shape \(2, any, 2\), got \(3, 4, 2\)"),
        ({"actions": np.zeros((2, 0, 2))}, r"action must have shape \(2, any, 2\), got \(2, 0, 2\)"),
        ({"actions": np.full((2, 4, 2), np.inf)}, "action must be finite"),
        ({"order": "together"}, "unknown order 'together'"),
        ({"goal_pose": np.zeros((3, 3))}, r"goal_pose must have shape \(2, 3\), got \(3, 3\)"),
        ({"goal_pose": (600, 0, 0)}, r"goal_pose \(position\) \[600.0, 0.0\] is outside"),
        ({"threads": 0}, "threads 0 must be at least 1"),
        ({"backend": "fast"}, "unknown backend 'fast'; known: auto, compiled, plain"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_one_line(arguments, message):
    good = {"states": np.full((2, 5), 99.0), "actions": np.full((2, 4, 2), 99.0), "goal_pose": GOAL_POSE}
    with pytest.raises(ValueError, match=message) as error:
        simulate(**{**good, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "named"), [({"backend": "fast"}, "backend 'fast'"), ({"threads": 0}, "threads 0")]
)
def test_the_vector_environment_refuses_them_too(arguments, named):
    with pytest.raises(ValueError, match=named):
        PushTVectorEnv(num_envs=2, **arguments)
