"""Watch a policy: several starts side by side in one video, or in a window."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from immiscible_envs.geometry import GOAL_POSE
from immiscible_envs.rendering import open_display, render_state
from immiscible_policy.cli import REQUIRED, CommandError, Option, parse, require_writable
from immiscible_policy.cli import run as run_command
from immiscible_policy.commands import solving
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.rollout import BATCH, evaluate
from immiscible_policy.evaluation.starts import parse_starts
from immiscible_policy.plugins.bridge import open_checkpoint
from immiscible_policy.store.rows import EpisodeRow
from immiscible_policy.training.options import resolve_device

FPS = 10
BORDER = 4
GREEN, GREY, BLACK = (0, 158, 115), (200, 200, 200), (0, 0, 0)

USAGE = """\
render what a checkpoint does, several starts side by side

  python render_rollout.py checkpoint=runs/knn/seed_0/checkpoints/step_005000 out=rollout.mp4
  python render_rollout.py checkpoint=PATH starts=100000..100008 columns=3 size=256
  python render_rollout.py checkpoint=PATH view=human
"""


def _view(text: str) -> str:
    if text not in ("mp4", "human"):
        raise ValueError("use mp4 or human")
    return text


OPTIONS = {
    "checkpoint": Option(Path, REQUIRED, "checkpoint directory, RUN/seed_N/checkpoints/step_XXXXXX"),
    "out": Option(Path, Path("rollout.mp4"), "the video"),
    "view": Option(_view, "mp4", "mp4 writes the video, human opens a window instead"),
    "starts": Option(str, "legacy", "legacy, fresh, or start seeds such as 100000..100008"),
    "episodes": Option(int, 9, "number of starts, for legacy and fresh"),
    "columns": Option(int, 3, "tiles per row"),
    "size": Option(int, 256, "pixels per tile"),
    **solving.OPTIONS,
    "device": Option(str, "cpu", "cpu or cuda"),
}

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Recording:
    """What happened in N episodes of at most T - 1 steps; a finished episode stays as it ended.

    Attributes:
        starts: Seeds of the starts (N,).
        states: States [ax, ay, bx, by, angle] in world pixels and radians (T, N, 5).
        coverage: Largest coverage so far (T, N).
        success: Whether each episode succeeded (N,).
        last: Step at which each episode ended (N,).
    """

    starts: NDArray[np.int64]
    states: NDArray[np.float64]
    coverage: NDArray[np.float64]
    success: NDArray[np.bool_]
    last: NDArray[np.int64]


class Recorder:
    """Collects what an evaluation reports after every environment step."""

    def __init__(self) -> None:
        self._states: list[NDArray[np.float64]] = []
        self._coverage: list[NDArray[np.float64]] = []

    def on_step(
        self, step: int, states: NDArray[np.float64], coverage: NDArray[np.float64], done: NDArray[np.bool_]
    ) -> None:
        """Take the state of all episodes after a step.

        Args:
            step: Number of the step, 0 after the reset.
            states: States (N, 5).
            coverage: Coverage now (N,).
            done: Whether each episode is over (N,).

        Raises:
            ValueError: If a step is missing.
        """
        if step != len(self._states):
            raise ValueError(f"step {step} came after {len(self._states)} reports; every step must be reported")
        self._states.append(np.array(states, dtype=np.float64))
        self._coverage.append(np.array(coverage, dtype=np.float64))

    def recording(self, rows: Sequence[EpisodeRow]) -> Recording:
        """What was reported, each episode held from its last step on.

        Args:
            rows: What the evaluation returned, one row per episode (N).

        Returns:
            The recording.
        """
        last = np.array([row.steps for row in rows])
        held = np.minimum(np.arange(len(self._states))[:, None], last)  # (T, N): step whose state is shown
        episodes = np.arange(len(rows))
        return Recording(
            starts=np.array([row.start for row in rows]),
            states=np.stack(self._states)[held, episodes],
            coverage=np.maximum.accumulate(np.stack(self._coverage)[held, episodes], axis=0),
            success=np.array([bool(row.metrics["success"]) for row in rows]),
            last=last,
        )


def frames(recording: Recording, columns: int, size: int) -> Iterator[Frame]:
    """Draw a recording, one picture per environment step.

    Args:
        recording: The episodes.
        columns: Tiles per row.
        size: Pixels per tile.

    Yields:
        Pictures (H, W, 3).
    """
    tiles: list[Frame] = []
    for step in range(len(recording.states)):
        going = [index for index, last in enumerate(recording.last) if step <= last]
        drawn = {index: _draw_episode(recording, index, step, size) for index in going}
        tiles = [drawn[index] if index in drawn else tiles[index] for index in range(len(recording.starts))]
        yield tile(np.stack(tiles), columns)


def draw_tile(
    state: NDArray[np.float64],
    goal: Sequence[float] | NDArray[np.float64],
    label: str,
    success: bool,
    size: int,
) -> Frame:
    """Draw one episode at one moment: the scene, a line of text above it, a frame around it.

    Args:
        state: State [ax, ay, bx, by, angle].
        goal: Goal pose (x, y, angle).
        label: The line of text.
        success: Whether the frame is green and thick.
        size: Pixels of the tile's width.

    Returns:
        Picture (size + height of the text, size, 3).
    """
    text_height = max(14, size // 11)
    canvas = Image.new("RGB", (size, size + text_height), "white")
    canvas.paste(Image.fromarray(render_state(state, goal, size)), (0, text_height))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(round(0.7 * text_height))
    draw.text((BORDER + 2, text_height // 2), label, fill=BLACK, font=font, anchor="lm")
    box = (0, text_height, size - 1, size + text_height - 1)
    draw.rectangle(box, outline=GREEN if success else GREY, width=BORDER if success else 1)
    return np.asarray(canvas)


def tile(pictures: Frame, columns: int) -> Frame:
    """Arrange pictures in rows, from the top left; places left over are white.

    Args:
        pictures: Pictures (N, H, W, 3).
        columns: Pictures per row; fewer than that make one shorter row.

    Returns:
        One picture (rows * H, min(columns, N) * W, 3).

    Raises:
        ValueError: If columns is below 1 or there is no picture.
    """
    if columns < 1 or len(pictures) == 0:
        raise ValueError(f"{len(pictures)} pictures in {columns} columns: there must be at least one of each")
    n, height, width, channels = pictures.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    grid = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    grid[:n] = pictures
    # (rows, columns, H, W, 3) -> (rows, H, columns, W, 3)
    rowwise = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return rowwise.reshape(rows * height, columns * width, channels)


def write_video(path: Path, pictures: Iterable[Frame], fps: float = FPS) -> int:
    """Write an MP4 (H.264), atomically: a broken run leaves no part of it.

    Args:
        path: The file, named *.mp4; its directory is created if absent.
        pictures: Pictures (H, W, 3), all of one size; an odd side is repeated by a pixel, as the codec needs.
        fps: Pictures per second.

    Returns:
        The number of pictures.

    Raises:
        ValueError: If the name does not end in .mp4, or there is no picture.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"out={path}: a video's name must end in .mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".mp4")
    os.close(handle)
    try:
        count = _encode(part, pictures, fps)
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return count


