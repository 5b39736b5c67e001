"""What each denoising step predicts: its error, and how close it comes to real data.

What a network predicts at a network call implies a clean sample x_0 (Figure 3 a, b, d and equation 2 of Improved
Immiscible Diffusion, arXiv 2505.18521; its figures are of other models, resolutions and features).

- *Error*: root mean square error of x_0 against the true clean sample, real data noised to the layer's level, once
  with noise of the model's own selector (what training shows it) and once with plain Gaussian noise (what sampling
  starts from), in units of the data's spread: 1 is the error of always predicting the mean. For vanilla the two differ
  by chance alone.
- *Distance from the final sample*: the same unit, along sampling from plain noise: 20 calls of DDIM, or, for a
  consistency model, of its own solver.
- *Fréchet distance*: squared, of the x_0 that a layer predicts along sampling to real data: on the numbers of the
  chunk for actions, on the features of the project's classifier for images (not FID). The *floor* is what as many real
  samples score: for actions those windows' own chunks against all others, for images training images against test
  images.

An error above 1 at the noisiest layers is a network that has not converged, divided by a small alpha. An error with own
noise below vanilla's shows how much of x_0 the noise gives away: no gain where the error with plain noise is far above.

  python -m immiscible_policy.lab steps runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab steps runs=runs/ddim_vanilla,runs/ddim_knn   (runs of train_image.py)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option
from immiscible_policy.evaluation.agent import read_policy, read_spec
from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.data import DATASETS, to_bytes, to_pixels
from immiscible_policy.image.evaluation.features import features_of, make_extractor
from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from immiscible_policy.image.evaluation.pictures import tile
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.spec import read_spec as read_image_spec
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab.data import SEED
from immiscible_policy.lab.program import Document, legend, means, plain, program, require, table
from immiscible_policy.palette import GREY, colours
from immiscible_policy.path import ProbabilityPath
from immiscible_policy.path.base import Network
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Plan, draws, solve
from immiscible_policy.store.checkpoint import Checkpoint

LAYERS = 20
STRIP = 3  # Start noises whose predicted images are drawn, at every second layer
SHOWN = (2, 6, 10, 14, 18)  # Layers at which the tables stand; the last one is the sample
QUANTITIES = {
    "own": "Error of x_0 from noised real data, noise of the model's own selector",
    "plain": "Error of x_0 from noised real data, plain noise",
    "final": "Distance of x_0 from the final sample, along sampling",
    "frechet": "Squared Fréchet distance of x_0 to real data, along sampling",
}


@torch.no_grad()
def predicted_along_sampling(
    network: Network, path: ProbabilityPath, plan: Plan, noise: Tensor, limit: float
) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict while start noises are denoised.

    The layers are the calls of the plan; clean numbers lie within the limit. The noise (D, N, ...) is that of the start
    and whatever the solver adds, see `draws`.
    """
    predicted: list[Tensor] = []

    def calls(i: int, x: Tensor) -> Tensor:
        return network(x, torch.full((len(x),), plan[i].t)).float()

    solve(calls, path, plan, noise, limit=limit, record=predicted)
    return torch.stack(predicted)


@torch.no_grad()
def predicted_at_layers(
    network: Network, path: ProbabilityPath, plan: Plan, x: Tensor, noise: Tensor, limit: float
) -> Tensor:
    """Clean samples (S, N, ...) that the layers predict where samples x (N, ...) have met their noise (N, ...)."""
    predicted = []
    for layer in plan:
        noisy = layer.alpha * x + layer.sigma * noise
        output = network(noisy, torch.full((len(x),), layer.t)).float()
        predicted.append(path.split(output, noisy, layer.alpha, layer.sigma).clean.clamp(-limit, limit))
    return torch.stack(predicted)


def relative_error(predicted: Tensor, target: Tensor, spread: float) -> list[float]:
    """Root mean square error of each layer's predictions (S, N, ...) of target (N, ...), in units of the data's spread.

    The spread is the root mean square deviation of the data from its mean: whoever always predicts the mean scores 1.
    """
    return [float((layer - target).square().mean().sqrt() / spread) for layer in predicted]


