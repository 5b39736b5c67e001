"""The one object that owns what training changes, and the only thing that saves and restores it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class TrainState:
    """Model, optimizer, learning-rate schedule, EMA and step.

    Args:
        model: What is trained; its buffers are saved with its weights.
        lr: Peak learning rate.
        betas: Of AdamW.
        weight_decay: Of AdamW.
        warmup_steps: Linear warm-up, then cosine to zero at `steps`.
        steps: Length of the training.
        ema_power: The EMA's decay after n steps is 1 - (1 + n) ** -ema_power ...
        ema_max: ... and at most this.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup_steps: int,
        steps: int,
        ema_power: float,
        ema_max: float,
    ) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.lr_schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup_steps, steps)
        self.ema = EMAModel(
            self.parameters, decay=ema_max, use_ema_warmup=True, inv_gamma=1.0, power=ema_power, foreach=True
        )
        self.step = 0

    def advance(self) -> None:
        """Apply the accumulated gradients: one optimizer step, one step of the schedule and of the EMA."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_schedule.step()
        self.ema.step(self.parameters)
        self.step += 1

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        return float(self.lr_schedule.get_last_lr()[0])

    @contextmanager
    def ema_weights(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with the EMA's weights; the trained ones come back afterwards."""
        trained = [p.detach().clone() for p in self.parameters]
        self.ema.copy_to(self.parameters)
        self.model.eval()
        try:
            yield self.model
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self.parameters), trained)
            self.model.train()

    def weights(self) -> dict[str, Tensor]:
        """Trained weights and buffers, by name."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def ema_state(self) -> dict[str, Tensor]:
        """The same names with the EMA's weights."""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return self.weights() | dict(zip(names, self.ema.shadow_params, strict=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, named `PARAMETER.KEY` by the parameter's position."""
        per_parameter = self.optimizer.state_dict()["state"]
        return {f"{i}.{key}": tensor for i, entry in per_parameter.items() for key, tensor in entry.items()}

    def restore(
        self, step: int, weights: dict[str, Tensor], ema: dict[str, Tensor], optimizer: dict[str, Tensor]
    ) -> None:
        """Continue from what `weights`, `ema_state` and `optimizer_state` returned after `step` steps.

        Raises:
            RuntimeError: If names or shapes are not this model's.
        """
        self.model.load_state_dict(weights)
        device = self.parameters[0].device
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.ema.shadow_params = [ema[name].to(device) for name in names]
        self.ema.optimization_step = step
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in optimizer.items():
            position, key = name.split(".")
            state.setdefault(int(position), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        schedule = self.lr_schedule.state_dict() | {"last_epoch": step, "_step_count": step + 1}
        self.lr_schedule.load_state_dict(schedule)
        rates = [
            base * factor(step)
            for base, factor in zip(self.lr_schedule.base_lrs, self.lr_schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.lr_schedule._last_lr = rates
        self.step = step
