"""A camera's pictures in the two ways in which LeRobot keeps them: frames of videos, and files in a table."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image

from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.parquet import pyarrow_parquet

BLOCK = 64


@dataclass(eq=False)
class Videos:
    """Pictures that are frames of videos, decoded in order: a step back begins its video anew."""

    name: str
    size: tuple[int, int]  # (H, W) as the description says
    files: Sequence[Path]
    file: np.ndarray  # (T,) the video of each step
    frame: np.ndarray  # (T,) and its frame there
    _decoded: Iterator[np.ndarray] = field(default_factory=lambda: iter(()), init=False)
    _next: tuple[int, int] = field(default=(-1, 0), init=False)  # the video that is open, and its next frame

    dtype = np.dtype(np.uint8)
    block = BLOCK

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return (len(self.frame), *self.size, 3)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pictures (n, H, W, 3) of steps in increasing order; a StoreError if one cannot be decoded."""
        images = np.empty((len(rows), *self.size, 3), np.uint8)
        for place, row in enumerate(rows):
            images[place] = self._picture(int(self.file[row]), int(self.frame[row]))
        return images

    def _picture(self, file: int, frame: int) -> np.ndarray:
        if self._next[0] != file or self._next[1] > frame:
            self._decoded, self._next = decode(self.files[file], self.size), (file, 0)
        while True:
            number, picture = self._next[1], next(self._decoded, None)
            if picture is None:
                self._next = (-1, 0)
                raise StoreError(f"{self.files[file]}: ends after {number} frames; the episodes in it have more")
            self._next = (file, number + 1)
            if number == frame:
                return picture


def decode(file: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) of a video, none left out and none twice, until it ends or breaks off.

    Raises StoreError if it is missing, cannot be decoded at all, or has frames of another size.
    """
    if not file.is_file():
        raise StoreError(f"{file}: is missing")
    frames = imageio_ffmpeg.read_frames(file, output_params=["-fps_mode", "passthrough"])
    try:
        width, height = next(frames)["size"]
    except Exception as error:  # of ffmpeg, with pages of its log
        raise StoreError(f"{file}: cannot be decoded; fetch it again") from error
    if (height, width) != size:
        frames.close()
        raise StoreError(f"{file}: shows {height} x {width} pixels; meta/info.json says {size[0]} x {size[1]}")
    while True:
        try:
            yield np.frombuffer(next(frames), np.uint8).reshape(height, width, 3)
        except Exception:  # the end, or where the file breaks off
            return


@dataclass(eq=False)
class TableOfPictures:
    """Pictures that are PNG or JPEG files in the rows of parquet files."""

    name: str
    size: tuple[int, int]  # (H, W) as the description says
    files: Sequence[Path]
    file: np.ndarray  # (T,) the parquet file of each step
    row: np.ndarray  # (T,) and its row there
    _open: tuple[int, Any] = field(default=(-1, None), init=False)  # the file whose pictures are in memory, encoded

    dtype = np.dtype(np.uint8)
    block = BLOCK

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return (len(self.row), *self.size, 3)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pictures (n, H, W, 3) of steps; a StoreError if one cannot be decoded."""
        images = np.empty((len(rows), *self.size, 3), np.uint8)
        for place, step in enumerate(rows):
            file, row = int(self.file[step]), int(self.row[step])
            try:
                picture = np.asarray(Image.open(io.BytesIO(self._column(file)[row]["bytes"].as_py())).convert("RGB"))
            except Exception as error:  # of pyarrow or Pillow
                raise StoreError(f"{self.files[file]}: {self.name} in row {row} cannot be decoded ({error})") from error
            if picture.shape[:2] != self.size:
                shown, described = (" x ".join(map(str, size)) for size in (picture.shape[:2], self.size))
                problem = f"{self.name} in row {row} is {shown}; meta/info.json says {described}"
                raise StoreError(f"{self.files[file]}: {problem}")
            images[place] = picture
        return images

    def _column(self, file: int) -> Any:
        if self._open[0] != file:
            parquet = pyarrow_parquet("a data set of LeRobot")
            self._open = file, parquet.read_table(self.files[file], columns=[self.name])
        return self._open[1][self.name]
