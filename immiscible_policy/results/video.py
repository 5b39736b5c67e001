"""Episodes side by side as pictures, in a video or in a window."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from immiscible_policy.evaluation.recording import Recording
from immiscible_policy.evaluation.rollout import Array
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.tasks import Task, primary, success

BORDER = 4
FASTEST_GIF = 50  # frames a second; viewers slow down what is faster
GREEN, GREY, BLACK = (0, 158, 115), (200, 200, 200), (0, 0, 0)

Frame = NDArray[np.uint8]


def frames(task: Task, recording: Recording, columns: int, size: int, every: int = 1) -> Iterator[Frame]:
    """Draw every so many environment steps of a recording, (H, W, 3), in tiles of `size` pixels, `columns` to a row.

    The last step is drawn in any case.
    """
    metric = primary(task).name
    tiles: dict[int, Frame] = {}
    for step in sorted({*range(0, len(recording.scenes), every), len(recording.scenes) - 1}):
        for index, last in enumerate(recording.last):
            if step < last + every:
                label = f"start {recording.starts[index]}   {metric} {recording.scores[step, index]:.2f}"
                won = bool(recording.success[index]) and step >= last
                tiles[index] = draw_tile(task, recording.scenes[step, index], label, size, won)
        yield tile(np.stack(list(tiles.values())), columns)


def draw_tile(task: Task, scene: Array, label: str, size: int, won: bool) -> Frame:
    """Draw a scene (size + height of the text, size, 3) below a line of text, framed in green if the episode is won."""
    top = text_height(size)
    canvas = Image.new("RGB", (size, size + top), "white")
    canvas.paste(Image.fromarray(task.draw(scene, size)), (0, top))
    draw = ImageDraw.Draw(canvas)
    height, room = round(0.7 * top), size - 2 * (BORDER + 2)
    wide = draw.textlength(label, ImageFont.load_default(height))
    font = ImageFont.load_default(height * min(1, room / max(1, wide)))  # the whole line fits
    draw.text((BORDER + 2, top // 2), label, fill=BLACK, font=font, anchor="lm")
    box = (0, top, size - 1, size + top - 1)
    draw.rectangle(box, outline=GREEN if won else GREY, width=BORDER if won else 1)
    return np.asarray(canvas)


def text_height(size: int) -> int:
    """Pixels of the line above a tile of `size` pixels."""
    return max(14, size // 11)


def tile(pictures: Frame, columns: int) -> Frame:
    """Arrange pictures (N, H, W, 3) in rows, from the top left, as one (rows * H, min(columns, N) * W, 3).

    Places left over are white. Raises ValueError if columns is below 1 or there is no picture.
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


def write_video(path: Path, pictures: Iterable[Frame], fps: float) -> int:
    """Write pictures (H, W, 3) as an MP4 (H.264) or a GIF, by the path's name, atomically, and return their number.

    All pictures have one size; an odd side is repeated by a pixel in an MP4, as the codec needs.

    Raises ValueError if the name ends in neither .mp4 nor .gif, or there is no picture.
    """
    require_video_name(path)
    content, count = (encode_video if path.suffix == ".mp4" else encode_gif)(pictures, fps)
    write_atomically(path, content)
    return count


def require_video_name(path: Path) -> None:
    """Refuse a name of another kind of file by a ValueError."""
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"out={path}: a video's name must end in .mp4 or .gif")


def encode_gif(pictures: Iterable[Frame], fps: float) -> tuple[bytes, int]:
    """A GIF that repeats, of pictures as `write_video` takes them, and their number; a ValueError if there is none.

    All frames have the same 64 colours, those of the first and the last, without dithering: what moves changes little
    of a frame. Viewers show no more than 50 frames a second: of more, some pictures are left out.
    """
    every = [Image.fromarray(picture) for picture in pictures]
    if not every:
        raise ValueError("there is no picture to make a video of")
    kept, durations = _gif_times(len(every), fps)
    images = [every[index] for index in kept]
    ends = Image.fromarray(np.concatenate([np.asarray(images[0]), np.asarray(images[-1])]))
    palette = ends.quantize(64, dither=Image.Dither.NONE)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    stream = BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    return stream.getvalue(), len(images)


def _gif_times(count: int, fps: float) -> tuple[list[int], list[int]]:
    """Which of `count` pictures a GIF keeps, the last among them, and how long it shows each [ms].

    A GIF counts in hundredths of a second. Moments are rounded, not durations, so that the whole keeps its pace.
    """
    stride = math.ceil(fps / FASTEST_GIF)
    kept = list(range(0, count, stride))
    kept[-1] = max(kept[-1], count - 1) if len(kept) > 1 else kept[-1]
    moments = [round(100 * index / fps) for index in [*kept, kept[-1] + stride]]
    return kept, [10 * (later - sooner) for sooner, later in pairwise(moments)]


def encode_video(pictures: Iterable[Frame], fps: float) -> tuple[bytes, int]:
    """An MP4 (H.264) of pictures as `write_video` takes them, and their number; a ValueError if there is no picture."""
    coming, count = iter(pictures), 0
    first = next(coming, None)
    if first is None:
        raise ValueError("there is no picture to make a video of")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "video.mp4"
        writer = imageio_ffmpeg.write_frames(
            path, _even(first).shape[1::-1], fps=fps, quality=8, macro_block_size=2, ffmpeg_log_level="error"
        )
        with closing(writer):
            writer.send(None)
            for picture in chain([first], coming):
                writer.send(_even(picture))
                count += 1
        return path.read_bytes(), count


def require_display() -> None:
    """Open a window for a moment; an OSError if there is no display."""
    from immiscible_envs.rendering import open_display

    import pygame  # isort: skip

    open_display((64, 64), "")
    pygame.display.quit()


class WindowClosed(Exception):
    """The person closed the window."""


class LiveWindow:
    """A window that shows episodes while they happen, in tiles as `frames`; a context that closes it at the end.

    Raises OSError if there is no display.
    """

    def __init__(self, task: Task, starts: Sequence[int], columns: int, size: int, fps: float) -> None:
        from immiscible_envs.rendering import Window

        self._task, self._starts, self._columns, self._size, self._fps = task, starts, columns, size, fps
        self._tiles: dict[int, Frame] = {}
        self._over = np.zeros(len(starts), bool)
        width = min(columns, len(starts)) * size
        self._window = Window(task.title, (width, -(-len(starts) // columns) * (size + text_height(size))))

    def __enter__(self) -> LiveWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self._window.close()

    def on_step(self, step: int, scenes: Array, metrics: dict[str, Array], done: Array) -> None:
        """Show a step as soon as it has happened, as `rollout.OnStep` reports it, and wait until the next is due.

        Raises WindowClosed if the person has closed the window.
        """
        import pygame

        metric = primary(self._task).name
        for index in np.flatnonzero(~self._over).tolist():
            reached = {name: values[index] for name, values in metrics.items()}
            label = f"start {self._starts[index]}   {metric} {reached[metric]:.2f}"
            won = bool(done[index] and success(self._task, reached))
            self._tiles[index] = draw_tile(self._task, scenes[index], label, self._size, won)
        self._over = np.array(done)
        self._window.show(tile(np.stack(list(self._tiles.values())), self._columns), self._fps)
        if pygame.event.get(pygame.QUIT):
            raise WindowClosed


def _even(picture: Frame) -> Frame:
    height, width, _ = picture.shape
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
