"""A small network as a list of weights, for what is fitted once before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


def mlp_weights(sizes: Sequence[int], generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    """First weights (outputs, inputs) and biases (outputs,) of layers between `sizes`; the generator is on the CPU."""
    weights: list[Tensor] = []
    for inputs, outputs in pairwise(sizes):
        weights += [torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs), torch.zeros(outputs)]
    return tuple(weight.to(device).requires_grad_() for weight in weights)


def mlp(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs (B, outputs) of inputs (B, inputs), with SiLU between layers, in the precision of x."""
    layers = [weight.to(x.device, x.dtype) for weight in weights]
    with torch.autocast(x.device.type, enabled=False):
        for weight, bias in zip(layers[0:-2:2], layers[1:-2:2], strict=True):
            x = silu(linear(x, weight, bias))
        return linear(x, layers[-2], layers[-1])
