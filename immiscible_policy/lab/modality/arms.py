"""What a run does from symmetric starts: rollouts of every checkpoint of every training seed, counted by mode.

The benchmark of Immiscible Diffusion Policy (arXiv 2610.09369). Every checkpoint is rolled out R times from each
symmetric start of `modes`, each time with sampling noise of its own, a function of (start, repetition).

Definitions, where the paper leaves them open (S seeds, C checkpoints, N starts):

* a rollout's mode is the direction of its net turn up to success or the episode's end, undecided below a quarter turn;
* `majority`, the published "picks one direction", is taken per seed: each start's more frequent direction, over the
  decided rollouts, all starts together. A seed in which nothing is decided has none, and is left out;
* `total_variation` is the distance between the three shares of a seed's rollouts from one start and those of the
  training demonstrations that begin nearly upside down, then averaged over starts and seeds;
* `coverage` is the mean over rollouts of the largest coverage of the goal;
* the *floor* of the first two is what as many draws from a fair coin, or from the demonstrations, would give;
* intervals are those of `statistics`: of `majority` for new seeds, of the others for new seeds and starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from immiscible_envs.modes import classify, symmetric_starts
from immiscible_policy.cli import parse_range
from immiscible_policy.commands.render_rollout import Recorder
from immiscible_policy.demos.split import split_episodes
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.rollout import BATCH, ActingPolicy, evaluate
from immiscible_policy.evaluation.statistics import Interval, difference_arms, interval, mean_interval
from immiscible_policy.lab.modality.modes import (
    Array,
    Counts,
    count_modes,
    demonstrated_modes,
    majority,
    majority_floor,
    total_variation,
    total_variation_floor,
)
from immiscible_policy.recipes.robot_config import read_config
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task, open_demonstrations

MOST_REPETITIONS = 10_000
MEASURES = ("majority", "total_variation", "coverage")


@dataclass(frozen=True)
class Rollout:
    """One rollout from a symmetric start.

    Attributes:
        start: Number of the start in `symmetric_starts`.
        states: States (L, 5) from the start to success or the episode's end: agent x, y, block x, y [px], angle [rad].
        mode: Number into `MODES`.
        coverage: Largest coverage of the goal.
    """

    start: int
    states: Array
    mode: int
    coverage: float


@dataclass(frozen=True)
class Arm:
    """What one run did.

    Attributes:
        name: Name of the run directory.
        path: The run directory.
        seeds: Training seeds (S).
        steps: Checkpoints that every seed keeps, ascending (C).
        counts: Rollouts by mode (S, C, N, 3).
        coverage: Mean coverage (S, C, N).
        demonstrated: Training demonstrations that begin nearly upside down, by mode (3,).
        example: Rollouts of the first seed's last checkpoint from the first start.
        gaps: What the run was to hold and does not, in words; empty for a finished run.
    """

    name: str
    path: str
    seeds: list[int]
    steps: list[int]
    counts: Counts
    coverage: Array
    demonstrated: Counts
    example: list[Rollout]
    gaps: list[str]

    @property
    def repetitions(self) -> int:
        """Rollouts per checkpoint and start, R."""
        return int(self.counts[0, 0, 0].sum())

    def values(self, measure: str) -> Array:
        """One of `MEASURES` as scores (S, C, units): of each start, or of all starts together for `majority`."""
        if measure == "majority":
            return majority(self.counts)[..., None]
        return total_variation(self.counts, self.demonstrated) if measure == "total_variation" else self.coverage

    def floor(self, measure: str) -> Array | None:
        """What pure chance would give at each checkpoint (C,), NaN where nothing is decided; None for `coverage`."""
        if measure == "majority":
            by_seed = majority_floor(self.counts)  # (S, C)
            decided = ~np.isnan(by_seed)
            return np.divide(
                np.nansum(by_seed, 0), decided.sum(0), where=decided.any(0), out=np.full(len(self.steps), np.nan)
            )
        floor = total_variation_floor(self.demonstrated, self.repetitions)
        return np.full(len(self.steps), floor) if measure == "total_variation" else None


def roll_out(policy: ActingPolicy, seed: int, checkpoint: int, repetitions: int) -> list[Rollout]:
    """Roll a policy out from every symmetric start.

    Args:
        policy: Chooses the actions.
        seed: Training seed, recorded in the rows.
        checkpoint: Training step, recorded in the rows.
        repetitions: Rollouts per start, R; the sampling noise of each is a function of its start and number alone.

    Returns:
        N * R rollouts, start by start.
    """
    starts = symmetric_starts()
    every = [(start, repetition) for start in range(len(starts)) for repetition in range(repetitions)]
    found = []
    for first in range(0, len(every), BATCH):
        group = every[first : first + BATCH]
        names = [start * MOST_REPETITIONS + repetition for start, repetition in group]
        states, recorder = starts[[start for start, _ in group]], Recorder()
        rows = evaluate(policy, names, seed=seed, checkpoint=checkpoint, on_step=recorder.on_step, states=states)
        watched = recorder.recording(rows).states
        for index, ((start, _), row) in enumerate(zip(group, rows, strict=True)):
            path = watched[: row.steps + 1, index]
            found.append(Rollout(start, path, int(classify(path[:, 4])), row.metrics["coverage"]))
    return found


def measure(
    run: Path,
    kept: Mapping[int, Sequence[Checkpoint]],
    repetitions: int,
    solver: Solver,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> Arm:
    """Roll out checkpoints of every seed of a run.

    Args:
        run: Run directory.
        kept: The checkpoints by training seed, the same steps for every seed.
        repetitions: Rollouts per start, R.
        solver: How to go from noise to actions.
        device: cpu or cuda.
        progress: Told what comes next.

    Raises:
        ValueError: If a checkpoint is damaged, or the demonstrations cannot be read or hold none to compare with.
    """
    demonstrated = training_modes(run)
    rollouts: list[list[list[Rollout]]] = []  # (S, C, N * R)
    for seed, checkpoints in kept.items():
        rollouts.append([])
        for checkpoint in checkpoints:
            progress(f"{run.name}: seed {seed}, step {checkpoint.step}")
            agent = load_agent(checkpoint, solver, device)
            rollouts[-1].append(roll_out(agent, seed, checkpoint.step, repetitions))
    steps = [checkpoint.step for checkpoint in next(iter(kept.values()))]
    shape = (len(kept), len(steps), len(symmetric_starts()), repetitions)
    modes = np.reshape([[[each.mode for each in found] for found in of_seed] for of_seed in rollouts], shape)
    coverage = np.reshape([[[each.coverage for each in found] for found in of_seed] for of_seed in rollouts], shape)
    example = [each for each in rollouts[0][-1] if each.start == 0]
    gaps = find_gaps(run, list(kept), steps)
    return Arm(
        run.name, str(run), list(kept), steps, count_modes(modes), coverage.mean(-1), demonstrated, example, gaps
    )


def find_gaps(run: Path, seeds: Sequence[int], steps: Sequence[int]) -> list[str]:
    """Training seeds and steps that a run's configuration asks for and that are not there, in words."""
    config = read_config(RunDirectory(run))
    missing = sorted(set(parse_range("seed", config.seed)) - set(seeds))
    gaps = [f"no checkpoint of seed {', '.join(map(str, missing))}"] if missing else []
    unfinished = f"the last step that every seed keeps is {steps[-1]:,} of {config.steps:,}"
    return gaps + [unfinished] * (steps[-1] < config.steps)


