"""How far results move when their start noise is perturbed by 0 to 50%: action chunks, rollouts and images.

Figure 2 of Improved Immiscible Diffusion (arXiv 2505.18521) reads a stable result as a bijection between noises and
images. A start noise eps is perturbed with an independent eta, by its equation 1 to eps' = eps + W eta. With
`form=normalised` it is ((1 - W) eps + W eta) / sqrt((1 - W)^2 + W^2), standard normal for every W, which perturbs more:
at W = 30% the correlation with eps is 0.919 instead of 0.958.

- *Displacement*: root mean square distance of the result from that of the unperturbed noise, as a share of that from
  the result of an independent noise. 0: nothing moved; 1: as far apart as any two results. *Linear in the noise* is
  what a model would score whose result were linear in its start noise.
- *Correlation*: over windows of the demonstrations, of the sampled chunk's mean with its start noise's mean. In a
  policy the observation should decide the action.
- *Error*: root mean square error to the demonstrated chunk, from random start noise and from noise assigned to the
  demonstrations of its batch at the least distance. A high correlation, with an error from random noise near that of
  always answering the mean chunk, belongs to a policy that learned to read its noise.
- *Network calls* (DDIM): 10 for a chunk, 20 for an image, unless `sampling_steps=` says otherwise; a consistency
  model draws with its one.
- *Rollouts*: mean absolute difference of an episode's score from that of the unperturbed episode from the same start.
  Not for environments of Gymnasium and Meta-World, whose batches hold one episode of a start.

  python -m immiscible_policy.lab bijection runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab bijection runs=runs/vanilla,runs/knn data=STORE starts=100000..100004
  python -m immiscible_policy.lab bijection runs=runs/flow_vanilla,runs/flow_knn   (runs of train_image.py)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import mean
from typing import NamedTuple, cast

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option, unknown
from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import Agent, read_policy
from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.data import to_bytes
from immiscible_policy.image.evaluation.pictures import tile
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab.data import SEED
from immiscible_policy.lab.program import Document, curves, legend, means, plain, program, require, table
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit.statistics import correlation
from immiscible_policy.palette import COLOURS, GREY, colours, readable
from immiscible_policy.policy import Policy
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver, draws, noise_rows
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.training.options import device_option, resolve_device

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # W
FORMS = ("published", "normalised")
ROLLOUT_WEIGHTS = (0.1, 0.2, 0.3, 0.5, 1.0)
INDEPENDENT = "independent"
DRAWN = {INDEPENDENT: "#CCCCCC", "W = 50%": COLOURS[4], "W = 10%": COLOURS[0]}
KEPT = ("form", "perturbations", "observations", "windows", "sampling_steps")  # options that figures record
POLICY_CALLS, IMAGE_CALLS, STRIPS = 10, 20, 3
LABELS = (*(f"W = {weight:.0%}" for weight in WEIGHTS), INDEPENDENT)
BATCH = 256
LINEAR = "linear in the noise"
Generate = Callable[[Tensor], Tensor]  # Turns start noises (N, ...) into samples (N, ...)


def perturb(noise: Tensor, eta: Tensor, weight: Tensor | float, form: str = "published") -> Tensor:
    """eps': noise and an independent eta of its shape, mixed by W from 0 to 1 (a tensor broadcasts)."""
    weight = torch.as_tensor(weight)
    if form == "published":
        return noise + weight * eta
    return ((1 - weight) * noise + weight * eta) / ((1 - weight).square() + weight.square()).sqrt()


def linear_displacement(weight: float, form: str = "published") -> float:
    """How far, of the way between results of independent noises, a result linear in the noise moves.

    That is the root mean square of eps' - eps over sqrt(2): W / sqrt(2) as published, sqrt(1 - rho) normalised, with
    rho = (1 - W) / sqrt((1 - W)^2 + W^2) the correlation of eps' with eps.
    """
    if form == "published":
        return weight / math.sqrt(2)
    return math.sqrt(1 - (1 - weight) / math.hypot(1 - weight, weight))


