"""From plain sizes to a policy: what a checkpoint records, and what it takes to rebuild it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from immiscible_policy.policy.diffusion import DiffusionPolicy
from immiscible_policy.policy.encoder import EncoderSpec, ImageEncoder
from immiscible_policy.policy.image import ImagePolicy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.unet import ConditionalUnet1d


@dataclass(frozen=True)
class PolicySpec:
    """Everything that shapes a policy except its weights; plain values, so that it is stored as JSON.

    Attributes:
        obs: What it observes: `keypoints`, `state` or `image`.
        obs_dim: Numbers per observation; beside images, the agent's position.
        action_dim: Numbers per action.
        horizon: Steps of a chunk.
        obs_steps: Observations it sees.
        action_steps: Actions executed per chunk.
        diffusion_steps: Length of the noising chain.
        data_scale: Factor on the normalised actions.
        down_dims: Channels of the U-Net.
        step_embed_dim: Size of its diffusion-step embedding.
        kernel_size: Of its convolutions.
        groups: Of its group normalisation.
        encoder: What encodes images, or None where nothing is seen.
    """

    obs: str
    obs_dim: int
    action_dim: int
    horizon: int
    obs_steps: int
    action_steps: int
    diffusion_steps: int
    data_scale: float
    down_dims: tuple[int, ...]
    step_embed_dim: int
    kernel_size: int
    groups: int
    encoder: EncoderSpec | None = None


def build_policy(
    spec: PolicySpec, observation: Normalizer | None = None, action: Normalizer | None = None
) -> DiffusionPolicy:
    """Build a policy with fresh weights; normalisers left out are placeholders until weights are loaded.

    Raises:
        ValueError: If the sizes do not fit together.
    """
    factor = 2 ** (len(spec.down_dims) - 1)
    if spec.horizon % factor:
        raise ValueError(
            f"horizon={spec.horizon} does not divide by {factor}, as down_dims={list(spec.down_dims)} need"
        )
    encoder = spec.encoder and ImageEncoder(spec.encoder)
    denoiser = ConditionalUnet1d(
        spec.action_dim,
        spec.obs_steps * (spec.encoder.features(spec.obs_dim) if spec.encoder else spec.obs_dim),
        step_embed_dim=spec.step_embed_dim,
        down_dims=spec.down_dims,
        kernel_size=spec.kernel_size,
        groups=spec.groups,
    )
    policy = partial(ImagePolicy, encoder) if encoder else DiffusionPolicy
    return policy(
        denoiser,
        observation or _placeholder(spec.obs_dim),
        action or _placeholder(spec.action_dim),
        horizon=spec.horizon,
        diffusion_steps=spec.diffusion_steps,
        data_scale=spec.data_scale,
    )


def _placeholder(dims: int) -> Normalizer:
    ones = torch.ones(dims, device="cpu")
    return Normalizer(-ones, ones)
