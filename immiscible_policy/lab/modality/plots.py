"""Pictures of the modality benchmark: modes over training, and the paths of rollouts from one start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from immiscible_envs.geometry import CENTER_OF_GRAVITY, place
from immiscible_envs.modes import CLOCKWISE, COUNTER_CLOCKWISE, DECIDED_AT, MODES, UNDECIDED, turned
from immiscible_envs.rendering import CANVAS, render_state
from immiscible_policy.lab.modality.arms import MEASURES, Arm, Rollout, estimate
from immiscible_policy.lab.modality.modes import Array, count_modes, shares
from immiscible_policy.palette import COLOURS, GREY

MODE_COLOURS = {CLOCKWISE: COLOURS[0], COUNTER_CLOCKWISE: COLOURS[1], UNDECIDED: "#888888"}
TITLES = {
    "majority": "one direction: share of the\nmore frequent of the two",
    "total_variation": "total-variation distance\nto the demonstrations",
    "coverage": "max coverage of the goal\n(share)",
}
WIDTH, HEIGHT = 3.2, 3.1


def evolution_figure(arms: Sequence[Arm]) -> Figure:
    """How modes evolve over training.

    Top, one panel per run: of each seed and start, the clockwise share of the decided rollouts; a policy that picked
    a direction lies at 0 or 1. Bottom: the measures with their intervals, dashed what chance alone gives.

    Args:
        arms: What was measured, one colour each.

    Returns:
        The figure.
    """
    columns = max(len(arms), len(MEASURES))
    figure = Figure(figsize=(WIDTH * columns, 2 * HEIGHT), dpi=130, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for axes, colour, arm in zip(above.subplots(1, len(arms), squeeze=False)[0], COLOURS, arms, strict=False):
        _draw_directions(axes, arm, colour)
    above.legend(handles=_direction_handles(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    for axes, name in zip(below.subplots(1, len(MEASURES)), MEASURES, strict=True):
        for colour, arm in zip(COLOURS, arms, strict=False):
            _draw_measure(axes, arm, name, colour)
        axes.set_title(TITLES[name], fontsize=10, loc="left")
        _finish(axes)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3.5, label=arm.name)
        for colour, arm in zip(COLOURS, arms, strict=False)
    ]
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="pure chance"))
    below.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def paths_figure(arms: Sequence[Arm]) -> Figure:
    """Where agent and block went from one symmetric start, coloured by mode, over the scene at the start.

    Args:
        arms: What was measured; of each the rollouts of its first seed's last checkpoint from the first start.

    Returns:
        The figure. Above, the agents' paths until the block had turned a quarter its mode's way (of an undecided
        rollout the whole path); below, the whole paths of the blocks' centres of gravity.
    """
    figure = Figure(figsize=(WIDTH * max(2, len(arms)) + 0.4, 2 * WIDTH + 1.0), dpi=130, layout="constrained")
    grid = figure.subplots(2, len(arms), squeeze=False)
    for (top, bottom), arm in zip(grid.T, arms, strict=True):
        _draw_paths(top, arm.example, agent=True)
        _draw_paths(bottom, arm.example, agent=False)
        top.set_title(f"{arm.name}, seed {arm.seeds[0]}, step {arm.steps[-1]:,}\n{_counts(arm.example)}", fontsize=9)
    for axes, label in zip(
        grid[:, 0],
        ("agent, until the block\nhas turned a quarter", "block's centre of gravity,\nto the end"),
        strict=True,
    ):
        axes.set_ylabel(label, fontsize=9)
    handles = [Line2D([], [], color=MODE_COLOURS[mode], linewidth=2, label=name) for mode, name in enumerate(MODES)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _direction_handles() -> list[Line2D]:
    return [
        Line2D([], [], color=COLOURS[0], linewidth=0.9, marker="o", markersize=2.5, label="each seed and start"),
        Line2D([], [], color=GREY, linewidth=1, linestyle="--", label="demonstrations"),
        Line2D([], [], color="#000000", linewidth=1.6, linestyle=":", label="undecided share of all rollouts"),
    ]


def _draw_directions(axes: Axes, arm: Arm, colour: str) -> None:
    decided = arm.counts[..., :UNDECIDED].sum(-1)  # (S, C, N)
    clockwise = np.where(decided > 0, arm.counts[..., CLOCKWISE] / np.maximum(decided, 1), np.nan)
    for of_seed in clockwise:
        axes.plot(arm.steps, of_seed, color=colour, linewidth=0.9, alpha=0.6, marker="o", markersize=2.5)
    demonstrated = arm.demonstrated[CLOCKWISE] / max(1, arm.demonstrated[:UNDECIDED].sum())
    axes.axhline(demonstrated, color=GREY, linewidth=1, linestyle="--")
    undecided = shares(arm.counts.sum((0, 2)))[:, UNDECIDED]
    axes.plot(arm.steps, undecided, color="#000000", linewidth=1.6, linestyle=":")
    axes.set_title(f"{arm.name}: clockwise share\nof the decided rollouts", fontsize=10, loc="left")
    _finish(axes)


def _draw_measure(axes: Axes, arm: Arm, name: str, colour: str) -> None:
    values, floor = arm.values(name), arm.floor(name)
    found = [estimate(values[:, index]) for index in range(len(arm.steps))]
    mean, low, high = (
        np.array([np.nan if each is None else getattr(each, end) for each in found])
        for end in ("estimate", "low", "high")
    )
    axes.fill_between(arm.steps, np.clip(low, 0, 1), np.clip(high, 0, 1), color=colour, alpha=0.13, linewidth=0)
    axes.plot(arm.steps, mean, color=colour, linewidth=2, marker="o", markersize=3.5)
    if floor is not None:
        axes.plot(arm.steps, floor, color=colour, linewidth=1, linestyle="--")


def _finish(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=0)
    axes.set_xlabel("training steps", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_paths(axes: Axes, rollouts: Sequence[Rollout], agent: bool) -> None:
    axes.imshow(render_state(rollouts[0].states[0], size=CANVAS), extent=(0, CANVAS, CANVAS, 0), alpha=0.45)
    for rollout in rollouts:
        path = _until_decided(rollout)[:, :2] if agent else _centres(rollout.states)
        colour = MODE_COLOURS[rollout.mode]
        axes.plot(*path.T, color=colour, linewidth=1, alpha=0.75)
        axes.plot(*path[-1], color=colour, marker="o", markersize=3)
    axes.set_xlim(0, CANVAS)
    axes.set_ylim(CANVAS, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def _until_decided(rollout: Rollout) -> Array:
    """States up to the first quarter turn in the mode's direction; all of them where undecided."""
    if rollout.mode == UNDECIDED:
        return rollout.states
    turn = turned(rollout.states[:, 4]) * (1 if rollout.mode == CLOCKWISE else -1)
    return rollout.states[: int(np.argmax(turn >= DECIDED_AT)) + 1]


def _centres(states: Array) -> Array:
    """Centres of gravity (L, 2) of the block."""
    return place([CENTER_OF_GRAVITY], states[:, 2:])[:, 0]


def _counts(rollouts: Sequence[Rollout]) -> str:
    counts = count_modes([rollout.mode for rollout in rollouts])
    return ", ".join(f"{count} {mode}" for count, mode in zip(counts, MODES, strict=True) if count)