class Perturbed(NamedTuple):
    """Results of start noises (N, ...), and by weight those of P others each (M, P, N, ...), independent ones last."""

    reference: Tensor
    results: Tensor

    def displacement(self) -> list[float]:
        """For each weight, the root mean square distance of the results from the reference, over all numbers."""
        return [float((result - self.reference).square().mean().sqrt()) for result in self.results]


def perturbed_results(
    generate: Generate,
    noise: Tensor,
    weights: Sequence[float],
    perturbations: int,
    generator: torch.Generator,
    form: str = "published",
) -> Perturbed:
    """Start a model from noises (N, ...), from P perturbed ones of each, and from P independent ones.

    All weights share the same eta, which are the independent noises.
    """
    etas = [torch.randn(noise.shape, generator=generator) for _ in range(perturbations)]
    starts = [[perturb(noise, eta, weight, form) for eta in etas] for weight in weights]
    results = [torch.stack([generate(start) for start in of_weight]) for of_weight in [*starts, etas]]
    return Perturbed(generate(noise), torch.stack(results))


def chunk_generator(policy: Policy, observation: Tensor, solver: Solver) -> Generate:
    """A policy's way from start noises (N, T, A) to normalised action chunks, one for each observation (N, O, Do).

    ValueError for a solver that adds noise of its own.
    """
    plan = solver.plan(policy.path)
    if draws(plan) > 1:
        raise ValueError(f"solver={solver.name}: it adds noise; only a deterministic solver follows its start noise")
    features = policy.encode(observation)
    return lambda noise: policy.solve(features, plan, noise[None]) / policy.data_scale


class PerturbedPolicy:
    """Samples like a policy, row i of B from start noises that weight i perturbs by eta of generator i."""

    def __init__(
        self, policy: Policy, weights: Sequence[float], generators: Sequence[torch.Generator], form: str = "published"
    ) -> None:
        self.policy, self.path, self.action, self.generators = policy, policy.path, policy.action, list(generators)
        self.form = form
        self.weights = torch.tensor(weights, device=policy.action.scale.device)[:, None, None]

    def predict(self, observation: Tensor, solver: Solver, generators: Sequence[torch.Generator]) -> Tensor:
        """Action chunks (B, T, A), like `Policy.predict`."""
        shape = (self.policy.horizon, len(self.action.scale))
        noise, eta = (
            noise_rows(sources, 1, shape)[0].to(self.weights.device) for sources in (generators, self.generators)
        )
        generate = chunk_generator(self.policy, observation, solver)
        return self.action.unnormalize(generate(perturb(noise, eta, self.weights, self.form)))


def measure(options: Document) -> Findings:
    """Perturb start noises of policies or of image models."""
    most = math.inf
    if options["form"] not in FORMS:
        raise CommandError(unknown("form", options["form"], FORMS))
    require(options, observations=(3, most), windows=(2, most))
    options = options | {"device": resolve_device(options["device"])}
    solver = ddim(options, POLICY_CALLS)
    policies, models = lab_runs.newest_runs(options["runs"])
    tasks = {run: lab_runs.task_of(next(iter(seeds.values()))) for run, seeds in policies.items()}
    starts = {
        run: [] if task.merges_seeds or not task.has_environment else task.starts(options["starts"], 1)
        for run, task in tasks.items()
    }
    figures: Document = {"weights": WEIGHTS, "rollout_weights": ROLLOUT_WEIGHTS, "policies": {}}
    figures["linear_model"] = [*(linear_displacement(weight, options["form"]) for weight in WEIGHTS), 1.0]
    chunks: dict[str, Perturbed] = {}
    for run, seeds in policies.items():
        measured = [measure_policy(c, solver, options, [] if i else starts[run]) for i, c in enumerate(seeds.values())]
        figures["policies"][run], chunks[run] = [outcome for outcome, _ in measured], measured[0][1]
    images = {run: perturbed_images(checkpoint, options) for run, checkpoint in models.items()}
    figures["images"] = {run: {"displacement": result.displacement()} for run, result in images.items()}
    figures["options"] = {key: options[key] for key in KEPT}
    return Findings(figures, describe(figures), draw(figures, chunks, images))


