"""What image scaling changes: models of one recipe, trained at several data scales (Figure 8 of arXiv 2505.18521).

`data_scale=` multiplies the pixels before noise is chosen and added, and divides them after sampling. *Data std* is the
standard deviation that this brings them to: about 0.5 for `data_scale=1`, pixels in [-1, 1] as they are.

- *On the way to noise* (a): one image and one noise at evenly spaced times of each model's sampling, at equal
  brightness. Of a larger scale more can be seen at every time.
- *Distance* (b, and over training): squared Fréchet distance of the samples to the images of the training, on the
  features of the project's classifier: not FID. Mean over training seeds, with 95% intervals.

  python train_image.py model=ddim data_scale=2 data=CIFAR10 out=runs/ddim_2
  python -m immiscible_policy.lab scaling runs=runs/ddim_1,runs/ddim_2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option
from immiscible_policy.image.build import load_image_model
from immiscible_policy.image.data import to_bytes
from immiscible_policy.image.evaluation.evaluate import Evaluation, ImageProtocol, find_run
from immiscible_policy.image.evaluation.features import make_extractor
from immiscible_policy.image.evaluation.measure import Drawing, SolverWords
from immiscible_policy.image.evaluation.pictures import draw_distances, tile
from immiscible_policy.image.evaluation.report import ImageResults, measure_targets
from immiscible_policy.lab import runs as lab_runs
from immiscible_policy.lab.data import SEED
from immiscible_policy.lab.program import Document, plain, program, table
from immiscible_policy.palette import GREY, colours, readable
from immiscible_policy.randomness import torch_generator
from immiscible_policy.results import formatting
from immiscible_policy.results.experiment import Findings
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.training.options import device_option, resolve_device

SHOWN = 8
"""Times at which an image is shown on its way to noise."""
MEASURED = 1000
"""Images whose standard deviation is measured."""
BATCH = 250


def measure(options: Document) -> Findings:
    """Measure every checkpoint of the runs that is not measured yet."""
    device, models = resolve_device(options["device"]), lab_runs.newest_runs(options["runs"]).models
    if not models:
        raise CommandError("runs= names policies; scaling takes runs of train_image.py")
    clean = {run: lab_runs.clean_samples(c, options["data"], MEASURED, options["seed"]) for run, c in models.items()}
    words = SolverWords(steps=options["sampling_steps"])
    drawing = Drawing(options["samples"], words, options["seed"], BATCH, device, edit=None)
    protocol = ImageProtocol(drawing, make_extractor("classifier", device=device), data=options["data"])
    evaluation = Evaluation(protocol, lambda line: print(line, flush=True))
    results = measure_targets(evaluation, [find_run(name, run, protocol) for name, run in options["runs"].items()])
    figures = {
        "samples": options["samples"],
        "sampling_steps": results.setting.sampling_steps,
        "real_images": results.reference.floor,
        "runs": {
            run: {
                "data_std": float(x.std()),
                "steps": results.curves[run].steps,
                "distance": [formatting.figures(mean) for mean in results.curves[run].means],
                "seeds": len(results.seeds[run]),
            }
            for run, x in clean.items()
        },
    }
    strips = {run: on_the_way(checkpoint, clean[run][0], options["seed"]) for run, checkpoint in models.items()}
    return Findings(figures, describe(figures), draw(figures, results, strips))


def on_the_way(checkpoint: Checkpoint, x: Tensor, seed: int) -> Tensor:
    """A clean sample (C, H, W) on its way to noise, as images (SHOWN, 3, S, S), uint8, of equal brightness."""
    model, _ = load_image_model(checkpoint)
    noise = torch.randn(x.shape, generator=torch_generator("cpu", "scaling", seed))
    plan = lab_runs.layered(model.path, SHOWN).plan(model.path)
    noised = torch.stack([step.alpha * x + step.sigma * noise for step in reversed(plan)])
    spread = noised.flatten(1).std(dim=1)[:, None, None, None]
    return to_bytes(model.coder.decode(x.std() * noised / spread))


def describe(figures: Document) -> str:
    """The distances of all runs."""
    rows = [{"label": run, "last": of_run["distance"][-1], "step": of_run["steps"][-1], **of_run}
            for run, of_run in figures["runs"].items()]  # fmt: skip
    columns = {"run": "{label}", "data std": "{data_std:.2f}", "seeds": "{seeds}", "steps": "{step:,}"}
    floor = "" if figures["real_images"] is None else f" As many real images: {figures['real_images']:.3f}."
    return f"{figures['samples']:,} samples of every checkpoint.{floor}\n\n" + table(
        columns | {"distance, last checkpoint": "{last:.3f}"}, rows
    )


def draw(figures: Document, results: ImageResults, strips: Mapping[str, Tensor]) -> Figure:
    """Images on their way to noise; distance against the data's spread, and over training."""
    heights = [0.75 * len(strips), 3.7]
    figure = Figure(figsize=(11, sum(heights)), dpi=130, layout="constrained")
    upper, lower = (part for part in np.ravel(np.array(figure.subfigures(2, 1, height_ratios=heights))))
    _draw_strips(upper, strips)
    left, right = lower.subplots(1, 2)
    plain(left, "b: distance at the last checkpoint", "standard deviation of the data", "squared Fréchet distance")
    for run, colour in colours(figures["runs"]).items():
        place, last = figures["runs"][run]["data_std"], figures["runs"][run]["distance"][-1]
        left.plot(place, last["mean"], "o", color=colour, label=readable(run))
        if last["low"] is not None:
            left.plot([place, place], [last["low"], last["high"]], color=colour, linewidth=1.2)
    if figures["real_images"] is not None:
        left.axhline(figures["real_images"], color=GREY, linewidth=1, linestyle="--", label="real images")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8, frameon=False)
    plain(right, "distance over training", "training step", "squared Fréchet distance (logarithmic)")
    draw_distances(right, results.curves, results.reference.floor)
    return figure


def _draw_strips(figure: SubFigure, strips: Mapping[str, Tensor]) -> None:
    panels = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    panels[0].set_title("a: one image on its way to noise", fontsize=10, loc="left")
    for axes, (run, images) in zip(panels, strips.items(), strict=True):
        axes.imshow(tile(images, SHOWN), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(readable(run), fontsize=8, rotation=0, ha="right", va="center")


OPTIONS = {
    "runs": replace(lab_runs.RUNS, default=REQUIRED, help="runs of train_image.py, DIR,DIR or NAME=DIR,..."),
    "data": lab_runs.DATA,
    "samples": Option(COUNT, 2000, "images drawn of each checkpoint"),
    "sampling_steps": Option(COUNT, None, "network calls; absent: as in training"),
    "device": device_option(),
    "seed": SEED,
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
