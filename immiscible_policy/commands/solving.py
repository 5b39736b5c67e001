"""The options of every command that samples from a trained policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from immiscible_policy.cli import COUNT, Option
from immiscible_policy.evaluation.agent import solver_of
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint

OPTIONS = {
    "solver": Option(
        str, None, "ddim, ddpm, dpmpp (DPM-Solver++ 2M), euler, heun or renoise; absent: as in training", "sampler"
    ),
    "sampling_steps": Option(COUNT, None, "network calls; absent: as in training"),
    "spacing": Option(str, None, "trailing, shifted, or leading as published; absent: as in training"),
    "eta": Option(float, None, "noise of solver=ddim or dpmpp, 0 to 1; absent: as in training"),
}


def chosen_solver(checkpoint: Checkpoint, options: Mapping[str, Any], name: str | None = None) -> Solver:
    """How a checkpoint samples: as in training, but for a solver's name and for what the values of `OPTIONS` say.

    Raises ValueError if a value is unknown or out of range.
    """
    name = name or options["solver"]
    return solver_of(checkpoint, name, options["sampling_steps"], options["spacing"], options["eta"])
