"""PushT: its simulation beside gym-pusht, its coverage beside shapely, and their share of an evaluation.

All step through the same episodes: from states recorded in the embedded demonstrations, with the commands that follow
there (one demonstration after another), each one displaced by a few pixels. Resets, observations and coverage are
included. All alternate in one run; figures are medians over the turns, ratios medians of the paired ratios.

- *one environment*: `gymnasium.make`, in Python. *make_vec N*: N environments through Gymnasium's vector interface.
  *simulate N*: N episodes open loop in one call of `immiscible_envs.batch.simulate`. *x T*: T threads.
- *gym-pusht*: `gymnasium.make`, states observed.
- The floor is a prototype, measured on another machine: the physics alone, and four convex clips.
- The evaluation takes 10 DDIM steps a chunk; its network is untrained, which takes the same time.

  python -m benchmarks env
  python -m benchmarks env counts=1,50,1000 threads=1,4
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from benchmarks.drawing import log_axes
from benchmarks.measuring import Seconds, ratio, require_positive, short, take_turns, timed, where
from benchmarks.peers import Peer, chosen_peers, peer_names
from immiscible_envs import MAX_EPISODE_STEPS
from immiscible_envs.batch import BatchSimulation, simulate
from immiscible_envs.geometry import CENTER_OF_GRAVITY, GOAL_POSE, Array, coverage, place
from immiscible_policy.cli import COUNT, SEED, Option, parse_range
from immiscible_policy.evaluation.agent import Agent
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.lab.program import program, table
from immiscible_policy.palette import COLOURS, GREY, panels
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver
from immiscible_policy.tasks import Observed, find_task, open_demonstrations
from immiscible_policy.tasks.pusht import ENVIRONMENT

QUICK_SIZES: dict[str, Any] = {
    "turns": 1, "steps": 10, "counts": "1,4", "episodes": 2, "starts": 4, "evaluated": 8, "poses": 8,
}  # fmt: skip
JITTER = 5.0
"""Standard deviation of the commands' displacement, px."""
STEPS_PER_TURN = 1000
"""A turn with few environments is repeated until it has made so many steps."""
FLOOR_STEPS, FLOOR_COVERAGE = 326_000, 0.44
"""Prototypes: physics through pymunk's compiled library, steps/s on one core; and four convex clips, microseconds."""
PLAIN, PEER = "one environment", "gym-pusht"
STEPS = {
    "what x threads": "{name}",
    "ours, steps/s": "{ours:,}",
    "gym-pusht, steps/s": "{peer:,}",
    "ours / gym-pusht": "{over:.3g}",
    "floor, steps/s and core": "{floor:,}",
    "ours per core / floor": "{over_floor:.2f}",
}
COVERAGE = {
    "coverage": "{name}",
    "ours, us": "{ours:.3g}",
    "shapely, us": "{peer:.3g}",
    "shapely / ours": "{over:.3g}",
    "floor, us": "{floor}",
    "ours / floor": "{over_floor:.3g}",
}

Figures = dict[str, Any]


class Episodes(NamedTuple):
    """Pushes for everyone.

    Attributes:
        starts: (N, 5) states.
        actions: (N, T, 2) commands, px.
    """

    starts: Array
    actions: Array

    @property
    def starts_position_first(self) -> Array:
        """(N, 5) the same starts as gym-pusht reads them: it sets the block's position before its angle."""
        numbers, angles = self.starts.copy(), self.starts[:, 4]
        turned = place([CENTER_OF_GRAVITY], np.stack([0 * angles, 0 * angles, angles], axis=1))[:, 0]
        numbers[:, 2:4] += turned - CENTER_OF_GRAVITY
        return numbers


def measure(options: dict[str, Any]) -> Findings:
    """Time steps, coverage and an evaluation."""
    counts, threads = sorted(parse_range("counts", options["counts"])), parse_range("threads", options["threads"])
    require_positive(counts=counts, threads=threads)
    peer_takes_part = PEER in chosen_peers(options["peers"])
    pushes = perturbed_demonstrations(max(counts[-1], options["episodes"]), options["steps"], options["seed"])
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(PEER)) if peer_takes_part else None
        steps = time_steps(pushes, counts, threads, options["episodes"], options["turns"], peer)
        covered = time_coverage(options["poses"], options["turns"], options["seed"], peer)
    figures = {
        **steps,
        "backend": BatchSimulation(1).backend,
        "coverage": covered,
        "evaluation": time_evaluation(options["starts"], options["evaluated"], max(threads)),
        "floor": {"steps_per_s": FLOOR_STEPS, "coverage_us": FLOOR_COVERAGE},
    }
    return Findings(figures, describe(figures), _picture(figures))


