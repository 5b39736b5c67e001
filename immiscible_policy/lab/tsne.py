"""Maps of noise and of predictions: clusters of selected noise, and clean samples predicted along denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.evaluation.agent import load_policy
from immiscible_policy.lab.data import DATA, IMAGES, MODELS, RUNS, SEED, cifar_images, pusht_actions, pusht_windows
from immiscible_policy.lab.image_models import SIZE, image_model, require_models
from immiscible_policy.lab.layers import denoising, predicted_along_sampling
from immiscible_policy.lab.mixture import mixing
from immiscible_policy.lab.steps import TRAININGS, policy_checkpoints
from immiscible_policy.noise import Selector, make_selector
from immiscible_policy.noise.audit.statistics import cluster_distances, correlation
from immiscible_policy.palette import COLOURS
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint

USAGE = """\
usage: python -m immiscible_policy.lab tsne [KEY=VALUE ...]

Maps (t-SNE) the noises that each selector gives a few samples, and the clean samples predicted along denoising.

Figure 10 and Figure 3 (c, e) of Improved Immiscible Diffusion (arXiv 2505.18521). The noises of PushT action chunks
are always drawn; images= adds those of CIFAR-10 images and the predictions of the laboratory's image models (trained
here when absent), runs= the predictions of trained policies, the first seed of each run. Needs scikit-learn.

  python -m immiscible_policy.lab tsne
  python -m immiscible_policy.lab tsne runs=runs/vanilla,runs/knn images=cifar10-jpeg.zip
"""
OPTIONS = {
    "runs": RUNS,
    "data": DATA,
    "images": IMAGES,
    "models": MODELS,
    "noises": Option(int, 100, "noises of each sample"),
    "starts": Option(int, 128, "start noises of the predictions"),
    "batch_size": Option(int, 256, "batch within which assignment pairs"),
    "seed": SEED,
}
K_ACTIONS, K_IMAGES = 2, 8
CLUSTERS = len(COLOURS)
LAYERS = 10
PERPLEXITY = 30
Document = dict[str, Any]
Map = NDArray[np.float64]


class Panel(NamedTuple):
    """One map.

    Attributes:
        title: What it shows.
        places: Positions (N, 2).
        groups: Cluster or layer of each point (N,).
        figures: What was measured.
    """

    title: str
    places: Map
    groups: Tensor
    figures: Document


class Section(NamedTuple):
    """A row of the picture: the title, its panels, and whether they show layers (or clusters of noise)."""

    title: str
    panels: list[Panel]
    layers: bool


def measure(options: Document) -> Findings:
    """Draw all maps that the options give material for.

    Raises:
        ValueError: If an option is unusable, a file cannot be read, or scikit-learn is absent.
    """
    _check(options)
    policies = _first_seeds(options["runs"]) if options["runs"] else {}
    data = {"PushT action chunks": (pusht_actions(options["data"]), K_ACTIONS)}
    if options["images"]:
        require_models(options["models"], options["images"], TRAININGS.values())
        data["CIFAR-10 images"] = (cifar_images(options["images"], options["batch_size"]), K_IMAGES)
    layers = [policy_section(policies, options)] if policies else []
    sections = [noise_section(title, samples, k, options) for title, (samples, k) in data.items()] + layers
    if options["images"]:
        sections.append(image_section(options))
    figures = {section.title: {panel.title: panel.figures for panel in section.panels} for section in sections}
    return Findings(figures, describe(sections, options), draw(sections))


def embed(points: Tensor, seed: int) -> Map:
    """A t-SNE map (N, 2) of points (N, ...), from their principal components, a function of the seed.

    Raises:
        CommandError: If scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        raise CommandError("tsne needs scikit-learn: pip install scikit-learn") from None
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points.flatten(1).numpy())
    return found.astype(np.float64)


