"""A mixture in the plane, where miscibility, selection and mode collapse can be seen."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from immiscible_policy.cli import CommandError, Option, parse_range
from immiscible_policy.lab.mixture import REACH, Mixture, crossings, curvature, mixing, ring, wasserstein
from immiscible_policy.lab.paths import Net, Path, generate, train_net
from immiscible_policy.lab.report import markdown as table
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings

USAGE = """\
usage: python -m immiscible_policy.lab toy [KEY=VALUE ...]

Shows miscibility, selection and mode collapse on six modes in the plane, one of them rare, in about a minute on a CPU.

The picture follows Figure 11 of Improved Immiscible Diffusion (arXiv 2505.18521): paths of diffusion, of flow matching
and of flow matching with selected noise side by side, what training pairs, what the network then generates, and what
becomes of conditional data when noise is paired across conditions (C2OT, arXiv 2503.10636).

  python -m immiscible_policy.lab toy
  python -m immiscible_policy.lab toy seeds=0..2 out=benchmarks/results/analysis
"""
OPTIONS = {
    "seeds": Option(str, "0", "training seeds, such as 0..2; the picture shows the first"),
    "k": Option(int, 4, "candidates of knn (4 is the paper's best for flow matching)"),
    "steps": Option(int, 1500, "training steps"),
    "batch_size": Option(int, 128, "points per training step"),
}
RADIUS, STD, RARE = 2.0, 0.12, 5
MIXTURE = ring([0.19, 0.19, 0.19, 0.19, 0.19, 0.05], radius=RADIUS, std=STD)
CONDITIONAL = ring([1 / 6] * 6, radius=RADIUS, std=STD, conditions=[0, 0, 0, 1, 1, 1])
DIFFUSION, FLOW = Path(True, RADIUS + 4 * STD), Path(False, RADIUS + 4 * STD)
SAMPLES, FEW, MANY = 1000, 2, 50
NOWHERE = "#AAAAAA"
MODE_COLOURS = [*COLOURS[:6], NOWHERE]


class Arm(NamedTuple):
    """One way to train: a path and a selector.

    Attributes:
        name: What the picture calls it.
        path: Between data and noise.
        select: Chooses the noise.
    """

    name: str
    path: Path
    select: Selector


def arms(k: int) -> list[Arm]:
    """The columns of Figure 11."""
    return [
        Arm("diffusion", DIFFUSION, make_selector("vanilla")),
        Arm("flow matching", FLOW, make_selector("vanilla")),
        Arm(f"immiscible flow, KNN k={k}", FLOW, make_selector("knn", k=k)),
        Arm("immiscible flow, assignment", FLOW, make_selector("linear")),
    ]


def conditional_arms(k: int) -> list[Arm]:
    """Ways to train flow matching on conditional data."""
    return [
        Arm("vanilla", FLOW, make_selector("vanilla")),
        Arm(f"KNN k={k}", FLOW, make_selector("knn", k=k)),
        Arm("assignment across conditions", FLOW, make_selector("linear")),
        Arm("assignment within conditions (c2ot)", FLOW, make_selector("c2ot", weight=math.inf)),
    ]


class Pairing(NamedTuple):
    """A training batch before noising: data and noise (N, 2), and the data's modes (N,)."""

    x: Tensor
    noise: Tensor
    modes: Tensor


def pair(arm: Arm, mixture: Mixture, n: int, generator: torch.Generator) -> Pairing:
    """Draw data and let the arm's selector choose noise for them."""
    x, modes = mixture.sample(n, generator)
    condition = None if mixture.conditions is None else mixture.one_hot(modes)
    return Pairing(x, arm.select(x, condition=condition, generator=generator), modes)


class Shown(NamedTuple):
    """What the picture draws of an arm: a training batch, generated paths (S, N, 2), samples in few steps (N, 2)."""

    arm: Arm
    pairing: Pairing
    paths: Tensor
    few: Tensor


class ShownConditional(NamedTuple):
    """What the picture draws of a conditional arm: samples (2, N, 2) of both conditions, their distance to the data."""

    arm: Arm
    samples: Tensor
    distance: float


Figures = dict[str, float]


