"""Seconds of training until a policy covers 0.8 and 0.9, beside LeRobot's DiffusionPolicy.

All have the same network sizes, the same windows of demonstrations and one CPU core each, and train seed by seed: at
the same time as LeRobot first ours, then the plugin. Coverage is the mean of the largest coverage over the published
starts, rolled out here. Only training counts, not the evaluations.

- *Ours*: `train_policy.py experiment=demo`, with all that it does while it trains.
- *LeRobot*: its policy, processors, optimizer and learning rates with their defaults: it predicts the noise and samples
  with 100 steps of DDPM, in fp32, without EMA. `peer_batch=64` is what its published PushT policy was trained with.
  Loading data is not counted. It trains until it has covered the highest level, or for `limit` seconds.
- *LeRobot, immiscible_flow*: the same with this project's policy type in LeRobot's trainer, with its defaults but as
  many windows a step and training steps as ours.

  python -m benchmarks time_to_policy data=STORE
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import short
from benchmarks.peers import ROOT, Peer, chosen_peers, network_options, peer_names
from immiscible_policy.cli import COUNT, CommandError, Option, parse_range
from immiscible_policy.evaluation.agent import Agent, read_policy, solver_of
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.lab.program import legend, log2, plain, program, table
from immiscible_policy.palette import BLUE, GREY, RUST, TEAL, panels
from immiscible_policy.plugins.lerobot_checkpoint import read_lerobot
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import RobotConfig, compose_config
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task

PEER = "lerobot"
OURS, THEIRS, PLUGIN = "ours", "LeRobot", "LeRobot, immiscible_flow"
COLOURED = {OURS: BLUE, THEIRS: RUST, PLUGIN: TEAL}
LEVELS = (0.8, 0.9)
TICKS = (20, 50, 100, 200, 500, 1000)
QUICK_SIZES: dict[str, Any] = {
    "seed": "0", "steps": 4, "every": 2, "peer_every": 2, "peer_calls": 2, "starts": 2, "limit": 1,
}  # fmt: skip
RECIPE = (
    "method",
    "solver",
    "sampling_steps",
    "spacing",
    "batch_size",
    "optimizer",
    "lr",
    "steps",
    "down_dims",
    "precision",
    "kernels",
)
COLUMNS = {
    "": "{name}, seed {seed}",
    "ms a step": "{ms_per_step:.3g}",
    **{f"s until {level}": f"{{until[{level}]:,.0f}}" for level in LEVELS},
    "steps": "{step:,}",
    "seconds": "{seconds:,.0f}",
    "coverage": "{coverage:.3f}",
}

Figures = dict[str, Any]
Curve = list[Figures]  # step, seconds of training and coverage of each evaluation


def measure(options: Figures) -> Findings:
    """Train both, seed by seed.

    Raises:
        CommandError: If a number is unusable.
    """
    seeds = parse_range("seed", options["seed"])
    if options["every"] > options["steps"]:
        raise CommandError(f"every={options['every']}: training has {options['steps']} steps; use at most as many")
    peer_takes_part = PEER in chosen_peers(options["peers"])
    curves: dict[str, dict[int, Curve]] = {OURS: {}, THEIRS: {}, PLUGIN: {}}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            config = compose_config(training_words(options, seed, Path(folder)))
            ours = subprocess.Popen(
                [sys.executable, "train_policy.py", *training_words(options, seed, Path(folder))],
                cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                if peer_takes_part:
                    train = partial(train_peer, config=config, options=options, seed=seed, folder=Path(folder))
                    with ThreadPoolExecutor(1) as beside:
                        plugin = beside.submit(train_after, ours, partial(train, PLUGIN))
                        curves[THEIRS][seed] = train(THEIRS)
                        curves[PLUGIN][seed] = plugin.result()
                if ours.wait():
                    raise CommandError(f"train_policy.py failed with seed={seed}; what it says stands above")
            finally:
                ours.kill()
            curves[OURS][seed] = own_curve(Path(str(config.out)), seed)
    figures = {
        "recipe": {key: getattr(config, key) for key in RECIPE},
        "starts": options["starts"],
        "limit": options["limit"],
        "arms": {name: {seed: summed(curve) for seed, curve in own.items()} for name, own in curves.items() if own},
    }
    faster = (OURS, PLUGIN) if peer_takes_part else ()
    figures["times_as_long"] = {name: times_as_long(figures["arms"], name) for name in faster}
    return Findings(figures, describe(figures), draw(figures))


def train_after(ours: subprocess.Popen[bytes], train: Callable[[], Curve]) -> Curve:
    """Train when our training has ended; nothing if that failed."""
    return [] if ours.wait() else train()


def training_words(options: Figures, seed: int, folder: Path) -> list[str]:
    """The words of our training of a seed."""
    data = [f"data={options['data'].resolve()}"] if options["data"] else []
    sizes = {"steps": options["steps"], "checkpoint_every": options["every"], "episodes": options["starts"]}
    words = ["experiment=demo", f"seed={seed}", f"out={folder / 'ours'}_{seed}", "device=cpu", "threads=1"]
    return [*words, "wandb=disabled", *(f"{key}={value}" for key, value in sizes.items()), *data]


def own_curve(run: Path, seed: int) -> Curve:
    """What our training recorded: the seconds of training before each evaluation, and its coverage."""
    curve, seconds = [], 0.0
    for row in RunDirectory(run).seed(seed).metrics():
        seconds += row.get("seconds", 0.0)
        if "coverage" in row:
            curve.append({"step": row["step"], "seconds": seconds, "coverage": row["coverage"]})
    return curve


def train_peer(name: str, *, config: RobotConfig, options: Figures, seed: int, folder: Path) -> Curve:
    """Train a policy in LeRobot, in slices, and evaluate it after each."""
    windows = RobotRecipe.prepare(config).loaded.training
    archive = folder / f"{name}_{seed}.npz"
    np.savez(archive, obs=windows.obs.numpy(), action=windows.action.numpy(), pad=~windows.real.numpy())
    if name == PLUGIN:
        own = {"policy": "immiscible_flow", "schedule": options["steps"]}
        every, last, sampler = options["every"], options["steps"], None
    else:
        own = {"batch_size": options["peer_batch"], "sampler": "ddpm", "sampling_steps": options["peer_calls"]}
        every, last, sampler = options["peer_every"], None, Solver("ddpm", options["peer_calls"], "leading")
    task, step, seconds, coverage, curve = find_task("pusht"), 0, 0.0, 0.0, []
    starts = task.starts("legacy", options["starts"])
    with Peer(PEER) as peer:
        peer.ask("build", network_options(config) | own | {"precision": "fp32", "threads": 1, "seed": seed})
        peer.ask("learn", {"path": str(archive)})
        while step < last if last else coverage < max(LEVELS) and (step == 0 or seconds < options["limit"]):
            seconds += every * peer.ask("step", {"steps": every})
            step += every
            saved = folder / f"{name}_{seed}_{step}"
            peer.ask("save", {"path": str(saved)})
            checkpoint = read_lerobot(saved)
            agent = Agent(*read_policy(checkpoint), sampler or solver_of(checkpoint))
            rows = evaluate(task, agent, starts, seed=seed, checkpoint=step)
            coverage = statistics.mean(row.metrics["coverage"] for row in rows)
            print(f"{name}, seed {seed}: step {step:,}, {seconds:.0f} s, coverage {coverage:.3f}", flush=True)
            curve.append({"step": step, "seconds": seconds, "coverage": coverage})
    return curve


def summed(curve: Curve) -> Figures:
    """The last evaluation of a training, and the seconds until the first that passed each level, None if none did."""
    until = {str(level): next((at["seconds"] for at in curve if at["coverage"] >= level), None) for level in LEVELS}
    last = curve[-1]
    return {**last, "ms_per_step": 1e3 * last["seconds"] / last["step"], "until": until, "curve": curve}


def times_as_long(arms: Mapping[str, Mapping[int, Figures]], name: str) -> Figures:
    """LeRobot's seconds over those of `name`, by level and seed: `at_least` if LeRobot did not get there.

    The ratio is None if `name` did not.
    """
    ratios: Figures = {}
    for level in map(str, LEVELS):
        for seed, trained in arms[name].items():
            own, theirs = trained["until"][level], arms[THEIRS][seed]
            taken = theirs["until"][level]
            ratio = None if own is None else (taken or theirs["seconds"]) / own
            ratios.setdefault(level, {})[str(seed)] = {"ratio": ratio, "at_least": taken is None}
    return ratios


def describe(figures: Figures) -> str:
    """A table of trainings, and how the seconds compare."""
    recipe = figures["recipe"]
    about = (
        f"{recipe['method']}, {recipe['sampling_steps']} network calls ({recipe['spacing']}), {recipe['steps']:,} "
        f"steps of {recipe['batch_size']} windows; {figures['starts']} published starts; one core each."
    )
    rows = [{"name": name, "seed": seed, **at} for name, own in figures["arms"].items() for seed, at in own.items()]
    parts = [about, table(COLUMNS, rows)]
    for name, levels in figures["times_as_long"].items():
        for level, ratios in levels.items():
            cells = [
                f"seed {seed}: {'at least ' * at['at_least']}{short(at['ratio'])}"
                for seed, at in ratios.items()
                if at["ratio"] is not None
            ]
            parts += [f"LeRobot's seconds until {level} over those of {name}: {', '.join(cells)}."] if cells else []
    return "\n\n".join(parts)


def draw(figures: Figures) -> Figure:
    """Coverage against seconds of training."""
    figure, (axes,) = panels(1, title="coverage while training, one CPU core")
    plain(axes, "", "seconds of training (logarithmic)", "mean coverage")
    for name, own in figures["arms"].items():
        for number, at in enumerate(own.values()):
            points = [(point["seconds"], point["coverage"]) for point in at["curve"]]
            label = name if number == 0 else None
            axes.plot(*zip(*points, strict=True), color=COLOURED[name], marker="o", markersize=3, label=label)
    for level in LEVELS:
        axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
    log2(axes, TICKS)
    legend(axes)
    return figure


OPTIONS = {
    "data": Option(Path, None, "store of demonstrations; none: the embedded ones"),
    "seed": Option(str, "0..2", "training seeds"),
    "steps": Option(COUNT, 1600, "our training steps"),
    "every": Option(COUNT, 200, "our steps between two evaluations"),
    "starts": Option(COUNT, 50, "published starts"),
    "peer_batch": Option(COUNT, 64, "windows per step of LeRobot"),
    "peer_calls": Option(COUNT, 100, "its DDPM steps"),
    "peer_every": Option(COUNT, 2000, "its steps between two evaluations"),
    "limit": Option(COUNT, 1000, "its seconds of training, at most a slice more"),
    "peers": Option(peer_names, None, "all, none, or names; none given: all that are installed"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS, QUICK_SIZES)
