"""Muon: the momentum of every weight matrix is made orthogonal before it is applied.

A gradient has few large singular values; orthogonal updates move all directions of a matrix alike (Jordan et al.,
https://kellerjordan.github.io/posts/muon/). Updates are scaled so that learning rate and weight decay mean what they
mean to AdamW (Liu et al., arXiv 2502.16982). `torch.optim.Muon` takes matrices alone, multiplies in bfloat16 on every
processor and reads its learning rate on the host, which a CUDA graph cannot; this one equals it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a x + b x^3 + c x^5, which moves singular values towards 1, quickly and to within about 0.3 (Jordan et al.)."""

ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update of learning rate 1: about what AdamW's is (arXiv 2502.16982, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates, for parameters of two or more dimensions.

    A parameter (A, ...) counts as a matrix (A, B): of a convolution (out, in * kernel).

    Args:
        parameters: What to update, or groups of it.
        lr: Learning rate, a number or a tensor () on the device, which a captured graph reads.
        weight_decay: Decoupled weight decay.
        momentum: Share of itself that the momentum keeps in a step; Nesterov's form.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor] | Sequence[dict[str, Any]],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; matrices of one shape together."""
        for group in self.param_groups:
            moved = sorted((p for p in group["params"] if p.grad is not None), key=_matrix_shape)
            for shape, alike in groupby(moved, key=_matrix_shape):
                self._update(list(alike), shape, group["lr"], group["weight_decay"], group["momentum"])

    def _update(
        self, parameters: list[Tensor], shape: tuple[int, int], lr: float | Tensor, weight_decay: float, momentum: float
    ) -> None:
        ahead = []
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - momentum)
            ahead.append(gradient.lerp(state["momentum"], momentum).reshape(shape))
        updates = orthogonal(torch.stack(ahead)) * (-RMS * max(shape) ** 0.5 * lr)
        for parameter, update in zip(parameters, updates, strict=True):
            if weight_decay:
                parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.view_as(parameter))


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, A, B) with their singular vectors and singular values near 1, by Newton and Schulz's iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT.contiguous() if tall else matrices
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    iterated = by_steps(wide.bfloat16()).to(wide.dtype) if wide.is_cuda else by_gram_matrices(wide)
    return iterated.mT if tall else iterated


def by_steps(x: Tensor) -> Tensor:
    """The iteration from matrices x (n, A, B) of norm 1, A <= B: x becomes a x + b (x x^T) x + c (x x^T)^2 x."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def by_gram_matrices(x: Tensor) -> Tensor:
    """The same with half the operations, in float32 or finer: most products are of matrices (A, A).

    The polynomials commute with each other and with the Gram matrix, so their product comes first, then x.
    """
    gram = x @ x.mT
    product = factor = _polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    return product @ x


def _polynomial(gram: Tensor) -> Tensor:
    """The factor a + b G + c G^2 of Gram matrices G (n, A, A)."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """(A, B) of a parameter (A, ...)."""
    return parameter.shape[0], parameter[0].numel()
