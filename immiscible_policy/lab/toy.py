"""Shows miscibility, selection and mode collapse on six modes in the plane, in about a minute on a CPU.

Modes on a circle of radius 2, each 0.12 wide; five hold 19% of the data, one 5%. A small network learns the way from
N(0, I) to them. The picture follows Figure 11 of Improved Immiscible Diffusion (arXiv 2505.18521): what training
pairs, what the network then generates, and what becomes of conditional data (the left or the right three modes, both
from N(0, I)) when noise is paired across conditions (C2OT, arXiv 2503.10636).

- *Noise mixed*: share of the noises of a batch whose nearest other noise belongs to another mode.
- *Pairs that cross*: share of the pairs of straight lines from noise to data that cross; a least-distance assignment
  has none.
- *Curvature*: mean length of the generated paths over the mean distance of their ends - 1.
- *Distance*: exact Wasserstein-1 distance of 1,000 samples to 1,000 points of data, the mean way one has to be moved.
- *Mode error*: total variation between the samples' shares of the modes (and of none, farther than 4 standard
  deviations from all) and the data's.
- *Shift of the prior*: distance between the mean noises that the two conditions meet in training; the floor is
  that of as much noise that knows nothing of them.
- *Few*: 2 network calls, 50 where nothing is said. *Early*: a sixth of the training.

  python -m immiscible_policy.lab toy
  python -m immiscible_policy.lab toy seeds=0..2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn

from immiscible_policy.cli import COUNT, Option, parse_range
from immiscible_policy.lab.mixture import REACH, Mixture, crossings, curvature, mixing, ring, wasserstein
from immiscible_policy.lab.program import Document, program, require, table
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.palette import COLOURS, FAINT, GREY, GRID, INK
from immiscible_policy.path import Ddpm, Flow, PathSample, ProbabilityPath
from immiscible_policy.path.base import CLEAN
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver, solve
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.state import TrainState

RADIUS, STD, RARE = 2.0, 0.12, 5
LIMIT = RADIUS + REACH * STD
MIXTURE = ring([0.19, 0.19, 0.19, 0.19, 0.19, 0.05], radius=RADIUS, std=STD)
CONDITIONAL = ring([1 / 6] * 6, radius=RADIUS, std=STD, conditions=[0, 0, 0, 1, 1, 1])
DIFFUSION, FLOW = Ddpm(1000), Flow()
SAMPLES, FEW, MANY = 1000, 2, 50
PAIRED = 20  # batches of pairs in which the noise is measured
MODE_COLOURS = [*COLOURS[:6], FAINT]  # One for each mode, and grey for points on none
COLUMNS = {
    "": "{arm}",
    "noise mixed": "{noise_mixing:.3f}",
    "pairs that cross": "{training_crossings:.3f}",
    "curvature": "{path_curvature:.3f}",
    "distance, few": "{distance_few_steps:.3f}",
    "distance, early": "{distance_early:.3f}",
    "distance": "{distance:.3f}",
    "mode error, few": "{total_variation_few_steps:.3f}",
    "mode error": "{total_variation:.3f}",
    "rare mode (5%)": "{rare_mode_share:.3f}",
}
CONDITIONAL_COLUMNS = {
    "": "{arm}",
    "shift of the prior": "{prior_shift:.3f}",
    "distance": "{distance:.3f}",
    "on no mode of its condition": "{off_modes:.3f}",
}
WIDTH, FREQUENCIES = 128, 4
TIMES = 1000.0  # Largest time that a path tells the network
Figures = dict[str, float]


class Net(nn.Module):
    """Three hidden layers on position, time and a condition of C numbers."""

    def __init__(self, conditions: int) -> None:
        super().__init__()
        sizes = [2 + 2 * FREQUENCIES + conditions, WIDTH, WIDTH, WIDTH]
        hidden = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, 2))

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The output (N, 2) for points (N, 2), times (N,) from 0 to `TIMES`, and conditions (N, C)."""
        angles = math.pi / 2 * t[:, None] / TIMES * 2.0 ** torch.arange(FREQUENCIES)
        return self.layers(torch.cat([noisy, angles.cos(), angles.sin(), condition], dim=1))


Points = tuple[PathSample, Tensor]  # Noised points on their paths, and their conditions (N, C)


@dataclass(frozen=True)
class ToyObjective:
    """The path's loss on batches of a mixture; each batch is a function of (seed, step)."""

    net: Net
    path: ProbabilityPath
    mixture: Mixture
    select: Selector
    batch_size: int
    seed: int

    def batches(self, step: int) -> list[Points]:
        """The batch of a training step."""
        generator = torch_generator("cpu", "toy", self.seed, step)
        x, modes = self.mixture.sample(self.batch_size, generator)
        condition = self.mixture.one_hot(modes)
        t = self.path.times(len(x), generator, step=step)
        noise = self.select(x, condition=condition if condition.numel() else None, step=step, generator=generator)
        return [(self.path.sample(x, noise, t), condition)]

    def loss(self, batch: Points) -> Tensor:
        """The path's loss, a scalar."""
        sample, condition = batch
        return self.path.loss(lambda noisy, t: self.net(noisy, t, condition), sample)


