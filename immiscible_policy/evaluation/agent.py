"""A trained policy, ready to act: from weights in memory or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_policy.capture import use_device
from immiscible_policy.cli import one_line
from immiscible_policy.demos.windows import Layout
from immiscible_policy.network.crop import resize
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.policy import Pictured, Policy, PolicySpec, build_policy
from immiscible_policy.randomness import torch_generator
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.store.reading import described, require_kinds
from immiscible_policy.tasks import Observed


class Agent:
    """Samples action chunks of a policy in evaluation mode.

        step of the chunk      0    1    2    3  ...    8    9  ...   15
        observed               o    o                                         obs_steps = 2
        `chunk` returns             #    #    #  ...    #    #  ...    #      from the newest observation on
        `act` returns               #    #    #  ...    #                     action_steps = 8 of them

    Args:
        policy: With the weights that act.
        spec: What the policy was built from.
        solver: How to go from noise to actions.
        dtype: Type of numbers in which the networks multiply, torch.float32 or torch.bfloat16.

    Raises:
        ValueError: If the solver does not go with what the policy learned, or the dtype is another one.
    """

    def __init__(self, policy: Policy, spec: PolicySpec, solver: Solver, dtype: torch.dtype = torch.float32) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype={dtype}: use torch.float32 or torch.bfloat16")
        self.calls = len(solver.plan(policy.path))  # refuses what does not go together
        self.policy, self.spec, self.solver, self.dtype = policy, spec, solver, dtype
        self.obs, self.obs_steps, self.action_steps = spec.obs, spec.obs_steps, spec.action_steps

    @property
    def device(self) -> torch.device:
        """Where the policy lies."""
        return self.policy.action.scale.device

    def act(self, observed: Observed, generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """Actions to execute (B, action_steps, A), in the environment's units."""
        return self.chunk(observed, generators)[:, : self.action_steps]

    def chunk(self, observed: Observed, generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """All predicted actions from now on (B, horizon - obs_steps + 1, A), in the environment's units."""
        numbers = torch.from_numpy(observed.numbers).float().to(self.device)
        seen: Any = numbers
        if self.spec.encoder is not None:
            size, cameras = self.spec.encoder.resize, self.spec.encoder.cameras
            frames = [torch.from_numpy(observed.frames[camera]) for camera in cameras]
            frames = frames if size is None else [resize(frame, size) for frame in frames]
            seen = Pictured(numbers, torch.stack(frames, dim=2).to(self.device))
        with self._precision():
            actions = self.policy.predict(seen, self.solver, generators)
        return actions[:, self.obs_steps - 1 :].double().cpu().numpy()

    def _precision(self) -> AbstractContextManager[object]:
        """Products in bfloat16 if that is the dtype; without autocast's cache, which a captured graph would read."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=self.device.type == "cpu")


def sampling_noise(start: int) -> torch.Generator:
    """The source of all sampling noise of an episode: a function of its start alone."""
    return torch_generator("cpu", "rollout", start)


def spec_metadata(spec: PolicySpec) -> dict[str, Any]:
    """What a checkpoint's metadata records about a policy."""
    return {"policy": asdict(spec)}


def read_policy(checkpoint: Checkpoint, device: str = "cpu") -> tuple[Policy, PolicySpec]:
    """Build the policy of a checkpoint with its EMA weights, in evaluation mode.

    Raises CheckpointError if the checkpoint is damaged or does not describe a policy.
    """
    spec, weights = read_spec(checkpoint), checkpoint.tensors("ema")
    try:
        Layout.of(spec)
        with torch.device("meta"):  # absurd sizes take no memory before they are compared
            shapes = {name: tensor.shape for name, tensor in build_policy(spec).state_dict().items()}
    except (ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{checkpoint.path} describes no policy that can be built ({one_line(error)})") from None
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the policy it describes")
    policy = build_policy(spec)
    policy.load_state_dict(weights)
    return policy.to(device).eval(), spec


def read_spec(checkpoint: Checkpoint) -> PolicySpec:
    """What a checkpoint's metadata records about its policy; nothing is built.

    Raises CheckpointError if it does not describe a policy.
    """
    recorded: Any = checkpoint.metadata.get("policy")
    try:
        encoder = recorded.get("encoder") and described(EncoderSpec, recorded["encoder"])
        return described(PolicySpec, recorded | {"encoder": encoder})
    except (TypeError, AttributeError, KeyError) as error:
        why = "" if recorded is None else f" ({one_line(error)})"
        raise CheckpointError(f"{checkpoint.path} describes no policy that this version knows{why}") from None


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
    config = checkpoint.config
    require_kinds(checkpoint.path, config, {"solver": str | None, "spacing": str | None}, "use another checkpoint")
    recorded = config.get("solver", "ddim")
    chosen = name or recorded
    return Solver(
        chosen,
        config.get("sampling_steps", 10) if steps is None else steps,
        spacing or config.get("spacing", "trailing"),
        (config.get("eta", 0.0) if chosen == recorded else 0.0) if eta is None else eta,
    )


def load_agent(
    checkpoint: Checkpoint, solver: Solver, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Agent:
    """Make a checkpoint act, on as many CPU threads as it was trained and evaluated with: bits depend on them.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        ValueError: If the solver does not go with what the policy learned.
    """
    use_device(device)
    torch.set_num_threads(checkpoint.config.get("threads") or torch.get_num_threads())
    policy, spec = read_policy(checkpoint, device)
    if dtype == torch.bfloat16 and policy.action.scale.is_cuda:
        policy.network.to(dtype)  # read from memory as they are multiplied
    return Agent(policy, spec, solver, dtype)