def measure_arm(arm: Arm, options: dict[str, Any], seed: int) -> tuple[Figures, Shown]:
    """Train an arm on the mixture: its numbers, and what the picture draws of it."""
    generator = torch_generator("cpu", "toy evaluation", seed)
    pairing = pair(arm, MIXTURE, options["batch_size"], generator)
    data = MIXTURE.around(MIXTURE.apportioned(SAMPLES), generator)
    start = torch.randn(SAMPLES, 2, generator=generator)
    nets = _train(arm, MIXTURE, options, seed)
    none = start[:, :0]
    early = generate(nets[0], arm.path, start, none, MANY)[-1]
    few = generate(nets[1], arm.path, start, none, FEW)[-1]
    paths = generate(nets[1], arm.path, start, none, MANY)
    figures = {
        "noise_mixing": mixing(pairing.noise, pairing.modes),
        "training_crossings": crossings(pairing.noise, pairing.x),
        "path_curvature": curvature(paths),
        "distance_early": wasserstein(early, data),
        "distance_few_steps": wasserstein(few, data),
        "distance": wasserstein(paths[-1], data),
        "total_variation_few_steps": MIXTURE.total_variation(few),
        "total_variation": MIXTURE.total_variation(paths[-1]),
        "rare_mode_share": float(MIXTURE.mode_shares(paths[-1])[RARE]),
    }
    return figures, Shown(arm, pairing, paths, few)


def measure_conditional(arm: Arm, options: dict[str, Any], seed: int) -> tuple[Figures, ShownConditional]:
    """Train an arm on the conditional mixture: its numbers (means over conditions), and what the picture draws."""
    generator = torch_generator("cpu", "toy conditional evaluation", seed)
    many = [pair(arm, CONDITIONAL, options["batch_size"], generator) for _ in range(20)]
    noise = torch.cat([each.noise for each in many])
    first = CONDITIONAL.one_hot(torch.cat([each.modes for each in many]))[:, 0].bool()
    net = _train(arm, CONDITIONAL, options, seed)[1]
    samples, distances, misses = [], [], []
    for condition in (0, 1):
        own = CONDITIONAL.given(condition)
        data = own.around(own.apportioned(SAMPLES), generator)
        start = torch.randn(SAMPLES, 2, generator=generator)
        told = torch.eye(2)[condition].expand(SAMPLES, 2)
        samples.append(generate(net, arm.path, start, told, MANY)[-1])
        distances.append(wasserstein(samples[-1], data))
        misses.append(float(own.mode_shares(samples[-1])[-1]))
    shift = (noise[first].mean(dim=0) - noise[~first].mean(dim=0)).norm()
    figures = {"prior_shift": float(shift), "distance": mean(distances), "off_modes": mean(misses)}
    return figures, ShownConditional(arm, torch.stack(samples), figures["distance"])


def floors(seed: int, repeats: int = 10) -> dict[str, float]:
    """What perfect samples score: fresh draws of the data against the data (means over repeats)."""
    generator = torch_generator("cpu", "toy floor", seed)
    drawn = [MIXTURE.sample(SAMPLES, generator)[0] for _ in range(repeats)]
    own = CONDITIONAL.given(0)
    conditional = [own.sample(SAMPLES, generator)[0] for _ in range(repeats)]
    return {
        "distance": mean(wasserstein(x, MIXTURE.around(MIXTURE.apportioned(SAMPLES), generator)) for x in drawn),
        "total_variation": mean(MIXTURE.total_variation(x) for x in drawn),
        "conditional_distance": mean(
            wasserstein(x, own.around(own.apportioned(SAMPLES), generator)) for x in conditional
        ),
        "conditional_off_modes": mean(float(own.mode_shares(x)[-1]) for x in conditional),
    }


def measure(options: dict[str, Any]) -> Findings:
    """Train every arm for every seed, measure, and draw the first seed.

    Raises:
        ValueError: If an option is unusable.
    """
    seeds = _check(options)
    found = {arm.name: [measure_arm(arm, options, seed) for seed in seeds] for arm in arms(options["k"])}
    told = {
        arm.name: [measure_conditional(arm, options, seed) for seed in seeds] for arm in conditional_arms(options["k"])
    }
    figures = {
        "options": options,
        "floors": floors(seeds[0]),
        "unconditional": _pooled({name: [each for each, _ in runs] for name, runs in found.items()}),
        "conditional": _pooled({name: [each for each, _ in runs] for name, runs in told.items()}),
    }
    shown = [runs[0][1] for runs in found.values()]
    picture = draw(shown, [runs[0][1] for runs in told.values()], figures["floors"]["conditional_distance"])
    return Findings(figures, describe(figures, len(seeds)), picture)


