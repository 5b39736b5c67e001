"""What each denoising layer predicts, for models trained with vanilla and with selected noise."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.cli import CommandError, Option
from immiscible_policy.demos.windows import Windows
from immiscible_policy.evaluation.agent import load_policy
from immiscible_policy.image.evaluation.frechet import feature_statistics, frechet_distance
from immiscible_policy.image.model import ImageModel
from immiscible_policy.lab.data import DATA, IMAGES, MODELS, RUNS, SEED, pusht_windows
from immiscible_policy.lab.image_models import SIZE, ImageTraining, image_model, require_models
from immiscible_policy.lab.layers import Batch, Denoising, Layers, denoising, measure_layers, predicted_along_sampling
from immiscible_policy.lab.pixels import FEATURES, pixel_features, real_images, tiled
from immiscible_policy.noise import SELECTORS, Selector, make_selector
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.policy import Policy
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.results.table import table
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory

USAGE = """\
usage: python -m immiscible_policy.lab steps [KEY=VALUE ...]

Shows what each denoising layer predicts, vanilla beside selected noise: its error, and how near it comes to real data.

A layer's noise prediction implies a clean sample (Figure 3 a, b, d and equation 2 of Improved Immiscible Diffusion,
arXiv 2505.18521). On CIFAR-10 averaged to 16x16 the models are small, trained here when absent (four minutes each on
one core) and kept in models=. For PushT, runs= names run directories of train_policy.py; every seed is measured.

  python -m immiscible_policy.lab steps images=cifar10-jpeg.zip
  python -m immiscible_policy.lab steps runs=runs/vanilla,runs/knn
  python -m immiscible_policy.lab steps images=cifar10-jpeg.zip runs=runs/vanilla,runs/knn n=2000
"""
TRAININGS = {
    "vanilla": ImageTraining(),
    "KNN k=8": ImageTraining("knn", {"k": 8}),
    "assignment": ImageTraining("linear"),
}
LAYERS = 20
STRIP = 3
"""Start noises whose predicted images are drawn, at every second layer."""
SHOWN = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Shares of the chain at which the tables stand."""
QUANTITIES = {
    "own": "error of x_0 from noised real data, noise of the model's own selector",
    "plain": "error of x_0 from noised real data, plain noise",
    "final": "distance of x_0 from the final sample, along sampling",
    "frechet": "squared Fréchet distance of x_0 to real data, along sampling",
}


class Section(NamedTuple):
    """One kind of data and all models of it.

    Attributes:
        title: Name of the data.
        about: What was measured, Markdown.
        layers: What was measured, per label: one entry for each training seed.
        floor: Squared Fréchet distance of as many real samples to the other real ones.
        chain: Length of the noising chain.
        strips: Predicted images (STRIP * LAYERS / 2, 3, S, S) per label; empty for actions.
    """

    title: str
    about: str
    layers: Mapping[str, list[Layers]]
    floor: float
    chain: int
    strips: Mapping[str, Tensor]


def measure(options: dict[str, Any]) -> Findings:
    """Measure the layers of image models, of policies, or of both."""
    images, runs, n, seed = (options[key] for key in ("images", "runs", "n", "seed"))
    if images is None and runs is None:
        raise CommandError("steps needs images=PATH (CIFAR-10), runs=DIR,DIR (trained PushT policies), or both")
    if n < 200:
        raise CommandError(f"n={n}: a Fréchet distance needs 200 samples or more")
    policies = policy_checkpoints([Path(run) for run in runs.split(",")]) if runs else {}
    _require_comparable(policies)
    if images:
        require_models(options["models"], images, TRAININGS.values())
    measured = [policy_section(policies, options["data"], n, seed)] if policies else []  # image models may take long
    sections = [image_section(images, options["models"], n, seed), *measured] if images else measured
    figures = {section.title: _figures(section) for section in sections}
    return Findings({"n": n, **figures}, _text(sections, n), _picture(sections))


def image_section(images: Path, models: Path, n: int, seed: int) -> Section:
    """Measure the layers of the small image models on test images."""
    real = real_images(images, n, torch_generator("cpu", "steps real", seed))
    layers, strips = {}, {}
    for label, training in TRAININGS.items():
        model = image_model(models, images, training)
        way = denoising(model.path, LAYERS, model.data_scale)
        select = make_selector(training.noise, **training.options)
        batches = image_batches(model, real.pixels[:n], select, training.batch_size, seed)
        features = _unscaled(pixel_features, model.data_scale)
        layers[label] = [measure_layers(batches, way, features, real.statistics)]
        strips[label] = _strip(model, way, seed)
    about = (
        f"Models of about 0.7 M parameters, {TRAININGS['vanilla'].steps:,} steps at batch "
        f"{TRAININGS['vanilla'].batch_size}, one seed. Error: on {n:,} test images. Fréchet distance: on {FEATURES} of "
        f"{n:,} samples against the test images (it is not FID); floor: {n:,} training images."
    )
    return Section(f"CIFAR-10, {SIZE}x{SIZE}", about, layers, real.floor, 1000, strips)


