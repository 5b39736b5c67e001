"""What every selector shares: drawing plain noise, and refusing unusable input.

Shape legend: B samples in the batch, D numbers per sample once flattened.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def draw(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise of the shape, dtype and device of `x`; a generator may live on another device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def is_whole(value: Any) -> bool:
    """Whether an option is a whole number, numpy's included; not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether an option is a number that is not NaN; not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def check(x: Tensor, condition: Tensor | None, mask: Tensor | None) -> None:
    """Refuse shapes and types that no selector can use.

    Raises:
        ValueError: If something is not a tensor, if `x` is not a floating-point batch of at least one sample with at
            least one number, if `condition` is not one row per sample, or if `mask` is not a boolean tensor that
            broadcasts to `x`.
    """
    for name, value in (("x", x), ("condition", condition), ("mask", mask)):
        if not isinstance(value, Tensor) and (value is not None or name == "x"):
            raise ValueError(f"{name} is of type {type(value).__name__}; selectors need torch tensors")
    if not torch.is_floating_point(x):
        raise ValueError(f"x has dtype {x.dtype}; selectors need floating point, for example x.float()")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; selectors need (B, ...) with at least one number each")
    if condition is not None and (condition.ndim == 0 or len(condition) != len(x)):
        raise ValueError(f"condition has shape {tuple(condition.shape)}; it needs one row for each of {len(x)} samples")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; it needs torch.bool (True where the distance counts)")
    try:
        broadcasts = mask is None or torch.broadcast_shapes(mask.shape, x.shape) == x.shape
    except RuntimeError:
        broadcasts = False
    if mask is not None and not broadcasts:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must broadcast to x, {tuple(x.shape)}")


def flatten(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Flatten samples and mask to (B, D), samples in at least float32 and zero where the mask excludes them."""
    flat = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).contiguous()  # (B, D)
    if mask is None:
        return flat, None
    counts = mask.expand(x.shape).flatten(1)  # (B, D)
    return torch.where(counts, flat, 0.0), counts


def require_finite(x: Tensor, noise: Tensor, norms: Tensor) -> Tensor:
    """Refuse NaN and infinity in samples (B, ...), seen through norms (B,) that are not finite where a sample is not.

    Returns:
        The noise (B, ...); on CUDA, where raising would wait for the device, NaN noise for the samples in question.

    Raises:
        ValueError: If a norm is not finite (CPU only).
    """
    finite = torch.isfinite(norms)
    if norms.device.type == "cuda":
        return noise.masked_fill(~finite.reshape(-1, *[1] * (noise.ndim - 1)), float("nan"))
    if not finite.all():
        row = int((~finite).nonzero()[0])
        bad = x[row][~torch.isfinite(x[row])]
        if bad.numel():
            raise ValueError(f"x contains {bad[0].item()} in sample {row}; clean the data before selecting noise")
        largest = float(x[row].abs().max())
        raise ValueError(f"x is too large to measure in sample {row}, up to {largest:.3g}; rescale")
    return noise
