"""Milliseconds per action chunk, for every solver and number of network calls; with checkpoint=, score against latency.

A chunk for each of so many observations in one batch. All candidates take turns; figures are medians over the turns,
ratios medians of the paired ratios. Without checkpoint= the network is untrained, which takes the same time.

- *ours*: every call in one unit, the features encoded once per chunk; on a GPU a captured graph.
- *plain*: the same recurrence, not captured (on a CPU it is ours, and is left out).
- *diffusers*: the same network, call by call through diffusers' schedulers, which know neither flow nor renoising. Its
  DDIM steps past its own grid where the calls do not divide the chain.
- *LeRobot*: its DiffusionPolicy of the same sizes, with its own processing of observations and actions.
- *floor*: the network's bare forward pass, timed once per turn, times the calls.

  python -m benchmarks sampling
  python -m benchmarks sampling method=flow solvers=euler,heun steps=1,3,9
  python -m benchmarks sampling checkpoint=runs/mine/seed_0/checkpoints/step_003000 spacing=leading peers=none
  python -m benchmarks sampling device=cuda scale=paper envs=1,56 steps=10,100
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from benchmarks.measuring import Seconds, medians, ratio, require_positive, short, take_turns, timed, where
from benchmarks.peers import Peer, chosen_peers, peer_names
from immiscible_policy.cli import COUNT, CommandError, Option, parse_range
from immiscible_policy.evaluation.agent import Agent, read_policy
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.evaluation.statistics import mean_interval
from immiscible_policy.lab.program import legend, plain, program, table
from immiscible_policy.palette import COLOURS, GREY, panels
from immiscible_policy.path import Ddpm
from immiscible_policy.policy import Policy, PolicySpec, build_policy
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.results.experiment import Findings
from immiscible_policy.results.formatting import figures as interval_figures
from immiscible_policy.solver import Solver, draws, noise_rows
from immiscible_policy.store.checkpoint import read_checkpoint
from immiscible_policy.tasks import find_task
from immiscible_policy.training.options import resolve_device

QUICK_SIZES: dict[str, Any] = {
    "steps": "1,5", "envs": "1,2", "turns": 1, "starts": 2, "evaluated": 16, "scale": "cpu",
}  # fmt: skip
OURS, PLAIN, DIFFUSERS, PEER, FLOOR = "ours", "plain", "diffusers", "LeRobot", "network"
SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpmpp": DPMSolverMultistepScheduler}
COLUMNS = {
    "solver, calls": "{solver}, {steps}",
    "ours, ms": "{ms[ours]:.3g}",
    "plain, ms": "{ms[plain]:.3g}",
    "diffusers, ms": "{ms[diffusers]:.3g}",
    "diffusers / ours": "{over_ours[diffusers]:.3g}",
    "LeRobot, ms": "{ms[LeRobot]:.3g}",
    "LeRobot / ours": "{over_ours[LeRobot]:.3g}",
    "floor, ms": "{ms[network]:.3g}",
    "ours / floor": "{ours_over_network:.3g}",
}
SCORED = {
    "solver, calls": "{solver}, {steps}",
    "ms": "{ms[ours]:.3g}",
    "reward": "{reward:.3f}",
    "coverage": "{coverage:.3f}",
}

Figures = dict[str, Any]


def measure(options: dict[str, Any]) -> Findings:
    """Time every solver, and evaluate it if there is something to evaluate."""
    steps, envs = (sorted(parse_range(key, options[key])) for key in ("steps", "envs"))
    require_positive(steps=steps, envs=envs)
    device = resolve_device(options["device"])
    policy, spec = _policy(options, device)
    if spec.encoder is not None:
        raise CommandError(f"checkpoint={options['checkpoint']}: it sees pictures; name a policy of numbers")
    names = options["solvers"].split(",") if options["solvers"] else policy.path.solvers
    counts = {name: [count for count in steps if name != "heun" or count % 2] for name in names}
    solvers = [Solver(name, count, options["spacing"]) for name in names for count in counts[name]]
    for solver in solvers:
        solver.plan(policy.path)  # refuses what does not go together
    takes_part = "lerobot" in chosen_peers(options["peers"])
    torch.set_num_threads(options["threads"])
    with Peer("lerobot", options["threads"]) if takes_part else nullcontext() as peer:
        cells = [cell for count in envs for cell in time_chunks(policy, spec, solvers, count, options["turns"], peer)]
    if options["checkpoint"] is not None:
        starts = find_task("pusht").starts("legacy", options["starts"])
        scores = {
            (solver.name, solver.steps): scored(Agent(policy, spec, solver), starts, options["evaluated"])
            for solver in solvers
        }
        cells = [cell | scores[cell["solver"], cell["steps"]] for cell in cells]
    figures = {
        "device": where(device, options["threads"]),
        "parameters": sum(p.numel() for p in policy.network.parameters()),
        "down_dims": list(spec.down_dims),
        "method": spec.method,
        "spacing": options["spacing"],
        "starts": options["starts"] if options["checkpoint"] is not None else 0,
        "cells": cells,
    }
    return Findings(figures, describe(figures), draw(figures))


def _policy(options: dict[str, Any], device: str) -> tuple[Policy, PolicySpec]:
    """A checkpoint's policy, or an untrained one of a size preset."""
    if options["checkpoint"] is not None:
        return read_policy(read_checkpoint(options["checkpoint"]), device)
    scale = [f"scale={options['scale']}"] if options["scale"] else []
    config = compose_config([f"device={device}", "wandb=disabled", f"method={options['method']}", *scale])
    spec = RobotRecipe.prepare(config).spec
    return build_policy(spec).to(device).eval(), spec


def time_chunks(
    policy: Policy, spec: PolicySpec, solvers: Sequence[Solver], envs: int, turns: int, peer: Peer | None
) -> list[Figures]:
    """Time solvers on one batch of observations, all of them and everyone taking turns.

    Args:
        policy: What samples.
        spec: Its sizes.
        solvers: Solvers and numbers of calls.
        envs: Observations in the batch.
        turns: Turns of each candidate.
        peer: LeRobot, which knows no DPM-Solver++.

    Returns:
        For each solver milliseconds, ratios, and how far ours and the chunks of the others lie apart, in the data's
        units.
    """
    device = policy.action.scale.device
    observation = 0.5 * torch.randn(envs, spec.obs_steps, spec.obs_dim, device=device)
    floor = forward(policy, observation)
    others: dict[Solver, dict[str, Callable[[], Tensor]]] = {}
    candidates: dict[str, Callable[[], float]] = {}
    for solver in solvers:
        own = copy.deepcopy(policy)  # with a recording of its own: a policy keeps that of one solver
        samples: dict[str, Callable[[], Tensor]] = {OURS: partial(our_chunk, own, observation, solver)}
        if device.type == "cuda":
            samples[PLAIN] = partial(plain_chunk, policy, observation, solver)
        if solver.name in SCHEDULERS and isinstance(policy.path, Ddpm):
            samples[DIFFUSERS] = partial(diffusers_chunk, policy, observation, solver)
        others[solver] = samples
        for name, sample in samples.items():
            candidates[f"{name} {_label(solver)}"] = partial(timed, sample, device=str(device))
        candidates[f"{FLOOR} {_label(solver)}"] = partial(_floor_seconds, floor, solver.steps, str(device))
        if peer is not None and solver.name in ("ddim", "ddpm") and isinstance(policy.path, Ddpm):
            candidates[f"{PEER} {_label(solver)}"] = partial(_peer_seconds, peer, spec, solver, envs, str(device))
    seconds = take_turns(candidates, turns)
    return [_cell(solver, envs, seconds) | {"largest_difference": apart(others[solver])} for solver in solvers]


def sources(rows: int) -> list[torch.Generator]:
    """The same source of noise for every row, again and again."""
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def our_chunk(policy: Policy, observation: Tensor, solver: Solver) -> Tensor:
    """Chunks (B, T, A) as the policy samples them."""
    return policy.predict(observation, solver, sources(len(observation)))


def _floor_seconds(forward: Callable[[], Tensor], calls: int, device: str) -> float:
    return calls * timed(forward, device=device)


def apart(samples: dict[str, Callable[[], Tensor]]) -> float:
    """Largest difference between the chunks of the first and of any other."""
    first, *rest = (sample() for sample in samples.values())
    return max((float((first - other).abs().max()) for other in rest), default=0.0)


@torch.no_grad()
def plain_chunk(policy: Policy, observation: Tensor, solver: Solver) -> Tensor:
    """Chunks (B, T, A) by the recurrence, nothing captured."""
    plan, features = solver.plan(policy.path), policy.encode(observation)
    noise = noise_rows(sources(len(observation)), draws(plan), (policy.horizon, len(policy.action.scale)))
    t = torch.tensor([step.t for step in plan], device=features.device)
    return policy.action.unnormalize(policy._solve(plan, t, features, noise.to(features.device)) / policy.data_scale)


