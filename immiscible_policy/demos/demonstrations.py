"""Demonstrations in memory: episodes laid end to end, whatever they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.frames import Frames


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes laid end to end, read from the store `path`; `demos[key]` is an array."""

    path: Path
    arrays: Mapping[str, np.ndarray]  # by key, (T, ...) numbers of every step
    episode_ends: np.ndarray  # (E,) int64, the step after each episode's last
    frames: Mapping[str, Frames] = field(default_factory=dict)  # by camera, (T, H, W, 3) 0..255, read when indexed
    fps: float | None = None  # steps per second, where the data say so

    def __len__(self) -> int:
        return int(self.episode_ends[-1])

    def __getitem__(self, key: str) -> np.ndarray:
        """An array (T, ...); a StoreError if there is none of that name."""
        if key not in self.arrays:
            raise StoreError(f"{self.path}: data/{key} is missing, it has {_listed(self.arrays)}")
        return self.arrays[key]

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.episode_ends)

    @property
    def lengths(self) -> np.ndarray:
        """(E,) steps of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def episodes(self) -> list[slice]:
        """The steps of each episode."""
        return [slice(int(end - n), int(end)) for end, n in zip(self.episode_ends, self.lengths, strict=True)]

    def select(self, ids: Sequence[int] | np.ndarray) -> Demonstrations:
        """Keep the episodes `ids`, in that order; a ValueError if there are none, or one does not exist."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(f"select needs a list of at least one episode number; got {ids.tolist()}")
        unknown = ids[(ids < 0) | (ids >= self.n_episodes)]
        if len(unknown):
            raise ValueError(f"no episode {unknown[0]}; the store holds episodes 0 to {self.n_episodes - 1}")
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths)
        steps = np.arange(ends[-1]) + np.repeat(self.episode_ends[ids] - ends, lengths)
        return replace(
            self,
            arrays={key: values[steps] for key, values in self.arrays.items()},
            episode_ends=ends,
            frames={camera: frames.take(steps) for camera, frames in self.frames.items()},
        )

    def resized(self, size: tuple[int, int] | None) -> Demonstrations:
        """The same with all frames scaled to a height and width; None: as stored."""
        return replace(self, frames={camera: replace(frames, size=size) for camera, frames in self.frames.items()})


def join(first: Demonstrations, second: Demonstrations) -> Demonstrations:
    """Both, one after the other, of two selections of the same store; cameras that one of them lacks are left out."""
    shared = [(camera, one, second.frames[camera]) for camera, one in first.frames.items() if camera in second.frames]
    return replace(
        first,
        arrays={key: np.concatenate([values, second[key]]) for key, values in first.arrays.items()},
        episode_ends=np.concatenate([first.episode_ends, second.episode_ends + len(first)]),
        frames={camera: one.join(other) for camera, one, other in shared},
    )


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"data/{name}" for name in arrays) or "none"
