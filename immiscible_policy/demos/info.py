"""Describe a store of demonstrations in words, and draw it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from immiscible_envs.geometry import BAR, GOAL_POSE, STEM, place
from immiscible_envs.simulation import CONTROL_HZ
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse
from immiscible_policy.demos.store import Demonstrations, content_hash, open_store

FORMATS = (".png", ".pdf", ".svg")
COMPONENTS = {
    "state": ("agent x", "agent y", "block x", "block y", "block angle"),
    "action": ("x", "y"),
}
CLOCKWISE, COUNTER = "#2f6db3", "#e08214"
"""Colours of the episodes that turn the block clockwise and counter-clockwise."""
GOAL, GOAL_EDGE, INK = "#c6ecc0", "#3f9b46", "#333333"
TICKS = range(0, 513, 128)
OUTLINE = np.concatenate([BAR[[3, 2, 1]], STEM[[3, 2, 1, 0]], BAR[[0]]])
"""(8, 2) the T's outline in the block frame [px]."""
GLYPH = np.array([(-10.0, 0.0), (10.0, 0.0), (0.0, 0.0), (0.0, 20.0)])
"""A small T in the block frame [px], drawn as one line."""

USAGE = """usage: python -m immiscible_policy.demos info path=STORE [out=PICTURE]

Prints what a store holds and its content hash; draws the paths of block and agent if out is given.

example:
  python -m immiscible_policy.demos info path=data/pusht_expert.zarr out=expert.png"""
OPTIONS = {
    "path": Option(Path, REQUIRED, "store of demonstrations (a .zarr directory)"),
    "out": Option(Path, None, "picture to draw, replaced if it exists: " + ", ".join(FORMATS)),
}


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        CommandError: If the picture's format is unknown or its directory does not exist.
    """
    words = parse(argv, OPTIONS, USAGE)
    out = words["out"]
    if out is not None and out.suffix not in FORMATS:
        raise CommandError(f"out={out}: a picture ends in {', '.join(FORMATS)}")
    if out is not None and not out.parent.is_dir():
        raise CommandError(f"out={out}: the directory {out.parent} does not exist")
    demos = open_store(words["path"])
    for line in describe(demos):
        print(line, flush=True)
    if out is not None:
        draw(demos).savefig(out, dpi=150)
        print(f"picture: {out}")


def net_rotation(demos: Demonstrations) -> np.ndarray:
    """How far each episode turns the block in all, (E,) rad; positive is clockwise on the screen."""
    turns = np.diff(demos.state[:, 4].astype(np.float64), prepend=0.0)
    turns = (turns + np.pi) % (2 * np.pi) - np.pi
    turns[demos.episode_ends - demos.lengths] = 0.0
    return np.add.reduceat(turns, demos.episode_ends - demos.lengths)


def describe(demos: Demonstrations) -> Iterator[str]:
    """Say what demonstrations hold, line by line; images are read to find their range."""
    lengths, rotation = demos.lengths, net_rotation(demos)
    yield _line("store", demos.path)
    yield _line("episodes", f"{demos.n_episodes:,}")
    yield _line("steps", f"{len(demos):,} ({len(demos) / CONTROL_HZ / 60:.1f} minutes at {CONTROL_HZ} Hz)")
    yield _line("episode length", f"{lengths.min()} to {lengths.max()} steps, median {np.median(lengths):g}")
    yield _line(
        "net rotation",
        f"clockwise in {(rotation > 0).mean():.1%} of the episodes, counter-clockwise in "
        f"{(rotation < 0).mean():.1%} (on the screen)",
    )
    for name, parts in COMPONENTS.items():
        for i, part in enumerate(parts):
            yield _range(f"{name}, {part}", getattr(demos, name)[:, i])
    yield _range("keypoint", demos.keypoint)
    if demos.n_contacts is not None:
        yield _range("n_contacts", demos.n_contacts)
    if demos.image is not None:
        extremes = [(block.min(), block.max()) for block in demos.image.blocks()]
        height, width = demos.image.shape[1:3]
        yield _range(f"img, {height} x {width}", np.array(extremes, demos.image.dtype))
    yield _line("content hash", f"{content_hash(demos)} (images left out)")


def draw(demos: Demonstrations) -> Figure:
    """Draw the paths of block and agent over the goal, and histograms of net rotation and episode length."""
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(3.2, 1))
    title = f"{demos.path.name}: {demos.n_episodes:,} demonstrations, {len(demos):,} steps"
    figure.suptitle(title, fontsize=14, color=INK)
    colours = [CLOCKWISE if turns else COUNTER for turns in net_rotation(demos) > 0]
    starts = demos.state[demos.episode_ends - demos.lengths]
    _draw_paths(axes[0, 0], demos, demos.state[:, 2:4], colours, "Block: start poses (small T), paths, goal")
    glyphs = list(place(GLYPH, starts[:, 2:5]))
    axes[0, 0].add_collection(LineCollection(glyphs, colors=colours, linewidths=1.2, zorder=4))
    _draw_paths(axes[0, 1], demos, demos.state[:, :2], colours, "Agent: starts (dots), paths, goal")
    axes[0, 1].scatter(*starts.T[:2], s=14, c=colours, edgecolors="white", linewidths=0.5, zorder=4)
    _draw_rotations(axes[1, 0], demos)
    _draw_lengths(axes[1, 1], demos)
    handles = [Line2D([], [], color=CLOCKWISE, linewidth=3), Line2D([], [], color=COUNTER, linewidth=3)]
    labels = ["turns the block clockwise in all", "counter-clockwise"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_paths(axes: Axes, demos: Demonstrations, xy: np.ndarray, colours: list[str], title: str) -> None:
    axes.fill(*place(OUTLINE, GOAL_POSE).T, color=GOAL, zorder=1)
    axes.plot(*place(OUTLINE[[*range(8), 0]], GOAL_POSE).T, color=GOAL_EDGE, linewidth=1.5, zorder=3)
    paths = [xy[episode] for episode in demos.episodes]
    axes.add_collection(LineCollection(paths, colors=colours, linewidths=0.7, alpha=0.4, zorder=2))
    axes.set(xlim=(0, 512), xticks=TICKS, xlabel="x [px]", aspect="equal")
    axes.set(ylim=(512, 0), yticks=TICKS, ylabel="y [px]")
    axes.set_title(title, fontsize=11, color=INK)


def _draw_rotations(axes: Axes, demos: Demonstrations) -> None:
    degrees = np.degrees(net_rotation(demos))
    bins = list(np.arange(np.floor(degrees.min() / 15) * 15, degrees.max() + 15, 15))
    axes.hist([degrees[degrees > 0], degrees[degrees <= 0]], bins, color=[CLOCKWISE, COUNTER], stacked=True)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="net rotation [degrees], clockwise positive", ylabel="episodes")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_lengths(axes: Axes, demos: Demonstrations) -> None:
    axes.hist(demos.lengths, bins=30, color="#8a8a8a")
    median = float(np.median(demos.lengths))
    axes.axvline(median, color=INK, linewidth=0.8)
    axes.annotate(f" median {median:g}", (median, 0.92), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set(xlabel=f"episode length [steps of {1 / CONTROL_HZ:g} s]", ylabel="episodes")
    axes.spines[["top", "right"]].set_visible(False)


def _range(name: str, values: np.ndarray) -> str:
    return _line(name, f"{values.min():.4g} to {values.max():.4g} ({values.dtype})")


def _line(name: str, text: object) -> str:
    return f"{name:<19} {text}"