@torch.no_grad()
def diffusers_chunk(policy: Policy, observation: Tensor, solver: Solver) -> Tensor:
    """Chunks (B, T, A) call by call through a scheduler of diffusers."""
    scheduler = diffusers_scheduler(policy, solver)
    features, generators = policy.encode(observation), sources(len(observation))
    x = noise_rows(generators, 1, (policy.horizon, len(policy.action.scale)))[0].to(features.device)
    for t in scheduler.timesteps:
        output = policy.network(x, t.to(x.device).expand(len(x)), features).float()
        x = scheduler.step(output, t, x, generator=generators, return_dict=False)[0]
    return policy.action.unnormalize(x / policy.data_scale)


def diffusers_scheduler(policy: Policy, solver: Solver) -> Any:
    """The scheduler of diffusers that does what a solver does on a chain."""
    path = policy.path
    assert isinstance(path, Ddpm)
    limit = policy.data_scale
    options = {"num_train_timesteps": path.chain, "beta_schedule": "squaredcos_cap_v2",
               "prediction_type": path.prediction}  # fmt: skip
    if solver.name == "dpmpp":  # its thresholding at the limit means clipping there
        scheduler = DPMSolverMultistepScheduler(**options, thresholding=True, sample_max_value=limit)
        scheduler.set_timesteps(timesteps=[int(step.t) for step in solver.plan(path)])
        return scheduler
    scheduler = SCHEDULERS[solver.name](
        **options, clip_sample=True, clip_sample_range=limit, timestep_spacing=solver.spacing
    )
    scheduler.set_timesteps(solver.steps)
    return scheduler


