"""Action chunks: what a sampler takes, beside diffusers' loop and LeRobot, and what reward it earns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.measuring import (
    QUICK,
    Seconds,
    medians,
    ratio,
    require_positive,
    short,
    take_turns,
    timed,
    where,
)
from benchmarks.peers import Peer, chosen_peers, peer_names
from immiscible_policy.cli import CommandError, Option, parse_range, unknown
from immiscible_policy.evaluation.agent import Agent, load_policy
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.evaluation.starts import parse_starts
from immiscible_policy.evaluation.statistics import mean_interval
from immiscible_policy.palette import COLOURS, GREY, panels
from immiscible_policy.policy import Policy
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table
from immiscible_policy.solver import SOLVERS, Solver, draws, noise_rows
from immiscible_policy.store.checkpoint import read_checkpoint
from immiscible_policy.training.options import resolve_device

USAGE = """\
usage: python -m benchmarks sampling [KEY=VALUE ...]

Milliseconds per action chunk, for every sampler and number of steps; with checkpoint=, reward against latency.

A chunk for each of so many observations in one batch: ours (one unit; a captured graph on a GPU) beside the same
recurrence uncaptured, LeRobot's DiffusionPolicy of the same sizes, and the floor, the network's forward passes.
Without checkpoint= the network is untrained, which takes the same time. With it, every sampler is evaluated on starts.

  python -m benchmarks sampling
  python -m benchmarks sampling checkpoint=runs/mine/seed_0/checkpoints/step_003000 peers=none
  python -m benchmarks sampling device=cuda scale=paper envs=1,56 steps=10,100
"""
QUICK_SIZES: dict[str, Any] = {
    "steps": "1,3", "envs": "1,2", "turns": 1, "starts": 2, "evaluated": 16, "scale": "cpu",
}  # fmt: skip
OURS, PLAIN, FLOOR, PEER = "ours", "plain", "network", "LeRobot"

Figures = dict[str, Any]


def measure(options: dict[str, Any]) -> Findings:
    """Time every sampler, and evaluate it if there is something to evaluate."""
    options = {**options, **(QUICK_SIZES if options["quick"] else {})}
    require_positive(options, ("turns", "threads", "starts", "evaluated"))
    steps, envs = (sorted(parse_range(key, options[key])) for key in ("steps", "envs"))
    require_positive({"steps": steps[0], "envs": envs[0]}, ("steps", "envs"))
    device = resolve_device(options["device"])
    samplers = [Solver(name, count) for name in _names(options["samplers"]) for count in steps]
    policy, spec = _policy(options["checkpoint"], options["scale"], device)
    for sampler in samplers:
        sampler.plan(policy.path)  # refuses steps that the chain does not have
    takes_part = "lerobot" in chosen_peers(options["peers"]) and spec.obs == "keypoints"
    torch.set_num_threads(options["threads"])
    with Peer("lerobot", options["threads"]) if takes_part else nullcontext() as peer:
        cells = [cell for count in envs for cell in time_chunks(policy, spec, samplers, count, options["turns"], peer)]
    if options["checkpoint"] is not None:
        starts = parse_starts("legacy", options["starts"])
        for sampler in samplers:
            score = scored(Agent(policy, spec, sampler), starts, options["evaluated"])
            for each in cells:
                each.update(score if (each["sampler"], each["steps"]) == (sampler.name, sampler.steps) else {})
    figures = {
        "device": where(device, options["threads"]),
        "parameters": sum(p.numel() for p in policy.network.parameters()),
        "down_dims": list(spec.down_dims),
        "starts": options["starts"] if options["checkpoint"] is not None else 0,
        "cells": cells,
    }
    return Findings(figures, _text(figures), _picture(figures))


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SOLVERS:
            raise CommandError(unknown("sampler", name, list(SOLVERS)))
    return names


def _policy(path: Path | None, scale: str | None, device: str) -> tuple[Policy, PolicySpec]:
    """A checkpoint's policy, or an untrained one of a size preset."""
    if path is not None:
        return load_policy(read_checkpoint(path), device)
    words = [f"device={device}", "wandb=disabled", *([f"scale={scale}"] if scale else [])]
    spec = RobotRecipe.prepare(compose_config(words)).spec
    policy = build_policy(spec)
    return policy.to(device).eval(), spec


