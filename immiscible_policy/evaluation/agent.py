"""A trained policy, ready to act: from weights in memory or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_policy.capture import use_device
from immiscible_policy.demos.windows import Layout
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.policy import Pictured, Policy, PolicySpec, build_policy
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.tasks import Observed


class Agent:
    """Samples action chunks of a policy in evaluation mode and returns the part to execute.

    Raises ValueError if the solver does not go with what the policy learned.
    """

    def __init__(self, policy: Policy, spec: PolicySpec, solver: Solver) -> None:
        solver.plan(policy.path)  # refuses what does not go together
        self.policy, self.spec, self.solver = policy, spec, solver
        self.obs, self.obs_steps = spec.obs, spec.obs_steps
        self._executed = Layout.of(spec).executed

    def act(self, observed: Observed, generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """Actions to execute (B, action_steps, A), in the environment's units."""
        device = self.policy.action.scale.device
        numbers = torch.from_numpy(observed.numbers).float().to(device)
        seen: Any = numbers
        if self.spec.encoder is not None:
            frames = [torch.from_numpy(observed.frames[camera]) for camera in self.spec.encoder.cameras]
            seen = Pictured(numbers, torch.stack(frames, dim=2).to(device))
        return self.policy.predict(seen, self.solver, generators)[:, self._executed].double().cpu().numpy()


def spec_metadata(spec: PolicySpec) -> dict[str, Any]:
    """What a checkpoint's metadata records about a policy."""
    return {"policy": asdict(spec)}


def load_policy(checkpoint: Checkpoint, device: str = "cpu") -> tuple[Policy, PolicySpec]:
    """Build the policy of a checkpoint with its EMA weights, in evaluation mode.

    Raises CheckpointError if the checkpoint is damaged or does not describe a policy.
    """
    spec = read_spec(checkpoint)
    policy = build_policy(spec)
    try:
        policy.load_state_dict(checkpoint.tensors("ema"))
    except RuntimeError:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the policy it describes") from None
    return policy.to(device).eval(), spec


def read_spec(checkpoint: Checkpoint) -> PolicySpec:
    """What a checkpoint's metadata records about its policy; nothing is built.

    Raises CheckpointError if it does not describe a policy.
    """
    recorded = checkpoint.metadata.get("policy")
    names = {field.name for field in fields(PolicySpec)}
    needed = {field.name for field in fields(PolicySpec) if field.default is MISSING}
    if not isinstance(recorded, dict) or not needed <= set(recorded) <= names:
        raise CheckpointError(f"{checkpoint.path} describes no policy that this version knows")
    encoder = recorded.get("encoder")
    encoder = encoder and EncoderSpec(**encoder | {"cameras": tuple(encoder["cameras"])})
    return PolicySpec(**recorded | {"down_dims": tuple(recorded["down_dims"]), "encoder": encoder})


def solver_of(
    checkpoint: Checkpoint,
    name: str | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    eta: float | None = None,
) -> Solver:
    """How a checkpoint's run sampled when it was evaluated in training; ten steps of DDIM for a policy from elsewhere.

    A name, number of network calls, spacing or eta (noise of `ddim`) that is given counts instead.

    Raises:
        ValueError: If a value is unknown or out of range.
    """
    config = checkpoint.metadata.get("config", {})
    recorded = config.get("solver", "ddim")
    chosen = name or recorded
    return Solver(
        chosen,
        config.get("sampling_steps", 10) if steps is None else steps,
        spacing or config.get("spacing", "trailing"),
        (config.get("eta", 0.0) if chosen == recorded else 0.0) if eta is None else eta,
    )


def load_agent(checkpoint: Checkpoint, solver: Solver, device: str = "cpu") -> Agent:
    """Make a checkpoint act, on as many CPU threads as it was trained and evaluated with: bits depend on them.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        ValueError: If the solver does not go with what the policy learned.
    """
    use_device(device)
    torch.set_num_threads(checkpoint.metadata.get("config", {}).get("threads") or torch.get_num_threads())
    return Agent(*load_policy(checkpoint, device), solver)
