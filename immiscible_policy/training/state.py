"""The one object that owns what training changes, and the only thing that saves and restores it.

All parameters are views into one buffer, and so are their EMA values: EMA, swap and snapshot are one operation each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from immiscible_policy.randomness import derive_seed
from immiscible_policy.training.muon import Muon
from immiscible_policy.training.processes import process_group

ALIGNMENT = 64
"""Numbers between whose multiples every parameter begins in the buffer (256 bytes in float32)."""

TensorsByName = dict[str, Tensor]


class Teacher(NamedTuple):
    """A second average of the weights, which the loss itself looks at, and which is saved with the model.

    Attributes:
        module: A copy of what is trained, none of whose parameters trains.
        keep: Step -> the share that it keeps of itself in that step's update.
    """

    module: nn.Module
    keep: Callable[[int], float]


class TrainState:
    """Model, optimizer, learning-rate schedule, EMA and step.

    Args:
        model: What is trained, on its device for good; its buffers are saved with its weights.
        optimizer: `adamw`, `radam`, or `muon`: Muon for matrices and convolutions, AdamW for the rest.
        lr: Peak learning rate.
        betas: Betas of the optimizer.
        weight_decay: Decoupled weight decay.
        warmup_steps: Linear warm-up, then ...
        lr_schedule: ... `cosine` to zero at `steps`, or `constant`.
        ema_power: The EMA's decay in the update after n others is 1 - (1 + n) ** -ema_power ...
        ema_max: ... and at most this.
        clip_grad_norm: Gradients are scaled down to this norm where theirs is larger; None leaves them.
        seed: Makes dropout a function of seed and step; None leaves it to the device's stream.
        teacher: Follows the weights as well, where a loss needs one.
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
        lr_schedule: str = "cosine",
        clip_grad_norm: float | None = None,
        seed: int | None = None,
        optimizer: str = "adamw",
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.teacher = model, teacher
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.step = 0
        self._clip_grad_norm, self._seed = clip_grad_norm, seed
        self._drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        self._flat = _flattened(self.parameters)
        self._taught = self._flat.new_zeros(0) if teacher is None else _flattened(list(teacher.module.parameters()))
        self._ema = self._flat.clone()
        self._peak, self._ema_power, self._ema_max = lr, ema_power, ema_max
        self._lr, self._ema_share, self._taught_share = self._flat.new_zeros(3).unbind()
        self.optimizers = _optimizers(optimizer, self.parameters, self._lr, betas, weight_decay)
        self._warmup_steps = warmup_steps
        self._decay_steps = steps - warmup_steps if lr_schedule == "cosine" else None

    def advance(self) -> None:
        """Apply the accumulated gradients: one step of optimizer, learning-rate schedule and EMA."""
        self.set_rates()
        self.update()
        self.step += 1

    def set_dropout(self) -> None:
        """Make the coming step's dropout a function of seed and step, so that a resumed training repeats it."""
        if self._drops and self._seed is not None:
            device = self._flat.device
            stream = torch.cuda.default_generators[device.index or 0] if self._flat.is_cuda else torch.default_generator
            stream.manual_seed(derive_seed("dropout", self._seed, self.step, process_group().rank))

    def set_rates(self) -> None:
        """Put the coming step's learning rate and EMA share where `update` reads them: on the device."""
        self._lr.fill_(self.lr)
        self._ema_share.fill_(1.0 - min(1.0 - (1.0 + self.step) ** -self._ema_power, self._ema_max))
        if self.teacher is not None:
            self._taught_share.fill_(1.0 - self.teacher.keep(self.step))

    @torch.no_grad()
    def update(self) -> None:
        """Let optimizer and EMA follow the gradients, at the rates that were set; the same operations every step."""
        if self._clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self._clip_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._ema.lerp_(self._flat, self._ema_share)
        if self.teacher is not None:
            self._taught.lerp_(self._flat, self._taught_share)

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        if self.step < self._warmup_steps:
            return self._peak * self.step / self._warmup_steps
        if self._decay_steps is None:
            return self._peak
        decayed = min(1.0, (self.step - self._warmup_steps) / max(1, self._decay_steps))
        return self._peak * 0.5 * (1.0 + math.cos(math.pi * decayed))

    @contextmanager
    def ema_weights(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with the EMA's weights; the trained ones come back afterwards."""
        trained = self._flat.clone()
        self._flat.copy_(self._ema)
        self.model.eval()
        try:
            yield self.model
        finally:
            self._flat.copy_(trained)
            self.model.train()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Whatever updates happen inside are undone in place: weights, EMA, optimizer."""
        flat, ema, taught = self._flat.clone(), self._ema.clone(), self._taught.clone()
        known = {name: tensor.clone() for name, tensor in self.optimizer_state().items()}
        yield
        self._flat.copy_(flat)
        self._ema.copy_(ema)
        self._taught.copy_(taught)
        for name, tensor in self.optimizer_state().items():
            tensor.copy_(known[name]) if name in known else tensor.zero_()  # an optimizer's state begins with zeros

    def weights(self) -> TensorsByName:
        """Trained weights and buffers, by name."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def ema_state(self) -> TensorsByName:
        """The same names with the EMA's weights."""
        return self.weights() | dict(zip(self.names, _views(self._ema, self.parameters), strict=True))

    def optimizer_state(self) -> TensorsByName:
        """The optimizers' tensors, named `PARAMETER.KEY` by the parameter's position."""
        entries = {parameter: entry for optimizer in self.optimizers for parameter, entry in optimizer.state.items()}
        return {
            f"{position}.{key}": tensor
            for position, parameter in enumerate(self.parameters)
            for key, tensor in entries.get(parameter, {}).items()
        }

    def tensors(self) -> dict[str, TensorsByName]:
        """All that a checkpoint needs: `model`, `ema` and `optimizer`."""
        return {"model": self.weights(), "ema": self.ema_state(), "optimizer": self.optimizer_state()}

    def restore(self, step: int, tensors: Callable[[str], TensorsByName]) -> None:
        """Continue after `step` steps from what `tensors` gives of `model`, `ema` and `optimizer`.

        Raises:
            RuntimeError: If names or shapes are not this model's.
        """
        self.model.load_state_dict(tensors("model"))
        ema = tensors("ema")
        for name, view in zip(self.names, _views(self._ema, self.parameters), strict=True):
            view.copy_(ema[name])
        state: dict[int, TensorsByName] = {}
        for name, tensor in tensors("optimizer").items():
            position, key = name.split(".")
            state.setdefault(int(position), {})[key] = tensor
        positions = {parameter: position for position, parameter in enumerate(self.parameters)}
        for optimizer in self.optimizers:
            (group,) = optimizer.param_groups
            own = {i: state[positions[p]] for i, p in enumerate(group["params"]) if positions[p] in state}
            optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})
            optimizer.param_groups[0]["lr"] = self._lr  # loading puts a copy there
        self.step = step


