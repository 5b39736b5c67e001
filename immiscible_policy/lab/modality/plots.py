"""Pictures of the modality benchmark: modes over training, and the paths of rollouts from one start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from immiscible_policy.lab.modality.arms import Arm, count_modes, estimate
from immiscible_policy.lab.program import plain
from immiscible_policy.palette import FAINT, GREY, INK, NAMEABLE, colours, highlighted, mode_colour, readable
from immiscible_policy.results import formatting

TITLES = {
    "majority": "share of each start's\nmost frequent mode",
    "total_variation": "total-variation distance\nto the demonstrations",
}
WIDTH, HEIGHT = 3.2, 3.1
BACKGROUND = 512  # Side of the scene that paths are drawn on [px]


def evolution_figure(arms: Sequence[Arm]) -> Figure:
    """How modes evolve over training.

    Top, one panel per run: of each seed and start, the share of the first mode among the decided rollouts; a policy
    that picked one of two modes lies at 0 or 1. Of more modes, the share of them that was taken. Bottom: the measures
    with their intervals, dashed what chance gives.
    """
    measures, colour = arms[0].measures, colours([arm.name for arm in arms])
    figure = Figure(figsize=(WIDTH * max(len(arms), len(measures)), 2 * HEIGHT), dpi=130, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for axes, arm in zip(above.subplots(1, len(arms), squeeze=False)[0], arms, strict=True):
        two, decided = len(arm.modes.names) == 3, arm.counts[..., :-1].sum(-1)  # (S, C, N)
        shares = arm.counts[..., 0] / np.maximum(decided, 1) if two else (arm.counts[..., :-1] > 0).mean(-1)
        for by_seed in np.where(decided > 0, shares, np.nan):
            axes.plot(arm.steps, by_seed, color=colour[arm.name], linewidth=0.9, alpha=0.6, marker="o", markersize=2.5)
        shown = arm.demonstrated[:-1]
        demonstrated = shown[0] / max(1, shown.sum()) if two else (shown > 0).mean()
        axes.axhline(demonstrated, color=GREY, linewidth=1, linestyle="--")
        axes.plot(arm.steps, arm.shares[:, -1], color=INK, linewidth=1.6, linestyle=":")
        share = f"{arm.modes.names[0]} share\nof the decided rollouts" if two else "share of the modes\nthat were taken"
        plain(axes, f"{readable(arm.name)}: {share}", "training steps")
        axes.set(xlim=(0, None), ylim=(-0.03, 1.03))
    handles = [
        Line2D([], [], color=FAINT, linewidth=0.9, marker="o", markersize=2.5, label="each seed and start"),
        Line2D([], [], color=GREY, linewidth=1, linestyle="--", label="demonstrations"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle=":", label="undecided share of all rollouts"),
    ]
    above.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    for axes, name in zip(below.subplots(1, len(measures)), measures, strict=True):
        for arm in arms:
            values, floor, own = arm.values(name), arm.floor(name), colour[arm.name]
            estimates = [formatting.figures(estimate(values[:, index])) for index in range(len(arm.steps))]
            mean, low, high = (np.array([one[end] for one in estimates], float) for end in ("mean", "low", "high"))
            axes.fill_between(arm.steps, np.clip(low, 0, 1), np.clip(high, 0, 1), color=own, alpha=0.13, linewidth=0)
            axes.plot(arm.steps, mean, color=own, linewidth=2, marker="o", markersize=3.5)
            if floor is not None:
                axes.plot(arm.steps, floor, color=own, linewidth=1, linestyle="--")
        plain(axes, TITLES.get(name, arms[0].task.measured), "training steps")
        axes.set(xlim=(0, None), ylim=(-0.03, 1.03))
    handles = [
        Line2D([], [], color=colour[arm.name], marker="o", markersize=3.5, label=readable(arm.name)) for arm in arms
    ]
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="pure chance"))
    below.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def paths_figure(arms: Sequence[Arm]) -> Figure:
    """Where things went from one start, coloured by mode, a few of each mode highlighted, over the scene at the start.

    A row for each track of the task: the first until the mode was decided, the others to the end.
    """
    modes = arms[0].modes
    figure = Figure(figsize=(WIDTH * max(2, len(arms)) + 0.4, 2 * WIDTH + 1.0), dpi=130, layout="constrained")
    grid = figure.subplots(len(modes.tracks), len(arms), squeeze=False)
    for column, arm in zip(grid.T, arms, strict=True):
        counts = count_modes([rollout.mode for rollout in arm.example], len(modes.names))
        outcome = modes.counted(counts)
        column[0].set_title(f"{readable(arm.name)}, seed {arm.seeds[0]}, step {arm.steps[-1]:,}\n{outcome}", fontsize=9)
        for row, (axes, track) in enumerate(zip(column, modes.tracks.values(), strict=True)):
            axes.imshow(arm.task.draw(arm.example[0].scenes[0], BACKGROUND), extent=modes.extent, alpha=0.45)
            bold = highlighted([rollout.mode for rollout in arm.example])
            for rollout, picked in zip(arm.example, bold, strict=True):
                path = track(rollout.scenes)[: None if row else modes.decided(rollout.scenes, rollout.mode)]
                colour = mode_colour(rollout.mode, len(modes.names))
                axes.plot(*path.T, color=colour, linewidth=1.8 if picked else 0.6, alpha=0.95 if picked else 0.15)
                if picked:
                    axes.plot(*path[-1], color=colour, marker="o", markersize=4)
            axes.set(xlim=modes.extent[:2], ylim=modes.extent[2:], xticks=[], yticks=[])
    for row, (axes, name) in enumerate(zip(grid[:, 0], modes.tracks, strict=True)):
        axes.set_ylabel(f"{name},\n{'to the end' if row else 'until the mode is decided'}", fontsize=9)
    if len(modes.names) <= NAMEABLE:
        handles = [
            Line2D([], [], color=mode_colour(mode, len(modes.names)), linewidth=2, label=name)
            for mode, name in enumerate(modes.names)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure
