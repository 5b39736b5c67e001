"""From plain sizes to a policy: what a checkpoint records, and what it takes to rebuild it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from immiscible_policy.network.encoder import EncoderSpec, ImageEncoder
from immiscible_policy.network.unet import ConditionalUnet1d
from immiscible_policy.policy.chunk import ChunkPolicy
from immiscible_policy.policy.diffusion import DiffusionPolicy
from immiscible_policy.policy.image import ImagePolicy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.regression import TIMES, RegressionPolicy


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
        method: `diffusion`, or a control without it: `regression` or `mip`.
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
    method: str = "diffusion"


def build_policy(
    spec: PolicySpec, observation: Normalizer | None = None, action: Normalizer | None = None
) -> ChunkPolicy:
    """Build a policy with fresh weights; normalisers left out are placeholders until weights are loaded.

    Raises:
        ValueError: If the sizes do not fit together.
    """
    factor = 2 ** (len(spec.down_dims) - 1)
    if spec.horizon % factor:
        raise ValueError(
            f"horizon={spec.horizon} does not divide by {factor}, as down_dims={list(spec.down_dims)} need"
        )
    encoder = ImageEncoder(spec.encoder) if spec.encoder else None
    denoiser = ConditionalUnet1d(
        spec.action_dim,
        spec.obs_steps * (spec.encoder.features(spec.obs_dim) if spec.encoder else spec.obs_dim),
        step_embed_dim=spec.step_embed_dim,
        down_dims=spec.down_dims,
        kernel_size=spec.kernel_size,
        groups=spec.groups,
    )
    return _kind(spec, encoder)(
        denoiser,
        observation or _placeholder(spec.obs_dim),
        action or _placeholder(spec.action_dim),
        horizon=spec.horizon,
        diffusion_steps=spec.diffusion_steps,
        data_scale=spec.data_scale,
    )


def _kind(spec: PolicySpec, encoder: ImageEncoder | None) -> Callable[..., ChunkPolicy]:
    """The class of a policy, with what it alone takes."""
    if spec.method in TIMES:
        return partial(RegressionPolicy, times=TIMES[spec.method])
    return partial(ImagePolicy, encoder) if encoder else DiffusionPolicy


def _placeholder(dims: int) -> Normalizer:
    ones = torch.ones(dims, device="cpu")
    return Normalizer(-ones, ones)
