"""What a run does from starts that favour no mode: rollouts of every checkpoint of every training seed, by mode.

The benchmark of Immiscible Diffusion Policy (arXiv 2610.09369). Every checkpoint is rolled out R times from each
start of the task's `modes`, each time with sampling noise of its own, a function of (start, repetition).

Definitions, where the paper leaves them open (S seeds, C checkpoints, N starts, K modes):

* a rollout's mode is the task's classification of it (`Modes.classify`), the last one for an undecided rollout;
* `majority`, the published "picks one direction", is taken per seed: each start's most frequent mode, over the
  decided rollouts, all starts together. A seed in which nothing is decided has none, and is left out;
* `followed` is the published share: that of the decided rollouts that took the mode which the first run's rollouts,
  of the same training seed and start, took most. Published over 50 rollouts from one start (repetitions=50);
* `total_variation` is the distance between the K shares of a seed's rollouts from one start and those of the
  training demonstrations that begin alike, then averaged over starts and seeds;
* the third measure is the mean of the task's primary metric over rollouts;
* the *floor* of the first two is what as many draws from a fair coin, or from the demonstrations, would give;
* intervals are those of `statistics`: of `majority` for new seeds, of the others for new seeds and starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.split import split_episodes
from immiscible_policy.demos.store import content_hash
from immiscible_policy.demos.windows import Layout
from immiscible_policy.evaluation.agent import load_agent, read_spec
from immiscible_policy.evaluation.recording import Recorder
from immiscible_policy.evaluation.rollout import BATCH, ActingPolicy, evaluate
from immiscible_policy.evaluation.statistics import Interval, difference_arms, interval, mean_interval
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, require_data
from immiscible_policy.tasks import Modes, Task, open_demonstrations, primary
from immiscible_policy.training.options import epoch_steps, off_protocol

Array = NDArray[np.float64]
Counts = NDArray[np.int64]  # Counts (..., K) of rollouts by K - 1 modes and, last, of those that took none
MOST_REPETITIONS, DRAWS = 10_000, 10_000


def count_modes(modes: ArrayLike, kinds: int) -> Counts:
    """How many of the rollouts (..., R) have each of the modes 0 to kinds - 1: (..., kinds)."""
    return np.sum(np.asarray(modes)[..., None] == np.arange(kinds), axis=-2)


def demonstrated_modes(task: Task, modes: Modes, demos: Demonstrations) -> Counts:
    """Modes (K,) of the demonstrations that begin in the benchmark's situation; all 0 where none does."""
    scenes = task.recorded_scenes(demos)
    episodes = [scenes[steps] for steps in demos.episodes]
    return count_modes([modes.classify(episode) for episode in episodes if modes.is_alike(episode)], len(modes.names))


def total_variation(counts: ArrayLike, reference: ArrayLike) -> Array:
    """Total-variation distance (...) between shares, 1/2 sum |p - q| over all K: 0 alike, 1 disjoint.

    Taking no mode counts as a mode: a policy that gets stuck does not do what was demonstrated. Counts (..., K) have
    at least one rollout each; the reference counts (K,) are those of the demonstrations.
    """
    return 0.5 * np.abs(shares(counts) - shares(reference)).sum(-1)


def total_variation_floor(reference: ArrayLike, draws: int) -> float:
    """Expected distance of independent draws from the demonstrations (K,) that they are compared with.

    Exact: the count of mode i is binomial(draws, q_i), and expectations add up.
    """
    outcomes = np.arange(draws + 1)
    q = shares(reference)[:, None]
    return float(0.5 * np.sum(stats.binom.pmf(outcomes, draws, q) * np.abs(outcomes / draws - q)))


def majority(counts: ArrayLike) -> Array:
    """Share of the decided rollouts that took their start's most frequent mode: 1/(K - 1) balanced, 1 one mode only.

    From counts (..., starts, K): the largest counts, summed over starts, over the number decided (...); NaN for none.
    """
    decided = np.asarray(counts)[..., :-1]
    with np.errstate(invalid="ignore"):
        return decided.max(-1).sum(-1) / decided.sum((-2, -1))


def followed(counts: ArrayLike, first: ArrayLike) -> Array:
    """Share (S,) of the decided rollouts in the mode that the first run's rollouts from the same start took most.

    Counts (S, N, K) of both, of the same seeds. Starts from which the first run took no mode most are left out; NaN for
    a seed with none decided.
    """
    decided, others = (np.asarray(of_run)[..., :-1] for of_run in (counts, first))
    led = (others == others.max(-1, keepdims=True)).sum(-1, keepdims=True) == 1
    decided = decided * led
    same = np.take_along_axis(decided, others.argmax(-1, keepdims=True), axis=-1)
    with np.errstate(invalid="ignore"):
        return same.sum((1, 2)) / decided.sum((1, 2))


