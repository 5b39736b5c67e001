"""The one evaluation function, against the single environment stepped by hand."""

import gymnasium
import numpy as np
import pytest
import torch

from immiscible_policy.evaluation.agent import Agent
from immiscible_policy.evaluation.rollout import Tally, evaluate
from immiscible_policy.policy.build import build_policy
from immiscible_policy.randomness import torch_generator
from immiscible_policy.solver import Solver
from immiscible_policy.tasks import Metric, Observed, find_task
from tests.small_policy import SPEC

PUSHT = find_task("pusht")


class PushThroughTheMiddle:
    """Walks to the block's keypoints in turn; its noise comes from the row's generator."""

    obs, obs_steps = "keypoints", 2

    def __init__(self):
        self.seen = []

    def act(self, observed, generators):
        self.seen.append(observed.numbers)
        noise = np.stack([torch.randn(8, 2, generator=g).numpy() for g in generators])
        target = observed.numbers[:, -1, :2] * 0.5 + 128
        return target[:, None] + 40 * noise


class Still(PushThroughTheMiddle):
    """Stays where it is."""

    def act(self, observed, generators):
        return np.repeat(observed.numbers[:, -1:, -2:], 8, axis=1)


STARTS = [100_000, 100_001, 100_002, 100_003]


def test_rows_equal_the_single_environment():
    rows = evaluate(PUSHT, PushThroughTheMiddle(), STARTS, seed=3, checkpoint=50, batch_size=4)
    for start, row in zip(STARTS, rows, strict=True):
        env, policy = gymnasium.make("immiscible/PushT-v0", obs_type="keypoints"), PushThroughTheMiddle()
        observation, info = env.reset(options={"legacy_seed": start})
        history, coverage, rewards, done = [observation] * 2, [info["coverage"]], [], False
        generator = torch_generator("cpu", "rollout", start)
        while not done:
            for action in policy.act(Observed(np.stack(history[-2:])[None], {}), [generator])[0]:
                observation, reward, terminated, truncated, info = env.step(action)
                history.append(observation)
                coverage.append(info["coverage"])
                rewards.append(reward)
                done = terminated or truncated
                if done:
                    break
        assert (row.checkpoint, row.start, row.seed) == (50, start, 3)
        assert row.steps == len(rewards)
        assert row.metrics == {
            "coverage": max(coverage),
            "final_coverage": coverage[-1],
            "reward": max(rewards),
            "success": terminated,
        }


def test_a_row_does_not_depend_on_its_neighbours():
    every = evaluate(PUSHT, PushThroughTheMiddle(), STARTS, seed=0, checkpoint=0, batch_size=4)
    some = evaluate(PUSHT, PushThroughTheMiddle(), STARTS[2:], seed=0, checkpoint=0, batch_size=4)
    two_by_two = evaluate(PUSHT, PushThroughTheMiddle(), STARTS, seed=0, checkpoint=0, batch_size=2)
    assert some == every[2:] and two_by_two == every
    assert len({row.metrics["coverage"] for row in every}) > 1


def test_a_network_policy_scores_the_same_whatever_else_is_asked_for():
    torch.manual_seed(0)
    agent = Agent(build_policy(SPEC).eval(), SPEC, Solver("ddim", 2))
    agent.policy.action.scale.fill_(1 / 256)
    agent.policy.action.offset.fill_(-1.0)
    every = evaluate(PUSHT, agent, STARTS, seed=0, checkpoint=0, batch_size=8, max_steps=40)
    assert evaluate(PUSHT, agent, STARTS[1:2], seed=0, checkpoint=0, batch_size=8, max_steps=40) == every[1:2]


class Watcher:
    """Walks by what the pictures say, and keeps what it saw."""

    obs, obs_steps = "image", 2

    def __init__(self):
        self.seen = []

    def act(self, observed, generators):
        self.seen.append(observed)
        target = observed.numbers[:, -1] + observed.frames["img"][:, -1].mean(axis=(1, 2))[:, :2] / 8
        return np.repeat(target[:, None], 8, axis=1)