def noise_clusters(select: Selector, data: Tensor, count: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Noises that a selector gives to the first samples of the data, always in a batch with others.

    Args:
        select: The selector.
        data: Samples (N, ...).
        count: Noises of each sample.
        batch_size: Samples per batch; those besides the first CLUSTERS are drawn anew for every batch.
        generator: Source of noise and companions.

    Returns:
        Noises (CLUSTERS, count, D).
    """
    found = []
    for _ in range(count):
        companions = torch.randint(CLUSTERS, len(data), (batch_size - CLUSTERS,), generator=generator)
        batch = torch.cat([data[:CLUSTERS], data[companions]])
        found.append(select(batch, generator=generator)[:CLUSTERS].flatten(1))
    return torch.stack(found, dim=1)


def noise_section(title: str, data: Tensor, k: int, options: Document) -> Section:
    """The noises of a few samples under each selector, the same samples for all."""
    order = torch.randperm(len(data), generator=torch_generator("cpu", "tsne samples", options["seed"]))
    selectors = {
        "vanilla": make_selector("vanilla"),
        f"KNN k={k}": make_selector("knn", k=k),
        f"assignment, batch {options['batch_size']}": make_selector("linear"),
    }
    return Section(
        f"Noise of {CLUSTERS} {title}, {options['noises']} noises each",
        [_noise_panel(name, select, data[order], options) for name, select in selectors.items()],
        layers=False,
    )


def policy_section(policies: Mapping[str, Checkpoint], options: Document) -> Section:
    """Action chunks that each policy's layers predict for one observation, the same start noises for all."""
    panels = []
    for label, checkpoint in policies.items():
        policy, spec = load_policy(checkpoint)
        windows = pusht_windows(options["data"], spec)
        generator = torch_generator("cpu", "tsne policy", options["seed"])
        chosen = torch.randint(len(windows), (1,), generator=generator)
        condition = policy.encode(windows[chosen].obs).expand(options["starts"], -1)
        start = torch.randn(options["starts"], spec.horizon, spec.action_dim, generator=generator)
        predicted = predicted_along_sampling(
            lambda x, t, c=condition, p=policy: p.network(x, t, c).float(),  # type: ignore[misc]
            denoising(policy.path, LAYERS, policy.data_scale),
            start,
        )
        panels.append(_layer_panel(label, predicted, options["seed"]))
    return Section(f"Action chunks predicted from {options['starts']} start noises, one observation", panels, True)


def image_section(options: Document) -> Section:
    """Images that the layers of each image model predict, the same start noises for all."""
    generator = torch_generator("cpu", "tsne images", options["seed"])
    start = torch.randn(options["starts"], 3, SIZE, SIZE, generator=generator)
    panels = []
    for label, training in TRAININGS.items():
        model = image_model(options["models"], options["images"], training)
        panels.append(
            _layer_panel(
                label, model.sample(start, Solver("ddim", LAYERS)).predicted / model.data_scale, options["seed"]
            )
        )
    return Section(f"Images of {SIZE}x{SIZE} predicted from {options['starts']} start noises", panels, layers=True)


def spreads(predicted: Tensor) -> list[float]:
    """How far the predictions of each layer (S, N, ...) differ, as a share of the last layer's.

    Root mean square deviation from the layer's mean; 0 where every start noise leads to the same prediction.
    """
    deviation = (predicted - predicted.mean(dim=1, keepdim=True)).flatten(1).square().mean(dim=1).sqrt()
    return (deviation / deviation[-1]).tolist()


def decided(predicted: Tensor) -> list[float]:
    """Correlation of each layer's predictions (S, N, ...) with the last's over the N start noises."""
    return [correlation(layer, predicted[-1]).coordinates for layer in predicted]


def describe(sections: Sequence[Section], options: Document) -> str:
    """The findings as Markdown."""
    noise = [_noise_table(section) for section in sections if not section.layers]
    layers = [_layer_table(section) for section in sections if section.layers]
    text = f"""\
## Maps of noise and of predictions

t-SNE keeps neighbours together and little else: distances between clusters and their sizes mean nothing. So each map
stands beside numbers measured without it. Perplexity {PERPLEXITY}, starting from principal components.

### Noise that belongs to a sample (Figure 10 of arXiv 2505.18521)

*Neighbour of the same sample*: share of the noises whose nearest other noise belongs to the same sample, in the full
space and on the map; chance is {_chance(options["noises"]):.3f}. *Distance of centroids*: mean distance between the
{CLUSTERS} clusters' means, the floor that chance alone gives with {options["noises"]} noises each, and the distance
corrected for it. The paper prints 0.92 ± 0.06 (vanilla), 2.17 ± 0.35 (KNN) and 4.11 ± 0.37 (assignment) for images with
10,000 points each; `clusters` repeats that experiment. A map of vanilla noise has no clusters. Where selected noise
shows none either, the selector moves the noise by less than chance scatters it: two noises of one sample lie
sqrt(2 D) apart, 8 for action chunks (D = 32) and 78 for images (D = 3072), so centroids 3 apart are seen among the
former, and centroids 4 apart are not among the latter.

{chr(10).join(noise)}"""
    if not layers:
        return text
    return f"""{text}
### Clean samples predicted along denoising (Figure 3 c, e)

From the same {options["starts"]} start noises, what the {LAYERS} layers (DDIM steps) predict as the clean sample.
*Decided*: correlation of a layer's predictions with the final samples over the start noises, mean over coordinates; 1
says that the layer knows already where its noise will end. *Spread*: root mean square deviation of a layer's
predictions from their mean, over that of the final samples; 0 says that the layer predicts the same whatever the noise.
Above 1 it is no choice but the network's error, which the noisiest layers divide by a small sqrt(alpha-bar). Deciding
early is the paper's aim for images. For a policy it says how early the choice falls that its observation leaves.

{chr(10).join(layers)}"""


def draw(sections: Sequence[Section]) -> Figure:
    """The picture: a row of maps per section."""
    figure = Figure(figsize=(12.6, 4.4 * len(sections)), dpi=120, layout="constrained")
    grid = figure.add_gridspec(len(sections), 1)
    for number, section in enumerate(sections):
        _draw_section(figure.add_subfigure(grid[number]), section)
    return figure


def _draw_section(figure: SubFigure, section: Section) -> None:
    figure.suptitle(section.title, fontsize=12, fontweight="bold")
    colours = [*colormaps["viridis"](np.linspace(0, 0.95, LAYERS))] if section.layers else list(COLOURS)
    panels = figure.subplots(1, len(section.panels), squeeze=False)[0]
    for axes, panel in zip(panels, section.panels, strict=True):
        _draw_panel(axes, panel, colours)
    if section.layers:
        handles = [panels[0].scatter([], [], color=colours[i], label=name) for i, name in
                   ((0, "noisiest layer"), (LAYERS // 2, "middle"), (LAYERS - 1, "final sample"))]  # fmt: skip
        panels[0].legend(handles=handles, frameon=False, fontsize=9, loc="best")


def _draw_panel(axes: Axes, panel: Panel, colours: Sequence[Any]) -> None:
    axes.scatter(
        panel.places[:, 0], panel.places[:, 1], c=[colours[group] for group in panel.groups], s=7, linewidths=0
    )
    axes.set(xticks=[], yticks=[])
    axes.set_title(panel.title, fontsize=11)
    axes.spines[:].set_color("#CCCCCC")
    if "map_agreement" in panel.figures:
        figures = panel.figures
        note = f"neighbour of the same sample: {figures['map_agreement']:.0%} (chance {figures['chance']:.0%})"
    else:
        note = f"noisiest layer and final sample correlate by {panel.figures['decided'][0]:.2f}"
    axes.set_xlabel(note, fontsize=10)


def _noise_panel(name: str, select: Selector, data: Tensor, options: Document) -> Panel:
    generator = torch_generator("cpu", "tsne noise", options["seed"])
    noise = noise_clusters(select, data, options["noises"], options["batch_size"], generator)
    groups = torch.arange(CLUSTERS).repeat_interleave(options["noises"])
    places = embed(noise.flatten(0, 1), options["seed"])
    distances = cluster_distances(noise)
    figures = {
        "agreement": 1 - mixing(noise.flatten(0, 1), groups),
        "map_agreement": 1 - mixing(torch.from_numpy(places), groups),
        "chance": _chance(options["noises"]),
        "centroid_distance": distances.mean,
        "centroid_floor": distances.floor,
        "centroid_corrected": distances.corrected,
    }
    return Panel(name, places, groups, figures)


def _layer_panel(label: str, predicted: Tensor, seed: int) -> Panel:
    """Map of a model's predictions (S, N, ...)."""
    groups = torch.arange(len(predicted)).repeat_interleave(predicted.shape[1])
    return Panel(
        label,
        embed(predicted.flatten(0, 1), seed),
        groups,
        {"decided": decided(predicted), "spread": spreads(predicted)},
    )


def _noise_table(section: Section) -> str:
    keys = ("agreement", "map_agreement", "centroid_distance", "centroid_floor", "centroid_corrected")
    header = ["neighbour of the same sample", "on the map", "distance of centroids", "floor", "corrected"]
    rows = [[panel.title, *(f"{panel.figures[key]:.3f}" for key in keys)] for panel in section.panels]
    return f"{section.title}:\n\n{table(['noise', *header], rows)}\n"


def _layer_table(section: Section) -> str:
    shown = (0, 1, 2, 4, 6, LAYERS - 1)
    header = [f"layer {layer + 1}" for layer in shown]
    parts = [f"{section.title}:"]
    for key in ("decided", "spread"):
        rows = [[panel.title, *(f"{panel.figures[key][layer]:.3f}" for layer in shown)] for panel in section.panels]
        parts.append(table([key, *header], rows))
    return "\n\n".join(parts) + "\n"


def _chance(noises: int) -> float:
    """Share of the other noises that belong to the same sample."""
    return (noises - 1) / (CLUSTERS * noises - 1)


def _first_seeds(runs: str) -> dict[str, Checkpoint]:
    return {label: found[0] for label, found in policy_checkpoints([Path(run) for run in runs.split(",")]).items()}


def _check(options: Document) -> None:
    for key, least in (("noises", 2), ("starts", 2), ("batch_size", CLUSTERS + 1)):
        if options[key] < least:
            raise CommandError(f"{key}={options[key]}: use {least} or more")
    embed(torch.eye(4), 0)  # says at once if scikit-learn is absent


EXPERIMENT = Experiment(USAGE, measure, OPTIONS)
