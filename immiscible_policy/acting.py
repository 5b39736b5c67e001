"""A trained policy as an object: one observation in, one action out.

    policy = load_policy("runs/mine")
    policy.reset()
    action = policy.act(observation)

With 2 observation steps and 8 action steps, time runs as in `evaluation.rollout`: at step 0 the first observation is
repeated, a chunk is predicted and its first action returned; steps 1 to 7 return the next ones at once; step 8
predicts again, from the observations of steps 7 and 8.

Shape legend: B robots (or simulations) at once, Do numbers per observation, A numbers per action, H and W height and
width of a picture.
"""

from __future__ import annotations

import math
import operator
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_policy.capture import use_device
from immiscible_policy.evaluation.agent import Agent, load_agent, sampling_noise, solver_of
from immiscible_policy.plugins.bridge import find_checkpoint
from immiscible_policy.policy import PolicySpec
from immiscible_policy.tasks import Observed, recorded_task
from immiscible_policy.training.options import resolve_device

Array = NDArray[Any]
Observation = Any
"""What `Inputs` reads: an array, or a dictionary of arrays."""

WARMUP = 3
"""Chunks before a measurement, in which libraries compile, choose algorithms and allocate."""


def load_policy(
    path: Path | str,
    checkpoint: str | int = "best",
    *,
    train_seed: int | None = None,
    seed: int | None = None,
    solver: str | None = None,
    calls: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    compile: bool = False,
    pad_to: int = 1,
) -> RobotPolicy:
    """Make a trained policy act; nothing that is read is executed.

    Sets torch's CPU threads of this process to those that the policy was trained and evaluated with, as its bits
    depend on them; call `torch.set_num_threads` afterwards for others.

    Args:
        path: A run, the directory of a training seed, a checkpoint, a `.ckpt` of Diffusion Policy, or a directory that
            LeRobot saved.
        checkpoint: Which one of a run or a seed: `best` (best mean score in training), `last`, or a training step.
        train_seed: Which training seed of a run, where it has several.
        seed: Seed of the sampling noise, see `RobotPolicy.reset`; None draws one.
        solver: `ddim`, `ddpm`, `dpmpp`, `euler`, `heun` or `renoise`; None: as in training.
        calls: Network calls per chunk; None: as in training.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`. On a GPU all calls of a chunk are one captured CUDA graph.
        dtype: Type of numbers in which the networks multiply, torch.float32 or torch.bfloat16; None: torch.float32.
        compile: Whether `torch.compile` compiles the network that denoises; the first chunk then takes a minute.
        pad_to: Rows of the smallest batch that is computed. Bits depend on the size of a batch: with 50, as in
            evaluation, a single robot repeats an evaluation exactly, for the price of 50.

    Raises:
        ValueError: If there is no such checkpoint, it is damaged, or an option does not go with it; one line.
    """
    calls = None if calls is None else whole_number("calls", calls, 1)
    chosen = find_checkpoint(path, checkpoint, train_seed)
    agent = load_agent(chosen, solver_of(chosen, solver, calls), resolve_device(device), dtype or torch.float32)
    if compile:
        agent.policy.network = torch.compile(agent.policy.network, dynamic=False)  # type: ignore[assignment]
    task = recorded_task(chosen.config)
    known = {key: chosen.metadata.get(key, {}) for key in ("widths", "sizes")}
    inputs = Inputs(agent.spec, task.keys(agent.obs), **known)
    return RobotPolicy(agent, inputs, seed=seed, pad_to=pad_to)


@dataclass(frozen=True)
class Latency:
    """How long a chunk takes."""

    median: float  # seconds
    p95: float  # seconds; 95% of the chunks take no longer
    rows: int  # chunks at once
    calls: int  # network calls per chunk
    parameters: int
    device: str
    dtype: str

    def __str__(self) -> str:
        what = f"{self.calls} network calls, {self.parameters:,} parameters, {self.dtype} on {self.device}"
        rows = f" of {self.rows} rows" if self.rows > 1 else ""
        return f"chunk{rows}: median {1e3 * self.median:.1f} ms, 95th percentile {1e3 * self.p95:.1f} ms ({what})"


