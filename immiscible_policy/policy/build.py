"""From plain sizes to a policy: what a checkpoint records, and what it takes to rebuild it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from immiscible_policy.network.encoder import EncoderSpec, ImageEncoder
from immiscible_policy.network.unet import ConditionalUnet1d
from immiscible_policy.path import Ddpm, Flow, ProbabilityPath, Regression
from immiscible_policy.path.regression import MIP, REGRESSION
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.observer import ImageObserver, NumberObserver
from immiscible_policy.policy.policy import Policy


@dataclass(frozen=True)
class PolicySpec:
    """Everything that shapes a policy except its weights; plain values, so that it is stored as JSON."""

    obs: str  # name of the observation, as the task knows it
    obs_dim: int  # numbers per observation; beside images, those that need no encoding
    action_dim: int  # numbers per action
    horizon: int  # steps of a chunk
    obs_steps: int  # observations it sees
    action_steps: int  # actions executed per chunk
    data_scale: float  # factor on the normalised actions
    down_dims: tuple[int, ...]  # channels of the U-Net
    step_embed_dim: int  # size of its embedding of the time
    kernel_size: int  # width of its convolutions
    groups: int  # groups of its normalisation
    method: str  # a key of `PATHS`
    prediction: str  # what the network of `diffusion` or `flow` predicts
    diffusion_steps: int  # length of the noising chain
    encoder: EncoderSpec | None = None  # what encodes images, or None where nothing is seen
    kernels: str = "fused"  # what carries the network out on a CPU: `fused` or `plain`


PATHS: dict[str, Callable[..., ProbabilityPath]] = {
    "diffusion": lambda spec, **training: Ddpm(spec.diffusion_steps, prediction=spec.prediction, **training),
    "flow": lambda spec, **training: Flow(spec.prediction, **training),
    "regression": lambda spec: Regression(REGRESSION, chain=spec.diffusion_steps),
    "mip": lambda spec: Regression(MIP, chain=spec.diffusion_steps),
}
"""How each method's path is made from a specification and what only training needs to know."""


def build_policy(
    spec: PolicySpec, observation: Normalizer | None = None, action: Normalizer | None = None, **training: Any
) -> Policy:
    """Build a policy with fresh weights; normalisers left out are placeholders until weights are loaded.

    `training` is what only training needs of the path: `law`, `calls` and `spacing` of `Flow`, `min_snr` of `Ddpm`.

    Raises ValueError if a name is unknown or the sizes do not fit together.
    """
    factor = 2 ** (len(spec.down_dims) - 1)
    if spec.horizon % factor:
        need = f"as down_dims={list(spec.down_dims)} need"
        raise ValueError(f"horizon={spec.horizon} does not divide by {factor}, {need}")
    observed = observation or _placeholder(spec.obs_dim)
    observer = ImageObserver(observed, ImageEncoder(spec.encoder)) if spec.encoder else NumberObserver(observed)
    network = ConditionalUnet1d(
        spec.action_dim,
        spec.obs_steps * (spec.encoder.features(spec.obs_dim) if spec.encoder else spec.obs_dim),
        step_embed_dim=spec.step_embed_dim,
        down_dims=spec.down_dims,
        kernel_size=spec.kernel_size,
        groups=spec.groups,
        kernels=spec.kernels,
    )
    if spec.method not in PATHS:
        raise ValueError(f"method={spec.method}: choose from {', '.join(PATHS)}")
    path, action = PATHS[spec.method](spec, **training), action or _placeholder(spec.action_dim)
    return Policy(path, network, observer, action, horizon=spec.horizon, data_scale=spec.data_scale)


def _placeholder(dims: int) -> Normalizer:
    ones = torch.ones(dims, device="cpu")
    return Normalizer(-ones, ones)
