"""Episodes cut into training windows by index arithmetic alone: every window of a store is one gather.

A window starts at a step `s` and covers `horizon` steps. With horizon 16, obs_steps 2, action_steps 8::

    step of the window     0    1    2    3    4    5    6    7    8    9   10  ...  15
    observed               o    o
    predicted actions      a    a    a    a    a    a    a    a    a    a    a  ...   a
    executed by the robot       #    #    #    #    #    #    #    #
                                ^ now: the newest observation, and the first action executed

The windows of an episode of n steps start at s = -(obs_steps - 1) ... n - horizon + (action_steps - 1). In
the first, the episode has just begun; with the numbers above, the last one executes the last recorded actions::

    step of the episode   -1    0    1    2   ...  n-2  n-1    n  n+1   ...
    first window           p    r    r    r   ...                              (obs_steps - 1 of p)
    last window                           r   ...    r    r    p    p   ...    (action_steps - 1 of p)

r is a real step; p is padding, which repeats the edge, as Diffusion Policy's sampler does (Chi et al., RSS
2023). So an episode of n steps gives n - horizon + 1 + (obs_steps - 1) + (action_steps - 1) windows, none if
that is not positive: 24,208 on the 206 human episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Layout:
    """How many steps a window holds, observes and executes.

    Raises ValueError if one is below 1, or the executed actions do not fit into the horizon.
    """

    horizon: int  # steps of the predicted action chunk
    obs_steps: int  # newest observations that the policy sees
    action_steps: int  # actions executed before it plans again

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name} must be a whole number above 0. Got {field.name}={value!r}")
        if self.obs_steps - 1 + self.action_steps > self.horizon:
            reason = "obs_steps - 1 + action_steps must not exceed horizon: the executed actions lie inside it"
            raise ValueError(f"{reason}. Got {self}")

    @classmethod
    def of(cls, sizes: Any) -> Layout:
        """The layout that a policy's specification or a training's options give."""
        return cls(sizes.horizon, sizes.obs_steps, sizes.action_steps)

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @property
    def executed(self) -> slice:
        """The steps of a window whose actions the robot executes: `chunk[:, layout.executed]`."""
        return slice(self.obs_steps - 1, self.obs_steps - 1 + self.action_steps)

    def n_windows(self, lengths: np.ndarray) -> np.ndarray:
        """How many windows episodes of the given lengths give, (E,) -> (E,)."""
        return np.maximum(0, lengths - self.horizon + 1 + (self.obs_steps - 1) + (self.action_steps - 1))


@dataclass(frozen=True, eq=False)
class Footage:
    """What cameras saw: every frame once, and which of them each window shows."""

    frames: Mapping[str, torch.Tensor]  # by camera, (T, H, W, 3) uint8
    step: torch.Tensor  # (N, obs_steps) int64, the frames that each window observes

    def __getitem__(self, index: torch.Tensor) -> Footage:
        """What the windows `index` show; the frames stay where they are."""
        return Footage(self.frames, self.step.index_select(0, index))

    def to(self, device: torch.device | str) -> Footage:
        """Move all tensors."""
        frames = {camera: frames.to(device) for camera, frames in self.frames.items()}
        return Footage(frames, self.step.to(device))


@dataclass(frozen=True, eq=False)
class Windows:
    """N windows as tensors, in the data's own units; `windows[index]` is a batch."""

    obs: torch.Tensor  # (N, obs_steps, Do) float32
    action: torch.Tensor  # (N, horizon, Da) float32
    real: torch.Tensor  # (N, horizon) bool: steps of the episode, not padding
    episode: torch.Tensor  # (N,) int64, the episode that a window was cut from
    footage: Footage | None = None  # what cameras saw, where the windows come with images

    def __len__(self) -> int:
        return len(self.action)

    def __getitem__(self, index: torch.Tensor) -> Windows:
        """A batch: the windows numbered by `index`, (B,) int64 on the same device."""
        return self._map(lambda tensor: tensor.index_select(0, index), self.footage and self.footage[index])

    def to(self, device: torch.device | str) -> Windows:
        """Move all tensors."""
        return self._map(lambda tensor: tensor.to(device), self.footage and self.footage.to(device))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor], footage: Footage | None) -> Windows:
        return Windows(change(self.obs), change(self.action), change(self.real), change(self.episode), footage)


@dataclass(frozen=True, eq=False)
class WindowIndex:
    """Which steps each window covers: gather any array of T rows with `array[index.step]`."""

    step: np.ndarray  # (N, horizon) int64, clipped to the window's episode
    real: np.ndarray  # (N, horizon) bool, False where clipping repeated the edge
    episode: np.ndarray  # (N,) int64


def window_index(episode_ends: np.ndarray, layout: Layout) -> WindowIndex:
    """Lay out the windows of all episodes, in order, from the step after each episode's last (E,).

    Raises ValueError if no episode is long enough for a single window.
    """
    lengths = np.diff(episode_ends, prepend=0)
    counts = layout.n_windows(lengths)  # (E,)
    if not counts.any():
        raise ValueError(f"no window fits: the longest episode has {lengths.max(initial=0)} steps. Got {layout}")
    episode = np.repeat(np.arange(len(lengths)), counts)  # (N,)
    nth = np.arange(len(episode)) - (np.cumsum(counts) - counts)[episode]  # (N,) within its episode
    start, end = (episode_ends - lengths)[episode, None], episode_ends[episode, None]  # (N, 1)
    step = start + nth[:, None] - (layout.obs_steps - 1) + np.arange(layout.horizon)  # (N, horizon)
    return WindowIndex(np.clip(step, start, end - 1), (step >= start) & (step < end), episode)


def make_windows(
    observation: np.ndarray,
    action: np.ndarray,
    episode_ends: np.ndarray,
    layout: Layout,
    frames: Mapping[str, torch.Tensor] | None = None,
) -> Windows:
    """Cut demonstrations into windows, episode after episode, held in memory.

    They are given as observation (T, Do), action (T, Da), episode_ends (E,), the step after each episode's last, and
    frames (T, H, W, 3) uint8 by camera.

    Raises ValueError if no episode is long enough.
    """
    index = window_index(episode_ends, layout)
    step = torch.from_numpy(index.step)
    seen = step[:, : layout.obs_steps].contiguous()
    return Windows(
        obs=torch.from_numpy(observation.astype(np.float32))[seen],
        action=torch.from_numpy(action.astype(np.float32))[step],
        real=torch.from_numpy(index.real),
        episode=torch.from_numpy(index.episode),
        footage=None if frames is None else Footage(frames, seen),
    )
