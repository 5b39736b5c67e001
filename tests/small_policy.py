"""A small policy of keypoints, in a square of 512 pixels."""

import torch

from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.policy import Policy

SPEC = PolicySpec(
    obs="keypoints", obs_dim=20, action_dim=2, horizon=16, obs_steps=2, action_steps=8,
    method="diffusion", prediction="epsilon", diffusion_steps=100,
    data_scale=1.0, down_dims=(16, 32), step_embed_dim=16, kernel_size=5, groups=8,
)  # fmt: skip


def small_policy() -> Policy:
    """Always the same weights."""
    torch.manual_seed(0)
    pixels, seen = (Normalizer(torch.zeros(n), torch.full((n,), 512.0)) for n in (2, 20))
    return build_policy(SPEC, seen, pixels).eval()