def ddim(options: Document, calls: int) -> Solver:
    """The solver with the number of calls that was asked for, or else with `calls`."""
    return Solver("ddim", calls if options["sampling_steps"] is None else options["sampling_steps"])


def measure_policy(
    checkpoint: Checkpoint, solver: Solver, options: Document, starts: Sequence[int]
) -> tuple[Document, Perturbed]:
    """The figures of one policy, with rollouts from starts, and its chunks [in the data's units]."""
    policy, _ = read_policy(checkpoint, options["device"])
    perturbations, seed = options["perturbations"], options["seed"]
    windows, shown = (
        lab_runs.drawn_windows(checkpoint, options["data"], options[key], seed, key=key)[0].to(options["device"])
        for key in ("windows", "observations")
    )
    generate, generator = chunk_generator(policy, shown.obs, solver), torch_generator("cpu", "bijection chunks", seed)
    noise = torch.randn(shown.action.shape, generator=generator)
    chunks = perturbed_results(
        lambda noise: policy.action.unnormalize(generate(noise.to(options["device"]))).cpu(),
        noise,
        WEIGHTS,
        perturbations,
        generator,
        options["form"],
    )
    return {
        "step": checkpoint.step,
        "chunk_displacement": chunks.displacement(),
        **start_noise_figures(policy, windows, solver, seed),
        "score_change": {start: score_change(checkpoint, solver, start, options) for start in starts},
    }, chunks


def start_noise_figures(policy: Policy, windows: Windows, solver: Solver, seed: int) -> Document:
    """How much of the sampled chunk its start noise decides: the *correlation* and the *errors* defined above.

    Errors [in the data's units] are `rmse_random`, `rmse_assigned`, and `rmse_mean` of always answering the mean chunk.
    """
    generator = torch_generator("cpu", "bijection start noise", seed)
    assign = make_selector("linear")
    sampled: dict[str, list[Tensor]] = {"random": [], "assigned": []}
    noises = []
    for rows in torch.arange(len(windows), device=windows.action.device).split(BATCH):
        batch = windows[rows]
        generate = chunk_generator(policy, batch.obs, solver)
        x = policy.clean(batch.action)
        noises.append(torch.randn(x.shape, generator=generator).to(x.device))
        sampled["random"].append(generate(noises[-1]))
        sampled["assigned"].append(generate(assign(x, generator=generator)))
    chunks = {name: policy.action.unnormalize(torch.cat(parts)) for name, parts in sampled.items()}
    normalised = policy.action.normalize(chunks["random"])

    def rms(x: Tensor) -> float:
        return float(x.double().square().mean().sqrt())

    return {
        "correlation": correlation(normalised.cpu(), torch.cat(noises).cpu()).row_means,
        **{f"rmse_{name}": rms(chunk - windows.action) for name, chunk in chunks.items()},
        "rmse_mean": rms(windows.action - windows.action.mean(dim=0)),
    }


def score_change(checkpoint: Checkpoint, solver: Solver, start: int, options: Document) -> list[float]:
    """For each weight, the mean absolute difference of the score of perturbed episodes from the unperturbed one's."""
    policy, spec = read_policy(checkpoint, options["device"])
    perturbations, max_steps = options["perturbations"], options["max_steps"]
    weights, numbers = zip((0.0, 0), *product(ROLLOUT_WEIGHTS, range(perturbations)), strict=True)
    generators = [torch_generator("cpu", "bijection rollout", start, number) for number in numbers]
    perturbed = PerturbedPolicy(policy, weights, generators, options["form"])
    agent, count = Agent(cast(Policy, perturbed), spec, solver), len(weights)
    score = lab_runs.rolled_out(checkpoint, agent, [start] * count, batch_size=count, max_steps=max_steps)
    return np.abs(score[1:] - score[0]).reshape(-1, perturbations).mean(axis=1).tolist()