class LayerBatch(NamedTuple):
    """Real data, noises for it, and the denoiser that sees them."""

    x: Tensor  # clean, as diffused (N, ...)
    own: Tensor  # noise that the model's own selector chose (N, ...)
    plain: Tensor  # Gaussian noise (N, ...)
    start: Tensor  # noises of sampling (D, N, ...), see `draws`
    network: Network  # its features bound


def measure_layers(
    batches: Iterable[LayerBatch],
    path: ProbabilityPath,
    plan: Plan,
    limit: float,
    features: Callable[[Tensor], Tensor],
    reference: FeatureStatistics,
) -> dict[str, list[float]]:
    """The `QUANTITIES` of every layer of a denoiser, the noisiest first, and the times `t` that its network is given.

    See `predicted_along_sampling`; features (N, D) are of samples (N, ...).
    """
    data, predicted = [], defaultdict(list)
    for batch in batches:
        data.append(batch.x)
        predicted["final"].append(predicted_along_sampling(batch.network, path, plan, batch.start, limit))
        for key, noise in (("own", batch.own), ("plain", batch.plain)):
            predicted[key].append(predicted_at_layers(batch.network, path, plan, batch.x, noise, limit))
    x, (final, own, plain) = torch.cat(data), (torch.cat(parts, dim=1) for parts in predicted.values())
    spread = float((x - x.mean(dim=0)).square().mean().sqrt())
    return {
        "t": [step.t for step in plan],
        "own": relative_error(own, x, spread),
        "plain": relative_error(plain, x, spread),
        "final": relative_error(final, final[-1], spread),
        "frechet": [frechet_distance(*feature_statistics(features(layer)), *reference) for layer in final],
    }


def measure(options: Document) -> Findings:
    """Measure the layers of policies or of image models."""
    require(options, n=(200, np.inf))  # a Fréchet distance needs them
    policies, models = lab_runs.newest_runs(options["runs"])
    checkpoints = [checkpoint for seeds in policies.values() for checkpoint in seeds.values()]
    for checkpoint in (*checkpoints, *models.values()):
        lab_runs.own_selector(checkpoint)  # refuses models without one
    _require_equal("policies", map(read_spec, checkpoints), ("horizon", "action_dim", "method", "diffusion_steps"))
    _require_equal("image models", map(read_image_spec, models.values()), ("model", "size"))
    n, seed = options["n"], options["seed"]
    figures: Document = {}
    strips: dict[str, Tensor] = {}
    if policies:
        layers: dict[str, list[Document]] = {}
        for run, seeds in policies.items():
            measured = [measure_policy(checkpoint, options["data"], n, seed) for checkpoint in seeds.values()]
            layers[run] = [result for result, _ in measured]
            figures.setdefault("actions", {"frechet_floor": measured[0][1], "layers": layers})
    if models:
        loaded = {label: load_image_model(checkpoint)[0] for label, checkpoint in models.items()}
        figures["images"] = measure_images(models, loaded, options["data"], n, seed)
        for label, model in loaded.items():  # every second layer, a row for each start noise, the noisiest layer first
            generator = torch_generator("cpu", "steps strip", seed)
            start = torch.randn(STRIP, *model.coder.shape, generator=generator)
            predicted = model.sample(start, lab_runs.layered(model.path, LAYERS), generator=generator).predicted
            strips[label] = to_bytes(model.coder.decode(predicted[1::2].transpose(0, 1).flatten(0, 1)))
    return Findings({"n": n, **figures}, describe(figures), draw(figures, strips))


def _require_equal(kind: str, specs: Iterable[Any], keys: Sequence[str]) -> None:
    """Refuse models whose layers, or what they predict, cannot stand side by side."""
    specs = list(specs)
    for key in keys:
        values = sorted({getattr(spec, key) for spec in specs})
        if len(values) > 1:
            raise CommandError(f"runs= names {kind} of {key} {' and '.join(map(str, values))}; they need the same")


