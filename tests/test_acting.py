"""A policy as an object: it acts as evaluation does, takes what it was trained on, and refuses the rest in one line."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from immiscible_policy import load_policy
from immiscible_policy.acting import Inputs, RobotPolicy
from immiscible_policy.evaluation.agent import Agent, load_agent, solver_of, spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.plugins.bridge import convert
from immiscible_policy.policy import Normalizer, build_policy
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import read_checkpoint, save_checkpoint
from immiscible_policy.store.rows import read_rows
from immiscible_policy.tasks import find_task
from tests.demos.arm import arm_arrays, write_lerobot
from tests.results.runs import write_run
from tests.small_policy import SPEC as BLIND
from tests.training.helpers import here

PUSHT = find_task("pusht")
SEEING = replace(BLIND, obs="image", obs_dim=2, encoder=EncoderSpec(("img",), 84, 16))
ARM = replace(BLIND, obs="qpos,front,gripper", obs_dim=7, action_dim=7, encoder=EncoderSpec(("front",), 16, 16))
STARTS = list(range(100_000, 100_050))


def weights(spec, seed=0):
    torch.manual_seed(seed)
    pixels = torch.full((spec.obs_dim,), 512.0)
    return build_policy(
        spec, Normalizer(0 * pixels, pixels), Normalizer(torch.zeros(2), torch.full((2,), 512.0))
    ).state_dict()


def agent(spec, calls=2):
    torch.manual_seed(0)
    return Agent(build_policy(spec).eval(), spec, Solver("ddim", calls))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two training seeds with two checkpoints; the better one of seed 3 is its first."""
    better = {(3, 500): 0.6, (3, 1000): 0.5, (4, 500): 0.2, (4, 1000): 0.8}
    run = write_run(
        tmp_path_factory.mktemp("runs") / "mine", lambda seed, step, _: better[seed, step], (3, 4), (500, 1000),
        solver="ddim", sampling_steps=2, threads=1,
    )  # fmt: skip
    for seed, step in better:
        metadata = {"step": step, "seed": seed, "config": run.config}
        run.seed(seed).save(spec_metadata(BLIND) | metadata, {"ema": weights(BLIND, seed + step)})
    return run


def coverage(act, starts, obs_type, max_steps=300):
    """The largest coverage of each start in Gymnasium's environments, by act(observations) -> actions."""
    kwargs = {"vectorization_mode": "vector_entry_point", "autoreset_mode": AutoresetMode.DISABLED}
    environments = gymnasium.make_vec("immiscible/PushT-v0", num_envs=len(starts), obs_type=obs_type, **kwargs)
    observation, info = environments.reset(options={"legacy_seed": np.array(starts)})
    best, done = info["coverage"], np.zeros(len(starts), bool)
    for _ in range(max_steps):
        observation, _, terminated, truncated, info = environments.step(act(observation))
        best = np.where(done, best, np.maximum(best, info["coverage"]))
        done = done | terminated | truncated
    return best.tolist()


def test_a_batch_covers_exactly_what_the_command_line_reports(run, tmp_path):
    checkpoint, out = run.seed(3).checkpoint_path(500), tmp_path / "episodes.csv"
    assert here("eval_policy.py", f"checkpoint={checkpoint}", f"out={out}").returncode == 0
    rows = read_rows(out, PUSHT.metrics)
    policy = load_policy(run.seed(3).path)
    policy.reset(seed=STARTS[0])
    result = coverage(policy.act, STARTS, "keypoints")
    assert [row.start for row in rows] == STARTS
    assert result == [row.metrics["coverage"] for row in rows]
    assert len(set(result)) > 10


@pytest.mark.parametrize("alone", [0, 17])
def test_so_does_a_single_robot_with_batches_of_that_size(run, alone):
    checkpoint = read_checkpoint(run.seed(3).checkpoint_path(500))
    batch = load_agent(checkpoint, solver_of(checkpoint))
    rows = evaluate(PUSHT, batch, STARTS, seed=3, checkpoint=500, max_steps=40)
    policy = load_policy(checkpoint.path, pad_to=50)
    policy.reset(seed=STARTS[alone])
    result = coverage(lambda seen: policy.act(seen[0])[None], [STARTS[alone]], "keypoints", 40)
    assert result == [rows[alone].metrics["coverage"]]


