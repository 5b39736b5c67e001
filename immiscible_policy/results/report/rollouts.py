"""The same starts, all runs side by side: small videos of each run's best kept checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from immiscible_policy.evaluation.agent import load_agent, solver_of
from immiscible_policy.evaluation.recording import Recorder, Recording
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.results.report.evidence import Evidence, ReportedRun, by_start
from immiscible_policy.results.report.words import signed
from immiscible_policy.results.video import Frame, draw_tile, encode_video, tile
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.tasks import Metric
from immiscible_policy.training.options import resolve_device

SIZE = 256
LONGEST_NAME = 18


@dataclass(frozen=True)
class Clip:
    """One start, rolled out by every run that keeps a checkpoint: a video (H.264), `width` pixels across.

    Attributes:
        rank: Why this start is shown.
        outcomes: What each run did, in words, in the order of the tiles.
    """

    start: int
    rank: str
    outcomes: list[str]
    mp4: bytes
    width: int


@dataclass(frozen=True)
class Acted:
    """What the best kept checkpoint of a run, of a training seed, did from the shown starts; one row per start."""

    run: ReportedRun
    checkpoint: Checkpoint
    seed: int
    rows: list[EpisodeRow]
    recording: Recording


def roll_out(evidence: Evidence, videos: int) -> tuple[list[Clip], list[Acted]]:
    """Roll the runs out again from a few starts (`videos` of them), chosen by rank, not by looks.

    Returns:
        A clip per start, and what each run with a kept checkpoint did; nothing for a task without a renderer.

    Raises:
        ValueError: If a checkpoint is damaged or not known to this version.
    """
    if not evidence.task.is_drawn:
        return [], []
    ranks = chosen_starts(evidence, videos)
    acted = []
    for run in evidence.runs:
        best = best_kept(run, evidence.metrics[0])
        if best is not None:
            seed, checkpoint = best
            task = run.run.task
            agent, recorder = load_agent(checkpoint, solver_of(checkpoint), resolve_device("auto")), Recorder(task)
            rows = evaluate(task, agent, list(ranks), seed=seed, checkpoint=checkpoint.step, on_step=recorder.on_step)
            acted.append(Acted(run, checkpoint, seed, rows, recorder.recording(rows)))
    if not acted:
        return [], []
    clips = []
    for index, (start, rank) in enumerate(ranks.items()):
        mp4, _ = encode_video(_frames(acted, index), 2 * evidence.task.fps)
        clips.append(Clip(start, rank, _outcomes(evidence, acted, index), mp4, SIZE * min(2, len(acted))))
    return clips, acted


def chosen_starts(evidence: Evidence, videos: int) -> dict[int, str]:
    """Starts at even ranks, by the first comparison's differences (one run: by score), and which rank each has."""
    metric = evidence.metrics[0].name
    contrast = next((contrast for contrast in evidence.contrasts if contrast.comparison), None)
    if contrast is None:
        table = next(iter(evidence.reference.scores.values()))
        values = dict(zip(table.starts, table.last10(metric), strict=True))
        measure = f"mean {metric.replace('_', ' ')}"
    else:
        values = {item.start: item.difference.estimate for item in by_start(contrast, metric)}
        names = f"{contrast.run.name} \N{MINUS SIGN} {contrast.reference.name}"
        measure = f"{names}, mean over seeds and last checkpoints"
    ordered = sorted(values, key=lambda start: (-values[start], start))
    places = sorted({round(place) for place in np.linspace(0, len(ordered) - 1, min(videos, len(ordered)))})
    return {
        ordered[place]: f"rank {place + 1} of {len(ordered)} by {measure}: {signed(values[ordered[place]])}"
        for place in places
    }


def best_kept(run: ReportedRun, metric: Metric) -> tuple[int, Checkpoint] | None:
    """Seed and checkpoint of the best mean among those on disk; None where none is kept."""
    kept = [
        (metric.sign * float(table.values[metric.name][table.steps.index(checkpoint.step)].mean()), seed, checkpoint)
        for seed, table in run.scores.items()
        for checkpoint in run.run.seed(seed).checkpoints()
        if checkpoint.step in table.steps
    ]
    best = max(kept, key=lambda candidate: candidate[0], default=None)
    return best and best[1:]


def _outcomes(evidence: Evidence, acted: Sequence[Acted], index: int) -> list[str]:
    """What each run came to: its metrics at the end of the episode."""
    outcomes = []
    for act in acted:
        row = act.rows[index]
        values = [
            ("" if row.metrics[metric.name] else "no ") + metric.name.replace("_", " ")
            if metric.reduce == "any"
            else f"{metric.name.replace('_', ' ')} {row.metrics[metric.name]:.2f}"
            for metric in evidence.metrics
        ]
        outcomes.append(f"{act.run.name}, {row.steps} steps: {', '.join(values)}")
    return outcomes


def _frames(acted: Sequence[Acted], index: int) -> Iterator[Frame]:
    """One picture per step until the last run is done; a finished run stays as it ended."""
    for step in range(max(act.rows[index].steps for act in acted) + 1):
        tiles = []
        for act in acted:
            shown, last = act.recording, int(act.recording.last[index])
            now, name = min(step, last), act.run.name
            name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
            label = f"{name}   {shown.scores[now, index]:.2f}"
            won = bool(shown.success[index]) and step >= last
            tiles.append(draw_tile(act.run.run.task, shown.scenes[now, index], label, SIZE, won))
        yield tile(np.stack(tiles), columns=2)