def train_net(
    path: ProbabilityPath, mixture: Mixture, select: Selector, steps: int, batch_size: int, seed: int
) -> list[Net]:
    """Train a network with the project's one loop: its EMA weights after a sixth of the steps and after all."""
    conditions = mixture.one_hot(torch.zeros(1, dtype=torch.long)).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("toy weights", seed))  # torch's initialisers draw from the global stream alone
        net = Net(conditions)
    options: dict[str, Any] = dict(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=50, steps=steps)
    kept: list[Net] = []

    def keep(state: TrainState) -> None:
        kept.append(Net(conditions))
        kept[-1].load_state_dict(state.ema_state())

    train(
        TrainState(net, **options, ema_power=0.75, ema_max=0.99),
        ToyObjective(net, path, mixture, select, batch_size, seed),
        Cadence(steps, log_every=steps, eval_every=steps, checkpoint_every=max(1, steps // 6)),
        precision="fp32",
        record=lambda row: None,
        evaluate=lambda state: {},
        save=keep,
    )
    return [kept[0], kept[-1]]


@torch.no_grad()
def generate(
    net: nn.Module, path: ProbabilityPath, noise: Tensor, condition: Tensor, steps: int, limit: float
) -> Tensor:
    """Paths (steps + 1, N, 2) of the path's default solver from noises (N, 2) to samples, under conditions (N, C)."""
    plan, points = Solver(path.solvers[0], steps).plan(path), []

    def calls(i: int, x: Tensor) -> Tensor:
        points.append(x)
        return net(x, torch.full((len(x),), plan[i].t), condition)

    samples = solve(calls, path, plan, noise[None], limit=limit)
    return torch.stack([*points, samples])


Way = tuple[ProbabilityPath, Selector]  # To train: the path between data and noise, and what chooses the noise


def ways(k: int) -> dict[str, Way]:
    """The columns of Figure 11, by their titles."""
    return {
        "diffusion": (DIFFUSION, make_selector("vanilla")),
        "flow matching": (FLOW, make_selector("vanilla")),
        f"immiscible flow, KNN k={k}": (FLOW, make_selector("knn", k=k)),
        "immiscible flow, assignment": (FLOW, make_selector("linear")),
    }


def conditional_ways(k: int) -> dict[str, Way]:
    """Ways to train flow matching on conditional data."""
    return {
        "vanilla": (FLOW, make_selector("vanilla")),
        f"KNN k={k}": (FLOW, make_selector("knn", k=k)),
        "assignment across conditions": (FLOW, make_selector("linear")),
        "assignment within conditions (c2ot)": (FLOW, make_selector("c2ot", weight=math.inf)),
    }


class PairedPoints(NamedTuple):
    """A training batch before noising: data and noise (N, 2), and the data's modes (N,)."""

    x: Tensor
    noise: Tensor
    modes: Tensor


def pair(select: Selector, mixture: Mixture, n: int, generator: torch.Generator) -> PairedPoints:
    """Draw data and let a selector choose noise for them."""
    x, modes = mixture.sample(n, generator)
    condition = None if mixture.conditions is None else mixture.one_hot(modes)
    return PairedPoints(x, select(x, condition=condition, generator=generator), modes)


def measure_way(
    way: Way, options: Document, seed: int
) -> tuple[Figures, tuple[ProbabilityPath, PairedPoints, Tensor, Tensor]]:
    """Train on the mixture: the numbers, and what is drawn.

    Drawn are the path, a training batch, generated paths (S, N, 2), and samples in few steps (N, 2).
    """
    path, select = way
    generator = torch_generator("cpu", "toy evaluation", seed)
    pairs = pair(select, MIXTURE, options["batch_size"], generator)
    data = MIXTURE.around(MIXTURE.apportioned(SAMPLES), generator)
    start = torch.randn(SAMPLES, 2, generator=generator)
    early_net, net = train_net(path, MIXTURE, select, options["steps"], options["batch_size"], seed)
    early, few, paths = (
        generate(trained, path, start, start[:, :0], steps, LIMIT)
        for trained, steps in ((early_net, MANY), (net, FEW), (net, MANY))
    )
    figures = {
        "noise_mixing": mixing(pairs.noise, pairs.modes),
        "training_crossings": crossings(pairs.noise, pairs.x),
        "path_curvature": curvature(paths),
        "distance_early": wasserstein(early[-1], data),
        "distance_few_steps": wasserstein(few[-1], data),
        "distance": wasserstein(paths[-1], data),
        "total_variation_few_steps": MIXTURE.total_variation(few[-1]),
        "total_variation": MIXTURE.total_variation(paths[-1]),
        "rare_mode_share": float(MIXTURE.mode_shares(paths[-1])[RARE]),
    }
    return figures, (path, pairs, paths, few[-1])


def measure_conditional(way: Way, options: Document, seed: int) -> tuple[Figures, Tensor]:
    """Train on the conditional mixture: the numbers, means over conditions, and samples (2, N, 2) of both."""
    path, select = way
    generator = torch_generator("cpu", "toy conditional evaluation", seed)
    batches = [pair(select, CONDITIONAL, options["batch_size"], generator) for _ in range(PAIRED)]
    noise, modes = torch.cat([pairs.noise for pairs in batches]), torch.cat([pairs.modes for pairs in batches])
    first = CONDITIONAL.one_hot(modes)[:, 0].bool()
    net = train_net(path, CONDITIONAL, select, options["steps"], options["batch_size"], seed)[1]
    samples, distances, misses = [], [], []
    for number in (0, 1):
        own = CONDITIONAL.given(number)
        data = own.around(own.apportioned(SAMPLES), generator)
        start = torch.randn(SAMPLES, 2, generator=generator)
        condition = torch.eye(2)[number].expand(SAMPLES, 2)
        samples.append(generate(net, path, start, condition, MANY, LIMIT)[-1])
        distances.append(wasserstein(samples[-1], data))
        misses.append(float(own.mode_shares(samples[-1])[-1]))
    shift = (noise[first].mean(dim=0) - noise[~first].mean(dim=0)).norm()
    figures = {"prior_shift": float(shift), "distance": mean(distances), "off_modes": mean(misses)}
    return figures, torch.stack(samples)


def floors(seed: int, batch_size: int, repeats: int = 10) -> Figures:
    """What perfect samples, and noise that knows nothing of the data, score (means over repeats)."""
    generator, own = torch_generator("cpu", "toy floor", seed), CONDITIONAL.given(0)

    def distance(mixture: Mixture, drawn: Tensor) -> float:
        return wasserstein(drawn, mixture.around(mixture.apportioned(SAMPLES), generator))

    drawn = [MIXTURE.sample(SAMPLES, generator)[0] for _ in range(repeats)]
    conditional = [own.sample(SAMPLES, generator)[0] for _ in range(repeats)]
    independent = torch.randn(repeats, 2, PAIRED * batch_size // 2, 2, generator=generator)  # of two conditions
    return {
        "distance": mean(distance(MIXTURE, x) for x in drawn),
        "total_variation": mean(MIXTURE.total_variation(x) for x in drawn),
        "conditional_distance": mean(distance(own, x) for x in conditional),
        "conditional_off_modes": mean(float(own.mode_shares(x)[-1]) for x in conditional),
        "prior_shift": mean(float((one - other).norm()) for one, other in independent.mean(dim=2)),
    }


def measure(options: Document) -> Findings:
    """Train every way for every seed, measure, and draw the first seed."""
    require(options, steps=(12, math.inf), batch_size=(2, math.inf))
    k, seeds = options["k"], parse_range("seeds", options["seeds"])
    runs = {name: [measure_way(way, options, seed) for seed in seeds] for name, way in ways(k).items()}
    conditional = {
        name: [measure_conditional(way, options, seed) for seed in seeds] for name, way in conditional_ways(k).items()
    }
    figures = {"options": options, "floors": floors(seeds[0], options["batch_size"])}
    figures |= {"unconditional": _pooled(runs), "conditional": _pooled(conditional)}
    return Findings(figures, describe(figures), draw(runs, conditional, figures["floors"]["conditional_distance"]))


def _pooled(measured: dict[str, list[tuple[Figures, Any]]]) -> Document:
    """For each arm, every number's mean over seeds and its values."""
    pooled = {}
    for arm, runs in measured.items():
        values = {key: [figures[key] for figures, _ in runs] for key in runs[0][0]}
        pooled[arm] = {key: {"mean": mean(numbers), "seeds": numbers} for key, numbers in values.items()}
    return pooled


def describe(figures: Document) -> str:
    """Both tables, the floors below."""

    def rows(kind: str) -> list[Document]:
        return [
            {"arm": arm} | {key: values["mean"] for key, values in result.items()}
            for arm, result in figures[kind].items()
        ]

    options, floor = figures["options"], figures["floors"]
    perfect = {"arm": "perfect samples (floor)", "rare_mode_share": 0.05}
    perfect |= {key: floor["distance"] for key in ("distance", "distance_few_steps", "distance_early")}
    perfect |= {key: floor["total_variation"] for key in ("total_variation", "total_variation_few_steps")}
    conditional = {"arm": perfect["arm"], "prior_shift": floor["prior_shift"]}
    conditional |= {"distance": floor["conditional_distance"], "off_modes": floor["conditional_off_modes"]}
    return f"""\
{options["steps"]:,} steps of {options["batch_size"]} points, means over training seeds {options["seeds"]}.

{table(COLUMNS, [*rows("unconditional"), perfect])}

With a condition:

{table(CONDITIONAL_COLUMNS, [*rows("conditional"), conditional])}"""


def draw(runs: Mapping[str, Any], conditional: Mapping[str, Any], floor: float) -> Figure:
    """The picture: pairs, paths and few-step samples of the first seeds; below, samples of conditional data."""
    figure = Figure(figsize=(12.4, 13.6), dpi=130, layout="constrained", facecolor="white")
    rows = figure.add_gridspec(2, 1, height_ratios=[3.05, 1.22])
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    title = f"Six modes in the plane (rings), reached from Gaussian noise; {MANY} network calls unless stated"
    top.suptitle(title, fontsize=11, color=GREY)
    grid = top.subplots(3, len(runs), squeeze=False)
    for column, (name, seeds) in zip(grid.T, runs.items(), strict=True):
        figures, (path, pairs, paths, few) = seeds[0]
        column[0].set_title(name, fontsize=13, fontweight="bold", pad=10)
        _frame(column[0], f"{figures['training_crossings']:.0%} of pairs cross")
        levels = torch.tensor([*path.levels(25, "trailing"), CLEAN])[:, :, None, None]  # (26, 3, 1, 1): t, alpha, sigma
        noising = levels[:, 1] * pairs.x + levels[:, 2] * pairs.noise  # (26, N, 2)
        colours = [MODE_COLOURS[mode] for mode in pairs.modes]
        _lines(column[0], noising, colours, 0.6, 0.4)
        _dots(column[0], pairs.noise, colours, 13)
        note = f"curvature {figures['path_curvature']:.2f}; sky blue gets {figures['rare_mode_share']:.1%}"
        _frame(column[1], note)
        drawn = paths[:, :128]
        _lines(column[1], drawn, _colours(drawn[-1]), 0.8, 0.6)
        for points, size in ((drawn[0], 5), (drawn[-1], 9)):
            _dots(column[1], points, _colours(drawn[-1]), size)
        _frame(column[2], f"mode error {figures['total_variation_few_steps']:.2f}")
        _dots(column[2], few, _colours(few), 3)
    labels = (
        "training: each noise, in the\ncolour of its data",
        "generation: paths from fresh noise\n(sky blue: rare, 5% of the data)",
        f"samples in only {FEW} network calls\n(grey: on no mode)",
    )
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=11.5)
    title = f"With a condition (left or right modes), selection can hurt: samples in {MANY} network calls"
    bottom.suptitle(title, fontsize=13, fontweight="bold")
    row = bottom.subplots(1, len(conditional), squeeze=False)[0]
    for axes, (name, seeds) in zip(row, conditional.items(), strict=True):
        figures, both = seeds[0]
        _frame(axes, f"distance to its data {figures['distance']:.2f} (perfect {floor:.2f})")
        axes.set_title(name, fontsize=11.5)
        for colour, samples in zip(COLOURS, both, strict=False):
            _dots(axes, samples, colour, 3)
    row[0].set_ylabel("condition left (blue),\ncondition right (amber)", fontsize=11.5)
    return figure


def _lines(axes: Axes, paths: Tensor, colours: Sequence[str], width: float, alpha: float) -> None:
    lines = list(paths.permute(1, 0, 2).numpy())  # (S, N, 2) to N lines of S points
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=width, alpha=alpha))


def _colours(points: Tensor) -> list[str]:
    return [MODE_COLOURS[mode] for mode in MIXTURE.classify(points)]


def _dots(axes: Axes, points: Tensor, colours: Sequence[str] | str, size: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], c=colours, s=size, linewidths=0)


def _frame(axes: Axes, note: str) -> None:
    """An empty square panel with the modes as rings and a note below."""
    reach = RADIUS + 0.9
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color(GRID)
    for x, y in MIXTURE.centres.tolist():
        axes.add_patch(Circle((x, y), REACH * STD, fill=False, edgecolor=GRID, linewidth=0.7))
    axes.set_xlabel(note, fontsize=10.5, color=INK)


OPTIONS = {
    "seeds": Option(str, "0", "training seeds, such as 0..2; the picture shows the first"),
    "k": Option(COUNT, 4, "candidates of knn (4 is the paper's best for flow matching)"),
    "steps": Option(COUNT, 1500, "training steps"),
    "batch_size": Option(COUNT, 128, "points per training step"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