def test_pictures_are_those_of_the_environment():
    """Drawn when the policy looks, from states; the single environment draws its observations at every step."""
    policy = Watcher()
    rows = evaluate(PUSHT, policy, STARTS[:2], seed=0, checkpoint=0, batch_size=3, max_steps=17)
    for index, start in enumerate(STARTS[:2]):
        env, alone = gymnasium.make("immiscible/PushT-v0", obs_type="image"), Watcher()
        history, rewards = [env.reset(options={"legacy_seed": start})[0]] * 2, []
        for chunk in range(3):
            numbers, pictures = (np.stack([seen[key] for seen in history[-2:]]) for key in ("agent_pos", "image"))
            np.testing.assert_array_equal(policy.seen[chunk].numbers[index], numbers)
            np.testing.assert_array_equal(policy.seen[chunk].frames["img"][index], pictures)
            for action in alone.act(Observed(numbers[None], {"img": pictures[None]}), [])[0][: 17 - 8 * chunk]:
                observation, reward, *_ = env.step(action)
                history.append(observation)
                rewards.append(reward)
        assert rows[index].metrics["reward"] == max(rewards) and rows[index].steps == 17
    assert policy.seen[0].frames["img"].shape == (3, 2, 96, 96, 3)
    np.testing.assert_array_equal(policy.seen[2].frames["img"][2], policy.seen[2].frames["img"][1])  # the filling


def test_standing_still_moves_nothing_and_takes_all_steps():
    (row,) = evaluate(PUSHT, Still(), [100_001], seed=0, checkpoint=0, batch_size=1)
    assert row.steps == 300 and not row.metrics["success"]
    assert (
        row.metrics["final_coverage"] == pytest.approx(row.metrics["coverage"], abs=1e-6)
        and row.metrics["coverage"] > 0.1
    )
    assert row.metrics["reward"] == pytest.approx(row.metrics["coverage"] / 0.95, abs=1e-6)


def test_a_success_ends_the_episode(monkeypatch):
    monkeypatch.setattr("immiscible_envs.vector.SUCCESS_COVERAGE", 0.1)  # start 100001 covers more than that
    (row,) = evaluate(PUSHT, Still(), [100_001], seed=0, checkpoint=0, batch_size=1)
    assert row.metrics["success"] and row.steps == 1


def test_the_policy_sees_the_last_two_observations():
    policy, frames = PushThroughTheMiddle(), []
    evaluate(
        PUSHT, policy, STARTS[:2], seed=0, checkpoint=0, batch_size=2, max_steps=17,
        on_step=lambda step, states, metrics, done: frames.append((step, states, done)),
    )  # fmt: skip
    assert [step for step, _, _ in frames] == list(range(18))
    assert not frames[16][2].any() and frames[17][2].all()
    agents = np.stack([states[:, :2] for _, states, _ in frames])
    np.testing.assert_array_equal(policy.seen[0][:, 0], policy.seen[0][:, 1])  # after the reset the first is repeated
    for chunk, now in ((1, 8), (2, 16)):
        np.testing.assert_array_equal(policy.seen[chunk][:, :, -2:], agents[[now - 1, now]].transpose(1, 0, 2))


def test_metrics_are_reduced_over_the_steps_of_each_episode():
    """By hand: two episodes, the first over after two of three steps; the reset counts for a maximum alone."""
    score = lambda reward, info: info["score"]  # noqa: E731
    metrics = [
        Metric("best", "best", "max", score),
        Metric("end", "end", "last", score),
        Metric("once", "once", "any", lambda reward, info: info["score"] == 2),
        Metric("total", "total", "sum", lambda reward, info: reward),
        Metric("best_reward", "best_reward", "max", lambda reward, info: reward),
    ]
    tally = Tally(metrics, 2, {"score": np.array([3.0, -1.0])})
    steps = [([-1.0, -5.0], [2.0, 0.0]), ([-4.0, -2.0], [1.0, 2.0]), ([9.0, -3.0], [9.0, 1.0])]
    for number, (reward, scores) in enumerate(steps):
        tally.update(np.array(reward), {"score": np.array(scores)}, np.array([number < 2, True]))
    assert {name: values.tolist() for name, values in tally.values.items()} == {
        "best": [3.0, 2.0],
        "end": [1.0, 1.0],
        "once": [1.0, 1.0],
        "total": [-5.0, -10.0],
        "best_reward": [-1.0, -2.0],
    }


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="starts is empty"):
        evaluate(PUSHT, Still(), [], seed=0, checkpoint=0)
    with pytest.raises(ValueError, match="watched"):
        evaluate(PUSHT, Still(), [1, 2, 3], seed=0, checkpoint=0, batch_size=2, on_step=lambda *_: None)
