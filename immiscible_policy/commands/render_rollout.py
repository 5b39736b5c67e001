"""Watch a policy: several starts side by side in one video, or in a window."""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, program, require_writable
from immiscible_policy.commands import solving
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.recording import Recorder
from immiscible_policy.evaluation.rollout import BATCH, evaluate
from immiscible_policy.plugins.bridge import find_checkpoint
from immiscible_policy.results.video import frames, show_window, write_video
from immiscible_policy.tasks import primary, recorded_task, success
from immiscible_policy.training.options import device_option, resolve_device

USAGE = """\
render what a checkpoint does, several starts side by side

  python render_rollout.py checkpoint=runs/knn/seed_0/checkpoints/step_005000 out=rollout.mp4
  python render_rollout.py checkpoint=PATH view=human
"""


OPTIONS = {
    "checkpoint": Option(Path, REQUIRED, "a checkpoint, or a run or seed for its best; .ckpt and LeRobot's as well"),
    "out": Option(Path, Path("rollout.mp4"), "the video"),
    "view": Option(str, "mp4", "mp4 writes the video, human opens a window instead"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds such as 100000..100008"),
    "episodes": Option(int, 9, "number of starts, for legacy and fresh"),
    "columns": Option(int, 3, "tiles per row"),
    "size": Option(int, 256, "pixels per tile"),
    **solving.OPTIONS,
    "device": device_option(),
}


@program
def main(words: list[str]) -> None:
    """Roll out, print how each episode ended, and show or write the video."""
    options = parse(words, OPTIONS, USAGE)
    out, columns, size = options["out"], options["columns"], options["size"]
    if out.suffix != ".mp4":
        raise CommandError(f"out={out}: a video's name must end in .mp4")
    if options["view"] not in ("mp4", "human"):
        raise CommandError(f"view={options['view']}: use mp4 or human")
    if columns < 1:
        raise CommandError(f"columns={columns}: use 1 or more")
    if not 64 <= size <= 1024:
        raise CommandError(f"size={size}: use 64 to 1024 pixels")
    if options["episodes"] > BATCH:
        raise CommandError(f"episodes={options['episodes']}: one video holds at most {BATCH}")
    require_writable("out", out)
    checkpoint = find_checkpoint(options["checkpoint"])
    task = recorded_task(checkpoint.metadata.get("config", {}))
    starts = task.starts(options["starts"], options["episodes"])
    agent = load_agent(checkpoint, solving.chosen_solver(checkpoint, options), resolve_device(options["device"]))
    recorder = Recorder(task)
    seed = checkpoint.metadata["seed"]
    rows = evaluate(task, agent, starts, seed=seed, checkpoint=checkpoint.step, on_step=recorder.on_step)
    metric = primary(task)
    for row in rows:
        outcome = "success" if success(task, row.metrics) else "no success"
        print(f"start {row.start}: {outcome} after {row.steps} steps, {metric.name} {row.metrics[metric.name]:.3f}")
    pictures = frames(task, recorder.recording(rows), columns, size)
    if options["view"] == "human":
        show_window(pictures, task.fps, task.title)
    else:
        print(f"{write_video(out, pictures, task.fps)} frames in {out}")