@pytest.mark.parametrize("size", [1, 3])
def test_from_images_as_well(tmp_path, size):
    path = tmp_path / "step_000001"
    save_checkpoint(path, spec_metadata(SEEING) | {"step": 1, "seed": 0}, {"ema": weights(SEEING)})
    policy, starts = load_policy(path, calls=2), STARTS[4 : 4 + size]
    batch = load_agent(read_checkpoint(path), Solver("ddim", 2))
    rows = evaluate(PUSHT, batch, starts, seed=0, checkpoint=1, batch_size=size, max_steps=17)
    policy.reset(seed=starts[0])

    def act(seen):
        named = {"img": seen["image"], "agent_pos": seen["agent_pos"], "time": 0.0}
        if size > 1:
            return policy.act(named)
        return policy.act(named | {"img": named["img"][0], "agent_pos": named["agent_pos"][0]})[None]

    result = coverage(act, starts, "image", 17)
    assert result == [row.metrics["coverage"] for row in rows]


def test_a_chunk_is_executed_action_by_action():
    """Time as in the docstring: a chunk of the first observation, repeated; the next one of those of steps 7 and 8."""
    policy, twin = (RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5) for _ in range(2))
    observations = np.random.default_rng(0).normal(size=(12, 20))
    actions = np.stack([policy.act(observation) for observation in observations])
    first, second = twin.chunk(observations[:1]), twin.chunk(observations[:9])
    assert first.shape == second.shape == (15, 2) and actions.dtype == np.float64
    np.testing.assert_array_equal(actions, [*first[:8], *second[:4]])


def test_a_reset_begins_anew():
    policy = RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5)
    first, _ = policy.act(np.zeros(20)), policy.act(np.ones(20))
    policy.reset()
    assert not np.array_equal(policy.act(np.zeros(20)), first)  # the noise goes on
    policy.reset(seed=5)
    assert np.array_equal(policy.act(np.zeros(20)), first)


def test_rows_of_a_batch_have_noise_of_their_own():
    policy = RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5)
    counted = policy.act(np.zeros((3, 20)))
    policy.reset(seed=[7, 6, 5])
    np.testing.assert_allclose(policy.act(np.zeros((3, 20))), counted[::-1], atol=1e-5)
    policy.reset(seed=[7, 6])
    with pytest.raises(ValueError, match="a batch of 3 needs as many seeds; reset was given 2"):
        policy.act(np.zeros((3, 20)))


def arm(*lead, **change):
    parts = {
        "front": np.zeros((*lead, 24, 32, 3), np.uint8),
        "gripper": np.zeros((*lead, 1)),
        "qpos": np.ones((*lead, 6)),
    }
    return parts | {"torque": "ignored"} | change


def arm_policy():
    return RobotPolicy(agent(ARM), Inputs(ARM, ("qpos", "front", "gripper"), {"qpos": 6, "gripper": 1}), seed=0)


def test_arrays_follow_one_another_in_the_order_of_training():
    seen, lead = arm_policy().inputs.read(arm(gripper=np.array([9])))
    assert seen.numbers.tolist() == [[1, 1, 1, 1, 1, 1, 9]] and lead == ()
    assert arm_policy().act(arm()).shape == (7,) and arm_policy().act(arm(4)).shape == (4, 7)
    assert arm_policy().chunk([arm(1)] * 2).shape == (1, 15, 7)


WANTS = "this policy wants front (H, W, 3) uint8 of 16 pixels or more, qpos (6,), gripper (1,)"


