"""Policy type `immiscible`: LeRobot's diffusion policy, trained with chosen noise."""

from __future__ import annotations

from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

from lerobot_policy_immiscible.configuration_immiscible import ImmiscibleConfig
from lerobot_policy_immiscible.training_noise import ChosenNoise


class ImmisciblePolicy(ChosenNoise, DiffusionPolicy):
    """LeRobot's `DiffusionPolicy` with `ChosenNoise`."""

    config_class = ImmiscibleConfig
    name = "immiscible"
