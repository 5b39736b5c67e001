"""LeRobot's multi-task transformer, SmolVLA, pi0 and pi05, trained with chosen noise."""

from __future__ import annotations

from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_immiscible.configuration_transformers import (
    ImmiscibleMultiTaskDiTConfig,
    ImmisciblePI0Config,
    ImmisciblePI05Config,
    ImmiscibleSmolVLAConfig,
)
from lerobot_policy_immiscible.training_noise import ChosenNoise


class ImmiscibleMultiTaskDiTPolicy(ChosenNoise, MultiTaskDiTPolicy):
    """LeRobot's `MultiTaskDiTPolicy` with `ChosenNoise`."""

    config_class = ImmiscibleMultiTaskDiTConfig
    name = "immiscible_multi_task_dit"


class ImmiscibleSmolVLAPolicy(ChosenNoise, SmolVLAPolicy):
    """LeRobot's `SmolVLAPolicy` with `ChosenNoise`."""

    config_class = ImmiscibleSmolVLAConfig
    name = "immiscible_smolvla"


class ImmisciblePI0Policy(ChosenNoise, PI0Policy):
    """LeRobot's `PI0Policy` with `ChosenNoise`."""

    config_class = ImmisciblePI0Config
    name = "immiscible_pi0"


class ImmisciblePI05Policy(ChosenNoise, PI05Policy):
    """LeRobot's `PI05Policy` with `ChosenNoise`."""

    config_class = ImmisciblePI05Config
    name = "immiscible_pi05"
