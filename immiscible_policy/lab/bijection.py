"""Is a sample decided by the noise it starts from? Perturbed start noises, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from immiscible_envs.geometry import GOAL_POSE
from immiscible_policy.cli import CommandError, Option
from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import Agent, load_policy
from immiscible_policy.evaluation.starts import parse_starts
from immiscible_policy.lab.data import DATA, IMAGES, MODELS, RUNS, SEED, pusht_windows
from immiscible_policy.lab.image_models import SIZE, image_model, require_models
from immiscible_policy.lab.perturbation import (
    Perturbed,
    Rollouts,
    chunk_generator,
    linear_displacement,
    perturbed_results,
    perturbed_rollouts,
)
from immiscible_policy.lab.pixels import tiled
from immiscible_policy.lab.steps import TRAININGS, policy_checkpoints
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit.statistics import correlation
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.policy import Policy
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint

USAGE = """\
usage: python -m immiscible_policy.lab bijection [KEY=VALUE ...]

Shows how far a result follows its start noise: perturbed by W = 0 .. 50 %, for action chunks, rollouts and images.

Figure 2 of Improved Immiscible Diffusion (arXiv 2505.18521) reads a stable result as a bijection between noises and
images. In a policy the observation should decide the action, so the correlation of the sampled action with its start
noise is measured as well. runs= names run directories of train_policy.py; the newest checkpoint of every seed is
measured, rollouts with the first seed. The image models are small, trained here when absent and kept in models=.

  python -m immiscible_policy.lab bijection runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab bijection runs=runs/vanilla,runs/knn data=PATH starts=100000..100004
  python -m immiscible_policy.lab bijection images=cifar10-jpeg.zip