def perturbed_demonstrations(count: int, steps: int, seed: int) -> Episodes:
    """Episodes from recorded states, with the commands that follow in the embedded demonstrations, displaced.

    Args:
        count: Episodes, N.
        steps: Commands of each, T; where a demonstration ends the next one's follow.
        seed: Of the choice and the displacement.

    Raises:
        ValueError: If that is longer than an episode.
    """
    demos, random = open_demonstrations(find_task("pusht")), np.random.default_rng(seed)
    if steps > MAX_EPISODE_STEPS:
        raise ValueError(f"steps={steps}: an episode has at most {MAX_EPISODE_STEPS}")
    begins = random.integers(0, len(demos) - steps, count)
    actions = np.stack([np.asarray(demos["action"][begin : begin + steps], dtype=np.float64) for begin in begins])
    actions += random.normal(scale=JITTER, size=actions.shape)
    return Episodes(np.asarray(demos["state"][begins], dtype=np.float64), np.clip(actions, 0, 512))


def time_steps(
    pushes: Episodes, counts: Sequence[int], threads: Sequence[int], episodes: int, turns: int, peer: Peer | None
) -> Figures:
    """Steps per second of everything that steps, and how far the states agree."""
    few = Episodes(pushes.starts[:episodes], pushes.actions[:episodes])
    candidates: dict[str, Callable[[], float]] = {PLAIN: lambda: one_environment(few)[0]}
    for workers in threads:
        for count in counts:
            some = Episodes(pushes.starts[:count], pushes.actions[:count])
            candidates[f"make_vec {count} x{workers}"] = repeated(batched(some, workers), some)
            at_once = partial(simulate, some.starts, some.actions, threads=workers)
            candidates[f"simulate {count} x{workers}"] = repeated(at_once, some)
    versions = {}
    if peer is not None:
        built = {"starts": few.starts_position_first.tolist(), "actions": few.actions.tolist()}
        versions = peer.ask("build", built)["versions"]
        candidates[PEER] = lambda: float(peer.ask("step", {"episodes": episodes}))
    seconds = take_turns(candidates, turns)
    simulated = simulate(few.starts, few.actions)
    figures = {
        "episodes": {
            "count": episodes,
            "steps": few.actions.shape[1],
            "share_with_contact": round(float((simulated.n_contacts[:, 1:] > 0).mean()), 4),
        },
        "steps_per_s": {name: round(1 / float(np.median(turns))) for name, turns in seconds.items()},
        "over_one_environment": _times_as_fast(seconds, PLAIN),
        "largest_difference_px": {
            "simulate and one environment": _apart(simulated.states[:, 1:], one_environment(few)[1])
        },
        "curves": {"counts": list(counts), "threads": list(threads)},
    }
    if peer is not None:
        figures["versions"] = versions
        figures["over_gym_pusht"] = _times_as_fast(seconds, PEER)
        theirs = np.array(peer.ask("states", {"episodes": episodes}))
        ours = simulate(few.starts_position_first, few.actions, "position_first").states[:, 1:]
        figures["largest_difference_px"]["simulate and gym-pusht"] = _apart(ours, theirs)
    return figures


def one_environment(episodes: Episodes) -> tuple[float, Array]:
    """Seconds per step of the plain environment, resets included, and the states (N, T, 5) that it went through."""
    environment = gymnasium.make(ENVIRONMENT, obs_type="state", disable_env_checker=True)
    states = []
    start = time.perf_counter()
    for state, actions in zip(*episodes, strict=True):
        environment.reset(options={"state": state})
        states += [environment.step(action)[0] for action in actions]
    seconds = time.perf_counter() - start
    environment.close()
    return seconds / len(states), np.array(states).reshape(*episodes.actions.shape[:2], 5)


def batched(episodes: Episodes, threads: int) -> Callable[[], None]:
    """What runs all episodes side by side in the vector environment, resets included; it is made once."""
    environment = gymnasium.make_vec(
        ENVIRONMENT,
        num_envs=len(episodes.starts),
        vectorization_mode="vector_entry_point",
        obs_type="state",
        autoreset_mode=AutoresetMode.DISABLED,  # as the single environment, which goes on after an end
        threads=threads,
    )

    def run() -> None:
        environment.reset(options={"state": episodes.starts})
        for actions in episodes.actions.transpose(1, 0, 2):
            environment.step(actions)

    return run