def _peer_seconds(peer: Peer, spec: PolicySpec, solver: Solver, envs: int, device: str) -> float:
    """Seconds of a chunk of LeRobot's, built afresh and warm."""
    sizes = ("step_embed_dim", "kernel_size", "groups", "horizon", "obs_steps", "action_steps")
    options = {key: getattr(spec, key) for key in sizes} | {
        "down_dims": list(spec.down_dims), "batch_size": envs, "sampler": solver.name,
        "sampling_steps": solver.steps, "precision": "fp32", "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip
    peer.ask("build", options)
    request = {"observations": envs, "calls": 1}
    peer.ask("sample", request)
    return float(peer.ask("sample", request))


def _label(solver: Solver) -> str:
    return f"{solver.name} {solver.steps}"


def _cell(solver: Solver, envs: int, seconds: Seconds) -> Figures:
    own = {name.split(" ", 1)[0]: values for name, values in seconds.items() if name.endswith(f" {_label(solver)}")}
    return {
        "solver": solver.name,
        "steps": solver.steps,
        "envs": envs,
        "ms": medians(own),
        "over_ours": {name: ratio(own, name, OURS) for name in (PLAIN, DIFFUSERS, PEER) if name in own},
        "ours_over_network": ratio(own, OURS, FLOOR),
    }


def forward(policy: Policy, observation: Tensor) -> Callable[[], Tensor]:
    """One bare forward pass of the network for a batch of observations."""
    features = policy.encode(observation)
    x = torch.randn(len(observation), policy.horizon, policy.action.scale.shape[0], device=features.device)
    t = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return torch.no_grad()(lambda: policy.network(x, t, features))


def scored(agent: Agent, starts: Sequence[int], steps: int) -> Figures:
    """Mean reward with its 95% interval over the starts, and mean coverage."""
    rows = evaluate(find_task("pusht"), agent, starts, seed=0, checkpoint=0, max_steps=steps)
    reward = interval_figures(mean_interval(np.array([[row.metrics["reward"] for row in rows]])), (0, 1))
    return {"reward": reward, "coverage": sum(row.metrics["coverage"] for row in rows) / len(rows)}


def describe(figures: Figures) -> str:
    """A table for each batch, and one of scores."""
    cells: list[Figures] = figures["cells"]
    largest = max(cell["largest_difference"] for cell in cells)
    parts = [
        f"{figures['device']}; method={figures['method']}, network of {figures['parameters']:,} parameters, "
        f"spacing={figures['spacing']}. Largest difference of the chunks: {largest:.2g} in the data's units."
    ]
    for envs in sorted({cell["envs"] for cell in cells}):
        rows = [cell for cell in cells if cell["envs"] == envs]
        parts.append(f"{envs} observation{'s' * (envs > 1)} at once\n\n{table(COLUMNS, rows)}")
    if figures["starts"]:
        rows = sorted(_largest_batch(cells), key=lambda cell: cell["ms"][OURS])
        about = f"Reward against latency, {figures['starts']} legacy starts, one checkpoint; interval over the starts."
        parts.append(f"{about}\n\n{table(SCORED, rows)}")
    return "\n\n".join(parts)


def _largest_batch(cells: list[Figures]) -> list[Figures]:
    most = max(cell["envs"] for cell in cells)
    return [cell for cell in cells if cell["envs"] == most]


def draw(figures: Figures) -> Figure:
    """Milliseconds per call of one solver, and reward against latency of all."""
    cells = _largest_batch(figures["cells"])
    title = f"{figures['device']}, {figures['parameters']:,} parameters, {cells[0]['envs']} observations at once"
    figure, axes = panels(2 if figures["starts"] else 1, title=title)
    _draw_latency(axes[0], [cell for cell in cells if cell["solver"] == cells[0]["solver"]])
    if figures["starts"]:
        _draw_reward(axes[1], cells, figures["starts"])
    return figure


def _draw_latency(axes: Axes, cells: list[Figures]) -> None:
    plain(axes, "", f"network calls, {cells[0]['solver']}", "milliseconds per call")
    steps = [cell["steps"] for cell in cells]
    kinds = dict(zip((OURS, PLAIN, DIFFUSERS, PEER), COLOURS, strict=False)) | {FLOOR: GREY}
    for kind, colour in kinds.items():
        if kind in cells[0]["ms"]:
            per_call = [cell["ms"][kind] / cell["steps"] for cell in cells]
            style = ":" if kind == FLOOR else "-"
            axes.plot(steps, per_call, style, color=colour, marker="o", markersize=3, label=kind)
    _log_axis(axes, {count: str(count) for count in steps})
    axes.set_ylim(bottom=0)
    legend(axes, "lower left")


def _draw_reward(axes: Axes, cells: list[Figures], starts: int) -> None:
    names = list(dict.fromkeys(cell["solver"] for cell in cells))
    about = f"milliseconds per chunk; below them calls of {names[0]}"
    plain(axes, "", about, f"mean of max reward, {starts} starts, 95% band")
    for colour, name in zip(COLOURS, names, strict=False):
        shown = [cell for cell in cells if cell["solver"] == name]
        latency = [cell["ms"][OURS] for cell in shown]
        mean, low, high = ([cell["reward"][key] for cell in shown] for key in ("mean", "low", "high"))
        axes.plot(latency, mean, color=colour, marker="o", markersize=3, label=name)
        if None not in low + high:
            axes.fill_between(latency, low, high, color=colour, alpha=0.12, linewidth=0)
    shown = [cell for cell in cells if cell["solver"] == names[0]]
    _log_axis(axes, {cell["ms"][OURS]: f"{short(cell['ms'][OURS])}\n{cell['steps']}" for cell in shown})
    axes.set_ylim(0, 1.02)
    legend(axes, "lower right")


def _log_axis(axes: Axes, ticks: dict[float, str]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())


OPTIONS = {
    "checkpoint": Option(Path, None, "a trained policy; none: an untrained one, latency alone"),
    "scale": Option(str, None, "cpu or paper: the untrained network's size; none given: by device"),
    "method": Option(str, "diffusion", "what the untrained network learned: diffusion, flow, regression or mip"),
    "solvers": Option(str, None, "solvers; none given: all that go with the method"),
    "spacing": Option(str, "trailing", "trailing, shifted or leading"),
    "steps": Option(str, "1,2,5,10,20,50,100", "network calls (heun takes the odd ones)"),
    "envs": Option(str, "1,50", "observations in a batch"),
    "starts": Option(COUNT, 50, "legacy starts to evaluate on"),
    "evaluated": Option(COUNT, 300, "environment steps of an episode"),
    "turns": Option(COUNT, 5, "turns of each candidate"),
    "threads": Option(COUNT, 1, "CPU threads"),
    "device": Option(str, "cpu", "cpu or cuda"),
    "peers": Option(peer_names, None, "all, none, or names (lerobot); none given: all that are installed"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS, QUICK_SIZES)
