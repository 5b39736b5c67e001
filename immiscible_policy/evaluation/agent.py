"""A trained policy, ready to act: from weights in memory or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_policy.capture import use_device
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.chunk import ChunkPolicy
from immiscible_policy.policy.diffusion import DiffusionPolicy, Sampler
from immiscible_policy.policy.image import Pictured
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError

Observations = NDArray[np.float64] | dict[str, NDArray[Any]]
"""The last observations of B episodes: an array, or for `obs_type="image"` a dictionary of them."""


class Agent:
    """Samples action chunks and returns the part to execute.

    Args:
        policy: The policy, in evaluation mode.
        spec: Its sizes.
        sampler: How to denoise.

    Raises:
        ValueError: If the sampler has more steps than the policy's noising chain.
    """

    def __init__(self, policy: ChunkPolicy, spec: PolicySpec, sampler: Sampler) -> None:
        sampler.timesteps(policy.diffusion_steps)  # refuses steps that the chain does not have
        self.policy, self.spec, self.sampler = policy, spec, sampler
        self.obs, self.obs_steps = spec.obs, spec.obs_steps

    def act(self, observations: Observations, generators: Sequence[torch.Generator]) -> NDArray[np.float64]:
        """Actions to execute (B, action_steps, 2) in px, given the last observations (B, obs_steps, Do).

        Observations with pictures are a dictionary of `image` (B, obs_steps, H, W, 3) and `agent_pos`.
        """
        chunk = self.policy.sample(self._tensors(observations), self.sampler, generators)
        first = self.spec.obs_steps - 1
        return chunk[:, first : first + self.spec.action_steps].double().cpu().numpy()

    def _tensors(self, observations: Observations) -> Any:
        """Observations as the policy takes them, on its device."""
        device = self.policy.action.scale.device
        if not isinstance(observations, dict):
            return torch.from_numpy(observations).float().to(device)
        agent = torch.from_numpy(observations["agent_pos"]).float().to(device)
        return Pictured(agent, torch.from_numpy(observations["image"]).to(device).unsqueeze(2))  # of one camera


def spec_metadata(spec: PolicySpec) -> dict[str, Any]:
    """What a checkpoint's metadata records about a policy."""
    return {"policy": asdict(spec)}


def load_policy(checkpoint: Checkpoint, device: str = "cpu") -> tuple[ChunkPolicy, PolicySpec]:
    """Build the policy of a checkpoint with its EMA weights, in evaluation mode.

    Raises:
        CheckpointError: If the checkpoint is damaged or describes no policy.
    """
    recorded = checkpoint.metadata.get("policy")
    names = {field.name for field in fields(PolicySpec)}
    needed = {field.name for field in fields(PolicySpec) if field.default is MISSING}
    if not isinstance(recorded, dict) or not needed <= set(recorded) <= names:
        raise CheckpointError(f"{checkpoint.path} describes no policy that this version knows")
    encoder = recorded.get("encoder")
    encoder = encoder and EncoderSpec(**encoder | {"cameras": tuple(encoder["cameras"])})
    spec = PolicySpec(**recorded | {"down_dims": tuple(recorded["down_dims"]), "encoder": encoder})
    policy = build_policy(spec)
    try:
        policy.load_state_dict(checkpoint.tensors("ema"))
    except RuntimeError:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the policy it describes") from None
    return policy.to(device).eval(), spec


def load_diffusion(checkpoint: Checkpoint, device: str = "cpu") -> tuple[DiffusionPolicy, PolicySpec]:
    """As `load_policy`, for what looks at the noising chain.

    Raises:
        CheckpointError: As there, or if the policy is a control, which has no such chain.
    """
    policy, spec = load_policy(checkpoint, device)
    if not isinstance(policy, DiffusionPolicy):
        raise CheckpointError(f"{checkpoint.path}: method={spec.method} does not diffuse; use a diffusion policy")
    return policy, spec


def sampler_of(checkpoint: Checkpoint, name: str | None = None, steps: int | None = None) -> Sampler:
    """How a checkpoint's run sampled when it was evaluated in training; ten steps of DDIM for a policy from elsewhere.

    Args:
        checkpoint: What is to act.
        name: One of `SAMPLERS` instead.
        steps: Denoising steps instead.

    Raises:
        ValueError: If the name is unknown or steps < 1.
    """
    config = checkpoint.metadata.get("config", {})
    return Sampler(
        config.get("solver", "ddim") if name is None else name,  # type: ignore[arg-type]
        config.get("sampling_steps", 10) if steps is None else steps,
    )


def load_agent(checkpoint: Checkpoint, sampler: Sampler, device: str = "cpu") -> Agent:
    """Make a checkpoint act, on as many CPU threads as it was trained and evaluated with: bits depend on them.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        ValueError: If the sampler has more steps than the policy's noising chain.
    """
    use_device(device)
    torch.set_num_threads(checkpoint.metadata.get("config", {}).get("threads") or torch.get_num_threads())
    return Agent(*load_policy(checkpoint, device), sampler)
