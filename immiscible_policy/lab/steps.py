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
  images, or images against all others where a set has no split for tests.

An error above 1 at the noisiest layers is a network that has not converged, divided by a small alpha. An error with own
noise below vanilla's shows how much of x_0 the noise gives away: no gain where the error with plain noise is far above.

  python -m immiscible_policy.lab steps runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab steps runs=runs/ddim_vanilla,runs/ddim_knn   (runs of train_image.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from immiscible_policy.image.data import DATASETS, Images, to_bytes, to_pixels
from immiscible_policy.image.data.images import NONE, OWN, prompts_for
from immiscible_policy.image.evaluation.features import features_of, make_extractor
from immiscible_policy.image.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from immiscible_policy.image.evaluation.measure import REFERENCE_BATCH, reference_features
from immiscible_policy.image.evaluation.pictures import tile
from immiscible_policy.image.model import ImageModel, Text
from immiscible_policy.image.spec import read_spec as read_image_spec
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab.data import SEED
from immiscible_policy.lab.program import Document, legend, means, plain, program, require, table
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.palette import GREY, colours, readable
from immiscible_policy.path import ProbabilityPath
from immiscible_policy.path.base import Network
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Plan, draws, solve
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.training.options import device_option, resolve_device

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
        return network(x, torch.full((len(x),), plan[i].t, device=x.device)).float()

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
        output = network(noisy, torch.full((len(x),), layer.t, device=x.device)).float()
        predicted.append(path.split(output, noisy, layer.alpha, layer.sigma).clean.clamp(-limit, limit))
    return torch.stack(predicted)


def squared_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum of the squared errors (S,) of each layer's predictions (S, N, ...) of target (N, ...)."""
    return torch.stack([(layer - target).double().square().sum() for layer in predicted]).cpu()


class LayerBatch(NamedTuple):
    """Real data, noises for it, and the denoiser that sees them, on one device."""

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

    See `predicted_along_sampling`; features (N, D), on the CPU, are of samples (N, ...). Of a batch that is measured,
    features and sums alone are kept.
    """
    errors = {key: torch.zeros(len(plan), dtype=torch.float64) for key in ("own", "plain", "final")}
    seen: list[list[Tensor]] = [[] for _ in plan]
    count, total, squares = 0, torch.zeros(()), 0.0
    for batch in batches:
        x = batch.x.double().cpu()
        count, total, squares = count + len(x), total + x.sum(dim=0), squares + float(x.square().sum())
        for key, noise in (("own", batch.own), ("plain", batch.plain)):
            predicted = predicted_at_layers(batch.network, path, plan, batch.x, noise, limit)
            errors[key] += squared_errors(predicted, batch.x)
        final = predicted_along_sampling(batch.network, path, plan, batch.start, limit)
        errors["final"] += squared_errors(final, final[-1])
        for of_layer, samples in zip(seen, final, strict=True):
            of_layer.append(features(samples))
    variation = squares - float(total.square().sum()) / count  # squared error of always predicting the mean
    return {
        "t": [step.t for step in plan],
        **{key: (error / variation).sqrt().tolist() for key, error in errors.items()},
        "frechet": [frechet_distance(*feature_statistics(torch.cat(of_layer)), *reference) for of_layer in seen],
    }


def measure(options: Document) -> Findings:
    """Measure the layers of policies or of image models."""
    require(options, n=(200, np.inf))  # a Fréchet distance needs them
    n, seed, device = options["n"], options["seed"], resolve_device(options["device"])
    policies, models = lab_runs.newest_runs(options["runs"])
    checkpoints = [checkpoint for seeds in policies.values() for checkpoint in seeds.values()]
    for checkpoint in (*checkpoints, *models.values()):
        select = lab_runs.own_selector(checkpoint)
        if isinstance(select, Assignment) and n < (pool := lab_runs.chosen_together(checkpoint)):
            raise CommandError(f"n={n}: {checkpoint.path} chose noise for {pool:,} samples together; use n={pool}")
    _require_equal("policies", map(read_spec, checkpoints), ("horizon", "action_dim", "method", "diffusion_steps"))
    _require_equal("image models", map(read_image_spec, models.values()), ("model", "size"))
    figures: Document = {}
    strips: dict[str, Tensor] = {}
    if policies:
        layers: dict[str, list[Document]] = {}
        for run, seeds in policies.items():
            measured = []
            for trained, checkpoint in seeds.items():
                print(f"measuring {run}, seed {trained}", flush=True)
                measured.append(measure_policy(checkpoint, options["data"], n, seed, device))
            layers[run] = [result for result, _ in measured]
            figures.setdefault("actions", {"frechet_floor": measured[0][1], "layers": layers})
    if models:
        loaded = {label: load_image_model(checkpoint)[0].to(device) for label, checkpoint in models.items()}
        figures["images"] = measure_images(models, loaded, options["data"], n, seed, device)
        for label, model in loaded.items():  # every second layer, a row for each start noise, the noisiest layer first
            generator = torch_generator("cpu", "steps strip", seed)
            start = torch.randn(STRIP, *model.coder.shape, generator=generator).to(device)
            images = prompted(models[label], lab_runs.images_of(models[label], options["data"], count=STRIP))
            prompts = images.prompts(torch.arange(STRIP))
            solver = lab_runs.layered(model.path, LAYERS)
            predicted = model.sample(start, solver, prompts=prompts, generator=generator).predicted
            strips[label] = to_bytes(model.coder.decode(predicted[1::2].transpose(0, 1).flatten(0, 1))).cpu()
    return Findings({"n": n, **figures}, describe(figures), draw(figures, strips))


def _require_equal(kind: str, specs: Iterable[Any], keys: Sequence[str]) -> None:
    """Refuse models whose layers, or what they predict, cannot stand side by side."""
    specs = list(specs)
    for key in keys:
        values = sorted({getattr(spec, key) for spec in specs})
        if len(values) > 1:
            raise CommandError(f"runs= names {kind} of {key} {' and '.join(map(str, values))}; they need the same")


def measure_policy(
    checkpoint: Checkpoint, data: Path | None, n: int, seed: int, device: str = "cpu"
) -> tuple[Document, float]:
    """The layers of a policy, and the floor of its Fréchet distance, on n windows that it may have been trained on."""
    policy, _ = read_policy(checkpoint, device)
    chosen, others = (windows.to(device) for windows in lab_runs.drawn_windows(checkpoint, data, n, seed, key="n"))
    if len(others) < n:
        raise CommandError(f"n={n}: the demonstrations have {n + len(others):,} windows; choose at most half")
    actions = (policy.action.normalize(windows.action).flatten(1).cpu() for windows in (chosen, others))
    real, reference = map(feature_statistics, actions)
    plan, scale = lab_runs.layered(policy.path, LAYERS).plan(policy.path), policy.data_scale

    def samples(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = chosen[rows.to(device)]
        return policy.clean(batch.action), policy.condition(batch.obs)

    def network(rows: Tensor) -> Network:
        return partial(policy.network, features=policy.encode(chosen[rows.to(device)].obs))

    batches = layer_batches(checkpoint, samples, network, n, seed, plan)
    result = measure_layers(batches, policy.path, plan, scale, lambda x: x.flatten(1).cpu() / scale, reference)
    return result, frechet_distance(*real, *reference)


def measure_images(
    models: Mapping[str, Checkpoint],
    loaded: Mapping[str, ImageModel],
    data: Path | None,
    n: int,
    seed: int,
    device: str,
) -> Document:
    """The layers of image models on n test images; their Fréchet distance on the classifier's features.

    All are measured on the data set of the first. Models that know prompts are given those of the images, without
    guidance. CommandError for too few images.
    """
    extractor = make_extractor("classifier", device=device)
    first = next(iter(models.values()))
    splits = DATASETS[first.config.get("dataset", "cifar10")].splits
    test = lab_runs.images_of(first, data, splits[-1])
    single = len(splits) == 1  # as in a folder of images: n are compared with the others
    training = test if single else lab_runs.images_of(first, data, count=n)
    needed = 2 * n if single else n
    if min(len(test), len(training)) < needed:
        have = f"{first.path} has {min(len(test), len(training)):,}"
        raise CommandError(f"n={n}: needs {needed:,} images in each split, {have}; give data= with more")
    order = torch.arange(len(test))
    if single:  # whose images may lie class by class
        order = order[torch.randperm(len(test), generator=torch_generator("cpu", "steps images", seed))]
    real, reference = (
        feature_statistics(reference_features(extractor, images, rows))
        for images, rows in ((training, order[:n] if single else torch.arange(n)), (test, order[n if single else 0 :]))
    )
    layers = {}
    for label, model in loaded.items():
        print(f"measuring {label}", flush=True)
        plan = lab_runs.layered(model.path, LAYERS).plan(model.path)

        shown = prompted(models[label], test)

        def text(rows: Tensor, model: ImageModel = model, shown: Images = shown) -> Text | None:
            return model.embedded(shown.prompts(order[rows]), len(rows))

        def samples(rows: Tensor, model: ImageModel = model) -> tuple[Tensor, Tensor | None]:
            generator, known = torch_generator("cpu", "steps encode", seed, int(rows[0])), text(rows, model)
            x = model.coder.encode(to_pixels(test.pixels(order[rows]).to(device)), generator)
            return x, None if known is None else known.pooled

        def features(x: Tensor, model: ImageModel = model) -> Tensor:
            return features_of(extractor, to_bytes(model.coder.decode(x)).split(REFERENCE_BATCH))

        def network(rows: Tensor, model: ImageModel = model) -> Network:
            known = text(rows, model)
            return model.network(None if known is None else known.tokens)

        batches = layer_batches(models[label], samples, network, n, seed, plan)
        layers[label] = [measure_layers(batches, model.path, plan, model.coder.limit, features, reference)]
    return {"frechet_floor": frechet_distance(*real, *reference), "layers": layers}


def prompted(checkpoint: Checkpoint, images: Images) -> Images:
    """Images with the prompts that a model was trained with; CommandError for a file, which has those of training."""
    source = checkpoint.config.get("prompts", NONE) if checkpoint.config.get("model") == "sd" else NONE
    if source not in (OWN, NONE):
        raise CommandError(f"{checkpoint.path}: prompts={source} are of its training images; train with prompts={OWN}")
    return prompts_for(images, source)


def layer_batches(
    checkpoint: Checkpoint,
    samples: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    network: Callable[[Tensor], Network],
    n: int,
    seed: int,
    plan: Plan,
) -> Iterator[LayerBatch]:
    """Clean samples with their noises, n in all, in batches as large as in training.

    Rows (B,) give clean samples (B, ...) with their conditions, and the network for them. Own noise is chosen for as
    many samples together as in training, where n are enough; the last ones are joined by samples before them. Plain
    noise and start are the same for models of one batch size. All of it is drawn on the CPU.
    """
    select, together = lab_runs.own_selector(checkpoint), lab_runs.chosen_together(checkpoint)
    for first in range(0, n, together):
        begin = max(0, min(first, n - together))
        pool = torch.arange(begin, min(begin + together, n))
        x, condition = samples(pool)
        own = select(x, condition=condition, generator=torch_generator("cpu", "steps own", seed, first))
        for part in torch.arange(first - begin, len(pool)).split(checkpoint.config["batch_size"]):
            rows, common = pool[part], torch_generator("cpu", "steps common", seed, int(pool[part[0]]))
            noise = torch.randn(x[part].shape, generator=common).to(x.device)
            start = torch.randn(draws(plan), *noise.shape, generator=common).to(x.device)
            yield LayerBatch(x[part], own[part], noise, start, network(rows))


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
            axes.set_title(
                f"{readable(label)}: x_0 at every second layer, from {STRIP} start noises", fontsize=8, loc="left"
            )
    return figure


def _draw_layers(axes: list[Axes], title: str, section: Document) -> None:
    names = ("error, noised real data (dotted: plain noise)", "distance from the final sample", "Fréchet distance²")
    for panel, name in zip(axes, names, strict=True):
        plain(panel, f"{title}: {name}", "layer (left: noise, right: clean)", "1 = always predicting the mean")
        panel.set_xticks([1, *range(5, LAYERS + 1, 5)])
    at = range(1, LAYERS + 1)
    for run, colour in colours(section["layers"]).items():
        seeds = section["layers"][run]
        axes[0].plot(at, over_seeds(seeds, "own"), color=colour, linewidth=1.8, label=readable(run))
        axes[0].plot(at, over_seeds(seeds, "plain"), color=colour, linewidth=1.2, linestyle=":")
        for panel, quantity in zip(axes[1:], ("final", "frechet"), strict=True):
            panel.plot(at, over_seeds(seeds, quantity), color=colour, linewidth=1.8, label=readable(run))
            for result in seeds if len(seeds) > 1 else []:
                panel.plot(at, result[quantity], color=colour, linewidth=0.6, alpha=0.6)
    axes[0].axhline(1, color=GREY, linewidth=0.8)
    axes[2].axhline(section["frechet_floor"], color=GREY, linewidth=1, linestyle="--", label="floor: real samples")
    axes[2].set(yscale="log", ylabel="")
    low, high = axes[2].get_ylim()
    axes[2].set_ylim(low / 3, high)  # room for the legend
    for panel in axes:
        legend(panel)


OPTIONS = {
    "runs": replace(lab_runs.RUNS, default=REQUIRED),
    "data": lab_runs.DATA,
    "n": Option(COUNT, 2000, "samples for each model"),
    "device": device_option(),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
