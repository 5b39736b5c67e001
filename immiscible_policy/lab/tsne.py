"""Maps (t-SNE) the noises that each selector gives a few samples, and the clean samples predicted along denoising.

Figure 10 and Figure 3 (c, e) of Improved Immiscible Diffusion (arXiv 2505.18521). t-SNE keeps neighbours together and
little else: distances between clusters and their sizes mean nothing. So each map stands beside numbers measured
without it. Perplexity 30, starting from principal components. Needs scikit-learn.

- *Neighbour of the same sample*: share of the noises whose nearest other noise belongs to the same sample, in the full
  space and on the map.
- *Distance of centroids*: see `clusters`. Two noises of one sample lie sqrt(2 D) apart, 8 for the action chunks of
  PushT (D = 32) and 78 for images (D = 3,072): a selector that moves noise by less shows no clusters.
- *Decided*: correlation of a layer's predictions with the final samples over the start noises, mean over coordinates;
  1: the layer knows already where its noise will end.
- *Spread*: root mean square deviation of a layer's predictions from their mean, over that of the final samples; 0: the
  same whatever the noise. Above 1 it is the network's error, divided by a small alpha.

  python -m immiscible_policy.lab tsne
  python -m immiscible_policy.lab tsne runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab tsne runs=runs/flow_vanilla,runs/flow_knn   (runs of train_image.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from immiscible_policy.cli import COUNT, CommandError, Option
from immiscible_policy.evaluation.agent import read_policy
from immiscible_policy.image.build import load_image_model
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab.clusters import assigned_noise
from immiscible_policy.lab.data import SEED, TASK, demonstrated_actions
from immiscible_policy.lab.mixture import mixing
from immiscible_policy.lab.program import Document, program, require, table
from immiscible_policy.lab.steps import predicted_along_sampling
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit.statistics import cluster_distances, correlation
from immiscible_policy.palette import COLOURS, GRID, readable
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Findings
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.tasks import find_task
from immiscible_policy.training.options import device_option, resolve_device

K_ACTIONS, K_IMAGES = 2, 8
CLUSTERS = 7
LAYERS = 10
SHOWN = (0, 1, 2, 4, 6, LAYERS - 1)
PERPLEXITY = 30
NOISE_COLUMNS = {
    "noise": "{title}",
    "neighbour of the same sample": "{agreement:.3f}",
    "on the map": "{map_agreement:.3f}",
    "chance": "{chance:.3f}",
    "distance of centroids, corrected": "{centroid_corrected:.3f}",
    "floor": "{centroid_floor:.3f}",
}


Panel = tuple[NDArray[np.float64], Tensor, Document]  # Positions (N, 2), cluster or layer of each point (N,), figures
Sections = dict[str, dict[str, Panel]]  # Rows of the picture by title, and their panels by title


def measure(options: Document) -> Findings:
    """Draw all maps that the options give material for."""
    options = options | {"device": resolve_device(options["device"])}
    policies, models = lab_runs.newest_runs(options["runs"])
    name, k = ("images", K_IMAGES) if models else ("action chunks", K_ACTIONS)
    checkpoints = [*models.values(), *(next(iter(seeds.values())) for seeds in policies.values())]
    if not checkpoints:
        data = demonstrated_actions(find_task(options["task"]), options["data"])
    else:
        data = lab_runs.clean_samples(checkpoints[0], *(options[key] for key in ("data", "batch_size", "seed")))
    require(options, noises=(2, np.inf), starts=(2, np.inf), batch_size=(CLUSTERS + 1, len(data)))
    embed(torch.eye(4), 0)  # says at once if scikit-learn is absent
    k = options["k"] or trained_k(checkpoints) or k
    sections: Sections = {f"noise of {name}": noise_maps(data, k, options)}
    chunks = {run: predicted_chunks(next(iter(seeds.values())), options) for run, seeds in policies.items()}
    images = {}
    for run, checkpoint in models.items():
        images[run] = predicted_images(checkpoint, options)
    for title, predicted in (("predicted action chunks, one observation", chunks), ("predicted images", images)):
        for run, layers in predicted.items():  # (S, N, ...)
            groups = torch.arange(len(layers)).repeat_interleave(layers.shape[1])
            measured = {"decided": decided(layers), "spread": spreads(layers)}
            sections.setdefault(title, {})[run] = (embed(layers.flatten(0, 1), options["seed"]), groups, measured)
    figures = {title: {name: measured for name, (_, _, measured) in row.items()} for title, row in sections.items()}
    return Findings(figures, describe(figures), draw(sections))


def embed(points: Tensor, seed: int) -> NDArray[np.float64]:
    """A t-SNE map (N, 2) of points (N, ...), a function of the seed; CommandError without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        raise CommandError("tsne needs scikit-learn: pip install scikit-learn") from None
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    places = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points.flatten(1).numpy())
    return places.astype(np.float64)


def trained_k(checkpoints: Sequence[Checkpoint]) -> int | None:
    """Candidates that the first of the checkpoints trained with KNN chose among; None if there is none."""
    noises = (checkpoint.config.get("noise", {}) for checkpoint in checkpoints)
    return next((noise["k"] for noise in noises if noise.get("name") == "knn"), None)


