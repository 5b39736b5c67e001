"""From a run's noise options to what chooses its noise: a selector, or a coupling (the noise picks its window)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.noise import Coupling, Selector, fit_coupling, fit_potentials, make_selector
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.costs import standardize

COUPLED = "semidiscrete"
WORTH_FITTING = 1000
"""Paired steps from which on fitting potentials takes less time than it saves."""


@dataclass(frozen=True)
class NoiseChoice:
    """How a training chooses noise.

    Attributes:
        select: Chooses the noise of a batch; None if the noise picks the batch.
        couple: Picks the windows that belong to noises; None if a selector chooses.
    """

    select: Selector | None = None
    couple: Coupling | None = None


@dataclass(frozen=True)
class NoiseOptions:
    """The noise group of a run, its schedule in steps; checked when built.

    Attributes:
        name: A selector, or `semidiscrete`.
        options: The options of `make_selector` or `fit_coupling`.
        potentials: Whether to fit potentials before training.

    Raises:
        ValueError: If an option is unusable, or selection would never begin.
    """

    name: str
    options: dict[str, Any]
    potentials: bool = False

    def __post_init__(self) -> None:
        if self.name != COUPLED:
            make_selector(self.name, **self.options)
            return
        if self.options["cost"] not in ("euclidean", "sqeuclidean"):
            raise ValueError(f"cost={self.options['cost']}: semidiscrete knows euclidean and sqeuclidean")
        steps = self.options["fit_steps"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"fit_steps={steps}: needs a whole number, 1 or more")

    @torch.no_grad()
    def build(self, actions: Tensor, progress: Callable[[int], None] = lambda step: None) -> NoiseChoice:
        """Fit what is to be fitted, and build.

        Args:
            actions: Clean normalised action chunks of all training windows (N, T, A), as the selector will see them.
            progress: Called with the number of steps done by a long fit.
        """
        if self.name == COUPLED:
            cost, steps = self.options["cost"], self.options["fit_steps"]
            return NoiseChoice(couple=fit_coupling(actions, cost=cost, steps=steps, progress=progress))
        select = make_selector(self.name, **self.options)
        if self.potentials and isinstance(select, Assignment):
            target = standardize(actions.flatten(1), None) if select.standardized else actions
            select = replace(select, potentials=fit_potentials(target, cost=select.cost))
        return NoiseChoice(select=select)


def noise_options(noise: dict[str, Any], *, steps: int, steps_per_epoch: float) -> NoiseOptions:
    """Check a run's noise group and turn epochs into steps.

    Args:
        noise: `name` and options, as configured.
        steps: Length of the training.
        steps_per_epoch: Training windows over batch size.

    Raises:
        ValueError: If an option is unusable, or selection would never begin.
    """
    options = {key: value for key, value in noise.items() if key != "name"}
    for key in {"start", "stop", "ramp"} & set(options):
        options[key] = _in_steps(key, options[key], steps_per_epoch)
    start = options.get("start", 0)
    if isinstance(start, int) and start >= steps:
        given = f" (step {start:,})" if str(noise["start"]) != str(start) else ""
        raise ValueError(
            f"start={noise['start']}{given}: noise={noise['name']} would never select in steps={steps}; "
            "give an earlier start= or more steps="
        )
    wanted = options.pop("potentials", False)
    if wanted not in (True, False, "auto"):
        raise ValueError(f"potentials={wanted}: use auto, true or false")
    fit = steps - start >= WORTH_FITTING if wanted == "auto" else wanted
    return NoiseOptions(noise["name"], options, fit)


def counted(windows: Windows, mask: str, layout: Layout) -> Tensor | None:
    """Which actions of each window enter the distance (N, T), or None for all.

    Args:
        windows: The training windows.
        mask: What is left out: `none`, `padding`, or `unsent` (padding, and steps never sent to the robot).
        layout: Steps of a window.
    """
    if mask == "none":
        return None
    if mask == "padding":
        return windows.executed
    sent = torch.zeros(layout.horizon, dtype=torch.bool)
    sent[layout.sent] = True
    return windows.executed & sent.to(windows.executed.device)


def _in_steps(key: str, value: Any, steps_per_epoch: float) -> Any:
    """Training steps from a number of steps, or of epochs written as 50ep."""
    if not isinstance(value, str):
        return value
    epochs = re.fullmatch(r"(\d+(?:\.\d+)?)ep", value)
    if not epochs:
        raise ValueError(f"{key}={value}: needs training steps (500) or epochs (50ep)")
    return round(float(epochs[1]) * steps_per_epoch)