@pytest.mark.parametrize(
    "observation, message",
    [
        (np.zeros(7), f"the observation is not a dictionary; {WANTS}"),
        ({"qpos": np.zeros(6)}, f"the observation has no 'front'; {WANTS}"),
        (
            arm(qpos=np.zeros(5)),
            "the observation has qpos of shape (5,) and type float64, gripper of shape (1,) and type",
        ),
        (arm(qpos=np.zeros(1), gripper=np.zeros(6)), "qpos of shape (1,) and type float64, gripper of shape (6,)"),
        (arm(qpos=np.zeros((2, 6))), "qpos of shape (2, 6)"),
        (arm(front=np.zeros((24, 32, 3))), f"the observation has front of shape (24, 32, 3) and type float64; {WANTS}"),
        (arm(front=np.zeros((3, 24, 32), np.uint8)), "front of shape (3, 24, 32)"),
        (arm(front=np.zeros((24, 15, 3), np.uint8)), "front of shape (24, 15, 3)"),
        (arm(front=np.zeros((24, 32), np.uint8)), "front of shape (24, 32)"),
        (arm(front=np.zeros((1, 1, 24, 32, 3), np.uint8)), "front of shape (1, 1, 24, 32, 3)"),
        (arm(0), "of shape (0,"),
        (arm(2, qpos=np.zeros((3, 6))), "qpos of shape (3, 6)"),
        (arm(gripper="shut"), "gripper is not an array of numbers but str"),
        (arm(gripper=[np.nan]), "a number that is not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(observation, message):
    with pytest.raises(ValueError) as error:
        arm_policy().act(observation)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_where_widths_are_unknown_the_numbers_are_counted_together():
    inputs = Inputs(ARM, ("qpos", "front", "gripper"))
    assert str(inputs).endswith("qpos and gripper of 7 numbers together")
    assert inputs.read(arm())[0].numbers.shape == (1, 7)
    assert str(Inputs(BLIND, ["keypoints"])) == "keypoints (20,)"


def test_cameras_of_two_sizes_are_refused():
    inputs = Inputs(
        replace(ARM, encoder=EncoderSpec(("front", "wrist"), 16, 16)), ("qpos", "front", "wrist", "gripper")
    )
    wrist = np.zeros((24, 24, 3), np.uint8)
    with pytest.raises(ValueError, match=r"differ in size.* front \(24, 32, 3\), wrist \(24, 24, 3\)"):
        inputs.read(arm(wrist=wrist))
    assert list(inputs.read(arm(wrist=wrist, front=wrist))[0].frames) == ["front", "wrist"]


def test_frames_have_the_size_of_training_unless_they_are_scaled():
    """A larger frame would be cropped to another part of the scene."""
    keys, known = ("qpos", "front", "gripper"), {"front": [24, 32]}
    inputs, larger = Inputs(ARM, keys, sizes=known), np.zeros((48, 64, 3), np.uint8)
    assert inputs.read(arm())[0].frames["front"].shape == inputs.blank(1).frames["front"].shape == (1, 24, 32, 3)
    with pytest.raises(
        ValueError, match=r"front of shape \(48, 64, 3\) .* this policy wants front \(24, 32, 3\) uint8, "
    ):
        inputs.read(arm(front=larger))
    scaling = replace(ARM, encoder=replace(ARM.encoder, resize=(20, 20)))
    assert Inputs(scaling, keys, sizes=known).read(arm(front=larger))[0].frames["front"].shape == (1, 48, 64, 3)


def test_the_number_of_robots_changes_with_a_reset_alone():
    policy = arm_policy()
    policy.act(arm(2))
    with pytest.raises(ValueError, match="the observation is a single one, the last was a batch of 2: call reset()"):
        policy.act(arm())
    policy.reset()
    assert policy.act(arm()).shape == (7,)
    with pytest.raises(ValueError, match="history: give a sequence"):
        policy.chunk(arm())


def test_a_chunk_leaves_the_acting_alone():
    """Its noise, its queue, its observations and how many robots there are; it has the noise of the same seeds."""
    policy, twin = (RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5) for _ in range(2))
    observations = np.random.default_rng(0).normal(size=(20, 20))
    for step, observation in enumerate(observations):
        if step in (0, 4, 8):
            policy.chunk(np.zeros((1, 3, 20)) if step == 4 else [observation])
        np.testing.assert_array_equal(policy.act(observation), twin.act(observation))
    with pytest.raises(ValueError, match="the observation is a batch of 2, the last was a single one: a history is of"):
        policy.chunk([np.zeros(20), np.zeros((2, 20))])


def test_what_is_refused_leaves_nothing_behind():
    policy = RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5)
    policy.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="a batch of 3 needs as many seeds"):
        policy.act(np.zeros((3, 20)))
    assert policy.act(np.zeros((2, 20))).shape == (2, 2)