def measure_policy(checkpoint: Checkpoint, data: Path | None, n: int, seed: int) -> tuple[Document, float]:
    """The layers of a policy, and the floor of its Fréchet distance, on n windows that it may have been trained on."""
    policy, _ = read_policy(checkpoint)
    chosen, others = lab_runs.drawn_windows(checkpoint, data, n, seed, key="n")
    if len(others) < n:
        raise CommandError(f"n={n}: the demonstrations have {n + len(others):,} windows; choose at most half")
    real, reference = (feature_statistics(policy.action.normalize(w.action).flatten(1)) for w in (chosen, others))
    plan, scale = lab_runs.layered(policy.path, LAYERS).plan(policy.path), policy.data_scale
    batches = []
    for rows in torch.arange(n).split(checkpoint.config["batch_size"]):  # as the selector saw in training
        batch = chosen[rows]
        network = partial(policy.network, features=policy.encode(batch.obs))
        x, condition = policy.clean(batch.action), policy.condition(batch.obs)
        batches.append(_noised(x, checkpoint, network, seed, int(rows[0]), plan, condition))
    result = measure_layers(batches, policy.path, plan, scale, lambda x: x.flatten(1) / scale, reference)
    return result, frechet_distance(*real, *reference)


def measure_images(
    models: Mapping[str, Checkpoint], loaded: Mapping[str, ImageModel], data: Path | None, n: int, seed: int
) -> Document:
    """The layers of image models on n test images; their Fréchet distance on the classifier's features."""
    extractor = make_extractor("classifier")

    def features(pixels: Tensor) -> Tensor:
        return features_of(extractor, pixels.split(250))

    for label, model in loaded.items():
        if model.text is not None:
            raise CommandError(f"runs={label}: its images depend on prompts; this is for models without, such as ddim")
    first = next(iter(models.values()))
    other = DATASETS[first.config.get("dataset", "cifar10")].splits[-1]  # a folder of images has one split
    test, training = (lab_runs.images_of(first, data, split) for split in (other, "train"))
    if min(len(test), len(training)) < n:
        raise CommandError(f"n={n}: there are {min(len(test), len(training)):,} images of a split; use fewer")
    reference = feature_statistics(features(test))
    layers = {}
    for label, model in loaded.items():
        batches, plan = [], lab_runs.layered(model.path, LAYERS).plan(model.path)
        for number, part in enumerate(to_pixels(test[:n]).split(models[label].config["batch_size"])):
            x = model.coder.encode(part, torch_generator("cpu", "steps encode", seed, number))
            batches.append(_noised(x, models[label], model.network(), seed, number, plan))

        def decoded(x: Tensor, model: ImageModel = model) -> Tensor:
            return features(to_bytes(model.coder.decode(x)))

        layers[label] = [measure_layers(batches, model.path, plan, model.coder.limit, decoded, reference)]
    floor = frechet_distance(*feature_statistics(features(training[:n])), *reference)
    return {"frechet_floor": floor, "layers": layers}


def _noised(
    x: Tensor,
    checkpoint: Checkpoint,
    network: Network,
    seed: int,
    number: int,
    plan: Plan,
    condition: Tensor | None = None,
) -> LayerBatch:
    """Clean samples with their noises; plain noise and start are the same for every model."""
    common, own = (torch_generator("cpu", name, seed, number) for name in ("steps common", "steps own"))
    noise = torch.randn(x.shape, generator=common)
    start = torch.randn(draws(plan), *x.shape, generator=common)
    select = lab_runs.own_selector(checkpoint)
    return LayerBatch(x, select(x, condition=condition, generator=own), noise, start, network)


def over_seeds(seeds: list[Document], quantity: str) -> list[float]:
    """A quantity of each layer, averaged over training seeds."""
    return means(result[quantity] for result in seeds)