class RobotPolicy:
    """Acts for one robot, or for B at once; `load_policy` makes one. It belongs to one thread at a time.

    Args:
        agent: Samples the chunks.
        inputs: What an observation consists of.
        seed: Seed of the sampling noise; None draws one.
        pad_to: Rows of the smallest batch that is computed.

    Attributes:
        inputs: What an observation consists of.
        obs_steps: Observations that a chunk depends on.
        action_steps: Actions that `act` executes of a chunk.

    Raises:
        ValueError: If pad_to is not a whole number from 1 on, or the seed not one from 0 on.
    """

    def __init__(self, agent: Agent, inputs: Inputs, *, seed: int | None = None, pad_to: int = 1) -> None:
        self.inputs, self.obs_steps, self.action_steps = inputs, agent.obs_steps, agent.action_steps
        self._agent, self._pad_to = agent, whole_number("pad_to", pad_to, 1)
        self.reset(secrets.randbits(32) if seed is None else seed)

    def reset(self, seed: int | Sequence[int] | None = None) -> None:
        """Begin an episode: forget the observations, the rest of the chunk and the number of robots.

        Args:
            seed: Seed of the sampling noise. `evaluate` rolls a start out with the noise of `reset(seed=start)`. B rows
                take seed, seed + 1, ..., or the seeds of a sequence. None: the noise goes on where it is.

        Raises:
            ValueError: If a seed is not a whole number from 0 on, or none is given; one line.
        """
        if seed is not None:
            seeds = whole_seeds(seed)
            self._noise, self._chunk_noise = SamplingNoise(seeds), SamplingNoise(seeds)
        self._history: list[Observed] = []
        self._queue: deque[Array] = deque()
        self._lead: tuple[int, ...] | None = None

    def act(self, observation: Observation) -> Array:
        """The next action (A,), or (B, A), float64 in the units of the data.

        Call it once per control step: every `action_steps` steps it predicts a chunk, otherwise it returns at once.

        Raises:
            ValueError: If the observation lacks a key or has a wrong shape, or B changes without `reset`; one line.
        """
        seen, lead = self.inputs.read(observation)
        require_same_rows(lead, self._lead, "call reset() before that changes")
        history = [*self._history, seen][-self.obs_steps :]
        if not self._queue:
            chunk = self._predict(history, self._noise.rows(len(seen.numbers)))
            self._queue.extend(chunk[:, : self.action_steps].swapaxes(0, 1))
        self._history, self._lead = history, lead
        return self._queue.popleft().reshape(*lead, -1)

    def chunk(self, history: Sequence[Observation]) -> Array:
        """All predicted actions from the newest observation on: (T, A), or (B, T, A), float64 in the data's units.

        T is the number of actions from now to the end of the horizon, horizon - obs_steps + 1: 15 with a horizon of 16
        and two observations. The first is for now; `act` executes the first `action_steps` of them. For those who do
        their own scheduling: `act` goes on as if there had been no `chunk`, whose noise is its own, of the same seeds.

        Args:
            history: Observations as `act` takes them, oldest first. The last `obs_steps` count; where there are fewer,
                the first is repeated.

        Raises:
            ValueError: As `act`, or if the history is empty or not a sequence.
        """
        if isinstance(history, Mapping) or not len(history):
            raise ValueError("history: give a sequence of one observation or more, oldest first")
        seen, leads = zip(*map(self.inputs.read, list(history)[-self.obs_steps :]), strict=True)
        for lead in leads[1:]:
            require_same_rows(lead, leads[0], "a history is of the same robots")
        actions = self._predict(seen, self._chunk_noise.rows(len(seen[0].numbers)))
        return actions.reshape(*leads[0], *actions.shape[1:])

    def benchmark(self, rows: int = 1, chunks: int = 50) -> Latency:
        """Measure so many chunks of so many rows, on blank observations, and print the result; noise is not used up.

        Raises:
            ValueError: If a number is not a whole number from 1 on.
        """
        rows, chunks = whole_number("rows", rows, 1), whole_number("chunks", chunks, 1)
        blank, noise, seconds = self.inputs.blank(rows), [sampling_noise(row) for row in range(rows)], []
        for _ in range(WARMUP + chunks):
            begin = time.perf_counter()
            self._predict([blank], noise)
            seconds.append(time.perf_counter() - begin)
        median, p95 = np.percentile(seconds[WARMUP:], [50, 95])
        parameters = sum(p.numel() for p in self._agent.policy.parameters())
        dtype, device = str(self._agent.dtype).removeprefix("torch."), str(self._agent.device)
        latency = Latency(float(median), float(p95), rows, self._agent.calls, parameters, device, dtype)
        print(latency)
        return latency

    def _predict(self, history: Sequence[Observed], noise: Sequence[torch.Generator]) -> Array:
        """Actions (B, T, A) from now on, of observations (B, ...), oldest first."""
        use_device(str(self._agent.device))  # of this thread, which need not be the one that loaded the policy
        steps = [history[0]] * (self.obs_steps - len(history)) + list(history)
        rows = len(history[0].numbers)
        padded = np.minimum(np.arange(max(rows, self._pad_to)), rows - 1)
        filling = [sampling_noise(0) for _ in padded[rows:]]
        numbers = np.stack([step.numbers for step in steps], axis=1)[padded]
        frames = {name: np.stack([step.frames[name] for step in steps], axis=1)[padded] for name in history[0].frames}
        return self._agent.chunk(Observed(numbers, frames), [*noise, *filling])[:rows]