"""
OPTIONS = {
    "runs": RUNS,
    "data": DATA,
    "images": IMAGES,
    "models": MODELS,
    "perturbations": Option(int, 10, "perturbations of each start noise and weight"),
    "observations": Option(int, 32, "observations (or images) whose start noise is perturbed"),
    "windows": Option(int, 1024, "windows on which action and start noise are correlated"),
    "starts": Option(str, "100000..100002", "start seeds of the rollouts"),
    "max_steps": Option(int, 300, "steps of a rollout"),
    "sampling_steps": Option(int, 10, "denoising steps of a policy (DDIM)"),
    "seed": SEED,
}
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
"""W; the last gives independent noises, the scale on which the others are read."""
ROLLOUT_WEIGHTS = (0.1, 0.2, 0.3, 0.5, 1.0)
DRAWN = {1.0: "#CCCCCC", 0.5: COLOURS[4], 0.1: COLOURS[0]}
IMAGE_STEPS, STRIPS = 20, 3
BATCH = 256
DECIDED = {
    "correlation": "correlation with the start noise",
    "rmse_random": "error, random noise [px]",
    "rmse_assigned": "error, assigned noise [px]",
}
Document = dict[str, Any]


class PolicyFindings(NamedTuple):
    """What is measured of one policy, and drawn of it.

    Attributes:
        figures: Its numbers.
        chunks: Action chunks of perturbed start noises, in px.
        rollouts: Episodes of the first start; None where only chunks were asked for.
    """

    figures: Document
    chunks: Perturbed
    rollouts: Rollouts | None


class ImageFindings(NamedTuple):
    """What is measured of one image model, and drawn of it."""

    figures: Document
    images: Perturbed


def measure(options: Document) -> Findings:
    """Perturb start noises of policies, of image models, or of both.

    Raises:
        ValueError: If an option is unusable, or a run or model cannot be read.
    """
    _check(options)
    if options["images"]:
        require_models(options["models"], options["images"], TRAININGS.values())
    policies = _policies(options) if options["runs"] else {}
    images = _images(options) if options["images"] else {}
    figures = {
        "weights": WEIGHTS,
        "rollout_weights": ROLLOUT_WEIGHTS,
        "linear_model": [linear_displacement(weight) for weight in WEIGHTS],
        "policies": {label: [each.figures for each in found] for label, found in policies.items()},
        "images": {label: found.figures for label, found in images.items()},
        "options": {key: value for key, value in options.items() if key not in ("runs", "data", "images", "models")},
    }
    return Findings(figures, describe(figures), draw(policies, images))


def measure_policy(checkpoint: Checkpoint, options: Document, starts: Sequence[int]) -> PolicyFindings:
    """Measure one policy: chunks, what its start noise decides, and rollouts from starts (none: no rollouts)."""
    policy, spec = load_policy(checkpoint)
    solver = Solver(policy.path.solvers[0], options["sampling_steps"])
    agent = Agent(policy, spec, solver)
    windows = pusht_windows(options["data"], spec)
    if len(windows) < max(options["windows"], options["observations"]):
        raise CommandError(f"windows={options['windows']}: the demonstrations have {len(windows):,}")
    order = torch.randperm(len(windows), generator=torch_generator("cpu", "bijection windows", options["seed"]))
    chunks = perturbed_chunks(policy, windows[order[: options["observations"]]], solver, options)
    found = [perturbed_rollouts(agent, start, ROLLOUT_WEIGHTS, options["perturbations"], options["max_steps"])
             for start in starts]  # fmt: skip
    figures = {
        "step": checkpoint.step,
        "chunk_displacement": chunks.displacement(),
        **start_noise_figures(policy, windows[order[: options["windows"]]], solver, options["seed"]),
        "rollouts": [_rollout_figures(start, each) for start, each in zip(starts, found, strict=True)],
    }
    return PolicyFindings(figures, chunks, found[0] if found else None)


def perturbed_chunks(policy: Policy, windows: Windows, solver: Solver, options: Document) -> Perturbed:
    """Action chunks [px] of a policy, one start noise per observation, from it and from perturbed ones."""
    generate = chunk_generator(policy, windows.obs, solver)
    generator = torch_generator("cpu", "bijection chunks", options["seed"])
    noise = torch.randn(windows.action.shape, generator=generator)
    return perturbed_results(
        lambda noise: policy.action.unnormalize(generate(noise)), noise, WEIGHTS, options["perturbations"], generator
    )


def start_noise_figures(policy: Policy, windows: Windows, solver: Solver, seed: int) -> Document:
    """How much of the sampled chunk its start noise decides.

    Returns:
        `correlation`, between the means of chunk and start noise over the windows; `rmse_random` and `rmse_assigned`,
        root mean square error to the demonstrated chunk [px] from random start noise and from the same noises
        assigned to the demonstrated chunks of their batch at the least distance; `rmse_mean`, that of always answering
        the mean chunk.
    """
    generator = torch_generator("cpu", "bijection start noise", seed)
    assign = make_selector("linear")
    sampled: dict[str, list[Tensor]] = {"random": [], "assigned": []}
    noises = []
    for rows in torch.arange(len(windows)).split(BATCH):
        batch = windows[rows]
        generate = chunk_generator(policy, batch.obs, solver)
        x = policy.clean(batch.action)
        noises.append(torch.randn(x.shape, generator=generator))
        sampled["random"].append(generate(noises[-1]))
        sampled["assigned"].append(generate(assign(x, generator=generator)))
    chunks = {name: policy.action.unnormalize(torch.cat(found)) for name, found in sampled.items()}
    normalised = policy.action.normalize(chunks["random"])
    rmse = {f"rmse_{name}": _rms(found - windows.action) for name, found in chunks.items()}
    spread = _rms(windows.action - windows.action.mean(dim=0))
    return {"correlation": correlation(normalised, torch.cat(noises)).row_means, **rmse, "rmse_mean": spread}


def measure_images(label: str, options: Document) -> ImageFindings:
    """Perturb the start noises of one of the laboratory's image models."""
    model = image_model(options["models"], options["images"], TRAININGS[label])
    generator = torch_generator("cpu", "bijection images", options["seed"])
    noise = torch.randn(options["observations"], 3, SIZE, SIZE, generator=generator)
    found = perturbed_results(
        lambda noise: model.sample(noise, Solver("ddim", IMAGE_STEPS)).images,
        noise,
        WEIGHTS,
        options["perturbations"],
        generator,
    )
    return ImageFindings({"displacement": found.displacement()}, found)


def describe(figures: Document) -> str:
    """The findings as Markdown."""
    options = figures["options"]
    parts = [_policy_text(figures)] if figures["policies"] else []
    parts += [_image_text(figures)] if figures["images"] else []
    return f"""\
## How far a result follows its start noise

A start noise eps is perturbed to eps' = ((1 - W) eps + W eta) / sqrt((1 - W)^2 + W^2) with an independent eta: standard
normal again for every W. The paper's Figure 2 shows images for W = 0 .. 50 % and 10 perturbations each; we put a
number on it, the root mean square displacement of the result from that of the unperturbed noise, as a share of
the displacement at W = 100 %, where the noise is independent. 0: nothing moved. 1: as far apart as any two results. A
model whose result were linear in its start noise would move as the line "linear in the noise" says; above it, results
are more sensitive than that, below it more stable. {options["perturbations"]} perturbations of each of
{options["observations"]} start noises; all weights share them.

{chr(10).join(parts)}"""


