"""`python -m immiscible_policy.demos info`: describe a store of demonstrations in words, and draw it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from immiscible_policy.cli import CommandError, Option, parse
from immiscible_policy.commands.demos import PATH, SHOWN, shown_task
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.store import content_hash, open_store
from immiscible_policy.palette import BASELINE, INK, NAMEABLE, highlighted, mode_colour, style
from immiscible_policy.tasks import Modes, Task

FORMATS = (".png", ".pdf", ".svg")
LISTED = 64
"""Arrays of so many numbers per step are described number by number."""
BACKGROUND = 512
"""Side of the scene that paths are drawn on [px]."""

USAGE = """usage: python -m immiscible_policy.demos info path=STORE [out=PICTURE task=TASK]

Prints what a store holds and its content hash; draws the paths of its episodes if out is given."""
OPTIONS = {
    "path": PATH,
    "out": Option(Path, None, "picture to draw, replaced if it exists: " + ", ".join(FORMATS)),
    "task": SHOWN,
}


def main(words: list[str]) -> None:
    """Run the command."""
    options = parse(words, OPTIONS, USAGE)
    out = options["out"]
    task = shown_task(options)
    if out is not None:
        if out.suffix not in FORMATS:
            raise CommandError(f"out={out}: a picture ends in {', '.join(FORMATS)}")
        if not out.parent.is_dir():
            raise CommandError(f"out={out}: the directory {out.parent} does not exist")
        if task.modes is None:
            raise CommandError(f"out={out}: task={task.name} has nothing to draw its demonstrations by; leave it out")
    demos = open_store(options["path"], task.columns)
    for line in describe(demos, task):
        print(line, flush=True)
    if out is not None and task.modes is not None:
        draw(demos, task, task.modes).savefig(out, dpi=150)
        print(f"picture: {out}")


def modes_of(demos: Demonstrations, task: Task, modes: Modes) -> list[int]:
    """The mode of each episode."""
    scenes = task.recorded_scenes(demos)
    return [modes.classify(scenes[episode]) for episode in demos.episodes]


def describe(demos: Demonstrations, task: Task) -> Iterator[str]:
    """Say what demonstrations hold, line by line; images are read to find their range."""
    fps = demos.fps or (task.fps if task.has_environment else None)  # nobody says how fast a robot was recorded
    lengths, lasting = demos.lengths, f" ({len(demos) / fps / 60:.1f} minutes at {fps:g} Hz)" if fps else ""
    yield _line("store", demos.path)
    yield _line("task", task.name)
    yield _line("episodes", f"{demos.n_episodes:,}")
    yield _line("steps", f"{len(demos):,}{lasting}")
    yield _line("episode length", f"{lengths.min()} to {lengths.max()} steps, median {np.median(lengths):g}")
    if task.modes is not None:
        counts = np.bincount(modes_of(demos, task, task.modes), minlength=len(task.modes.names))
        yield _line("modes", task.modes.counted(counts))
    for key, values in demos.arrays.items():
        names = task.columns.get(key, Column()).names
        for i, name in enumerate(names):
            yield _range(f"{key}, {name}", values[:, i])
        if not names and values.ndim == 2 and 1 < values.shape[1] <= LISTED:
            for i in range(values.shape[1]):
                yield _range(f"{key}[{i}]", values[:, i])
        elif not names:
            yield _range(key, values)
    for camera, frames in demos.frames.items():
        extremes = [(block.min(), block.max()) for block in frames.blocks()]
        yield _range(f"{camera}, {frames.shape[1]} x {frames.shape[2]}", np.array(extremes, frames.dtype))
    yield _line("content hash", f"{content_hash(demos)} (images left out)")


def draw(demos: Demonstrations, task: Task, modes: Modes) -> Figure:
    """Draw the paths of all episodes over the first scene, some of each mode boldly, and their lengths."""
    scenes, taken = task.recorded_scenes(demos), modes_of(demos, task, modes)
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.2, 1))[:, 0]
    title = f"{demos.path.name}: {demos.n_episodes:,} demonstrations, {len(demos):,} steps; dots: starts"
    figure.suptitle(title, fontsize=12, color=INK)
    kinds = len(modes.names)
    bold = np.array(highlighted(taken))
    colours = np.array([mode_colour(mode, kinds) for mode in taken])
    left, right, bottom, top = modes.extent
    for axes, (name, track) in zip(
        above.subplots(1, len(modes.tracks), squeeze=False)[0], modes.tracks.items(), strict=True
    ):
        axes.imshow(task.draw(scenes[0], BACKGROUND), extent=modes.extent, alpha=0.35)
        paths = [track(scenes[episode]) for episode in demos.episodes]
        starts = np.array([path[0] for path in paths])
        for chosen, look, size in ((~bold, {"linewidths": 0.6, "alpha": 0.12}, 4), (bold, {"linewidths": 1.8}, 28)):
            drawn = [path for path, keep in zip(paths, chosen, strict=True) if keep]
            axes.add_collection(LineCollection(drawn, colors=list(colours[chosen]), zorder=2 + size / 100, **look))
            edge = {"edgecolors": "white", "linewidths": size / 40}
            axes.scatter(*starts[chosen].T, s=size, c=colours[chosen], zorder=3, **edge)
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        axes.set_title(name, fontsize=11, color=INK)
    lengths = below.subplots()
    lengths.hist(demos.lengths, bins=30, color=BASELINE)
    lengths.axvline(float(np.median(demos.lengths)), color=INK, linewidth=0.8)
    lengths.set(xlabel=f"episode length [steps of {1 / task.fps:g} s]; line: median", ylabel="episodes")
    style(lengths)
    if kinds <= NAMEABLE:
        handles = [Line2D([], [], color=mode_colour(mode, kinds), linewidth=3) for mode in range(kinds)]
        figure.legend(handles, modes.names, loc="outside lower center", ncols=kinds, frameon=False)
    return figure


def _range(name: str, values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    span = f"{low:.4g} to {high:.4g}" if high > low else f"{low:.4g}, constant"
    return _line(name, f"{span} ({values.dtype})")


def _line(name: str, text: object) -> str:
    return f"{name:<19} {text}"
