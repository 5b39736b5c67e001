"""Chosen noise for training code that draws its own: at `add_noise`, the clean sample and the noise meet.

A training step on a noise scheduler of diffusers reads, in whatever project::

    noise = torch.randn(clean.shape)                     # a tensor of the caller's
    noisy = scheduler.add_noise(clean, noise, timesteps)
    loss = mse(model(noisy, timesteps), noise)           # the same tensor is the target

`clean` is what diffusion begins with: normalised, scaled, cut to what is denoised. That is what a selector needs to
see, and nothing before this call has used the noise. So the chosen noise is written *into the caller's tensor*, and
then added: whatever the caller does with that tensor afterwards (the target of an epsilon loss, `get_velocity`) is done
with the noise that is in the mixture. Neither timesteps nor loss nor sampling are touched.

It is wrong only where the target is not the tensor that was handed to `add_noise`, as with the `--input_perturbation`
of some diffusers scripts, which adds one tensor and predicts another; write `noise = select(clean)` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class NoiseChooser:
    """An `add_noise` that chooses the noise before it adds it; a copy of the scheduler gets one of its own."""

    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor]
    choose: Callable[[Tensor], Tensor]

    def __call__(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Overwrite the noise of clean samples (B, ...) with the chosen one, in place, and add it: noisy samples.

        Raises ValueError if the shapes differ.
        """
        if noise.shape != original_samples.shape:
            shapes = f"noise has shape {tuple(noise.shape)}, the samples {tuple(original_samples.shape)}"
            raise ValueError(f"{shapes}; chosen noise needs a tensor of its own for each sample")
        noise.copy_(self.choose(original_samples.detach()))
        return self.add_noise(original_samples, noise, timesteps)


@contextmanager
def chosen_noise(scheduler: Any, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context, whatever is noised by `scheduler.add_noise` is noised with chosen noise.

    The scheduler is one of diffusers, or anything with its `add_noise(original_samples, noise, timesteps)`; `choose` is
    a selector, or one with its options bound: `partial(select, mask=m, generator=g)`.

    Raises ValueError if the scheduler has no `add_noise`.
    """
    if not callable(getattr(scheduler, "add_noise", None)):
        raise ValueError(f"{type(scheduler).__name__} has no add_noise; give the noise scheduler that training uses")
    plain = scheduler.add_noise
    scheduler.add_noise = NoiseChooser(plain, choose)
    try:
        yield
    finally:
        scheduler.add_noise = plain
