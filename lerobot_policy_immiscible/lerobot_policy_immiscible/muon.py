"""Muon for every policy of LeRobot: `--use_policy_training_preset=false --optimizer.type=muon`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.optim.optimizers import OptimizerConfig
from torch import nn

from immiscible_policy.training.muon import Muon


@OptimizerConfig.register_subclass("muon")
@dataclass
class MuonConfig(OptimizerConfig):
    """Muon for parameters of two or more dimensions, AdamW for the others, at the same learning rate.

    Attributes:
        lr: Learning rate, which means to Muon's updates about what it means to AdamW's.
        betas: AdamW's.
        weight_decay: Decoupled weight decay.
        grad_clip_norm: Largest norm of the gradient.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    grad_clip_norm: float = 10.0

    def build(self, params: Iterable[Any] | dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of a policy's parameters, however LeRobot's policies give them."""
        return MuonWithAdamW(
            grouped(params), lr=self.lr, betas=(self.betas[0], self.betas[1]), weight_decay=self.weight_decay
        )


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers with one state, as LeRobot saves and schedules a single one.

    Args:
        groups: Parameters under `params`, and what differs in a group, such as its `lr`.
        lr: Learning rate.
        betas: AdamW's.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        matrices, others = [], []
        for group in groups:
            parameters = list(group["params"])
            matrices.append(group | {"params": [p for p in parameters if p.ndim > 1]})
            others.append(group | {"params": [p for p in parameters if p.ndim <= 1]})
        self.parts: list[torch.optim.Optimizer] = []
        if matrices := [group for group in matrices if group["params"]]:
            self.parts.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
        if others := [group for group in others if group["params"]]:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for part in self.parts:  # which loading a state has given another state and other groups
            part.state = self.state
            part.param_groups = [g for g in self.param_groups if ("momentum" in g) == isinstance(part, Muon)]
            part.step()


def grouped(params: Iterable[Any] | dict[str, nn.Parameter]) -> Iterator[dict[str, Any]]:
    """Groups of parameters, of parameters alone, of parameters by name, or of groups."""
    given = list(params.values() if isinstance(params, dict) else params)
    if given and isinstance(given[0], dict):
        yield from given
    else:
        yield {"params": given}
