"""Chosen noise for training code that draws its own noise and shows it to nobody.

A loss of flow matching reads, in whatever project::

    noise = torch.randn_like(clean)          # or torch.randn(shape), torch.normal(0, 1, shape)
    noisy = t * noise + (1 - t) * clean
    loss = mse(model(noisy, t), noise - clean)

Nothing outside sees that tensor. But torch reports every call of its functions to the modes that are active
(`torch.overrides.TorchFunctionMode`), and the noise is known by its shape. So the first Gaussian draw in the shape of
the clean samples returns the chosen noise instead. The plain draw is made all the same: torch's global generator ends
where it would have ended, and timesteps, dropout and random crops keep their values if the selector draws from a
generator of its own.

Vision-language-action models pad actions with zeros to a fixed number of dimensions and draw noise for those as well:
the drawn shape may be wider than the samples in its last dimension, and the selector sees the samples padded so. It
needs a mask then, or the padding enters the distance.

Shape legend: B samples, T steps, A numbers per action, D >= A numbers per action with padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

DRAWS = (torch.randn, torch.randn_like, torch.normal)


class chosen_draw(TorchFunctionMode):  # noqa: N801, a context
    """Within this context, the first plain noise that is drawn for the clean samples is chosen noise.

    Args:
        clean: What the loss will noise, (B, ..., A); read when the noise is drawn.
        choose: A selector, or one with its options bound: `partial(select, mask=m, generator=g)`. It is called once,
            with the samples padded to (B, ..., D).

    Attributes:
        padded: The samples that were shown to the selector (B, ..., D).
        plain: The noise that the code drew itself.
        chosen: The noise that it was given.

    Raises:
        RuntimeError: On leaving, if no such noise was drawn.
    """

    padded: Tensor
    plain: Tensor
    chosen: Tensor | None = None

    def __init__(self, clean: Tensor, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.clean, self.choose = clean, choose

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, and exchange what it returns if that is the noise."""
        result = func(*args, **(kwargs or {}))
        if func not in DRAWS or self.chosen is not None or not self._fits(result.shape):
            return result
        self.plain = result
        self.padded = pad(self.clean.detach(), (0, result.shape[-1] - self.clean.shape[-1]))
        self.chosen = self.choose(self.padded).to(result)
        return self.chosen

    def _fits(self, shape: torch.Size) -> bool:
        own = self.clean.shape
        return len(shape) == len(own) and shape[:-1] == own[:-1] and shape[-1] >= own[-1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the context."""
        super().__exit__(kind, error, trace)
        if kind is None and self.chosen is None:
            shape = tuple(self.clean.shape)
            why = "the code draws it in another way, or inside a compiled graph (compile_model=true)"
            raise RuntimeError(f"no noise was drawn for samples of shape {shape}: {why}")