def test_a_driver_may_write_the_next_picture_where_the_last_one_was():
    reused, apart = arm_policy(), arm_policy()
    frame = np.zeros((24, 32, 3), np.uint8)
    for step in range(12):
        frame[:] = 20 * step
        seen = [policy.act(arm(front=shown)) for policy, shown in ((reused, frame), (apart, frame.copy()))]
        np.testing.assert_array_equal(*seen)


def test_latency_is_measured_and_nothing_else_changes(capsys):
    policy, twin = (RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5) for _ in range(2))
    latency = policy.benchmark(rows=2, chunks=4)
    assert 0 < latency.median <= latency.p95 and latency.calls == 2
    assert latency.parameters == sum(p.numel() for p in build_policy(BLIND).parameters())
    assert capsys.readouterr().out == f"{latency}\n" and "chunk of 2 rows: median" in str(latency)
    np.testing.assert_array_equal(policy.act(np.zeros(20)), twin.act(np.zeros(20)))


def weight(policy):
    return policy._agent.policy.state_dict()["network.final_conv.1.bias"]


@pytest.mark.parametrize(
    "which, options, step",
    [("seed_3", {}, 500), ("seed_3", {"checkpoint": "last"}, 1000), ("", {"train_seed": 4, "checkpoint": 500}, 500)],
)
def test_a_run_a_seed_or_a_checkpoint(run, which, options, step):
    policy = load_policy(run.path / which, **options)
    seed = options.get("train_seed", 3)
    assert torch.equal(weight(policy), weights(BLIND, seed + step)["network.final_conv.1.bias"])
    assert torch.equal(weight(policy), weight(load_policy(run.seed(seed).checkpoint_path(step))))


def test_the_best_of_a_run_is_the_best_of_all_its_seeds(run):
    """Seed 4 at step 1,000 has 0.8."""
    assert torch.equal(weight(load_policy(run.path)), weights(BLIND, 1004)["network.final_conv.1.bias"])


@pytest.mark.parametrize("to, name", [("diffusion_policy", "latest.ckpt"), ("lerobot", "pretrained_model")])
def test_other_projects_policies_act(tmp_path, to, name):
    for part in ("ours", "theirs"):
        (tmp_path / part).mkdir()
    values = weights(replace(BLIND, down_dims=(16, 32)))
    save_checkpoint(
        tmp_path / "ours/step_000001", spec_metadata(BLIND) | {"step": 1, "seed": 0}, {"model": values, "ema": values}
    )
    convert(tmp_path / "ours/step_000001", to, tmp_path / "theirs" / name)
    ours, theirs = (load_policy(tmp_path / path, seed=1, calls=2) for path in ("ours/step_000001", f"theirs/{name}"))
    np.testing.assert_allclose(theirs.act(np.full(20, 200.0)), ours.act(np.full(20, 200.0)), atol=1e-2)