def show_window(pictures: Iterable[Frame], fps: float = FPS) -> None:
    """Play pictures in a window until they end or the window is closed.

    Args:
        pictures: Pictures (H, W, 3), all of one size.
        fps: Pictures per second.

    Raises:
        OSError: If there is no display.
    """
    import pygame  # after immiscible_envs.rendering, which silences its greeting

    clock = pygame.time.Clock()
    window = None
    for picture in pictures:
        window = window or open_display((picture.shape[1], picture.shape[0]))
        pygame.surfarray.blit_array(window, picture.swapaxes(0, 1))
        pygame.display.flip()
        if pygame.event.get(pygame.QUIT):
            break
        clock.tick(fps)
    pygame.display.quit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run `render_rollout.py`.

    Args:
        argv: Words of the command line; those of the process by default, with a mistake shown as one line.

    Returns:
        Exit code 0.

    Raises:
        ValueError: For a mistake in argv, or a checkpoint that cannot be read.
    """
    if argv is None:
        run_command(main)
    options = parse(argv, OPTIONS, USAGE)
    _check(options["out"], options["columns"], options["size"])
    starts = parse_starts(options["starts"], options["episodes"])
    if len(starts) > BATCH:
        raise CommandError(f"episodes={len(starts)}: one video holds at most {BATCH}")
    checkpoint = open_checkpoint(options["checkpoint"])
    solver = solving.chosen_solver(checkpoint, options)
    agent = load_agent(checkpoint, solver, resolve_device(options["device"]))
    recorder = Recorder()
    rows = evaluate(
        agent, starts, seed=checkpoint.metadata["seed"], checkpoint=checkpoint.step, on_step=recorder.on_step
    )
    for row in rows:
        outcome = "success" if row.metrics["success"] else "no success"
        print(f"start {row.start}: {outcome} after {row.steps} steps, max coverage {row.metrics['coverage']:.3f}")
    pictures = frames(recorder.recording(rows), options["columns"], options["size"])
    if options["view"] == "human":
        show_window(pictures)
    else:
        print(f"{write_video(options['out'], pictures)} frames in {options['out']}")
    return 0


def _draw_episode(recording: Recording, index: int, step: int, size: int) -> Frame:
    label = f"start {recording.starts[index]}   coverage {recording.coverage[step, index]:.2f}"
    success = bool(recording.success[index] and step >= recording.last[index])
    return draw_tile(recording.states[step, index], GOAL_POSE, label, success, size)


def _encode(path: str, pictures: Iterable[Frame], fps: float) -> int:
    coming = iter(pictures)
    first = next(coming, None)
    if first is None:
        raise ValueError("there is no picture to make a video of")
    count, size = 0, _even(first).shape[1::-1]
    writer = imageio_ffmpeg.write_frames(path, size, fps=fps, quality=8, macro_block_size=2, ffmpeg_log_level="error")
    with closing(writer):
        writer.send(None)
        for picture in chain([first], coming):
            writer.send(_even(picture))
            count += 1
    return count


def _even(picture: Frame) -> Frame:
    height, width, _ = picture.shape
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _check(out: Path, columns: int, size: int) -> None:
    if out.suffix != ".mp4":
        raise CommandError(f"out={out}: a video's name must end in .mp4")
    if columns < 1:
        raise CommandError(f"columns={columns}: use 1 or more")
    if not 64 <= size <= 1024:
        raise CommandError(f"size={size}: use 64 to 1024 pixels")
    require_writable("out", out)