def image_batches(model: ImageModel, pixels: Tensor, select: Selector, batch_size: int, seed: int) -> Iterator[Batch]:
    """Test images with their noises, in batches of the size that the selector saw in training."""
    common, own = (torch_generator("cpu", name, seed) for name in ("steps common", "steps own"))
    for part in pixels.split(batch_size):
        x = model.data_scale * part
        plain, start = (torch.randn(x.shape, generator=common) for _ in range(2))  # the same for every model
        yield Batch(x, select(x, generator=own), plain, start, model.network())


def policy_section(checkpoints: Mapping[str, list[Checkpoint]], data: Path | None, n: int, seed: int) -> Section:
    """Measure the layers of policies on windows of demonstrations."""
    measured = {label: [measure_policy(each, data, n, seed) for each in found] for label, found in checkpoints.items()}
    about = (
        f"Normalised action chunks, {n:,} windows of the demonstrations drawn at random; the "
        "policies may have been trained on them. Sampling sees the windows' observations. Fréchet distance: on the "
        f"numbers of the chunk, {n:,} samples against the chunks of all other windows; floor: the {n:,} windows' real "
        "chunks. Means over training seeds."
    )
    layers = {label: [each.layers for each in found] for label, found in measured.items()}
    first = next(iter(measured.values()))[0]
    return Section("PushT actions", about, layers, first.floor, first.chain, {})


class MeasuredPolicy(NamedTuple):
    """What `measure_policy` finds; `floor` and `chain` as in `Section`."""

    layers: Layers
    floor: float
    chain: int


def measure_policy(checkpoint: Checkpoint, data: Path | None, n: int, seed: int) -> MeasuredPolicy:
    """Measure the layers of a policy on n windows of demonstrations."""
    policy, spec = load_policy(checkpoint)
    windows = pusht_windows(data, spec)
    order = torch.randperm(len(windows), generator=torch_generator("cpu", "steps windows", seed))
    if len(order) < 2 * n:
        raise CommandError(f"n={n}: the demonstrations have {len(order):,} windows; choose at most half")
    chunks = policy.action.normalize(windows.action).flatten(1)  # (N, 32)
    chosen, others = (feature_statistics(chunks[rows]) for rows in (order[:n], order[n:]))
    layers = measure_layers(
        policy_batches(policy, windows[order[:n]], checkpoint, seed),
        denoising(policy.path, LAYERS, policy.data_scale),
        _unscaled(lambda x: x.flatten(1), policy.data_scale),
        others,
    )
    return MeasuredPolicy(layers, frechet_distance(*chosen, *others), spec.diffusion_steps)


def policy_batches(policy: Policy, windows: Windows, checkpoint: Checkpoint, seed: int) -> Iterator[Batch]:
    """Windows with their noises, in batches of the size that the selector saw in training."""
    select, batch_size = own_selector(checkpoint), checkpoint.metadata["config"]["batch_size"]
    common, own = (torch_generator("cpu", name, seed) for name in ("steps common", "steps own"))
    for rows in torch.arange(len(windows)).split(batch_size):
        batch = windows[rows]
        condition = policy.observer.condition(batch.obs)
        x = policy.clean(batch.action)
        plain, start = (torch.randn(x.shape, generator=common) for _ in range(2))  # the same for every policy
        chosen = select(x, condition=condition, generator=own)
        seen = policy.encode(batch.obs)
        yield Batch(x, chosen, plain, start, lambda noisy, t, c=seen: policy.network(noisy, t, c))  # type: ignore[misc]


def own_selector(checkpoint: Checkpoint) -> Selector:
    """The selector that a policy was trained with, at full strength: without its schedule.

    Potentials are left out as well: they change its speed alone.

    Raises:
        CommandError: If the checkpoint names none, or if noise was chosen for residuals, whose prediction no
            checkpoint keeps.
    """
    config = checkpoint.metadata.get("config", {})
    recorded = config.get("noise", {})
    if config.get("select_for", "action") != "action":
        raise CommandError(
            f"{checkpoint.path}: trained with select_for={config['select_for']}; needs select_for=action"
        )
    if recorded.get("name") not in SELECTORS:
        known = ", ".join(SELECTORS)
        raise CommandError(f"{checkpoint.path}: trained with noise={recorded.get('name')}; steps knows {known}")
    ignored = ("name", "potentials", "start", "stop", "ramp")
    return make_selector(recorded["name"], **{key: value for key, value in recorded.items() if key not in ignored})