def test_a_policy_trained_on_an_arms_two_cameras_acts_on_what_they_see(tmp_path):
    """Seven joints, a pose of five numbers, LeRobot's names, and no environment."""
    store = write_lerobot(tmp_path / "store", *arm_arrays(episodes=3, side=24))
    numbers = ["observation.ee_pose", "observation.qpos"]
    cameras = ["observation.images.wrist", "observation.images.front"]
    done = here(
        "train_policy.py", "experiment=debug", "task=none", f"data={store}", f"obs={','.join(cameras + numbers)}",
        f"out={tmp_path / 'run'}", "crop=16", "encoder_width=16", "batch_size=8", "validation=0.4",
        "threads=1", "steps=1", "eval_every=1", "checkpoint_every=1", "sampling_steps=1", "precision=fp32",
        "wandb=disabled", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    policy = load_policy(tmp_path / "run", seed=0)
    assert str(policy.inputs).startswith(f"{cameras[0]} (24, 24, 3) uint8, {cameras[1]} (24, 24, 3) uint8, ")
    seen = {camera: np.zeros((24, 24, 3), np.uint8) for camera in cameras}
    action = policy.act(seen | {numbers[0]: np.zeros(5), numbers[1]: np.zeros(7)})
    assert str(policy.inputs).endswith("observation.ee_pose (5,), observation.qpos (7,)")
    assert action.shape == (7,) and (np.abs(action) < 2).all()


@pytest.mark.parametrize(
    "which, options, message",
    [
        ("", {"checkpoint": "last"}, "its training seeds are 3, 4; give seed_N/ in it, or train_seed=N"),
        ("", {"train_seed": 5}, "its training seeds are 3, 4"),
        ("seed_3", {"checkpoint": 700}, "the checkpoint of step 700 was not kept"),
        ("seed_3", {"checkpoint": "first"}, "checkpoint=first: use best, last, or a training step"),
        ("seed_3/checkpoints/step_000500", {"checkpoint": "last"}, "is one checkpoint"),
        ("seed_9", {}, "does not exist"),
        ("seed_3/checkpoints", {}, "is not a checkpoint"),
        ("seed_3", {"calls": 0}, "calls=0: needs a whole number, 1 or more"),
        ("seed_3", {"calls": 2.5}, "calls=2.5: needs a whole number, 1 or more"),
        ("seed_3", {"calls": "5"}, "calls='5': needs a whole number, 1 or more"),
        ("", {"checkpoint": "foo"}, "checkpoint=foo: use best, last, or a training step"),
        ("seed_3", {"seed": -1}, "seed=-1: needs a whole number, 0 or more"),
        ("seed_3", {"solver": "direct"}, "solver=direct: what this model learned"),
        ("seed_3", {"device": "tpu"}, "device=tpu"),
        ("seed_3", {"dtype": torch.float16}, "dtype=torch.float16: use"),
        ("seed_3", {"pad_to": 0}, "pad_to=0: needs a whole number, 1 or more"),
        ("seed_3", {"pad_to": 1.5}, "pad_to=1.5: needs a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(run, which, options, message):
    with pytest.raises(ValueError) as error:
        load_policy(run.path / which, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [-1, 1.7, [], [3, -1], "3", [[1, 2], [3]], np.array([0.5])])
def test_a_seed_that_is_none_is_refused_where_it_is_given(run, seed):
    policy = load_policy(run.path / "seed_3")
    with pytest.raises(ValueError, match="^seed=.*: needs a whole number, 0 or more"):
        policy.reset(seed=seed)


@pytest.mark.parametrize("sizes", [{"rows": 0}, {"chunks": 0}, {"chunks": 2.5}, {"rows": "5"}])
def test_nothing_to_measure_is_refused(run, sizes):
    [(key, value)] = sizes.items()
    with pytest.raises(ValueError, match=f"^{key}={value!r}: needs a whole number, 1 or more$"):
        load_policy(run.path / "seed_3").benchmark(**sizes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_observation_may_be_a_tensor(dtype):
    policy, twin = (RobotPolicy(agent(BLIND), Inputs(BLIND, ["keypoints"]), seed=5) for _ in range(2))
    observation = torch.linspace(0, 512, 20, dtype=dtype, requires_grad=True)
    action = policy.act({"keypoints": observation})
    np.testing.assert_array_equal(action, twin.act(observation.detach().double().numpy()))


def test_bfloat16_acts_nearly_alike(run):
    exact, reduced = (load_policy(run.seed(3).path, dtype=dtype, seed=1) for dtype in (None, torch.bfloat16))
    difference = np.abs(exact.chunk([np.full(20, 200.0)]) - reduced.chunk([np.full(20, 200.0)]))  # of 512
    assert 0 < difference.max() < 16


@pytest.mark.slow
def test_compiled_it_acts_alike(run):
    plain, compiled = (load_policy(run.seed(3).path, compile=compile, seed=1) for compile in (False, True))
    np.testing.assert_allclose(compiled.chunk([np.full(20, 200.0)]), plain.chunk([np.full(20, 200.0)]), atol=0.05)


def test_a_run_is_evaluated_and_rendered_by_its_best_checkpoint(run, tmp_path):
    """The best of a seed, and the best of all seeds."""
    for name, path in {"seed": run.seed(4).path, "run": run.path}.items():
        done = here("eval_policy.py", f"checkpoint={path}", "episodes=1", f"out={tmp_path / name}.csv")
        assert done.returncode == 0, done.stderr
        rows = read_rows(tmp_path / f"{name}.csv", PUSHT.metrics)
        assert [(row.seed, row.checkpoint) for row in rows] == [(4, 1000)]