def perturbed_images(checkpoint: Checkpoint, options: Document) -> Perturbed:
    """Images (pixels in [-1, 1]) of an image model from start noises and from perturbed ones."""
    model = load_image_model(checkpoint)[0].to(options["device"])
    solver = ddim(options, IMAGE_CALLS) if "ddim" in model.path.solvers else model.solver
    generator = torch_generator("cpu", "bijection images", options["seed"])
    noise = torch.randn(options["observations"], *model.coder.shape, generator=generator)
    return perturbed_results(
        lambda noise: model.sample(noise.to(options["device"]), solver).images.cpu(),
        noise,
        WEIGHTS,
        options["perturbations"],
        generator,
        options["form"],
    )


def _moved(figures: Document) -> dict[str, list[float]]:
    """Displacement of every run over that of independent noises, mean over seeds."""
    displacements = {run: [seed["chunk_displacement"] for seed in seeds] for run, seeds in figures["policies"].items()}
    displacements |= {run: [outcome["displacement"]] for run, outcome in figures["images"].items()}
    moved = {
        run: means([distance / of_seed[-1] for distance in of_seed] for of_seed in seeds)
        for run, seeds in displacements.items()
    }
    return {LINEAR: figures["linear_model"]} | moved


def _changed(figures: Document) -> dict[str, list[float]]:
    """Change of the score for every weight, mean over the starts of the first seed, of runs with rollouts."""
    changes = {run: seeds[0]["score_change"] for run, seeds in figures["policies"].items()}
    return {run: means(of_start.values()) for run, of_start in changes.items() if of_start}


def describe(figures: Document) -> str:
    """Displacements of all runs; what the start noise decides, and rollouts, for policies."""
    columns = {"displacement": "{label}"}
    columns |= {f"W = {weight:.0%}": f"{{values[{i}]:.3f}}" for i, weight in enumerate(WEIGHTS) if weight}
    rows = [{"label": label, "values": values} for label, values in _moved(figures).items()]
    intro = "{perturbations} perturbations of each of {observations} start noises, form={form}."
    parts = [intro.format(**figures["options"])]
    parts.append(table(columns, rows))
    if figures["policies"]:
        keys = ("correlation", "rmse_random", "rmse_assigned", "rmse_mean")
        decided = [
            {"label": run, "n": len(seeds)} | {key: mean(outcome[key] for outcome in seeds) for key in keys}
            for run, seeds in figures["policies"].items()
        ]
        columns = {
            "policy": "{label}",
            "seeds": "{n}",
            "correlation with the start noise": "{correlation:.2f}",
            "error, random noise": "{rmse_random:.3g}",
            "error, assigned noise": "{rmse_assigned:.3g}",
            "error, always the mean chunk": "{rmse_mean:.3g}",
        }
        parts.append(table(columns, decided))
    if rolled := [{"label": run, "values": values} for run, values in _changed(figures).items()]:
        columns = {f"W = {weight:.0%}": f"{{values[{i}]:.3f}}" for i, weight in enumerate(ROLLOUT_WEIGHTS)}
        parts.append(table({"change of the score, first seed": "{label}", **columns}, rolled))
    return "\n\n".join(parts)


def draw(figures: Document, chunks: Mapping[str, Perturbed], images: Mapping[str, Perturbed]) -> Figure:
    """Displacement, correlation and change of the score; below, chunks and images of perturbed start noises."""
    heights = [1.0] + [1.0] * bool(chunks) + [0.14 * STRIPS * len(images)] * bool(images)
    figure = Figure(figsize=(13.2, 4.1 * sum(heights)), dpi=120, layout="constrained")
    rows = list(np.ravel(np.array(figure.subfigures(len(heights), 1, height_ratios=heights))))
    _draw_figures(rows[0], figures)
    if chunks:
        _draw_chunks(rows[1], chunks)
    if images:
        _draw_images(rows[-1], images)
    return figure