def describe(figures: dict[str, Any], seeds: int) -> str:
    """The findings as Markdown."""
    options, floor = figures["options"], figures["floors"]
    early = _early(options)
    columns = {
        "noise_mixing": "noise mixed",
        "training_crossings": "pairs that cross",
        "path_curvature": "curvature of paths",
        "distance_few_steps": f"distance, {FEW} sampling steps",
        "distance_early": f"distance, {early} training steps",
        "distance": "distance",
        "total_variation_few_steps": f"mode error, {FEW} sampling steps",
        "total_variation": "mode error",
        "rare_mode_share": "rare mode (5 %)",
    }
    perfect = ["perfect samples (floor)", "", "", "", *[f"{floor['distance']:.3f}"] * 3]
    perfect += [f"{floor['total_variation']:.3f}"] * 2 + ["0.050"]
    unconditional = table(["", *columns.values()], [*_rows(figures["unconditional"], list(columns)), perfect])
    own = {"prior_shift": "shift of the prior", "distance": "distance", "off_modes": "on no mode of its condition"}
    perfect = [perfect[0], "0", f"{floor['conditional_distance']:.3f}", f"{floor['conditional_off_modes']:.3f}"]
    conditional = table(["", *own.values()], [*_rows(figures["conditional"], list(own)), perfect])
    return f"""\
## Miscibility in the plane

Six modes on a circle of radius {RADIUS:g}, each {STD:g} wide; five hold 19 % of the data, one 5 %. A small network
learns the way from N(0, I) to them: {options["steps"]:,} steps of {options["batch_size"]} points. Means over {seeds}
training seed(s); {SAMPLES:,} samples in {MANY} sampling steps where nothing else is said.

*Noise mixed*: share of the noises of a batch whose nearest other noise belongs to another mode. *Pairs that cross*:
share of the pairs of straight lines from noise to data that cross; a least-distance assignment has none.
*Curvature*: mean length of the generated paths over the mean distance of their ends, less 1. *Distance*: exact
Wasserstein-1 distance of {SAMPLES:,} samples to {SAMPLES:,} points of data, the mean way one has to be moved. *Mode
error*: total variation between the samples' shares of the modes (and of none, farther than {REACH:g} standard
deviations from all) and the data's.

{unconditional}

{textwrap.fill(_reading(figures["unconditional"], early), 120)}

The same when the network is told a condition, the left or the right three modes, and starts from N(0, I) for either.
*Shift of the prior*: distance between the mean noises that the two conditions meet in training; in sampling it is 0.

{conditional}

Where the condition tells the place of the data, selection gives each condition more of the noise on its own side;
sampling from N(0, I) then often starts where that condition was hardly trained. Pairing within conditions
(C2OT) keeps the noise of each condition Gaussian.
"""


def _reading(pooled: dict[str, dict[str, Any]], early: int) -> str:
    """Flow matching with plain noise, KNN and assignment side by side, in words and figures."""
    flow, knn, assigned = ({key: each["mean"] for key, each in found.items()} for found in list(pooled.values())[1:])

    def change(key: str) -> str:
        return f"from {flow[key]:.3f} to {knn[key]:.3f} (KNN) and {assigned[key]:.3f} (assignment)"

    return (
        f"Against vanilla flow matching, selection takes the curvature of the paths {change('path_curvature')}, the "
        f"distance in {FEW} sampling steps {change('distance_few_steps')}, and that after {early} training steps "
        f"{change('distance_early')}. KNN changes the law of the noise that the network sees, while sampling starts "
        f"from N(0, I): the rare mode gets {knn['rare_mode_share']:.1%} of its samples ({flow['rare_mode_share']:.1%} "
        f"of vanilla's), and with {MANY} sampling steps it ends {knn['distance']:.3f} from the data, vanilla "
        f"{flow['distance']:.3f}. Assignment keeps the noise of a batch Gaussian."
    )


def draw(shown: Sequence[Shown], conditional: Sequence[ShownConditional], floor: float) -> Figure:
    """The picture: pairs, paths and few-step samples of each arm; below, samples of the conditional arms."""
    figure = Figure(figsize=(12.4, 13.6), dpi=130, layout="constrained", facecolor="white")
    rows = figure.add_gridspec(2, 1, height_ratios=[3.05, 1.22])
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    top.suptitle(
        f"Six modes in the plane (rings), reached from Gaussian noise in the middle; {MANY} sampling steps unless said",
        fontsize=11,
        color=GREY,
    )
    grid = top.subplots(3, len(shown), squeeze=False)
    for column, each in enumerate(shown):
        grid[0, column].set_title(each.arm.name, fontsize=13, fontweight="bold", pad=10)
        _draw_pairing(grid[0, column], each.arm.path, each.pairing)
        _draw_paths(grid[1, column], each.paths)
        _draw_samples(grid[2, column], each.few)
    labels = (
        "training: each noise, in the\ncolour of its data",
        "generation: paths from fresh noise\n(light blue: rare, 5% of the data)",
        f"samples in only {FEW} steps\n(grey: on no mode)",
    )
    for row, label in enumerate(labels):
        grid[row, 0].set_ylabel(label, fontsize=11.5)
    bottom.suptitle(
        "With a condition (left or right modes), selection can hurt: samples in 50 steps",
        fontsize=13, fontweight="bold",
    )  # fmt: skip
    row = bottom.subplots(1, len(conditional), squeeze=False)[0]
    for axes, told in zip(row, conditional, strict=True):
        _draw_conditional(axes, told, floor)
    row[0].set_ylabel("told left (blue),\ntold right (red)", fontsize=11.5)
    return figure


