"""`python train_image.py`: words become options here; `commands.training` trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from immiscible_policy.cli import program
from immiscible_policy.commands.train_grid import Grid
from immiscible_policy.commands.training import train
from immiscible_policy.recipes.image_config import SCHEMA

RECIPE = "immiscible_policy.recipes.image:ImageRecipe"
USAGE = """\
usage: python train_image.py model=MODEL data=PATH [KEY=VALUE ...]

Train an image model with noise chosen by a selector; draws samples on the way.

  python train_image.py model=flow noise=knn k=4 seed=0..2 data=cifar10-jpeg.zip
  python train_image.py model=consistency scale=paper dataset=celeba size=64 data=DIR
  python train_image.py model=sd pretrained=DIR noise=knn k=64 dataset=imagenet data=DIR
  python train_image.py experiment=figure5 data=PATH out=runs/figure5   (a grid: a run for each arm, resumed, measured)
"""


@program
def main(words: list[str]) -> None:
    """Train an image model, or every run of a grid."""
    train(words, SCHEMA, USAGE, RECIPE, image_table, require_measurable)


def require_measurable(grid: Grid, recipes: Mapping[str, Any]) -> None:
    """Refuse what `image_table` could not measure, by a ValueError, before anything is trained."""
    from immiscible_policy.image.evaluation.features import make_extractor
    from immiscible_policy.image.evaluation.measure import require_enough

    how, models = grid.evaluation or EVALUATION, {recipe.config.model: recipe for recipe in recipes.values()}
    if how["spacing"] == "leading" and "ddim" not in models:
        raise ValueError("evaluation.spacing=leading: no arm has model=ddim, whose published grid it is")
    extractor = make_extractor(how["features"], device=next(iter(models.values())).config.device)
    for model, recipe in models.items():
        require_enough(extractor, recipe.images, how["samples"], "evaluation.samples")
        spacing, calls = grid_of_times(how, model)
        recipe.require_calls(calls + [count for name, count in how["curve"].items() if name == model], spacing)


def grid_of_times(how: Mapping[str, Any], model: str) -> tuple[str, list[int]]:
    """The spacing and the network calls with which a model is measured.

    `leading` is the published grid of DDIM, which visits t = 0 alone with one call: of DDIM that is left out, and other
    models keep the trailing grid.
    """
    spacing, calls = how["spacing"], how["calls"]
    if spacing != "leading":
        return spacing, calls
    return ("leading", [count for count in calls if count > 1]) if model == "ddim" else ("trailing", calls)


def image_table(grid: Grid, recipes: Mapping[str, Any]) -> str:
    """Measure the finished arms in panels of one model and data scale, write results and pages, and return the text."""
    from immiscible_policy.image.evaluation.evaluate import ImageProtocol
    from immiscible_policy.image.evaluation.features import make_extractor
    from immiscible_policy.image.evaluation.measure import Drawing, SolverWords
    from immiscible_policy.image.evaluation.panels import (
        corrected,
        distinct,
        figure,
        markdown,
        measure_panel,
        record,
        spoken,
    )
    from immiscible_policy.image.evaluation.pictures import samples_figure
    from immiscible_policy.image.evaluation.report import write_report
    from immiscible_policy.results.writer import origin_here, save_figure, write_result
    from immiscible_policy.store.run import RunDirectory

    how, origin = grid.evaluation or EVALUATION, origin_here()
    panels: dict[str, dict[str, RunDirectory]] = {}
    incomplete = []
    for arm, recipe in recipes.items():
        run, config = RunDirectory(grid.out / arm), recipe.config
        if run.exists and run.is_finished():
            scale = "" if config.data_scale == 1 else f", data scale {config.data_scale:g}"
            panels.setdefault(f"{config.model}{scale}", {})[arm] = run
        else:
            incomplete.append(arm)
    device = next(iter(recipes.values())).config.device
    extractor = make_extractor(how["features"], device=device)
    measured = []
    for title, runs in panels.items():
        model = title.partition(",")[0]
        spacing, calls = grid_of_times(how, model)
        words = SolverWords(steps=how["curve"].get(model), spacing=spacing)
        drawing = Drawing(how["samples"], words, 0, BATCH, device, None)
        protocol = ImageProtocol(drawing, extractor)
        measured.append(measure_panel(title, runs, protocol, calls, partial(print, flush=True)))
    p, pages = corrected(measured), []
    for panel in measured:
        named = dict(zip(distinct(list(panel.samples)), panel.samples.values(), strict=True))
        samples = samples_figure(named, "the same start noises in every row")
        name = panel.title.replace(", data scale ", "_scale")
        write_report(grid.out, name, panel.steps, samples, panel.curves, spoken(panel, p))
        save_figure(samples, grid.out / f"{name}_samples.png")
        pages.append(f"{grid.out / name}.html")
    text = markdown(grid.name, measured, incomplete)
    write_result(grid.out / grid.name, record(measured), text, figure(measured) if measured else None, origin=origin)
    shown = f".json, .md and .png; pages with samples: {', '.join(pages)}" if pages else ".json and .md"
    return f"{text}\n\nsaved in {grid.out / grid.name}{shown}"


BATCH = 250
"""Images drawn at a time."""
EVALUATION: dict[str, Any] = {
    "samples": 2000,
    "features": "classifier",
    "calls": [1, 10],
    "curve": {},
    "spacing": "trailing",
}
"""How a grid is measured whose options have several values, such as `k=2,4`."""