def time_chunks(
    policy: Policy, spec: PolicySpec, samplers: Sequence[Solver], envs: int, turns: int, peer: Peer | None
) -> list[Figures]:
    """Time samplers on one batch of observations, all of them and everyone taking turns.

    Args:
        policy: What samples.
        spec: Its sizes.
        samplers: Schemes and numbers of steps.
        envs: Observations in the batch.
        turns: Turns of each candidate.
        peer: LeRobot, which knows no DPM-Solver++.

    Returns:
        For each sampler milliseconds, ratios, and how far the chunks of both engines lie apart, in px.
    """
    device = policy.action.scale.device
    observation = 0.5 * torch.randn(envs, spec.obs_steps, spec.obs_dim, device=device)

    own = {sampler: _with_own_graph(policy) for sampler in samplers}

    def chunk(sampler: Solver) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(row) for row in range(envs)]
        return own.get(sampler, policy).sample(observation, sampler, generators)

    @torch.no_grad()
    def plain(sampler: Solver) -> torch.Tensor:
        """The same recurrence, not recorded."""
        generators = [torch.Generator().manual_seed(row) for row in range(envs)]
        plan = sampler.plan(policy.path)
        noise = noise_rows(generators, draws(plan), (spec.horizon, spec.action_dim)).to(device)
        t = torch.tensor([step.t for step in plan], device=device)
        return policy.action.unnormalize(policy._solve(plan, t, policy.encode(observation), noise) / policy.data_scale)

    def plain_seconds(sampler: Solver) -> float:
        return timed(partial(plain, sampler), device=str(device))

    def seconds_of(sampler: Solver) -> float:
        return timed(partial(chunk, sampler), device=str(device))

    def floor(sampler: Solver) -> float:
        return sampler.steps * timed(forward(policy, observation), device=str(device))

    candidates: dict[str, Callable[[], float]] = {}
    for sampler in samplers:
        candidates[f"{OURS} {_label(sampler)}"] = partial(seconds_of, sampler)
        candidates[f"{PLAIN} {_label(sampler)}"] = partial(plain_seconds, sampler)
        candidates[f"{FLOOR} {_label(sampler)}"] = partial(floor, sampler)
        if peer is not None and sampler.name in ("ddim", "ddpm"):
            options = _peer_options(spec, sampler, envs, str(device))
            candidates[f"{PEER} {_label(sampler)}"] = partial(_peer_seconds, peer, options)
    seconds = take_turns(candidates, turns)
    apart = [chunk(sampler) - plain(sampler) for sampler in samplers]
    return [
        _cell(sampler, envs, seconds) | {"largest_difference_px": float(difference.abs().max())}
        for sampler, difference in zip(samplers, apart, strict=True)
    ]


def _with_own_graph(policy: Policy) -> Policy:
    """The same policy, weights shared, with a recording of its own: a policy keeps that of one sampler."""
    twin = copy.copy(policy)
    twin._replay = copy.deepcopy(policy._replay)
    return twin


def _peer_seconds(peer: Peer, options: Figures) -> float:
    """Seconds of a chunk of LeRobot's, built afresh and warm."""
    peer.ask("build", options)
    request = {"observations": options["batch_size"], "calls": 1}
    peer.ask("sample", request)
    return float(peer.ask("sample", request))