def policy_checkpoints(runs: list[Path]) -> dict[str, list[Checkpoint]]:
    """The newest checkpoint of every seed of some run directories, by the directory's name; all of them can be loaded.

    Raises:
        CommandError: If a directory has none, two have the same name, or there are more than colours.
        CheckpointError: If one is damaged.
    """
    if len(runs) > len(COLOURS):
        raise CommandError(f"runs= names {len(runs)} runs; at most {len(COLOURS)} can be told apart")
    found: dict[str, list[Checkpoint]] = {}
    for run in runs:
        kept = [of_seed[-1] for of_seed in RunDirectory(run).checkpoints().values()]
        if not kept:
            raise CommandError(f"runs={run} keeps no checkpoint; name run directories of train_policy.py")
        if run.name in found:
            raise CommandError(f"runs= names two runs called {run.name}")
        for checkpoint in kept:
            load_policy(checkpoint)  # a damaged one is found before the others are measured
        found[run.name] = kept
    return found


def _require_comparable(policies: Mapping[str, list[Checkpoint]]) -> None:
    """Refuse policies without a selector, and those whose layers or chunks cannot stand side by side."""
    checkpoints = [each for found in policies.values() for each in found]
    for checkpoint in checkpoints:
        own_selector(checkpoint)
    for key in ("horizon", "action_dim", "diffusion_steps"):
        values = sorted({checkpoint.metadata["policy"][key] for checkpoint in checkpoints})
        if len(values) > 1:
            raise CommandError(f"runs= names policies of {key} {' and '.join(map(str, values))}; they need the same")