def repeated(call: Callable[[], object], episodes: Episodes) -> Callable[[], float]:
    """A turn: the call as often as it takes for `STEPS_PER_TURN`; returns seconds per step."""
    steps = episodes.actions.shape[0] * episodes.actions.shape[1]
    return lambda: timed(call, -(-STEPS_PER_TURN // steps)) / steps


def time_coverage(poses: int, turns: int, seed: int, peer: Peer | None) -> Figures:
    """Microseconds per coverage of poses about the goal, and the largest difference from shapely's."""
    random = np.random.default_rng(seed)
    block = np.array(GOAL_POSE) + random.normal(size=(poses, 3)) * (30, 30, 0.5)
    goals, batch = np.tile(GOAL_POSE, (poses, 1)), BatchSimulation(1)
    candidates: dict[str, Callable[[], float]] = {
        "one by one, in Python": lambda: timed(lambda: [coverage(pose) for pose in block]) / poses,
        "all at once": lambda: timed(lambda: batch.coverage(block, goals), 20) / poses,
    }
    if peer is not None:
        candidates["shapely"] = lambda: float(peer.ask("coverage", {"poses": block.tolist(), "calls": 1})["seconds"])
    seconds = take_turns(candidates, turns)
    figures: Figures = {"us": {name: round(1e6 * float(np.median(turns)), 3) for name, turns in seconds.items()}}
    if peer is not None:
        theirs = np.array(peer.ask("coverage", {"poses": block.tolist(), "calls": 1})["values"])
        figures["shapely_over"] = _times_as_fast(seconds, "shapely")
        figures["largest_difference"] = float(np.abs(batch.coverage(block, goals) - theirs).max())
    return figures


class TimedAgent:
    """A policy that counts the seconds in which it acts.

    Args:
        agent: The policy.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent, self.seconds = agent, 0.0
        self.obs, self.obs_steps = agent.obs, agent.obs_steps

    def act(self, observed: Observed, generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """What the policy does, timed."""
        start = time.perf_counter()
        actions = self.agent.act(observed, generators)
        self.seconds += time.perf_counter() - start
        return actions


def time_evaluation(starts: int, steps: int, threads: int) -> Figures:
    """Seconds of an evaluation with an untrained policy of CPU size, and the share that is not the network's."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    config = compose_config(["scale=cpu", "device=cpu"])
    recipe = RobotRecipe.prepare(config)
    agent = TimedAgent(Agent(recipe.policy(0).eval(), recipe.spec, Solver("ddim", 10)))
    started = time.perf_counter()
    task = find_task("pusht")
    evaluate(task, agent, task.starts("legacy", starts), seed=0, checkpoint=0, batch_size=starts, max_steps=steps)
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return {
        "starts": starts,
        "steps": steps,
        "threads": threads,
        "seconds": round(seconds, 3),
        "network_seconds": round(agent.seconds, 3),
        "share_of_simulation": round(1 - agent.seconds / seconds, 4),
    }


def _times_as_fast(seconds: Seconds, other: str) -> dict[str, float]:
    """How many times as fast as another everything is."""
    return {name: ratio(seconds, other, name) for name in seconds if name != other}


def _apart(one: Array, other: Array) -> float:
    """Largest difference of two sets of states (N, T, 5), angles across the turn."""
    difference = one - other
    difference[..., 4] = (difference[..., 4] + np.pi) % (2 * np.pi) - np.pi
    return float(np.abs(difference).max())


def describe(figures: Figures) -> str:
    """Both tables, how far the results agree, and the evaluation."""
    per_second, covered, evaluation = figures["steps_per_s"], figures["coverage"], figures["evaluation"]
    stepping = beside(per_second, PEER, figures.get("over_gym_pusht", {}), FLOOR_STEPS)
    covering = beside(covered["us"], "shapely", covered.get("shapely_over", {}), FLOOR_COVERAGE)
    episodes = figures["episodes"]
    apart = [f"{pair} {value:.2g} px and rad" for pair, value in figures["largest_difference_px"].items()]
    if "largest_difference" in covered:
        apart.append(f"coverage and shapely's {covered['largest_difference']:.2g}")
    facts = [
        f"- Episodes of {episodes['steps']} steps, with contact in {episodes['share_with_contact']:.0%} of the steps; "
        f"{figures['backend']} backend.",
        *(f"- {name} {version}." for name, version in figures.get("versions", {}).items()),
        f"- Largest differences over {episodes['count']} episodes: {'; '.join(apart)}.",
        f"- Evaluation of {evaluation['starts']} starts x {evaluation['steps']} steps, "
        f"{where('cpu', evaluation['threads'])}: {evaluation['seconds']:.2f} s, of which everything else but the "
        f"network takes {evaluation['share_of_simulation']:.1%}.",
    ]
    return "\n\n".join(["\n".join(facts), table(STEPS, stepping), table(COVERAGE, covering)])


def beside(measured: dict[str, float], peer: str, over: dict[str, float], floor: float) -> list[Figures]:
    """A row for all of ours: with the peer, where it took part, and the floor, which is that of one thread."""
    return [
        {
            "name": name,
            "ours": ours,
            "peer": measured.get(peer),
            "over": over.get(name),
            "floor": floor,
            "over_floor": ours / floor / (int(name.rpartition("x")[2]) if " x" in name else 1),
        }
        for name, ours in measured.items()
        if name != peer
    ]


def _picture(figures: Figures) -> Figure:
    figure, axes = panels(2, title=f"PushT, {figures['backend']} backend; dotted: floor (prototype), one core")
    per_second, curves = figures["steps_per_s"], figures["curves"]
    styles = dict(zip(curves["threads"], ("-", "--", ":", "-.") * len(curves["threads"]), strict=False))
    for colour, kind in zip(COLOURS, ("simulate", "make_vec"), strict=False):
        for workers, style in styles.items():
            values = [per_second[f"{kind} {count} x{workers}"] for count in curves["counts"]]
            label = f"{kind}, {workers} thread{'s' * (workers > 1)}"
            axes[0].plot(curves["counts"], values, style, color=colour, marker="o", markersize=3, label=label)
    levels = {PLAIN: per_second[PLAIN], PEER: per_second.get(PEER), "floor (prototype)": FLOOR_STEPS}
    for (name, level), colour in zip(levels.items(), (COLOURS[2], COLOURS[4], GREY), strict=True):
        if level is not None:
            axes[0].axhline(level, color=colour, linewidth=1.3, linestyle=":" if colour == GREY else "-")
            at, side = (0.02, "left") if colour == GREY else (1, "right")  # clear of the curves
            axes[0].annotate(
                name, (at, level), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                color=colour, fontsize=8, ha=side,
            )  # fmt: skip
    axes[0].set_xlabel("environments at once", fontsize=9)
    axes[0].set_ylabel("steps per second", fontsize=9)
    log_axes(axes[0], curves["counts"])
    axes[0].legend(fontsize=8, frameon=False)
    _draw_coverage(axes[1], figures["coverage"]["us"])
    return figure


def _draw_coverage(axes: Axes, microseconds: dict[str, float]) -> None:
    names = list(microseconds)
    axes.barh(names, list(microseconds.values()), color=[COLOURS[2], COLOURS[0], COLOURS[4]][: len(names)], height=0.5)
    for height, value in enumerate(microseconds.values()):
        axes.annotate(
            short(value), (value, height), (5, 0), textcoords="offset points", fontsize=8, va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.axvline(FLOOR_COVERAGE, color=GREY, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.25)
    axes.grid(visible=False)
    axes.set_xlabel("microseconds per coverage", fontsize=9)


OPTIONS = {
    "counts": Option(str, "1,8,50,256,1024", "numbers of environments at once"),
    "threads": Option(str, "1,2", "threads of the batches; the evaluation takes the most"),
    "steps": Option(COUNT, MAX_EPISODE_STEPS, "steps of an episode"),
    "episodes": Option(COUNT, 5, "episodes for what steps one environment at a time"),
    "poses": Option(COUNT, 500, "poses for coverage"),
    "starts": Option(COUNT, 50, "starts of the evaluation"),
    "evaluated": Option(COUNT, 300, "steps of the evaluation"),
    "turns": Option(COUNT, 5, "turns of each candidate"),
    "seed": Option(SEED, 0, "seed of episodes, displacements and poses"),
    "peers": Option(peer_names, None, "all, none, or names; none given: all that are installed"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS, QUICK_SIZES)