def _cell(sampler: Solver, envs: int, seconds: Seconds) -> Figures:
    own = {name.split(" ", 1)[0]: values for name, values in seconds.items() if name.endswith(f" {_label(sampler)}")}
    return {
        "sampler": sampler.name,
        "steps": sampler.steps,
        "envs": envs,
        "ms": medians(own),
        "over_ours": {name: ratio(own, name, OURS) for name in (PLAIN, PEER) if name in own},
        "ours_over_network": ratio(own, OURS, FLOOR),
    }


def _label(sampler: Solver) -> str:
    return f"{sampler.name} {sampler.steps}"


def forward(policy: Policy, observation: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One bare forward pass of the network for a batch of observations."""
    condition = policy.encode(observation)
    x = torch.randn(len(observation), policy.horizon, policy.action.scale.shape[0], device=condition.device)
    t = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return torch.no_grad()(lambda: policy.network(x, t, condition))


def scored(agent: Agent, starts: Sequence[int], steps: int) -> Figures:
    """Mean reward with its 95 % interval over the starts, and mean coverage."""
    rows = evaluate(agent, starts, seed=0, checkpoint=0, max_steps=steps)
    found = mean_interval(np.array([[row.metrics["reward"] for row in rows]]))
    ends = (found.low, found.high)
    bounds = [round(float(np.clip(end, 0, 1)), 4) if np.isfinite(end) else None for end in ends]
    coverage = sum(row.metrics["coverage"] for row in rows) / len(rows)
    return {"reward": round(found.estimate, 4), "reward_interval": bounds, "coverage": round(coverage, 4)}


def _peer_options(spec: PolicySpec, sampler: Solver, envs: int, device: str) -> Figures:
    sizes = ("step_embed_dim", "kernel_size", "groups", "horizon", "obs_steps", "action_steps")
    return {key: getattr(spec, key) for key in sizes} | {
        "down_dims": list(spec.down_dims), "batch_size": envs, "sampler": sampler.name,
        "sampling_steps": sampler.steps, "precision": "fp32", "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip


def _text(figures: Figures) -> str:
    cells: list[Figures] = figures["cells"]
    apart = max(each["largest_difference_px"] for each in cells)
    parts = [
        f"""\
## Sampling

Milliseconds per action chunk; {figures["device"]}, network of {figures["parameters"]:,} parameters. All samplers
take turns; medians over the turns, ratios are medians of the paired ratios.

- *ours*: every step in one unit, the condition encoded once per chunk. *diffusers*: the same network, step by step
  through its scheduler. Largest difference of the chunks over all cells: {apart:.2g} px.
- *floor*: the network's bare forward pass, timed once per turn, times the steps.
- LeRobot has no DPM-Solver++; its time includes its own processing of observations and actions."""
    ]
    for envs in sorted({each["envs"] for each in cells}):
        rows = [_row(each) for each in cells if each["envs"] == envs]
        header = ["sampler, steps", "ours, ms", "diffusers, ms", "diffusers / ours", "LeRobot, ms", "LeRobot / ours",
                  "floor, ms", "ours / floor"]  # fmt: skip
        parts.append(f"{envs} observation{'s' * (envs > 1)} at once\n\n{table(header, rows)}")
    if figures["starts"]:
        parts.append(_reward_text(figures))
    return "\n\n".join(parts)


def _row(each: Figures) -> list[str]:
    ms, over = each["ms"], each["over_ours"]
    return [f"{each['sampler']}, {each['steps']}", short(ms[OURS]), short(ms[PLAIN]), short(over[PLAIN]),
            short(ms.get(PEER)), short(over.get(PEER)), short(ms[FLOOR]), short(each["ours_over_network"])]  # fmt: skip


def _reward_text(figures: Figures) -> str:
    cells = _largest_batch(figures["cells"])
    rows = [
        [f"{each['sampler']}, {each['steps']}", short(each["ms"][OURS]), f"{each['reward']:.3f}",
         " to ".join(f"{value:.3f}" if value is not None else "-" for value in each["reward_interval"]),
         f"{each['coverage']:.3f}"]
        for each in sorted(cells, key=lambda each: each["ms"][OURS])
    ]  # fmt: skip
    about = f"Reward against latency, {figures['starts']} legacy starts, one checkpoint; interval over the starts."
    return f"{about}\n\n{table(['sampler, steps', 'ms', 'reward', '95 % interval', 'coverage'], rows)}"


def _largest_batch(cells: list[Figures]) -> list[Figures]:
    most = max(each["envs"] for each in cells)
    return [each for each in cells if each["envs"] == most]


def _picture(figures: Figures) -> Figure:
    cells = _largest_batch(figures["cells"])
    title = f"{figures['device']}, {figures['parameters']:,} parameters, {cells[0]['envs']} observations at once"
    figure, axes = panels(2 if figures["starts"] else 1, title=title)
    _draw_latency(axes[0], cells)
    if figures["starts"]:
        _draw_reward(axes[1], cells, figures["starts"])
    return figure


def _draw_latency(axes: Axes, cells: list[Figures]) -> None:
    name = next((name for name in ("ddim", "ddpm") if any(each["sampler"] == name for each in cells)), "dpmpp")
    shown = [each for each in cells if each["sampler"] == name]
    steps = [each["steps"] for each in shown]
    kinds = {kind: colour for kind, colour in zip((OURS, PLAIN, PEER), COLOURS, strict=False) if kind in shown[0]["ms"]}
    for kind, colour in {**kinds, FLOOR: GREY}.items():
        per_step = [each["ms"][kind] / each["steps"] for each in shown]
        label = "floor: the network alone" if kind == FLOOR else kind
        axes.plot(steps, per_step, ":" if kind == FLOOR else "-", color=colour, marker="o", markersize=3, label=label)
    _log_axis(axes, {count: str(count) for count in steps})
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{name} steps", fontsize=9)
    axes.set_ylabel("milliseconds per step", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower left")


def _draw_reward(axes: Axes, cells: list[Figures], starts: int) -> None:
    names = list(dict.fromkeys(each["sampler"] for each in cells))
    for colour, name in zip(COLOURS[3:], names, strict=False):
        shown = [each for each in cells if each["sampler"] == name]
        latency, reward = [each["ms"][OURS] for each in shown], [each["reward"] for each in shown]
        axes.plot(latency, reward, color=colour, marker="o", markersize=3, label=name)
        low, high = zip(*(each["reward_interval"] for each in shown), strict=True)
        if None not in low + high:
            axes.fill_between(latency, low, high, color=colour, alpha=0.12, linewidth=0)
    shown = [each for each in cells if each["sampler"] == names[0]]
    ticks = {each["ms"][OURS]: f"{short(each['ms'][OURS])}\n{each['steps']}" for each in shown}
    _log_axis(axes, ticks)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"milliseconds per chunk; below them steps of {names[0]}", fontsize=9)
    axes.set_ylabel(f"mean of max reward, {starts} starts, 95 % band", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _log_axis(axes: Axes, ticks: dict[float, str]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "checkpoint": Option(Path, None, "a trained policy; none: an untrained one, latency alone"),
        "scale": Option(str, None, "cpu or paper: the untrained network's size; none given: by device"),
        "samplers": Option(str, "ddim,ddpm,dpmpp,renoise", "samplers"),
        "steps": Option(str, "1,2,5,10,20,50,100", "denoising steps"),
        "envs": Option(str, "1,50", "observations in a batch"),
        "starts": Option(int, 50, "legacy starts to evaluate on"),
        "evaluated": Option(int, 300, "environment steps of an episode"),
        "turns": Option(int, 5, "turns of each candidate"),
        "threads": Option(int, 1, "CPU threads"),
        "device": Option(str, "cpu", "cpu or cuda"),
        "peers": Option(peer_names, None, "all, none, or names (lerobot); none given: all that are installed"),
        "quick": QUICK,
    },
)