def _unscaled(features: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """The same features of samples that are diffused at a scale."""
    return lambda x: features(x / scale)


def _strip(model: ImageModel, way: Denoising, seed: int) -> Tensor:
    """Predicted images of every second layer, a row for each start noise, the noisiest layer first."""
    start = torch.randn(STRIP, 3, SIZE, SIZE, generator=torch_generator("cpu", "steps strip", seed))
    predicted = predicted_along_sampling(model.network(), way, start) / model.data_scale
    return predicted[1::2].transpose(0, 1).flatten(0, 1)


def _figures(section: Section) -> dict[str, Any]:
    per_label = {label: [each._asdict() for each in found] for label, found in section.layers.items()}
    return {"frechet_floor": section.floor, "layers": per_label}


def _mean(found: list[Layers], quantity: str) -> list[float]:
    """A quantity of each layer, averaged over training seeds."""
    return [mean(values) for values in zip(*(getattr(each, quantity) for each in found), strict=True)]


def _text(sections: list[Section], n: int) -> str:
    parts = [_section_text(section) for section in sections]
    return f"""\
## What each denoising layer predicts

The noise that a network predicts at step t implies a clean sample,
x_0 = (x_t - sqrt(1 - alpha-bar_t) eps) / sqrt(alpha-bar_t), clipped as the sampler clips it (equation 2 and Figure 3 a,
b, d of arXiv 2505.18521). No published figures stand beside ours: size of the models, resolution and features differ.
Our definitions:

- *Error*: root mean square error of x_0 against the true clean sample, real data noised to step t, once with noise of
  the model's own selector (what training shows it) and once with plain Gaussian noise (what sampling starts from), in
  units of the data's spread: 1 is the error of always predicting the mean.
- *Distance from the final sample*: the same unit, along DDIM sampling (eta = 0, {LAYERS} steps) from plain noise.
- *Fréchet distance*: squared, of the x_0 that layer predicts along sampling to real data, on the features named below.
  The *floor* is what as many real samples score.
- For vanilla both noises are plain, drawn twice: the two errors of vanilla differ by chance alone.

At the noisiest layers the formula divides by a small sqrt(alpha-bar_t), so small errors of a network that has not
converged become saturated pixels there; an error above 1 is that, not a finding about miscibility.

An error with a model's own noise below vanilla's shows how much of x_0 the choice of noise gives away. It is no gain in
itself: sampling starts from plain noise. Where the error with plain noise lies far above, the network reads x_0 off
noise that says nothing about it: it then misses the law of the data, and under a condition such as an observation it
obeys the noise instead (C2OT, arXiv 2503.10636).

{chr(10).join(parts)}"""


def _section_text(section: Section) -> str:
    tables = []
    for quantity, meaning in QUANTITIES.items():
        rows = []
        for label, found in section.layers.items():
            values = dict(zip(found[0].t, _mean(found, quantity), strict=True))
            steps = [min(values, key=lambda t: abs(t - share * section.chain)) for share in SHOWN]
            last = [values[found[0].t[-1]]] if quantity == "frechet" else []
            rows.append([_counted(label, found), *(f"{values[t]:.3f}" for t in steps), *(f"{v:.3f}" for v in last)])
        header = ["model", *(f"t = {t}" for t in steps), *(["sample"] if quantity == "frechet" else [])]
        if quantity == "frechet":
            rows.append(["floor", *[""] * len(steps), f"{section.floor:.3f}"])
        tables.append(f"{meaning[0].upper()}{meaning[1:]}:\n\n{table(header, rows)}\n")
    about = textwrap.fill(section.about, 120)
    return f"### {section.title}\n\n{about}\n\n{_against_vanilla(section)}\n" + "\n".join(tables)


def _counted(label: str, found: list[Layers]) -> str:
    return f"{label} ({len(found)} seeds)" if len(found) > 1 else label


def _against_vanilla(section: Section) -> str:
    """How each model's first half of the layers and its samples differ from the first model's, in words."""
    first, *others = section.layers
    lines = []
    for label in others:
        own, plain = (_change(section, quantity, label, first) for quantity in ("own", "plain"))
        before, after = (_ends(section.layers[each]) for each in (first, label))
        line = (
            f"- **{label}** against {first}: error over the noisier half of the layers {own:+.1f} % with its own "
            f"noise, {plain:+.1f} % with plain noise; Fréchet distance of the samples {after} against {before}."
        )
        lines.append(textwrap.fill(line, 120, subsequent_indent="  "))
    return "\n".join(lines) + "\n"


def _ends(found: list[Layers]) -> str:
    """The samples' Fréchet distance, of several seeds also its range."""
    values = [each.frechet[-1] for each in found]
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def _change(section: Section, quantity: str, label: str, first: str) -> float:
    """Change of a quantity's mean over the noisier half of the layers [%]."""
    new, old = (mean(_mean(section.layers[each], quantity)[: LAYERS // 2]) for each in (label, first))
    return 100 * (new / old - 1)


def _picture(sections: list[Section]) -> Figure:
    heights = [height for section in sections for height in ((3.7, 1.8) if section.strips else (3.7,))]
    figure = Figure(figsize=(14.7, sum(heights)), dpi=130, layout="constrained")
    rows: Iterator[Any] = iter(np.ravel(np.array(figure.subfigures(len(heights), 1, height_ratios=heights))))
    for section in sections:
        _curves(list(next(rows).subplots(1, 3)), section)
        if section.strips:
            axes = next(rows).subplots(1, len(section.strips))
            for each, (label, images) in zip(axes, section.strips.items(), strict=True):
                _draw_strip(each, label, images)
    return figure


def _curves(axes: list[Axes], section: Section) -> None:
    """Error, distance from the final sample, and Fréchet distance of every layer."""
    for colour, (label, found) in zip(COLOURS, section.layers.items(), strict=False):
        t = found[0].t
        axes[0].plot(t, _mean(found, "own"), color=colour, linewidth=1.8, label=f"{_counted(label, found)}, own noise")
        axes[0].plot(t, _mean(found, "plain"), color=colour, linewidth=1.2, linestyle=":")
        for each, quantity in zip(axes[1:], ("final", "frechet"), strict=True):
            each.plot(t, _mean(found, quantity), color=colour, linewidth=1.8, label=label)
            for seed in found if len(found) > 1 else []:
                each.plot(t, getattr(seed, quantity), color=colour, linewidth=0.6, alpha=0.6)
    axes[0].plot([], [], color=GREY, linestyle=":", linewidth=1.2, label="dotted: plain noise")
    axes[0].axhline(1, color=GREY, linewidth=0.8)
    axes[2].axhline(section.floor, color=GREY, linewidth=1, linestyle="--", label="floor: real samples")
    axes[2].set_yscale("log")
    titles = (
        "error of predicted x_0, noised real data",
        "distance from the final sample",
        "Fréchet distance², per layer",
    )
    for each, title in zip(axes, titles, strict=True):
        each.set_title(f"{section.title}: {title}", fontsize=9, loc="left")
        each.set_xlabel("diffusion step t (left: noise, right: clean)", fontsize=8)
        each.invert_xaxis()
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(which="both", labelsize=8)
        each.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        each.legend(fontsize=7, frameon=False)
    for each in axes[:2]:
        each.set_ylabel("1 = always predicting the mean", fontsize=8)
        each.set_ylim(bottom=0)


def _draw_strip(axes: Axes, label: str, images: Tensor) -> None:
    axes.imshow(tiled(images, LAYERS // 2).numpy(), interpolation="nearest")
    axes.axis("off")
    axes.set_title(f"{label}: x_0 at every second layer, from the same {STRIP} start noises", fontsize=8, loc="left")


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "images": IMAGES,
        "models": MODELS,
        "runs": RUNS,
        "data": DATA,
        "n": Option(int, 2000, "samples for each model"),
        "seed": SEED,
    },
)