def describe(sections: Mapping[str, Document]) -> str:
    """The tables of every kind of data."""
    parts = []
    for title, section in sections.items():
        layers = section["layers"]
        t = next(iter(layers.values()))[0]["t"]
        values = {f"t = {t[i]:g}": f"{{values[{i}]:.3f}}" for i in SHOWN}
        columns = {"model": "{label}", "seeds": "{seeds}", **values, "sample": f"{{values[{LAYERS - 1}]:.3f}}"}
        parts += [f"### {title.capitalize()}", _half_table(section)]
        for quantity, meaning in QUANTITIES.items():
            rows: list[Document] = [{"label": run, "seeds": len(seeds), "values": over_seeds(seeds, quantity)}
                    for run, seeds in layers.items()]  # fmt: skip
            if quantity == "frechet":
                rows.append({"label": "floor", "values": {LAYERS - 1: section["frechet_floor"]}})
            parts += [f"{meaning}:", table(columns, rows)]
    return "\n\n".join(parts)


def _half_table(section: Document) -> str:
    """Every model against the first: errors over the noisier half of the layers, and the samples' Fréchet distance."""

    def half(seeds: list[Document], quantity: str) -> float:
        return mean(over_seeds(seeds, quantity)[: LAYERS // 2])

    first = next(iter(section["layers"].values()))
    rows: list[Document] = []
    for run, seeds in section["layers"].items():
        samples = [result["frechet"][-1] for result in seeds]
        row = {"label": run, "distance": mean(samples), "low": min(samples), "high": max(samples)}
        changes = {key: 100 * (half(seeds, key) / half(first, key) - 1) for key in ("own", "plain")}
        rows.append(row | changes)
    columns = {
        "over the noisier half, against the first": "{label}",
        "error, own noise [%]": "{own:+.1f}",
        "error, plain noise [%]": "{plain:+.1f}",
        "Fréchet distance of samples": "{distance:.3f} ({low:.3f} to {high:.3f})",
    }
    return table(columns, rows)


def draw(sections: Mapping[str, Document], strips: Mapping[str, Tensor]) -> Figure:
    """Error, distance from the final sample and Fréchet distance of every layer; below, predicted images."""
    heights = [3.7] * len(sections) + [1.8] * bool(strips)
    figure = Figure(figsize=(14.7, sum(heights)), dpi=130, layout="constrained")
    rows = np.ravel(np.array(figure.subfigures(len(heights), 1, height_ratios=heights)))
    for row, (title, section) in zip(rows, sections.items(), strict=False):
        _draw_layers(list(row.subplots(1, 3)), title, section)
    if strips:
        for axes, (label, images) in zip(np.ravel(rows[-1].subplots(1, len(strips))), strips.items(), strict=True):
            axes.imshow(tile(images, LAYERS // 2), interpolation="nearest")
            axes.axis("off")
            axes.set_title(f"{label}: x_0 at every second layer, from {STRIP} start noises", fontsize=8, loc="left")
    return figure


def _draw_layers(axes: list[Axes], title: str, section: Document) -> None:
    names = ("error, noised real data (dotted: plain noise)", "distance from the final sample", "Fréchet distance²")
    for panel, name in zip(axes, names, strict=True):
        plain(panel, f"{title}: {name}", "layer (left: noise, right: clean)", "1 = always predicting the mean")
    at = range(1, LAYERS + 1)
    for run, colour in colours(section["layers"]).items():
        seeds = section["layers"][run]
        axes[0].plot(at, over_seeds(seeds, "own"), color=colour, linewidth=1.8, label=run)
        axes[0].plot(at, over_seeds(seeds, "plain"), color=colour, linewidth=1.2, linestyle=":")
        for panel, quantity in zip(axes[1:], ("final", "frechet"), strict=True):
            panel.plot(at, over_seeds(seeds, quantity), color=colour, linewidth=1.8, label=run)
            for result in seeds if len(seeds) > 1 else []:
                panel.plot(at, result[quantity], color=colour, linewidth=0.6, alpha=0.6)
    axes[0].axhline(1, color=GREY, linewidth=0.8)
    axes[2].axhline(section["frechet_floor"], color=GREY, linewidth=1, linestyle="--", label="floor: real samples")
    axes[2].set(yscale="log", ylabel="")
    for panel in axes:
        legend(panel)


OPTIONS = {
    "runs": replace(lab_runs.RUNS, default=REQUIRED),
    "data": lab_runs.DATA,
    "n": Option(COUNT, 2000, "samples for each model"),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
