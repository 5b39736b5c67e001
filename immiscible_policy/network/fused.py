"""The U-Net on a CPU as matrix products with compiled loops between them, forward and backward: `kernels=fused`.

Activations stay channels last (B, T, C) from one end of the network to the other, in bfloat16 under autocast. A
convolution is a product of the windows that it sees with its weight laid out as a matrix, and so are its gradients.
What lies between two products is one pass over memory in each direction (`network.kernels`):

    x --unfold--> windows --product--> y --bias, GroupNorm, Mish, FiLM or residual--> the next x

Few steps (T <= K, deep in the network) need no windows: there the weight is spread over one matrix from all steps to
all steps, which is less work than the zeros beyond the ends.

All of it is recorded once per shape, as lists of calls on fixed buffers, and replayed: no memory is taken between two
products, and autograd sees one function. Weights are the modules' own, read where they lie.

Shape legend: B rows, T steps of the chunk, A action dimensions, C channels, K width of a convolution, E numbers of a
step's embedding, G features, F of all films together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from immiscible_policy.network.recording import Recording
from immiscible_policy.network.unet import parameters_of

KEPT = 4
"""Recordings that are kept of each network."""


def forward(network: Any, sample: Tensor, step: Tensor, features: Tensor, dtype: torch.dtype) -> Tensor:
    """What `ConditionalUnet1d.forward` returns (B, T, A), in arithmetic of a type; gradients flow as there."""
    parameters = list(parameters_of(network))
    inputs = sample, network.diffusion_step_encoder[0](step), features
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *parameters)):
        return _Forward.apply(network, dtype, *inputs, *parameters)
    return _Use(network, parameters, sample, dtype, trains=False).forward(*inputs)


def denoiser(network: Any, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of chunks (B, T, A) and all blocks' films (B, F) that predicts as the network does (B, T, A).

    It is for one shape and has no gradients; weights are laid out in the first call.
    """
    uses: list[_Use] = []

    def denoise(sample: Tensor, films: Tensor) -> Tensor:
        if not uses:
            uses.append(_Use(network, list(parameters_of(network)), sample, dtype, trains=False))
            uses[0].recording.lay_out()
        return uses[0].recording.denoise(sample, films)

    return denoise


class _Use:
    """The use of a recording, which is nobody else's until this object goes."""

    def __init__(self, network: Any, parameters: Sequence[Tensor], sample: Tensor, dtype: torch.dtype, trains: bool):
        pool = _recordings.setdefault(network, {})
        needs_sample = trains and sample.requires_grad
        key = tuple(sample.shape), dtype, trains, needs_sample, tuple(p.data_ptr() for p in parameters)
        kept = pool.pop(key, None)
        self.recording = kept or Recording(network, tuple(sample.shape), dtype, trains, needs_sample)
        finalize(self, _give_back, pool, key, self.recording).atexit = False

    def forward(self, sample: Tensor, sinusoids: Tensor, features: Tensor) -> Tensor:
        """The whole forward pass."""
        self.recording.lay_out()
        self.recording.embed(sinusoids, features)
        return self.recording.denoise(sample)


def _give_back(pool: dict[Hashable, Recording], key: Hashable, recording: Recording) -> None:
    pool[key] = recording
    while len(pool) > KEPT:
        pool.pop(next(iter(pool)), None)


_recordings: WeakKeyDictionary[nn.Module, dict[Hashable, Recording]] = WeakKeyDictionary()


class _Forward(torch.autograd.Function):
    """A whole forward pass, for autograd."""

    @staticmethod
    def forward(
        ctx: Any, network: Any, dtype: torch.dtype, sample: Tensor, sinusoids: Tensor, features: Tensor,
        *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.use = _Use(network, parameters, sample, dtype, trains=True)
        ctx.parameters = parameters
        return ctx.use.forward(sample, sinusoids, features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.use is None:
            raise RuntimeError("kernels=fused: gradients can be taken once per forward pass; use kernels=plain")
        by_sample, by_features, by_parameter = ctx.use.recording.backward(gradient)
        ctx.use = None
        return None, None, by_sample, None, by_features, *(by_parameter[p.data_ptr()] for p in ctx.parameters)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step.

    It gives memory back to the system, and takes it anew page by page, once more than twice the largest block is free
    that was ever taken from the system and freed. This block, the largest that counts, is never touched.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


keep_freed_memory()