class SamplingNoise:
    """The sampling noise of rows, of seed, seed + 1, ..., or of the seeds of a sequence; begun when a row is needed."""

    def __init__(self, seeds: int | Sequence[int]) -> None:
        self._seeds = count(seeds) if isinstance(seeds, int) else iter(seeds)
        self._streams: list[torch.Generator] = []

    def rows(self, number: int) -> list[torch.Generator]:
        """The streams of the first N rows; a ValueError if there are fewer seeds."""
        self._streams += map(sampling_noise, islice(self._seeds, max(0, number - len(self._streams))))
        if len(self._streams) < number:
            raise ValueError(f"a batch of {number} needs as many seeds; reset was given {len(self._streams)}")
        return self._streams[:number]


def whole_number(key: str, value: Any, least: int) -> int:
    """A whole number from `least` on; a ValueError that names the key otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{key}={value!r}: needs a whole number, {least} or more")
    return number


def whole_seeds(seed: Any) -> int | list[int]:
    """One seed, or those of a sequence; a ValueError if one is not a whole number from 0 on, or there is none."""
    try:
        seeds = [whole_number("seed", one, 0) for one in seed]
    except TypeError:  # not a sequence
        return whole_number("seed", seed, 0)
    if not seeds:
        raise ValueError("seed=[]: needs a whole number, 0 or more, or one for each row")
    return seeds


def require_same_rows(lead: tuple[int, ...], before: tuple[int, ...] | None, cure: str) -> None:
    """Refuse an observation whose leading shape, (B,) or (), is not that of the one before; None: there was none."""
    if before not in (None, lead):
        now, then = (f"a batch of {shape[0]}" if shape else "a single one" for shape in (lead, before or ()))
        raise ValueError(f"the observation is {now}, the last was {then}: {cure}")


class Inputs:
    """What an observation consists of: cameras (H, W, 3) uint8, and arrays of numbers in their own units.

    An observation is a dictionary with their names, those of training; other names in it are ignored. Without cameras
    it may be the numbers alone (Do,), the arrays one after another. Everything may have a leading axis of B rows.

    Args:
        spec: What the policy was built from.
        keys: Names of cameras and arrays; the arrays in the order in which their numbers follow one another.
        widths: Numbers of each array, where they are known.
        sizes: Height and width [px] of each camera's frames in training, where they are known. Frames that are not
            scaled must have them.
    """

    def __init__(
        self,
        spec: PolicySpec,
        keys: Sequence[str],
        widths: Mapping[str, int] | None = None,
        sizes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.cameras = spec.encoder.cameras if spec.encoder else ()
        self.arrays = tuple(key for key in keys if key not in self.cameras)
        self.obs_dim, self.scales = spec.obs_dim, bool(spec.encoder and spec.encoder.resize)
        self.side = 0 if spec.encoder is None else 1 if self.scales else spec.encoder.crop
        self.sizes = {} if self.scales else {camera: (size[0], size[1]) for camera, size in (sizes or {}).items()}
        known = {self.arrays[0]: spec.obs_dim} if len(self.arrays) == 1 else widths or {}
        self.widths = {key: known[key] for key in self.arrays} if set(self.arrays) <= set(known) else {}

    def __str__(self) -> str:
        least = "" if self.scales else f" of {self.side} pixels or more"
        free = dict.fromkeys(self.cameras, f"(H, W, 3) uint8{least}")
        fixed = {camera: f"({height}, {width}, 3) uint8" for camera, (height, width) in self.sizes.items()}
        cameras = [f"{camera} {shape}" for camera, shape in (free | fixed).items()]
        together = f"{' and '.join(self.arrays)} of {self.obs_dim} numbers together"
        arrays = [f"{key} ({width},)" for key, width in self.widths.items()] or [together]
        return ", ".join([*cameras, *arrays])

    def blank(self, rows: int) -> Observed:
        """So many rows of zeros."""
        sizes = dict.fromkeys(self.cameras, (self.side, self.side)) | self.sizes
        frames = {camera: np.zeros((rows, *size, 3), np.uint8) for camera, size in sizes.items()}
        return Observed(np.zeros((rows, self.obs_dim)), frames)

    def read(self, observation: Observation) -> tuple[Observed, tuple[int, ...]]:
        """An observation as B rows: numbers (B, Do), frames (B, H, W, 3); and its leading shape, (B,) or ().

        They are copies: whoever observes may write the next observation into the same memory.

        Raises:
            ValueError: If a key is missing, or a shape, a type or a number is wrong.
        """
        parts = self._parts(observation)
        frames = {camera: parts.pop(camera) for camera in self.cameras}
        widths = [math.prod(part.shape[1:]) if part.ndim > 1 else 0 for part in parts.values()]
        joined = 0 not in widths and sum(widths) == self.obs_dim
        batched = next(iter(frames.values())).ndim == 4 if frames else joined
        lead = next(iter((frames or parts).values())).shape[:batched]
        for camera, frame in frames.items():
            if not self._shows(camera, frame, lead):
                raise self._refusal(f"{camera} {_described(frame)}")
        if len({frame.shape for frame in frames.values()}) > 1 and not self.scales:
            sizes = ", ".join(f"{camera} {frame.shape}" for camera, frame in frames.items())
            raise ValueError(f"the cameras differ in size, this policy wants pictures of one size: {sizes}")
        shown, rows = ", ".join(f"{key} {_described(part)}" for key, part in parts.items()), math.prod(lead)
        if any(part.shape[: len(lead)] != lead for part in parts.values()) or not rows:
            raise self._refusal(shown)
        numbers = np.concatenate([np.empty((rows, 0)), *(part.reshape(rows, -1) for part in parts.values())], axis=1)
        swapped = any(part.size != rows * self.widths.get(key, part.size // rows) for key, part in parts.items())
        if swapped or numbers.shape[1] != self.obs_dim:
            raise self._refusal(shown)
        if not np.isfinite(numbers).all():
            raise ValueError(f"the observation has a number that is not finite: {shown}")
        rows_of_frames = {camera: frame.reshape(rows, *frame.shape[-3:]).copy() for camera, frame in frames.items()}
        return Observed(numbers, rows_of_frames), lead

    def _parts(self, observation: Observation) -> dict[str, Array]:
        """What counts of an observation, by name."""
        if not isinstance(observation, Mapping):
            if self.cameras:
                raise ValueError(f"the observation is not a dictionary; this policy wants {self}")
            return {"observation": _array("observation", observation)}
        for key in (*self.cameras, *self.arrays):
            if key not in observation:
                raise ValueError(f"the observation has no '{key}'; this policy wants {self}")
        return {key: _array(key, observation[key]) for key in (*self.cameras, *self.arrays)}

    def _shows(self, camera: str, frame: Array, lead: tuple[int, ...]) -> bool:
        """Whether this is a picture, or B of them, of the camera's size; if that is unknown, one large enough."""
        pictures = frame.dtype == np.uint8 and frame.ndim == len(lead) + 3 and frame.shape[-1] == 3
        fits = pictures and frame.shape[: len(lead)] == lead and min(frame.shape[-3:-1]) >= self.side
        return fits and self.sizes.get(camera, frame.shape[-3:-1]) == frame.shape[-3:-1]

    def _refusal(self, shown: str) -> ValueError:
        return ValueError(f"the observation has {shown}; this policy wants {self}, or B of each")


def _array(key: str, value: Any) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # which numpy does not know
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise ValueError(f"{key} is not an array of numbers but {type(value).__name__} of {array.dtype}")
    return array


def _described(array: Array) -> str:
    return f"of shape {array.shape} and type {array.dtype}"