def _draw_figures(figure: SubFigure, figures: Document) -> None:
    policies, changed = figures["policies"], _changed(figures)
    panels = figure.subplots(1, 1 + bool(policies) + bool(changed), squeeze=False)[0]
    percent = [100 * weight for weight in WEIGHTS]
    plain(panels[0], "results move", "W, weight of the perturbation [%]", "displacement / that of independent noise")
    moved = {label: values[:-1] for label, values in _moved(figures).items()}
    panels[0].plot(percent, moved.pop(LINEAR), "--", color=GREY, linewidth=1.2, label=LINEAR)
    curves(panels[0], percent, moved)
    if policies:
        plain(panels[1], "actions follow their start noise", ylabel="correlation of their means over windows")
        for place, (colour, seeds) in enumerate(zip(colours(policies).values(), policies.values(), strict=True)):
            values = [outcome["correlation"] for outcome in seeds]
            bars = panels[1].bar(place, mean(values), color=colour, alpha=0.35, width=0.6)
            panels[1].bar_label(bars, fmt="{:.2f}", padding=5)
            panels[1].scatter([place] * len(values), values, color=colour, s=22, zorder=3)
        panels[1].set_xticks(range(len(policies)), map(readable, policies))
    if changed:
        plain(panels[2], "rollouts change", "W, weight of the perturbation [%]", "mean absolute change of the score")
        curves(panels[2], [100 * weight for weight in ROLLOUT_WEIGHTS], changed)


def _draw_chunks(figure: SubFigure, chunks: Mapping[str, Perturbed]) -> None:
    """The first two numbers of one observation's chunks, or the only one against the step.

    Shown is the observation whose chunks differ most for the first run.
    """
    figure.suptitle("action chunks for one observation: the start noise perturbed by W", fontsize=11, x=0.01, ha="left")
    row = int(next(iter(chunks.values())).results[-1].std(dim=0).mean(dim=(1, 2)).argmax())
    panels = figure.subplots(1, len(chunks), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (run, outcome) in zip(panels, chunks.items(), strict=True):
        plain(axes, readable(run))
        results = dict(zip(LABELS, outcome.results, strict=True))
        for label, colour in DRAWN.items():
            for number, chunk in enumerate(results[label][:, row]):
                name = None if number else label
                axes.plot(*_line(chunk), color=colour, linewidth=1.2, label=name)
        reference = outcome.reference[row]
        axes.plot(*_line(reference), color="black", linewidth=1.6, marker="o", markevery=[0], label="W = 0")
        if reference.shape[1] > 1:
            axes.set_aspect("equal", adjustable="box")
    legend(panels[0])


def _line(chunk: Tensor) -> tuple[Tensor, Tensor]:
    """What is drawn across and upwards of a chunk (T, A): its first two numbers, or the step and the only number."""
    return (chunk[:, 0], chunk[:, 1]) if chunk.shape[1] > 1 else (torch.arange(len(chunk)), chunk[:, 0])


def _draw_images(figure: SubFigure, images: Mapping[str, Perturbed]) -> None:
    """One strip of perturbations per weight for each model and start noise."""
    panels = figure.subplots(len(images), 1, squeeze=False)[:, 0]
    for axes, (run, outcome) in zip(panels, images.items(), strict=True):
        shown = outcome.results[:, :3, :STRIPS]  # (M, P, STRIPS, 3, S, S), P at most 3
        columns, side = shown.shape[1], shown.shape[-1] + 1
        order = shown.permute(2, 0, 1, 3, 4, 5).flatten(0, 2)  # a row per start, the perturbations of each weight
        axes.imshow(tile(to_bytes(order), columns * len(LABELS)), interpolation="nearest")
        middles = [columns * side * (number + 0.5) for number in range(len(LABELS))]
        axes.set_xticks(middles, LABELS)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(readable(run), fontsize=10)


OPTIONS = {
    "runs": replace(lab_runs.RUNS, default=REQUIRED),
    "data": lab_runs.DATA,
    "form": Option(str, "published", "published, noise + W eta; or normalised, of unit variance"),
    "perturbations": Option(COUNT, 10, "perturbations of each start noise and weight"),
    "observations": Option(COUNT, 32, "observations (or images) whose start noise is perturbed"),
    "windows": Option(COUNT, 1024, "windows on which action and start noise are correlated"),
    "starts": Option(str, "100000..100002", "start seeds of the rollouts"),
    "max_steps": Option(COUNT, 300, "steps of a rollout"),
    "sampling_steps": Option(COUNT, None, f"network calls (DDIM); null: {POLICY_CALLS}, for images {IMAGE_CALLS}"),
    "device": device_option(),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