def _optimizers(
    name: str, parameters: Sequence[nn.Parameter], lr: Tensor, betas: tuple[float, float], weight_decay: float
) -> list[torch.optim.Optimizer]:
    """What updates parameters at a learning rate () on their device; each parameter belongs to one."""
    settings: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay, "capturable": lr.is_cuda}
    if name == "radam":
        return [torch.optim.RAdam(parameters, lr=lr, decoupled_weight_decay=True, **settings)]
    matrices = [p for p in parameters if p.ndim > 1] if name == "muon" else []
    others = [p for p in parameters if p.ndim <= 1] if name == "muon" else parameters
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=lr, fused=True, **settings))
    return optimizers


@torch.no_grad()
def _flattened(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A buffer (N,) that holds parameters, which become views into it."""
    flat = parameters[0].new_zeros(sum(_places(p) for p in parameters))
    for parameter, view in zip(parameters, _views(flat, parameters), strict=True):
        parameter.data = view.copy_(parameter)
    return flat


def _views(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A buffer's parts (N,) in the shapes of the parameters."""
    parts = flat.split([_places(p) for p in parameters])
    return [part[: p.numel()].view_as(p) for part, p in zip(parts, parameters, strict=True)]


def _places(parameter: Tensor) -> int:
    """Numbers that a parameter takes up in the buffer."""
    return -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
