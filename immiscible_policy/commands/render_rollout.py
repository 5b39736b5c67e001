"""Watch a policy: several starts side by side in one video, or in a window."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from immiscible_policy.cli import COUNT, REQUIRED, CommandError, Option, parse, program, require_writable, whole
from immiscible_policy.commands import solving
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.recording import Recorder
from immiscible_policy.evaluation.rollout import BATCH, evaluate
from immiscible_policy.plugins.bridge import find_checkpoint
from immiscible_policy.results.video import (
    LiveWindow,
    WindowClosed,
    frames,
    require_display,
    require_video_name,
    write_video,
)
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.tasks import Task, primary, recorded_task, success
from immiscible_policy.training.options import device_option, resolve_device

USAGE = """\
render rollouts of a checkpoint, several starts side by side

  python render_rollout.py checkpoint=runs/knn out=rollout.mp4
  python render_rollout.py checkpoint=runs/knn/seed_0/checkpoints/step_005000 out=rollout.gif speed=2
  python render_rollout.py checkpoint=PATH view=human
"""


OPTIONS = {
    "checkpoint": Option(
        Path, REQUIRED, "a checkpoint (also .ckpt or LeRobot), a run or seed (its best), or pretrained"
    ),
    "out": Option(Path, Path("rollout.mp4"), "the video, .mp4 or .gif"),
    "view": Option(str, "video", "video writes a file, human shows it live in a window"),
    "speed": Option(float, 1.0, "playback speed: 1 is real time"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds such as 100000..100008"),
    "episodes": Option(COUNT, 9, "number of starts, for legacy and fresh"),
    "columns": Option(whole(1, 100), 3, "tiles per row"),
    "size": Option(whole(64, 1024), 256, "pixels per tile"),
    **solving.OPTIONS,
    "device": device_option(),
}


@program
def main(words: list[str]) -> None:
    """Roll out, print how each episode ended, and write the video, or show it live."""
    options = parse(words, OPTIONS, USAGE)
    out, columns, size = options["out"], options["columns"], options["size"]
    require_video_name(out)
    if options["view"] not in ("video", "human"):
        raise CommandError(f"view={options['view']}: use video or human")
    if not 0.1 <= options["speed"] <= 10:
        raise CommandError(f"speed={options['speed']:g}: use 0.1 to 10")
    if options["episodes"] > BATCH:
        raise CommandError(f"episodes={options['episodes']}: one video shows at most {BATCH}")
    if options["view"] == "human":
        require_display()
    else:
        require_writable("out", out)
    checkpoint = find_checkpoint(options["checkpoint"])
    task = recorded_task(checkpoint.config)
    if not task.has_environment:
        raise CommandError(f"task={task.name} has no environment to render a policy in")
    if not task.is_drawn:
        task.draw(np.empty(0), size)  # raises, and says why
    starts = task.starts(options["starts"], options["episodes"])
    agent = load_agent(checkpoint, solving.chosen_solver(checkpoint, options), resolve_device(options["device"]))
    origin, fps = {"seed": checkpoint.metadata["seed"], "checkpoint": checkpoint.step}, options["speed"] * task.fps
    if options["view"] == "human":
        with LiveWindow(task, starts, columns, size, fps) as window, suppress(WindowClosed):
            print_outcomes(
                task, evaluate(task, agent, starts, batch_size=len(starts), on_step=window.on_step, **origin)
            )
        return
    recorder = Recorder(task)
    rows = evaluate(task, agent, starts, on_step=recorder.on_step, **origin)
    print_outcomes(task, rows)
    print(f"{write_video(out, frames(task, recorder.recording(rows), columns, size), fps)} frames in {out}")


def print_outcomes(task: Task, rows: Sequence[EpisodeRow]) -> None:
    """Say how each episode ended."""
    metric = primary(task)
    for row in rows:
        outcome = "success" if success(task, row.metrics) else "no success"
        print(f"start {row.start}: {outcome} after {row.steps} steps, {metric.name} {row.metrics[metric.name]:.3f}")