def noise_maps(data: Tensor, k: int, options: Document) -> dict[str, Panel]:
    """The noises of a few samples under each selector, the same samples for all."""
    seed, noises = options["seed"], options["noises"]
    order = torch.randperm(len(data), generator=torch_generator("cpu", "tsne samples", seed))
    selectors = {
        "vanilla": make_selector("vanilla"),
        f"KNN k={k}": make_selector("knn", k=k),
        f"assignment, batch {options['batch_size']}": make_selector("linear"),
    }
    groups, maps = torch.arange(CLUSTERS).repeat_interleave(noises), {}
    for name, select in selectors.items():
        generator = torch_generator("cpu", "tsne noise", seed)
        noise = assigned_noise(select, data[order], CLUSTERS, options["batch_size"], noises, generator).flatten(2)
        places, distances = embed(noise.flatten(0, 1), seed), cluster_distances(noise)
        figures = {
            "agreement": 1 - mixing(noise.flatten(0, 1), groups),
            "map_agreement": 1 - mixing(torch.from_numpy(places), groups),
            "chance": (noises - 1) / (CLUSTERS * noises - 1),
            "centroid_floor": distances.floor,
            "centroid_corrected": distances.corrected,
        }
        maps[name] = (places, groups, figures)
    return maps


def predicted_chunks(checkpoint: Checkpoint, options: Document) -> Tensor:
    """Chunks (S, N, ...) that a policy's layers predict for one observation, the same start noises for every policy."""
    policy, spec = read_policy(checkpoint, options["device"])
    window, _ = lab_runs.drawn_windows(checkpoint, options["data"], 1, options["seed"], key="windows")
    features = policy.encode(window.obs.to(options["device"])).expand(options["starts"], -1)
    generator = torch_generator("cpu", "tsne policy", options["seed"])
    start = torch.randn(options["starts"], spec.horizon, spec.action_dim, generator=generator).to(options["device"])
    with torch.no_grad():
        plan, path = lab_runs.layered(policy.path, LAYERS).plan(policy.path), policy.path
        return predicted_along_sampling(
            lambda x, t: policy.network(x, t, features), path, plan, start[None], policy.data_scale
        ).cpu()


def predicted_images(checkpoint: Checkpoint, options: Document) -> Tensor:
    """Clean samples (S, N, C, H, W) that an image model's layers predict, the same start noises for every model."""
    model = load_image_model(checkpoint)[0].to(options["device"])
    generator = torch_generator("cpu", "tsne images", options["seed"])
    start = torch.randn(options["starts"], *model.coder.shape, generator=generator).to(options["device"])
    return model.sample(start, lab_runs.layered(model.path, LAYERS), generator=generator).predicted.cpu()


def spreads(predicted: Tensor) -> list[float]:
    """Root mean square deviation of each layer's predictions (S, N, ...) from their mean, over the last layer's."""
    deviation = (predicted - predicted.mean(dim=1, keepdim=True)).flatten(1).square().mean(dim=1).sqrt()
    return (deviation / deviation[-1]).tolist()


def decided(predicted: Tensor) -> list[float]:
    """Correlation of each layer's predictions (S, N, ...) with the last's over the N start noises."""
    return [correlation(layer, predicted[-1]).coordinates for layer in predicted]


def describe(figures: Mapping[str, Mapping[str, Document]]) -> str:
    """A table for each row of the picture."""
    parts = []
    for title, row in figures.items():
        rows = [{"title": name, **result} for name, result in row.items()]
        parts.append(f"### {title[0].upper()}{title[1:]}")
        if "agreement" in rows[0]:
            parts.append(table(NOISE_COLUMNS, rows))
            continue
        for key in ("decided", "spread"):
            layers = {f"layer {i + 1}": f"{{{key}[{i}]:.3f}}" for i in SHOWN}
            parts.append(table({key: "{title}", **layers}, rows))
    return "\n\n".join(parts)


def draw(sections: Sections) -> Figure:
    """The picture: a row of maps per section."""
    figure = Figure(figsize=(12.6, 4.4 * len(sections)), dpi=120, layout="constrained")
    rows = np.ravel(np.array(figure.subfigures(len(sections), 1)))
    for subfigure, (title, row) in zip(rows, sections.items(), strict=True):
        subfigure.suptitle(title, fontsize=12, fontweight="bold")
        for axes, (name, (places, groups, figures)) in zip(
            subfigure.subplots(1, len(row), squeeze=False)[0], row.items(), strict=True
        ):
            shades: Sequence[Any] = COLOURS
            note = "neighbour of the same sample: {map_agreement:.0%} (chance {chance:.0%})"
            if "decided" in figures:
                shades = [*colormaps["viridis"](np.linspace(0, 0.95, LAYERS))]
                note = "correlation of first (dark) and last (light): {decided[0]:.2f}"
            axes.scatter(places[:, 0], places[:, 1], c=[shades[group] for group in groups], s=7, linewidths=0)
            axes.set(xticks=[], yticks=[])
            axes.set_title(readable(name), fontsize=11)
            axes.spines[:].set_color(GRID)
            axes.set_xlabel(note.format(**figures), fontsize=10)
    return figure


OPTIONS = {
    "runs": lab_runs.RUNS,
    "task": TASK,
    "data": lab_runs.DATA,
    "noises": Option(COUNT, 100, "noises of each sample"),
    "starts": Option(COUNT, 128, "start noises of the predictions"),
    "k": Option(
        COUNT,
        None,
        f"candidates of KNN; absent: those of the first KNN run, else {K_ACTIONS} for actions, {K_IMAGES} for images",
    ),
    "batch_size": Option(COUNT, 256, "batch within which assignment pairs"),
    "device": device_option(),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
