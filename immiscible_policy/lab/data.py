"""The data that the laboratory measures on: actions, CIFAR-10 images, and fields of the size of latents.

Floats on the scale that diffusion sees them, one sample per row.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from immiscible_policy import cli
from immiscible_policy.cli import CommandError, Option
from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.image.data import load_images, to_pixels
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.tasks import DEFAULT, Task, first_observation, open_demonstrations, task_windows

IMAGES = Option(Path, None, "CIFAR-10: a folder train/CLASS/*.jpg, a zip of it, or torchvision's directory")
DATA = Option(Path, None, "demonstrations of the task; none: its own")
TASK = Option(str, DEFAULT, "the task whose demonstrations are measured")
SEED = Option(cli.SEED, 0, "seed of every random choice")

PUBLISHED = Layout(horizon=16, obs_steps=2, action_steps=8)
"""The windows of Diffusion Policy, which are measured where no policy says which it sees."""
WITHOUT_CIFAR = (
    "pass images=PATH: CIFAR-10 as a folder train/CLASS/*.jpg, a zip of it, or the directory that "
    "torchvision.datasets.CIFAR10(PATH, download=True) fills"
)


def demonstrated(task: Task, data: Path | None = None) -> Windows:
    """Windows of demonstrations, in their own units, with the task's first observation."""
    demos = open_demonstrations(task, data)
    return task_windows(task, demos, first_observation(task, demos), PUBLISHED)


def demonstrated_actions(task: Task, data: Path | None = None) -> Tensor:
    """Action windows (N, T, A), normalised to [-1, 1] as the policy sees them: (N, 16, 2) is D = 32."""
    actions = demonstrated(task, data).action
    return Normalizer.fit(actions).normalize(actions)


def cifar_images(path: Path | None, limit: int | None = None) -> Tensor:
    """Training images (N, 3, 32, 32) of CIFAR-10, classes in turn, pixels in [-1, 1] (root mean square about 0.5).

    ValueError if there is no path, the images are unusable, or there are fewer than `limit`.
    """
    if path is None:
        raise CommandError(f"this experiment needs images; {WITHOUT_CIFAR}")
    images = load_images("cifar10", path, limit=limit)
    if limit is not None and len(images) < limit:
        raise CommandError(f"images={path} holds {len(images):,} training images; this experiment needs {limit:,}")
    return to_pixels(images.pixels(torch.arange(len(images))))


def latent_fields(n: int, generator: torch.Generator) -> Tensor:
    """Stand-in for Stable Diffusion's latents of 256 px images: Gaussian fields (n, 4, 32, 32) of their size and scale.

    Power 1 / f^2 (that of natural images) and unit variance, which is what the latents' scaling factor is chosen for.
    Their size D = 4096 and their lengths are what KNN noise depends on; the spectrum, an assumption, matters to
    assignment alone.
    """
    frequency = torch.fft.fftfreq(32) * 32  # cycles per field
    amplitude = 1 / torch.hypot(frequency[:, None], frequency).clamp_min(1)  # (32, 32)
    white = torch.randn(n, 4, 32, 32, generator=generator)
    fields = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
    return fields / amplitude.square().mean().sqrt()


def root_mean_square(x: Tensor) -> float:
    """Root mean square of all numbers of x: the scale of the data beside the noise's 1."""
    return float(x.square().mean().sqrt())
