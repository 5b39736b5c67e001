"""Policy type `immiscible`: the options of LeRobot's diffusion policy, and how training noise is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from lerobot_policy_immiscible.noise_options import NoiseOptions


@PreTrainedConfig.register_subclass("immiscible")
@dataclass
class ImmiscibleConfig(NoiseOptions, DiffusionConfig):
    """LeRobot's `DiffusionConfig` with `NoiseOptions`."""
