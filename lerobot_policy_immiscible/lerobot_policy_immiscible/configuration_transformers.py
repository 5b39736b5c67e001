"""The options of LeRobot's multi-task transformer, SmolVLA, pi0 and pi05, and how training noise is chosen.

They are in LeRobot 0.6, which needs its extras `multi_task_dit`, `smolvla` and `pi` for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_policy_immiscible.noise_options import NoiseOptions


@PreTrainedConfig.register_subclass("immiscible_multi_task_dit")
@dataclass
class ImmiscibleMultiTaskDiTConfig(NoiseOptions, MultiTaskDiTConfig):
    """LeRobot's `MultiTaskDiTConfig` with `NoiseOptions`."""


@PreTrainedConfig.register_subclass("immiscible_smolvla")
@dataclass
class ImmiscibleSmolVLAConfig(NoiseOptions, SmolVLAConfig):
    """LeRobot's `SmolVLAConfig` with `NoiseOptions`."""


@PreTrainedConfig.register_subclass("immiscible_pi0")
@dataclass
class ImmisciblePI0Config(NoiseOptions, PI0Config):
    """LeRobot's `PI0Config` with `NoiseOptions`."""


@PreTrainedConfig.register_subclass("immiscible_pi05")
@dataclass
class ImmisciblePI05Config(NoiseOptions, PI05Config):
    """LeRobot's `PI05Config` with `NoiseOptions`."""
