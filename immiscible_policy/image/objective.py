"""The image models' objective for the training loop: flipped images, noise through a selector."""

from __future__ import annotations

import torch
from torch import Tensor

from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.diffusion import ImageDiffusion, NoisedImages
from immiscible_policy.noise import Selector
from immiscible_policy.randomness import torch_generator
from immiscible_policy.training.objective import ShuffledOrder


class ImageObjective:
    """Denoising loss on batches of images, each mirrored left to right with probability 1/2.

    Batch, flips, noise and diffusion steps are pure functions of (seed, step).

    Args:
        model: What is trained.
        images: All training images (N, C, H, W), uint8, on the model's device.
        select: Chooses the noise.
        batch_size: Images per optimizer step.
        seed: Training seed.
    """

    def __init__(self, model: ImageDiffusion, images: Tensor, select: Selector, *, batch_size: int, seed: int) -> None:
        self.model = model
        self.images = images
        self.select = select
        self.seed = seed
        self.order = ShuffledOrder(len(images), batch_size, seed, images.device)

    def batches(self, step: int) -> list[NoisedImages]:
        """The noised batch of a training step."""
        pixels = to_pixels(self.images[self.order.rows(step)])
        device = pixels.device
        flips = torch_generator(device, "flips", self.seed, step)
        mirrored = torch.rand(len(pixels), 1, 1, 1, generator=flips, device=device) < 0.5
        pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        generator = torch_generator(device, "noise", self.seed, step)
        return [self.model.noised(pixels, self.select, step=step, generator=generator)]

    def loss(self, batch: NoisedImages) -> Tensor:
        """Mean denoising loss of a batch."""
        return self.model.loss(batch)
