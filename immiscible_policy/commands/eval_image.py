"""`python eval_image.py`: how good the images of a run's checkpoints are, and runs against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from immiscible_policy.cli import COUNT, SEED, CommandError, Option, parse, program, require_writable, unknown
from immiscible_policy.image.data import to_bytes
from immiscible_policy.image.editing import EDITS, FILLED, edit_region
from immiscible_policy.image.evaluation.clip import ClipScore
from immiscible_policy.image.evaluation.evaluate import Evaluation, ImageProtocol, Target, find_run, find_target
from immiscible_policy.image.evaluation.features import make_extractor
from immiscible_policy.image.evaluation.measure import Drawing, SolverWords, start_noise
from immiscible_policy.image.evaluation.pictures import samples_figure
from immiscible_policy.image.evaluation.report import measure_targets, write_report
from immiscible_policy.results.writer import save_figure
from immiscible_policy.store.run import RunDirectory, named_runs
from immiscible_policy.training.options import device_option, resolve_device

TITLES = {
    None: "", "inpaint": " of in-painted images", "outpaint": " of out-painted images", "invert": " of redrawn images",
}  # fmt: skip
EDITED = 6
"""Images in the picture of edits."""
USAGE = """\
usage: python eval_image.py run=DIR|runs=DIR,DIR,...|checkpoint=PATH [KEY=VALUE ...]

Measures the Fréchet distance between generated and real images for every checkpoint of a run, and writes it to
seed_N/frechet.csv. Nothing is measured twice. Several runs are compared with the first. Inception's features give FID;
the default, the features of the project's own CIFAR-10 classifier, needs no download.

  python eval_image.py runs=vanilla=runs/flow_vanilla,knn=runs/flow_knn samples=5000 out=flow_frechet
  python eval_image.py run=runs/flow features=inception samples=50000 device=cuda
"""


OPTIONS = {
    "run": Option(Path, None, "run directory"),
    "runs": Option(
        named_runs, None, "DIR,DIR or NAME=DIR,NAME=DIR: run directories; the others are compared with the first"
    ),
    "checkpoint": Option(Path, None, "a single checkpoint"),
    "samples": Option(COUNT, 2000, "images per checkpoint; 50,000 for published FIDs"),
    "sampling_steps": Option(
        COUNT, None, "steps; absent: as in training, else 50 (ddim, sd), the adaptive solver (flow), 1 (consistency)"
    ),
    "solver": Option(str, None, "ddim, ddpm, dpmpp, euler, heun, renoise, pndm; absent: as in training", "sampler"),
    "spacing": Option(str, None, "grid of the solver's times: trailing, shifted or leading; absent: as in training"),
    "eta": Option(float, None, "noise of solver=ddim or dpmpp, 0 none to 1 as much as DDPM; absent: as in training"),
    "features": Option(str, "classifier", "classifier or inception"),
    "classifier": Option(Path, None, "weights of a classifier other than the package's"),
    "inception": Option(Path, None, "weights of torch-fidelity's InceptionV3, where torch does not keep them"),
    "clip": Option(str, None, "CLIP model (directory or hub id) for CLIPScore, where there are prompts"),
    "data": Option(Path, None, "the data set; by default what the run was trained on"),
    "dataset": Option(str, None, "name of the data set; by default the run's"),
    "prompts": Option(str, None, "own, none or a file, as in training; by default the run's"),
    "pretrained": Option(str, None, "where the pretrained parts of model=sd are; by default as in training"),
    "reference": Option(str, "train", "split of the data set to compare with"),
    "reference_samples": Option(COUNT, None, "use only the first N of these images"),
    "edit": Option(str, None, "of real images: inpaint, outpaint, or invert: find the noise and draw again"),
    "originals": Option(str, None, "split of the data set to edit; none given: its last, which training leaves out"),
    "noise_seed": Option(SEED, 0, "seed of the start noises"),
    "batch_size": Option(COUNT, 250, "images per batch"),
    "device": device_option(),
    "out": Option(Path, None, "directory of the report; by default the run, or frechet for several"),
}


@program
def main(words: list[str]) -> None:
    """Measure what is not measured yet, and write the report."""
    options = parse(words, OPTIONS, USAGE)
    _check(options)
    protocol, edit = _protocol(options), options["edit"]
    if options["checkpoint"] is not None:
        targets = [find_target(options["checkpoint"], protocol)]
    else:
        runs = options["runs"] or {(run := RunDirectory(options["run"])).name: run}
        targets = [find_run(name, run, protocol) for name, run in runs.items()]
    own = targets[0].run.path if targets[0].run is not None else None
    out: Path | None = options["out"] or (own if len(targets) == 1 else Path("frechet"))
    if out is not None:
        require_writable("out", out / "x")
    evaluation = Evaluation(protocol, lambda line: print(line, flush=True))
    results = measure_targets(evaluation, targets, TITLES[edit])
    if out is None:
        return
    name = edit or "frechet"
    columns = {target.label: evaluation.first_images(target, EDITED) for target in targets} if edit is None else {}
    samples = samples_figure(columns, "the same start noises in every row") if columns else None
    print("", write_report(out, name, results, samples), sep="\n")
    written = [f"{name}.{suffix}" for suffix in ("json", "md", "png", "html")]
    if edit is not None:
        written.append(f"{edit}_images.png")
        columns = _edits(evaluation, targets, edit)
        title = "drawn again from their noise" if edit == "invert" else "all that is not masked was given"
        save_figure(samples_figure(columns, title), out / written[-1])
    print(f"saved {', '.join(written)} in {out}")


def _check(options: dict[str, Any]) -> None:
    given = [key for key in ("run", "runs", "checkpoint") if options[key] is not None]
    if len(given) != 1:
        raise CommandError("give run=DIR, runs=DIR,DIR or checkpoint=PATH, one of them")
    if options["edit"] is not None and options["edit"] not in EDITS:
        raise CommandError(unknown("edit", options["edit"], EDITS))
    options["device"] = resolve_device(options["device"])


def _protocol(options: dict[str, Any]) -> ImageProtocol:
    device, clip = options["device"], options["clip"]
    words = SolverWords(options["solver"], options["sampling_steps"], options["spacing"], options["eta"])
    return ImageProtocol(
        Drawing(options["samples"], words, options["noise_seed"], options["batch_size"], device, options["edit"]),
        make_extractor(
            options["features"], classifier=options["classifier"], inception=options["inception"], device=device
        ),
        clip=None if clip is None else ClipScore(clip, device),
        split=options["reference"],
        limit=options["reference_samples"],
        **{key: options[key] for key in ("originals", "data", "dataset", "prompts", "pretrained")},
    )


def _edits(evaluation: Evaluation, targets: list[Target], edit: str) -> dict[str, torch.Tensor]:
    """Originals, what is left of them with noise in the gap, and every run's edits of them."""
    rows = torch.arange(EDITED)
    originals = evaluation.conditions(targets[0].source).pixels(rows)
    size, columns = originals.shape[-1], {"original": originals}
    if edit in FILLED:
        noise = to_bytes(0.5 * start_noise((3, size, size), rows, evaluation.protocol.drawing.seed))
        columns["masked"] = torch.where(edit_region(edit, size), noise, originals)
    return columns | {target.label: evaluation.first_images(target, EDITED) for target in targets}
