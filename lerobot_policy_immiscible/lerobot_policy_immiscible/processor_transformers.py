"""The processors of the policy types in `configuration_transformers`: LeRobot's own, under the names it looks for."""

from lerobot.policies.multi_task_dit.processor_multi_task_dit import (
    make_multi_task_dit_pre_post_processors as make_immiscible_multi_task_dit_pre_post_processors,
)
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors as make_immiscible_pi0_pre_post_processors
from lerobot.policies.pi05.processor_pi05 import (
    make_pi05_pre_post_processors as make_immiscible_pi05_pre_post_processors,
)
from lerobot.policies.smolvla.processor_smolvla import (
    make_smolvla_pre_post_processors as make_immiscible_smolvla_pre_post_processors,
)

__all__ = [
    "make_immiscible_multi_task_dit_pre_post_processors",
    "make_immiscible_pi05_pre_post_processors",
    "make_immiscible_pi0_pre_post_processors",
    "make_immiscible_smolvla_pre_post_processors",
]