def majority_floor(counts: ArrayLike) -> Array:
    """Expected `majority` (...) of counts (..., starts, K) if decided rollouts took any mode alike; NaN for none.

    Exact for two modes, a fair coin; of more, the mean over draws of a fixed stream.
    """
    kinds = np.shape(counts)[-1] - 1

    def expected(n: int) -> float:  # E max(X, n - X) of n fair coins
        if kinds > 2:
            return float(np.random.default_rng(0).multinomial(n, np.full(kinds, 1 / kinds), DRAWS).max(-1).mean())
        outcomes = np.arange(n + 1)
        return float(stats.binom.pmf(outcomes, n, 0.5) @ np.maximum(outcomes, n - outcomes))

    decided = np.asarray(counts)[..., :-1].sum(-1)
    with np.errstate(invalid="ignore"):
        return np.vectorize(expected, otypes=[float])(decided).sum(-1) / decided.sum(-1)


def shares(counts: ArrayLike) -> Array:
    """Counts (..., K) as shares of their sum; ValueError if there is nothing to share out."""
    counted = np.asarray(counts, dtype=np.float64)
    total = counted.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError(f"counts of modes {counted.tolist()}: each needs at least one rollout")
    return counted / total


@dataclass(frozen=True)
class Rollout:
    """One rollout from a start of the benchmark."""

    start: int
    scenes: Array  # (L, ...) from the start to success or the episode's end
    mode: int  # index of the mode's name
    score: float  # the primary metric


@dataclass(frozen=True)
class Arm:
    """What one run did."""

    name: str
    run: RunDirectory
    task: Task
    modes: Modes
    seeds: list[int]  # training seeds (S)
    steps: list[int]  # checkpoints that every seed keeps, ascending (C)
    counts: Counts  # rollouts by mode (S, C, N, K)
    scores: Array  # mean of the primary metric (S, C, N)
    demonstrated: Counts  # training demonstrations that begin alike, by mode (K,)
    example: list[Rollout]  # of the first seed's last checkpoint from the first start
    gaps: list[str]  # seeds and steps that the run should have and lacks, in words
    departures: list[str] = field(default_factory=list)  # from the published protocol, see `departures`

    @property
    def repetitions(self) -> int:
        """Rollouts per checkpoint and start, R."""
        return int(self.counts[0, 0, 0].sum())

    @property
    def shares(self) -> Array:
        """Shares of the modes in all rollouts of each checkpoint (C, K)."""
        return shares(self.counts.sum((0, 2)))

    @property
    def measures(self) -> tuple[str, str, str]:
        """What is measured."""
        return "majority", "total_variation", primary(self.task).name

    def values(self, measure: str) -> Array:
        """One of `measures` as scores (S, C, units): of each start, or of all starts together for `majority`."""
        if measure == "majority":
            return majority(self.counts)[..., None]
        return total_variation(self.counts, self.demonstrated) if measure == "total_variation" else self.scores

    def floor(self, measure: str) -> Array | None:
        """What pure chance would give at each checkpoint (C,), NaN where nothing is decided; None for the metric."""
        if measure == "majority":
            by_seed = majority_floor(self.counts)  # (S, C)
            decided = ~np.isnan(by_seed)
            return np.divide(
                np.nansum(by_seed, 0), decided.sum(0), where=decided.any(0), out=np.full(len(self.steps), np.nan)
            )
        floor = total_variation_floor(self.demonstrated, self.repetitions)
        return np.full(len(self.steps), floor) if measure == "total_variation" else None


def roll_out(
    task: Task, modes: Modes, policy: ActingPolicy, seed: int, checkpoint: int, repetitions: int
) -> list[Rollout]:
    """Roll a policy out from every start of the benchmark: N * R rollouts, start by start.

    The sampling noise of a rollout is a function of its start and repetition alone.
    """
    every = [(start, repetition) for start in range(len(modes)) for repetition in range(repetitions)]
    rollouts = []
    for first in range(0, len(every), BATCH):
        group = every[first : first + BATCH]
        names = [start * MOST_REPETITIONS + repetition for start, repetition in group]
        options = {key: values[[start for start, _ in group]] for key, values in modes.options.items()}
        recorder = Recorder(task)
        rows = evaluate(
            task, policy, names, seed=seed, checkpoint=checkpoint, on_step=recorder.on_step, options=options
        )
        watched = recorder.recording(rows).scenes
        for index, ((start, _), row) in enumerate(zip(group, rows, strict=True)):
            path = watched[: row.steps + 1, index]
            rollouts.append(Rollout(start, path, modes.classify(path), row.metrics[primary(task).name]))
    return rollouts


