"""From a run's noise options to the selector that chooses its noise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.demos.windows import Layout, Windows
from immiscible_policy.noise import (
    ForResidual,
    Selector,
    fit_linear_prediction,
    fit_potentials,
    make_selector,
)
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.audit import audit
from immiscible_policy.noise.costs import standardize
from immiscible_policy.noise.schedule import Schedule

WORTH_FITTING = 1000
"""Paired steps from which on fitting potentials takes less time than it saves."""


@dataclass(frozen=True)
class NoiseOptions:
    """The noise group of a run, its schedule in steps; checked when built.

    Attributes:
        name: The selector.
        options: The options of `make_selector`.
        potentials: Whether to fit potentials before training.

    Raises:
        ValueError: If an option is unusable, or selection would never begin.
    """

    name: str
    options: dict[str, Any]
    potentials: bool = False

    def __post_init__(self) -> None:
        make_selector(self.name, **self.options)

    def selector(self) -> Selector:
        """The selector, without potentials."""
        return make_selector(self.name, **self.options)

    @torch.no_grad()
    def build(
        self,
        actions: Tensor,
        conditions: Tensor | None = None,
    ) -> Selector:
        """Fit what is to be fitted, and build.

        Args:
            actions: Clean normalised action chunks of all training windows (N, T, A), as the selector will see them.
            conditions: What selection compares of all training windows (N, C): noise is then chosen for what they
                leave open of the actions. None: for the actions.
        """
        select = self.selector()
        if conditions is None:
            return self._with_potentials(select, actions)
        prediction = fit_linear_prediction(conditions, actions)
        residuals = ForResidual(select, prediction).residual(actions, conditions)
        return ForResidual(self._with_potentials(select, residuals), prediction)

    def _with_potentials(self, select: Selector, samples: Tensor) -> Selector:
        """The selector, with potentials fitted to what it will see (N, T, A) if it takes any and they are wanted."""
        if not self.potentials or not isinstance(select, Assignment):
            return select
        target = standardize(samples.flatten(1), None) if select.standardized else samples
        return replace(select, potentials=fit_potentials(target, cost=select.cost))


def noise_options(noise: dict[str, Any], *, steps: int, batch_size: int, steps_per_epoch: float) -> NoiseOptions:
    """Check a run's noise group and turn epochs into steps.

    Args:
        noise: `name` and options, as configured.
        steps: Length of the training.
        batch_size: Windows per step.
        steps_per_epoch: Training windows over batch size.

    Raises:
        ValueError: If an option is unusable, or nothing would ever be selected.
    """
    options = {key: value for key, value in noise.items() if key != "name"}
    for key in {"start", "stop", "ramp"} & set(options):
        options[key] = _in_steps(key, options[key], steps_per_epoch)
    wanted = options.pop("potentials", False)
    if wanted not in (True, False, "auto"):
        raise ValueError(f"potentials={wanted}: use auto, true or false")
    paired = steps - options.get("start", 0)
    checked = NoiseOptions(noise["name"], options, paired >= WORTH_FITTING if wanted == "auto" else wanted)
    if "start" in options:
        _require_selection(noise, options, steps, batch_size)
    return checked


def _require_selection(noise: dict[str, Any], options: dict[str, Any], steps: int, batch_size: int) -> None:
    """Refuse a schedule under which the noise stays vanilla at every step.

    Raises:
        ValueError: If there is none with selection.
    """
    schedule = Schedule(options["start"], options["stop"], options["ramp"])
    given = " ".join(f"{key}={noise[key]}" for key in ("start", "stop", "ramp") if noise[key])
    if schedule.start >= steps:
        raise ValueError(
            f"{given}: noise={noise['name']} would first select at step {schedule.start:,} of steps={steps}; "
            "give an earlier start= or more steps="
        )
    highest = schedule.highest(steps)
    more = options["k"] - 1 if noise["name"] == "knn" else batch_size - 1
    if more > 0 and round(more * highest) < 1:
        raise ValueError(
            f"{given}: noise={noise['name']} would never select, its strength reaches {highest:.2g}; shorten ramp="
        )


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


def require_selection(name: str, given: Mapping[str, str]) -> None:
    """Refuse options of the selection where nothing is selected.

    Args:
        name: The noise.
        given: Those options that are not at their defaults, and their values.

    Raises:
        ValueError: If there is one, and the noise is vanilla.
    """
    for key, value in given.items():
        if name == "vanilla":
            raise ValueError(f"{key}={value}: noise={name} selects no noise for a sample; leave {key}= out")


def diffusion_levels(text: str, chain: int) -> range | None:
    """Read the diffusion steps at which the chosen noise is used: `all` (None), or such as `50..99`.

    Raises:
        ValueError: If the text is neither, or no range of steps of the chain.
    """
    if text == "all":
        return None
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not ends or not int(ends[1]) <= int(ends[2]) < chain:
        raise ValueError(
            f"select_at={text}: write all, or diffusion steps such as 0..{chain // 2 - 1} (0 to {chain - 1} are there)"
        )
    return range(int(ends[1]), int(ends[2]) + 1)


def audit_row(
    select: Selector,
    x: Tensor,
    *,
    batch_size: int,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    step: int | None = None,
) -> dict[str, float | None]:
    """What selection does to the noise of whole batches, as metrics `noise/...`.

    Args:
        select: Chooses the noise.
        x: Clean samples (N, ...), as the selector sees them; N divides by batch_size.
        batch_size: Samples per batch.
        condition: What else it sees (N, C).
        mask: Which numbers of x enter the distance.
        step: Training step.
    """
    batches = len(x) // batch_size
    found = audit(select, x, batch_size=batch_size, batches=batches, condition=condition, mask=mask, step=step)
    return {
        "noise/distance_percent": found.distance.percent,
        "noise/squared_norm": found.selected.squared_norm,
        "noise/variance": found.selected.variance,
        "noise/ks": found.ks.statistic,
        "noise/correlation": found.correlation.row_means,
        "noise/prior_shift": found.prior_shift,
        "noise/selection_ms": 1e3 * found.seconds,
    } | {
        f"noise/target_variance_{level:g}": value
        for level, value in zip(found.target.alpha_bars, found.target.selected, strict=True)
    }


def _in_steps(key: str, value: Any, steps_per_epoch: float) -> Any:
    """Training steps from a number of steps, or of epochs written as 50ep."""
    if not isinstance(value, str):
        return value
    epochs = re.fullmatch(r"(\d+(?:\.\d+)?)ep", value)
    if not epochs:
        raise ValueError(f"{key}={value}: needs training steps (500) or epochs (50ep)")
    return round(float(epochs[1]) * steps_per_epoch)
