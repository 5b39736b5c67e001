"""The image models' objective for the training loop: images mirrored at random, noise through a selector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from immiscible_policy.image.data import Images, to_pixels
from immiscible_policy.image.model import ImageModel
from immiscible_policy.noise import Selector
from immiscible_policy.randomness import torch_generator
from immiscible_policy.training.batches import ShuffledOrder, cut


class ImageObjective:
    """An image model's loss on batches of images.

    Batch, flips, noise and diffusion steps are pure functions of (seed, step). They are drawn for the whole batch
    before it is cut into micro-batches, so accumulation changes memory, not the result.

    `images`: all training images, on the model's device. `accumulate`: micro-batches that a batch is cut into.
    `flip`: whether each image is mirrored left to right with probability 1/2.
    """

    def __init__(
        self,
        model: ImageModel,
        images: Images,
        select: Selector,
        *,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        flip: bool = True,
    ) -> None:
        self.model = model
        self.images = images
        self.select = select
        self.seed = seed
        self.accumulate = accumulate
        self.flip = flip
        self.device = next(model.denoiser.parameters()).device
        self.order = ShuffledOrder(len(images), batch_size, seed, self.device)

    def batches(self, step: int) -> list[Any]:
        """The noised micro-batches of a training step."""
        rows = self.order.rows(step)
        pixels = to_pixels(self.images.pixels(rows))
        if self.flip:
            pixels = random_flip(pixels, torch_generator(self.device, "flips", self.seed, step))
        generator = torch_generator(self.device, "noise", self.seed, step)
        prompts = self.images.prompts(rows)
        batch = self.model.noised(pixels, self.select, step=step, generator=generator, prompts=prompts)
        return cut(batch, self.accumulate)

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a micro-batch."""
        return self.model.loss(batch)


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of some images (B, C, H, W) left to right with probability 1/2."""
    mirrored = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) < 0.5
    return torch.where(mirrored, pixels.flip(-1), pixels)