def draw(policies: Mapping[str, list[PolicyFindings]], images: Mapping[str, ImageFindings]) -> Figure:
    """The picture: displacement against W; below, chunks, rollouts and images of perturbed start noises."""
    shown = [found[0] for found in policies.values()]
    rolled = all(each.rollouts for each in shown)
    heights = [
        1.0,
        *[1.0] * bool(shown),
        *[1.0] * bool(shown and rolled),
        *[0.14 * STRIPS * len(images)] * bool(images),
    ]
    figure = Figure(figsize=(13.2, 4.1 * sum(heights)), dpi=120, layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    rows = [figure.add_subfigure(grid[number]) for number in range(len(heights))]
    _draw_curves(rows.pop(0), policies, images)
    if shown:
        _draw_chunks(rows.pop(0), dict(zip(policies, shown, strict=True)))
    if shown and rolled:
        _draw_rollouts(rows.pop(0), {label: each.rollouts for label, each in zip(policies, shown, strict=True)})
    if images:
        _draw_images(rows.pop(0), images)
    return figure


def _policies(options: Document) -> dict[str, list[PolicyFindings]]:
    """Every seed of every run, with rollouts for the first of each."""
    starts = parse_starts(options["starts"], 1)
    found = policy_checkpoints([Path(run) for run in options["runs"].split(",")])
    return {
        label: [measure_policy(each, options, starts if number == 0 else []) for number, each in enumerate(checkpoints)]
        for label, checkpoints in found.items()
    }


def _images(options: Document) -> dict[str, ImageFindings]:
    return {label: measure_images(label, options) for label in TRAININGS}


def _rollout_figures(start: int, found: Rollouts) -> Document:
    return {
        "start": start,
        "block_displacement": found.block_displacement(),
        "coverage_change": found.coverage_change(),
        "coverage": found.rows[0].metrics["coverage"],
    }


def _policy_text(figures: Document) -> str:
    policies, options = figures["policies"], figures["options"]
    moved = [["linear in the noise", *_cells(figures["linear_model"][1:-1]), ""]]
    decided, rolled = [], []
    for label, found in policies.items():
        name = _counted(label, found)
        scale = mean(each["chunk_displacement"][-1] for each in found)
        moved.append([name, *_cells(_relative(found)[1:-1]), f"{scale:.1f} px"])
        decided.append([name, *(f"{mean(each[key] for each in found):.2f}" for key in DECIDED)])
        if found[0]["rollouts"]:
            moves, changes = (_over_starts(found[0], key) for key in ("block_displacement", "coverage_change"))
            rolled.append([label, *_cells(moves, ".1f"), *_cells(changes, ".2f")])
    weights = [f"W = {weight:.0%}" for weight in WEIGHTS[1:-1]]
    percent = [f"{weight:.0%}" for weight in ROLLOUT_WEIGHTS]
    spread = next(iter(policies.values()))[0]["rmse_mean"]
    count = len(next(iter(policies.values()))[0]["rollouts"])
    text = f"""\
### PushT: action chunks

{table(["displacement / that at W = 100 %", *weights, "at 100 %"], moved)}

What the start noise decides, on {options["windows"]:,} windows of the demonstrations (which the policies may have been
trained on): the correlation, over windows, of the sampled chunk's mean with its start noise's mean, and the root mean
square error to the demonstrated chunk from random start noise and from noise assigned to the demonstrations of its
batch of {BATCH} at the least distance. Always answering the mean chunk scores {spread:.1f} px.

{table(["policy", *DECIDED.values()], decided)}

Where several chunks fit an observation, the noise may pick one of them: then noise near the demonstration lowers the
error, here for {_helped(policies)}. But the observation should decide which chunks fit. A high correlation, with an
error from random noise near that of always answering the mean chunk, belongs to a policy that learnt to read its noise
instead.
"""
    if not rolled:
        return text
    header = [
        "policy",
        *(f"block moves [px], W = {each}" for each in percent),
        *(f"coverage, {each}" for each in percent),
    ]
    return f"""{text}
### PushT: rollouts

{count} start(s), first seed of each run, {options["max_steps"]} steps: mean distance of the block from its path in the
unperturbed episode, and mean absolute difference of the maximal coverage. At W = 100 % every plan has an independent
noise: what two rollouts from one start differ by anyway.

{table(header, rolled)}
"""


def _image_text(figures: Document) -> str:
    rows = [["linear in the noise", *_cells(figures["linear_model"][1:-1]), ""]]
    for label, found in figures["images"].items():
        moved = found["displacement"]
        rows.append([label, *_cells([each / moved[-1] for each in moved[1:-1]]), f"{moved[-1]:.3f}"])
    weights = [f"W = {weight:.0%}" for weight in WEIGHTS[1:-1]]
    return f"""\
### CIFAR-10 at {SIZE}x{SIZE}

Small models, one seed each; pixels in [-1, 1], DDIM with {IMAGE_STEPS} steps.

{table(["displacement / that at W = 100 %", *weights, "at 100 %"], rows)}
"""


def _relative(found: Sequence[Document]) -> list[float]:
    """Chunk displacement over that at W = 1, mean over seeds."""
    shares = [[each / one["chunk_displacement"][-1] for each in one["chunk_displacement"]] for one in found]
    return [mean(values) for values in zip(*shares, strict=True)]


def _over_starts(found: Document, key: str) -> list[float]:
    return [mean(values) for values in zip(*(each[key] for each in found["rollouts"]), strict=True)]


def _helped(policies: Mapping[str, list[Document]]) -> str:
    """How many of the policies err less from assigned than from random noise, means over seeds."""
    errors = [[mean(each[key] for each in found) for key in ("rmse_assigned", "rmse_random")]
              for found in policies.values()]  # fmt: skip
    return f"{sum(assigned < random for assigned, random in errors)} of {len(errors)} policies"


def _counted(label: str, found: Sequence[Document]) -> str:
    return f"{label} ({len(found)} seed{'s' * (len(found) > 1)})"


def _cells(values: Sequence[float], form: str = ".3f") -> list[str]:
    return [f"{value:{form}}" for value in values]


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _draw_curves(
    figure: SubFigure, policies: Mapping[str, list[PolicyFindings]], images: Mapping[str, ImageFindings]
) -> None:
    rolled = any(found[0].rollouts for found in policies.values())
    titles = [*["action chunks move"] * bool(policies), *["the block moves in rollouts"] * rolled,
              *["images move"] * bool(images), *["action follows its start noise"] * bool(policies)]  # fmt: skip
    panels = dict(zip(titles, figure.subplots(1, len(titles), squeeze=False)[0], strict=True))
    percent = [100 * weight for weight in WEIGHTS[:-1]]
    for title, axes in panels.items():
        axes.set_title(title, fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if title.endswith("move"):
            linear = [linear_displacement(weight) for weight in WEIGHTS[:-1]]
            axes.plot(percent, linear, color=GREY, linestyle="--", linewidth=1.2, label="linear in the noise")
            axes.set(xlabel="W, weight of the perturbation [%]", ylabel="displacement / that of independent noise",
                     ylim=(0, 1.05))  # fmt: skip
    for colour, (label, found) in zip(COLOURS, policies.items(), strict=False):
        chunks = _relative([each.figures for each in found])
        panels["action chunks move"].plot(percent, chunks[:-1], color=colour, marker="o", markersize=4, label=label)
        if found[0].figures["rollouts"]:
            moved = _over_starts(found[0].figures, "block_displacement")
            panels["the block moves in rollouts"].plot(
                [0, *(100 * weight for weight in ROLLOUT_WEIGHTS)],
                [0, *moved],
                color=colour,
                marker="o",
                markersize=4,
                label=label,
            )
            panels["the block moves in rollouts"].set(
                xlabel="W, weight of the perturbation [%]", ylabel="mean distance of the block [px]"
            )
    for colour, (label, image) in zip(COLOURS, images.items(), strict=False):
        moved = image.figures["displacement"]
        shares = [each / moved[-1] for each in moved[:-1]]
        panels["images move"].plot(percent, shares, color=colour, marker="o", markersize=4, label=label)
    if policies:
        _draw_correlations(panels["action follows its start noise"], policies)
    for title in titles:
        if title != "action follows its start noise":
            panels[title].legend(frameon=False, fontsize=9)


def _draw_correlations(axes: Axes, policies: Mapping[str, list[PolicyFindings]]) -> None:
    """A bar for each run's mean correlation, a dot for each seed."""
    for place, (colour, found) in enumerate(zip(COLOURS, policies.values(), strict=False)):
        values = [each.figures["correlation"] for each in found]
        axes.bar(place, mean(values), color=colour, alpha=0.35, width=0.6)
        axes.scatter([place] * len(values), values, color=colour, s=22, zorder=3)
        axes.annotate(f"{mean(values):.2f}", (place, max(values)), xytext=(0, 5), textcoords="offset points",
                      ha="center", fontsize=10)  # fmt: skip
    axes.set_xticks(range(len(policies)), list(policies))
    axes.set(ylim=(0, 1.05), ylabel="correlation of their means over windows")


def _draw_chunks(figure: SubFigure, policies: Mapping[str, PolicyFindings]) -> None:
    """The chunks of one observation, each run with the same noises: the one whose chunks differ most for the first."""
    figure.suptitle("action chunks for one observation: the start noise perturbed by W", fontsize=11, x=0.01, ha="left")
    spread = next(iter(policies.values())).chunks.results[-1].std(dim=0).mean(dim=(1, 2))  # (N,)
    row = int(spread.argmax())
    panels = figure.subplots(1, len(policies), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (label, found) in zip(panels, policies.items(), strict=True):
        for weight, colour in DRAWN.items():
            chunks = found.chunks.results[WEIGHTS.index(weight)][:, row]
            for number, chunk in enumerate(chunks):
                name = f"W = {weight:.0%}" if number == 0 else None
                axes.plot(chunk[:, 0], chunk[:, 1], color=colour, linewidth=1.2, label=name)
        reference = found.chunks.reference[row]
        axes.plot(reference[:, 0], reference[:, 1], color="black", linewidth=1.6, label="unperturbed")
        axes.scatter(*reference[0].tolist(), color="black", s=14, zorder=3)
        _plane(axes, label)
    panels[0].legend(frameon=False, fontsize=9)


def _draw_rollouts(figure: SubFigure, rollouts: Mapping[str, Rollouts | None]) -> None:
    start = next(each.rows[0].start for each in rollouts.values() if each)
    figure.suptitle(f"paths of the block in rollouts from start {start}", fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(1, len(rollouts), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (label, found) in zip(panels, rollouts.items(), strict=True):
        assert found is not None
        paths = found.block_paths()
        for weight, colour in DRAWN.items():
            first = 1 + ROLLOUT_WEIGHTS.index(weight) * found.perturbations
            for episode in range(first, first + found.perturbations):
                name = f"W = {weight:.0%}" if episode == first else None
                axes.plot(paths[:, episode, 0], paths[:, episode, 1], color=colour, linewidth=1.2, label=name)
        axes.plot(paths[:, 0, 0], paths[:, 0, 1], color="black", linewidth=1.6, label="unperturbed")
        axes.scatter(*paths[0, 0], color="black", s=18, zorder=3)
        axes.scatter(*GOAL_POSE[:2], color=COLOURS[2], marker="*", s=60, zorder=3, label="goal")
        _plane(axes, label)
    panels[0].legend(frameon=False, fontsize=9)


def _plane(axes: Axes, title: str) -> None:
    """A panel in the plane of the table, y downwards as in the environment's pictures."""
    axes.set_title(title, fontsize=10)
    axes.set_aspect("equal", adjustable="box")
    axes.set(xlabel="x [px]", ylabel="y [px]")
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def _draw_images(figure: SubFigure, images: Mapping[str, ImageFindings]) -> None:
    """One strip of perturbations per weight for each model and start noise."""
    figure.suptitle("images from a few start noises, perturbed by each weight", fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(len(images), 1, squeeze=False)[:, 0]
    for axes, (label, found) in zip(panels, images.items(), strict=True):
        shown = found.images.results[:, :3, :STRIPS]  # (M, P, STRIPS, 3, S, S), P at most 3
        order = shown.permute(2, 0, 1, 3, 4, 5).flatten(0, 2)  # a row per start, the perturbations of each weight
        columns = shown.shape[1]
        axes.imshow(tiled(order, columns * len(WEIGHTS)).numpy(), interpolation="nearest")
        middles = [columns * (SIZE + 2) * (number + 0.5) for number in range(len(WEIGHTS))]
        axes.set_xticks(middles, [f"W = {weight:.0%}" for weight in WEIGHTS])
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel(label, fontsize=10)


def _check(options: Document) -> None:
    if not options["runs"] and options["images"] is None:
        raise CommandError("bijection needs runs=DIR,DIR (trained PushT policies), images=PATH (CIFAR-10), or both")
    for key, least in (("perturbations", 1), ("observations", 3), ("windows", 2), ("max_steps", 1)):
        if options[key] < least:
            raise CommandError(f"{key}={options[key]}: use {least} or more")
    Solver("ddim", options["sampling_steps"])
    parse_starts(options["starts"], 1)


EXPERIMENT = Experiment(USAGE, measure, OPTIONS)
