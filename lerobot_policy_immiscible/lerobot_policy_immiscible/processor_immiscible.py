"""The processors of policy type `immiscible`: LeRobot's own for its diffusion policy."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot.processor import PolicyAction, PolicyProcessorPipeline

from lerobot_policy_immiscible.configuration_immiscible import ImmiscibleConfig


def make_immiscible_pre_post_processors(
    config: ImmiscibleConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """Build what normalises observations and actions, and what brings actions back.

    Args:
        config: The policy's configuration.
        dataset_stats: Statistics of each feature.
    """
    return make_diffusion_pre_post_processors(config, dataset_stats)