def _draw_pairing(axes: Axes, path: Path, pairing: Pairing) -> None:
    times = torch.linspace(0, 1, 25)[:, None, None]
    lines = path.alpha(times) * pairing.x + path.sigma(times) * pairing.noise  # (25, N, 2)
    _frame(axes, f"{crossings(pairing.noise, pairing.x):.0%} of pairs cross")
    colours = [MODE_COLOURS[mode] for mode in pairing.modes]
    axes.add_collection(LineCollection(list(lines.permute(1, 0, 2).numpy()), colors=colours, linewidths=0.6, alpha=0.4))
    _dots(axes, pairing.noise, colours, 13)


def _draw_paths(axes: Axes, paths: Tensor, count: int = 128) -> None:
    rare = float(MIXTURE.mode_shares(paths[-1])[RARE])
    _frame(axes, f"curvature {curvature(paths):.2f}; light blue gets {rare:.1%}")
    colours = [MODE_COLOURS[mode] for mode in MIXTURE.classify(paths[-1, :count])]
    lines = list(paths[:, :count].permute(1, 0, 2).numpy())
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8, alpha=0.6))
    _dots(axes, paths[0, :count], colours, 5)
    _dots(axes, paths[-1, :count], colours, 9)


def _draw_samples(axes: Axes, samples: Tensor) -> None:
    _frame(axes, f"mode error {MIXTURE.total_variation(samples):.2f}")
    _dots(axes, samples, [MODE_COLOURS[mode] for mode in MIXTURE.classify(samples)], 3)


def _draw_conditional(axes: Axes, each: ShownConditional, floor: float) -> None:
    _frame(axes, f"distance to its data {each.distance:.2f} (perfect {floor:.2f})")
    axes.set_title(each.arm.name, fontsize=11.5)
    for colour, samples in zip(COLOURS, each.samples, strict=False):
        _dots(axes, samples, colour, 3)


def _dots(axes: Axes, points: Tensor, colours: Sequence[str] | str, size: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], c=colours, s=size, linewidths=0)


def _frame(axes: Axes, note: str) -> None:
    """An empty square panel with the modes as rings and a note below."""
    reach = RADIUS + 0.9
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#CCCCCC")
    for x, y in MIXTURE.centres.tolist():
        axes.add_patch(Circle((x, y), REACH * STD, fill=False, edgecolor="#BBBBBB", linewidth=0.7))

    axes.set_xlabel(note, fontsize=10.5, color="#333333")


def _train(arm: Arm, mixture: Mixture, options: dict[str, Any], seed: int) -> list[Net]:
    """The arm's network after the early steps and after all."""
    steps = options["steps"]
    nets = train_net(
        arm.path, mixture, arm.select,
        steps=steps, early=_early(options), batch_size=options["batch_size"], seed=seed,
    )  # fmt: skip
    return list(nets.values())


def _early(options: dict[str, Any]) -> int:
    return max(1, options["steps"] // 6)


def _pooled(found: dict[str, list[Figures]]) -> dict[str, dict[str, Any]]:
    """For each arm, every number's mean over seeds and its values."""
    pooled = {}
    for name, runs in found.items():
        values = {key: [figures[key] for figures in runs] for key in runs[0]}
        pooled[name] = {key: {"mean": mean(numbers), "seeds": numbers} for key, numbers in values.items()}
    return pooled


def _rows(pooled: dict[str, dict[str, Any]], keys: Sequence[str]) -> list[list[str]]:
    return [[name, *(f"{found[key]['mean']:.3f}" for key in keys)] for name, found in pooled.items()]


def _check(options: dict[str, Any]) -> list[int]:
    """The training seeds; refuses options that cannot work."""
    if options["steps"] < 12:
        raise CommandError(f"steps={options['steps']}: use 12 or more")
    if options["batch_size"] < 2:
        raise CommandError(f"batch_size={options['batch_size']}: assignment needs 2 or more points to choose among")
    make_selector("knn", k=options["k"])
    return parse_range("seeds", options["seeds"])


EXPERIMENT = Experiment(USAGE, measure, OPTIONS)
