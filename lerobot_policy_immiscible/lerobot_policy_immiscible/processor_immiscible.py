"""The processors of policy type `immiscible`: LeRobot's own for its diffusion policy."""

from lerobot.policies.diffusion.processor_diffusion import (
    make_diffusion_pre_post_processors as make_immiscible_pre_post_processors,
)

__all__ = ["make_immiscible_pre_post_processors"]
