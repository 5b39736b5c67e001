"""The U-Net of the unconditional image models (diffusers' own), and dropout that can repeat itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

LAYOUTS: dict[str, dict[str, Any]] = {
    "diffusers": {},
    "ddpm": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
}
"""Finer options of the U-Net: diffusers' own defaults, which are also guided diffusion's and torchcfm's (symmetric
padding, cosine before sine), or those of Ho et al. (2020), as google/ddpm-cifar10-32 has them."""

FEW_PIXELS = 64
"""Up to so many pixels attend by plain matrix products, which are faster there on a CPU, and slower for 256."""


def image_unet(
    size: int,
    *,
    channels: Sequence[int],
    layers: int,
    attention: Sequence[bool],
    groups: int,
    head_channels: int,
    dropout: float,
    layout: str,
) -> UNet2DModel:
    """Build a U-Net with fresh weights from torch's global stream.

    Args:
        size: Side of the images, pixels.
        channels: Channels at each resolution, the finest first; the image is halved between them.
        layers: Residual blocks per resolution.
        attention: For each resolution, whether it attends; the middle always does.
        groups: Groups of its group normalisation.
        head_channels: Channels of an attention head.
        dropout: Probability of a zero in the residual blocks.
        layout: A key of `LAYOUTS`.

    Raises:
        ValueError: If the layout is unknown or the sizes do not fit together.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: choose from {', '.join(LAYOUTS)}")
    for name, number in (("size", size), ("layers", layers), ("groups", groups), ("head_channels", head_channels)):
        if number < 1:
            raise ValueError(f"{name}={number}: needs 1 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: needs a number from 0 to below 1")
    factor = 2 ** (len(channels) - 1)
    if not channels or size % factor:
        raise ValueError(f"size={size} does not divide by {factor}, as channels={list(channels)} need")
    if len(attention) != len(channels):
        raise ValueError(f"attention={list(attention)} needs one entry for each of channels={list(channels)}")
    odd = [width for width in channels if width % groups]
    if odd:
        raise ValueError(f"channels={odd} do not divide into groups={groups}")
    attends = (*attention[:-1], True)  # the middle works at the last width
    headless = [width for width, here in zip(channels, attends, strict=True) if here and width % head_channels]
    if headless:
        raise ValueError(f"channels={headless} do not divide into heads of head_channels={head_channels}")
    unet = UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        norm_num_groups=groups,
        attention_head_dim=head_channels,
        dropout=dropout,
        **LAYOUTS[layout],
    )
    multiply_small_attention(unet)
    return unet


def multiply_small_attention(unet: Any) -> None:
    """Let attention over few pixels be plain matrix products, which beat the fused kernel there on a CPU."""
    deepest = len(unet.down_blocks) - 1
    up = zip(reversed(range(deepest + 1)), unet.up_blocks, strict=True)
    for level, block in [*enumerate(unet.down_blocks), (deepest, unet.mid_block), *up]:
        if (unet.config.sample_size >> level) ** 2 <= FEW_PIXELS:
            for attention in getattr(block, "attentions", ()):
                attention.set_processor(AttnProcessor())


class RepeatableDropout(nn.Dropout):
    """Dropout that keeps the same numbers as in the call before while `repeating` is set."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.repeating = False
        self.kept: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Drop numbers of any shape; unchanged in evaluation mode."""
        if not self.training:
            return input
        if not self.repeating:
            self.kept = torch.empty_like(input, dtype=torch.bool).bernoulli_(1 - self.p)
        assert self.kept is not None
        return input * self.kept / (1 - self.p)


def repeatable_dropout(network: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Exchange every dropout of a network that drops anything for one that can repeat itself.

    Inside the context that is returned the network drops what it dropped in the call before. Copied together with the
    network, it is the copy's.
    """
    exchanged: list[RepeatableDropout] = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                exchanged.append(RepeatableDropout(child.p))
                setattr(parent, name, exchanged[-1])

    return partial(_repeating, exchanged)


@contextmanager
def _repeating(dropouts: Sequence[RepeatableDropout]) -> Iterator[None]:
    for dropout in dropouts:
        dropout.repeating = True
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.repeating = False
