"""Flow matching: straight paths from noise chosen by a selector to images, and the velocity along them.

      t = 0                             t = 1
    x_0, noise -- x_t = (1-t) x_0 + t x_1 --> x_1, image        velocity x_1 - x_0

Conditional flow matching with sigma = 0 (Lipman et al., 2023; Tong et al., 2024, whose torchcfm holds the recipe for
CIFAR-10). Shape legend: B images, C channels, H x W pixels, N sampling steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from immiscible_policy.image.model import ImageSample, require_scale, require_steps
from immiscible_policy.noise import Selector

TIME_SCALE = 1000.0
"""Factor on t for the network, whose sinusoidal embedding resolves times of 0 to 1,000."""
TOLERANCE = 1e-5
"""Of the adaptive solver, absolute and relative."""


class FlowBatch(NamedTuple):
    """A training batch on its paths.

    Attributes:
        noisy: x_t (B, C, H, W).
        velocity: x_1 - x_0, to predict (B, C, H, W).
        t: Times in [0, 1) (B,).
    """

    noisy: Tensor
    velocity: Tensor
    t: Tensor


class FlowMatching(nn.Module):
    """Learns the velocity that carries noise to images.

    Args:
        denoiser: A `diffusers.UNet2DModel`, or a module called alike: (x_t (B, C, H, W), 1000 t (B,)) -> object whose
            `sample` is the predicted velocity.
        size: Side S of the images.
        data_scale: Factor from pixels in [-1, 1] to x_1.

    Raises:
        ValueError: If data_scale is not positive.
    """

    def __init__(self, denoiser: nn.Module, *, size: int, data_scale: float = 1.0) -> None:
        super().__init__()
        require_scale(data_scale)
        self.denoiser = denoiser
        self.noise_shape = (3, size, size)
        self.data_scale = data_scale

    def noised(
        self,
        pixels: Tensor,
        select: Selector,
        *,
        step: int | None = None,
        generator: torch.Generator,
        prompts: Sequence[str] | None = None,
    ) -> FlowBatch:
        """Choose x_0 for each x_1, and a time on the path between them.

        Args:
            pixels: Clean images (B, C, H, W) in [-1, 1].
            select: Chooses x_0 for x_1, the scaled images.
            step: Training step, for selectors with a schedule.
            generator: Source of x_0 and of the times.
            prompts: Not used.
        """
        x1 = self.data_scale * pixels
        x0 = select(x1, step=step, generator=generator)
        t = torch.rand(len(x1), generator=generator, device=generator.device).to(x1.device)
        return FlowBatch(torch.lerp(x0, x1, t.view(-1, 1, 1, 1)), x1 - x0, t)

    def loss(self, batch: FlowBatch) -> Tensor:
        """Mean squared error of the predicted velocity, a scalar (Tong et al., 2024, equation 10)."""
        return nn.functional.mse_loss(self.velocity(batch.noisy, batch.t), batch.velocity)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's prediction (B, C, H, W), float32, for x_t and times t (B,) in [0, 1]."""
        return self.denoiser(x, TIME_SCALE * t).sample.float()

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        steps: int | None = None,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> ImageSample:
        """Follow the velocity from start noises at t = 0 to images at t = 1: a function of the start noises alone.

        Args:
            noise: Start noises (B, C, H, W).
            steps: Euler steps of equal length; None for the adaptive solver (Dormand-Prince), which chooses its steps
                by the error of the whole batch and of which only the end is shown.
            prompts: Not used.
            generator: Not used: nothing else is random.

        Raises:
            ValueError: If steps is below 1.
        """
        if steps is None:
            return self._solved(noise)
        require_steps(steps)
        times = torch.arange(steps, device=noise.device) / steps
        x, predicted = noise, []
        for t in times:
            velocity = self.velocity(x, t.expand(len(x)))
            predicted.append(self._pixels(x + (1 - t) * velocity))
            x = x + velocity / steps
        return ImageSample(self._pixels(x), torch.stack(predicted), times)

    def _solved(self, noise: Tensor) -> ImageSample:
        """The end of the paths, by Dormand-Prince."""
        ends = torch.tensor([0.0, 1.0], device=noise.device)
        x = odeint(
            lambda t, x: self.velocity(x, t.to(x).expand(len(x))),
            noise,
            ends,
            method="dopri5",
            rtol=TOLERANCE,
            atol=TOLERANCE,
        )[-1]
        return ImageSample(self._pixels(x), self._pixels(x).unsqueeze(0), ends[1:])

    def _pixels(self, x: Tensor) -> Tensor:
        """Clean samples as pixels in [-1, 1]."""
        return (x / self.data_scale).clamp(-1, 1)