def measure(
    run: RunDirectory,
    demos: Demonstrations,
    kept: Mapping[int, Sequence[Checkpoint]],
    modes: Modes,
    repetitions: int,
    solver: Solver,
    device: str,
    progress: Callable[[str], None],
) -> Arm:
    """Roll out checkpoints of every seed of a run, the same steps for every seed; ValueError for a damaged one.

    The demonstrations are its `training_demonstrations`, the modes those of its task, from some of its starts or all.
    """
    task = run.task
    rollouts: list[Rollout] = []  # (S, C, N, R), flat
    for seed, checkpoints in kept.items():
        for checkpoint in checkpoints:
            progress(f"{run.name}: seed {seed}, step {checkpoint.step}")
            agent = load_agent(checkpoint, solver, device)
            rollouts += roll_out(task, modes, agent, seed, checkpoint.step, repetitions)
    steps = [checkpoint.step for checkpoint in next(iter(kept.values()))]
    shape = (len(kept), len(steps), len(modes), repetitions)
    counts = count_modes(np.reshape([rollout.mode for rollout in rollouts], shape), len(modes.names))
    scores = np.reshape([rollout.score for rollout in rollouts], shape).mean(-1)
    last = (len(steps) - 1) * len(modes) * repetitions  # the first seed's last checkpoint begins here
    example, gaps = rollouts[last : last + repetitions], find_gaps(run, list(kept), steps)
    layout = Layout.of(read_spec(next(iter(kept.values()))[0]))
    epoch = epoch_steps(int(layout.n_windows(demos.lengths).sum()), run.config["batch_size"])
    other = departures(run, modes, solver, steps[-1] / epoch, repetitions)
    shown = training_modes(run, demos)
    return Arm(run.name, run, task, modes, list(kept), steps, counts, scores, shown, example, gaps, other)


def departures(run: RunDirectory, modes: Modes, solver: Solver, epochs: float, repetitions: int) -> list[str]:
    """Settings that differ from those of `Modes.protocol`, such as `epochs=20 (published: 5000)`."""
    noise = run.config["noise"]
    measured = {
        "solver": solver.name,
        "sampling_steps": solver.steps,
        "epochs": round(epochs),
        "starts": len(modes),
        "repetitions": repetitions,
        "noise": f"{noise['name']} start={noise['start']}" if noise.get("start") else noise["name"],
        "data": run.data_hash,
    }
    return off_protocol(run.config | measured, modes.protocol)


def modes_of(run: RunDirectory) -> Modes:
    """The modes of a run's task; ValueError if it has none."""
    if run.task.modes is None:
        raise ValueError(f"run={run.path}: task={run.task.name} has no modes to tell apart")
    return run.task.modes


def find_gaps(run: RunDirectory, seeds: Sequence[int], steps: Sequence[int]) -> list[str]:
    """Training seeds and steps that a run's configuration asks for and that are not there, in words."""
    missing = sorted(set(run.planned_seeds()) - set(seeds))
    gaps = [f"no checkpoint of seed {', '.join(map(str, missing))}"] if missing else []
    planned = run.config["steps"]
    unfinished = f"the last step that every seed keeps is {steps[-1]:,} of {planned:,}"
    return gaps + [unfinished] * (steps[-1] < planned)


def training_modes(run: RunDirectory, demos: Demonstrations) -> Counts:
    """Modes (K,) of the `training_demonstrations` of a run that begin as the benchmark does; ValueError without any."""
    modes = modes_of(run)
    counts = demonstrated_modes(run.task, modes, demos)
    if not counts.sum():
        raise ValueError(f"run={run.path}: no demonstrations {modes.alike} among its {demos.n_episodes}")
    return counts


def training_demonstrations(run: RunDirectory, data: Path | None = None) -> Demonstrations:
    """The demonstrations that a run was trained on, mirrored if they were; `data` is where they are now.

    Raises ValueError if they cannot be read, or are others.
    """
    task, config = run.task, run.config
    demos = open_demonstrations(task, data or config["data"])
    pictures = (config["obs"], config["images"]) == ("image", "stored")
    require_data(demos.path, content_hash(demos, images=pictures), run.data_hash)
    demos = demos.select(split_episodes(demos.n_episodes, config["validation"], config["train_episodes"])[0])
    return task.mirror(demos) if config["mirror"] else demos


def estimate(values: Array) -> Interval | None:
    """Mean of scores (S, units) with its interval; seeds without a score are left out, None where none has one."""
    scored = values[~np.isnan(values).any(1)]
    return mean_interval(scored) if len(scored) else None


def followed_first(arm: Arm, first: Arm) -> Interval | None:
    """Mean `followed` of the last checkpoints over the training seeds of both; None if there is none."""
    shared = [seed for seed in arm.seeds if seed in first.seeds]
    if not shared:
        return None
    ends = [run.counts[[run.seeds.index(seed) for seed in shared], -1] for run in (arm, first)]
    return estimate(followed(*ends)[:, None])


def difference(arm: Arm, base: Arm, measure: str) -> Interval | None:
    """Last checkpoint of an arm - that of another, paired where the seeds are the same; None if a seed has no score."""
    a, b = arm.values(measure)[:, -1], base.values(measure)[:, -1]
    if np.isnan(a).any() or np.isnan(b).any():
        return None
    return interval(difference_arms(a, b, same_seeds=arm.seeds == base.seeds))
