"""Rolling a policy out: the one evaluation function.

Time in an episode, with 2 observation steps and 8 action steps; the policy sees the last two observations, denoises
a chunk, and executes the part of it that begins now:

    env step        0   1   2  ...  7 | 8   9  ...
    observations  o o                 |
    chunk         . # # # # # # # # . . . . . . .
                    ^ now             | o o
                                      | . # # # ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import immiscible_envs
from immiscible_envs.rendering import render_state
from immiscible_policy.randomness import torch_generator
from immiscible_policy.store.rows import EpisodeRow

ENVIRONMENT = "immiscible/PushT-v0"
BATCH = 50

OnStep = Callable[[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]], None]
"""Called as on_step(step, states (N, 5), coverage (N,), done (N,)) after the reset (step 0) and every step."""


class ActingPolicy(Protocol):
    """What can be evaluated."""

    obs: str
    obs_steps: int

    def act(self, observations: Any, generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """Actions to execute (B, n, 2) in px, given the last observations (B, obs_steps, Do), or a dictionary."""
        ...


def evaluate(
    policy: ActingPolicy,
    starts: Sequence[int],
    *,
    seed: int,
    checkpoint: int,
    batch_size: int = BATCH,
    max_steps: int = immiscible_envs.MAX_EPISODE_STEPS,
    on_step: OnStep | None = None,
    states: NDArray[np.float64] | None = None,
) -> list[EpisodeRow]:
    """Roll a policy out from a list of starts.

    Each episode has its own source of sampling noise, a function of its start alone: two policies evaluated on the
    same starts meet the same noise. Batches always have `batch_size` rows (the last is filled up and the filling
    thrown away), so that a row does not depend on how many others were asked for.

    Args:
        policy: Chooses the actions.
        starts: Start seeds (N,), by the published mapping.
        seed: Training seed, recorded in the rows.
        checkpoint: Training step, recorded in the rows.
        batch_size: Episodes rolled out at once.
        max_steps: Steps after which an episode ends.
        on_step: Watches all episodes step by step; needs N <= batch_size.
        states: Where the episodes begin (N, 5), agent x, y, block x, y [px], angle [rad], instead of where the
            published mapping puts them; `starts` then only names the episodes, and so their sampling noise.

    Returns:
        One row per start, in the order of the starts.

    Raises:
        ValueError: If there is no start, more starts to watch than one batch holds, or not a state per start.
    """
    if not len(starts):
        raise ValueError("starts is empty: there is nothing to evaluate")
    if on_step and len(starts) > batch_size:
        raise ValueError(f"{len(starts)} starts are more than the {batch_size} that can be watched at once")
    if states is not None and np.shape(states) != (len(starts), 5):
        raise ValueError(f"states of shape {np.shape(states)} for {len(starts)} starts; give one state (5,) per start")
    rows: list[EpisodeRow] = []
    for first in range(0, len(starts), batch_size):
        last = min(first + batch_size, len(starts)) - 1
        filled = np.minimum(np.arange(first, first + batch_size), last)
        names = [starts[index] for index in filled]
        options = {"legacy_seed": np.array(names)} if states is None else {"state": states[filled]}
        rows += _roll_out(policy, names, options, seed, checkpoint, max_steps, on_step, keep=last + 1 - first)
    return rows


def _roll_out(
    policy: ActingPolicy,
    starts: list[int],
    options: dict[str, NDArray[Any]],
    seed: int,
    checkpoint: int,
    max_steps: int,
    on_step: OnStep | None,
    keep: int,
) -> list[EpisodeRow]:
    """Roll one batch out; rows and watching only for the first `keep` episodes."""
    count = len(starts)
    environment = gymnasium.make_vec(
        ENVIRONMENT,
        num_envs=count,
        vectorization_mode="vector_entry_point",
        obs_type="state" if policy.obs == "image" else policy.obs,
        autoreset_mode=AutoresetMode.DISABLED,  # rows go on after their ends, which count once
    )
    generators = [torch_generator("cpu", "rollout", start) for start in starts]
    observation, info = environment.reset(options=options)
    history = deque([observation] * policy.obs_steps, maxlen=policy.obs_steps)
    best, final, best_reward = info["coverage"].copy(), info["coverage"].copy(), np.zeros(count)
    success, steps, done = np.zeros(count, bool), np.zeros(count, int), np.zeros(count, bool)

    def watch(step: int, observation: NDArray[np.float64]) -> None:
        if on_step:
            states = np.concatenate([observation[:, -2:] if policy.obs == "keypoints" else observation[:, :2],
                                     info["block_pose"]], axis=1)  # fmt: skip
            on_step(step, states[:keep], info["coverage"][:keep], done[:keep].copy())

    watch(0, observation)
    step = 0
    while step < max_steps and not done[:keep].all():
        actions = policy.act(_seen(history, policy.obs, keep), generators)  # (N, n, 2)
        for action in actions.transpose(1, 0, 2):
            observation, reward, terminated, _, info = environment.step(action)
            history.append(observation)
            step += 1
            active = ~done
            best = np.where(active, np.maximum(best, info["coverage"]), best)
            best_reward = np.where(active, np.maximum(best_reward, reward), best_reward)
            final = np.where(active, info["coverage"], final)
            steps += active
            success |= active & info["is_success"]
            done |= terminated | (step >= max_steps)
            watch(step, observation)
            if done[:keep].all():
                break
    environment.close()
    return [
        EpisodeRow(
            checkpoint,
            int(starts[i]),
            seed,
            {
                "coverage": float(best[i]),
                "final_coverage": float(final[i]),
                "reward": float(best_reward[i]),
                "success": float(success[i]),
            },
            int(steps[i]),
        )
        for i in range(keep)
    ]


def _seen(history: Sequence[NDArray[np.float64]], obs: str, keep: int) -> Any:
    """The last observations of a batch, oldest first along axis 1.

    Pictures are drawn from the states only here, when the policy looks, and not at every step; and only those of the
    first `keep` rows, which the filling repeats.
    """
    observations = np.stack(history, axis=1)
    if obs != "image":
        return observations
    pictures = np.stack([[render_state(state) for state in states] for states in observations[:keep]])
    filled = np.minimum(np.arange(len(observations)), keep - 1)
    return {"image": pictures[filled], "agent_pos": observations[..., :2]}
