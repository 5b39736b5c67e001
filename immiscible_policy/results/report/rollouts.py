"""The same starts, all runs side by side: small videos of each run's best kept checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from immiscible_envs.geometry import GOAL_POSE
from immiscible_policy.commands.render_rollout import Frame, Recorder, Recording, draw_tile, tile, write_video
from immiscible_policy.evaluation.agent import load_agent, solver_of
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.results.report.gather import Arm, Evidence, by_start
from immiscible_policy.results.report.words import signed
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.training.options import resolve_device

SIZE = 256
FPS = 20
"""Twice the speed of the task, which is controlled at 10 Hz."""
LONGEST_NAME = 18


@dataclass(frozen=True)
class Clip:
    """One start, rolled out by every run that keeps a checkpoint.

    Attributes:
        start: Seed of the start.
        rank: Why this start is shown.
        outcomes: What each run did, in words, in the order of the tiles.
        mp4: The video (H.264).
    """

    start: int
    rank: str
    outcomes: list[str]
    mp4: bytes


@dataclass(frozen=True)
class Acted:
    """What one run did from the shown starts.

    Attributes:
        arm: The run.
        checkpoint: Its best kept checkpoint.
        seed: The training seed of that checkpoint.
        rows: One per start.
        recording: What happened.
    """

    arm: Arm
    checkpoint: Checkpoint
    seed: int
    rows: list[EpisodeRow]
    recording: Recording


def roll_out(evidence: Evidence, videos: int) -> tuple[list[Clip], list[Acted]]:
    """Roll the runs out again from a few starts, chosen by rank, not by looks.

    Args:
        evidence: The runs.
        videos: Number of starts.

    Returns:
        A clip per start, and what each run with a kept checkpoint did.

    Raises:
        ValueError: If a checkpoint is damaged or not known to this version.
    """
    ranks = chosen_starts(evidence, videos)
    acted = [_act(arm, *best, list(ranks)) for arm in evidence.arms if (best := best_kept(arm))]
    if not acted:
        return [], []
    clips = [Clip(start, rank, _outcomes(acted, i), _mp4(acted, i)) for i, (start, rank) in enumerate(ranks.items())]
    return clips, acted


def chosen_starts(evidence: Evidence, videos: int) -> dict[int, str]:
    """Starts at even ranks from the greatest to the smallest difference (one run: coverage), and which rank it is."""
    pairing = next((each for each in evidence.pairings if each.comparison), None)
    if pairing is None:
        table = next(iter(evidence.reference.scores.values()))
        values, what = dict(zip(table.starts, table.last10("coverage"), strict=True)), "mean coverage"
    else:
        values = {each.start: each.difference.estimate for each in by_start(pairing)}
        what = f"{pairing.arm.name} minus {pairing.reference.name}, mean over seeds and last checkpoints"
    ordered = sorted(values, key=lambda start: (-values[start], start))
    places = sorted({round(place) for place in np.linspace(0, len(ordered) - 1, min(videos, len(ordered)))})
    return {
        ordered[place]: f"rank {place + 1} of {len(ordered)} by {what}: {signed(values[ordered[place]])}"
        for place in places
    }


def best_kept(arm: Arm) -> tuple[int, Checkpoint] | None:
    """Seed and checkpoint of the largest mean coverage among those on disk; None where none is kept."""
    kept = [
        (float(table.values["coverage"][table.steps.index(checkpoint.step)].mean()), seed, checkpoint)
        for seed, table in arm.scores.items()
        for checkpoint in arm.run.seed(seed).checkpoints()
        if checkpoint.step in table.steps
    ]
    best = max(kept, key=lambda each: each[0], default=None)
    return best and (best[1], best[2])


def _act(arm: Arm, seed: int, checkpoint: Checkpoint, starts: list[int]) -> Acted:
    agent = load_agent(checkpoint, solver_of(checkpoint), resolve_device("auto"))
    recorder = Recorder()
    rows = evaluate(agent, starts, seed=seed, checkpoint=checkpoint.step, on_step=recorder.on_step)
    return Acted(arm, checkpoint, seed, rows, recorder.recording(rows))


def _outcomes(acted: Sequence[Acted], index: int) -> list[str]:
    return [
        f"{each.arm.name}: {'success' if row.metrics['success'] else 'no success'} after {row.steps} steps, "
        f"max coverage {row.metrics['coverage']:.2f}"
        for each in acted
        for row in [each.rows[index]]
    ]


def _mp4(acted: Sequence[Acted], index: int) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "clip.mp4"
        write_video(path, _frames(acted, index), FPS)
        return path.read_bytes()


def _frames(acted: Sequence[Acted], index: int) -> Iterator[Frame]:
    """One picture per step until the last run is done; who is done stays as it ended."""
    for step in range(max(each.rows[index].steps for each in acted) + 1):
        yield tile(np.stack([_tile(each, index, step) for each in acted]), columns=2)


def _tile(acted: Acted, index: int, step: int) -> Frame:
    shown, last = acted.recording, int(acted.recording.last[index])
    step = min(step, last)
    label = f"{_short(acted.arm.name)}   {shown.coverage[step, index]:.2f}"
    success = bool(shown.success[index]) and step == last
    return draw_tile(shown.states[step, index], GOAL_POSE, label, success, SIZE)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