def training_modes(run: Path) -> Counts:
    """Modes of the demonstrations that a run was trained on (3,), of those that begin nearly upside down.

    Raises:
        ValueError: If they cannot be read, or none begins there.
    """
    config = read_config(RunDirectory(run))
    task = find_task(**config.task)
    demos = open_demonstrations(task, config.data)
    demos = demos.select(split_episodes(demos.n_episodes, config.validation, config.train_episodes)[0])
    counts = demonstrated_modes(task.mirror(demos) if config.mirror else demos)
    if not counts.sum():
        raise ValueError(f"run={run}: none of its {demos.n_episodes} demonstrations begins nearly upside down")
    return counts


def estimate(values: Array) -> Interval | None:
    """Mean of scores (S, units) with its interval; seeds without a score are left out, None where none has one."""
    scored = values[~np.isnan(values).any(1)]
    return mean_interval(scored) if len(scored) else None


def difference(arm: Arm, base: Arm, measure: str) -> Interval | None:
    """Last checkpoint of an arm less that of another, paired by seed where the seeds are the same.

    Returns:
        The difference with its interval, or None where a seed has no score.
    """
    a, b = arm.values(measure)[:, -1], base.values(measure)[:, -1]
    if np.isnan(a).any() or np.isnan(b).any():
        return None
    return interval(difference_arms(a, b, same_seeds=arm.seeds == base.seeds))
