"""The processors of policy type `immiscible_flow`: LeRobot's own for its diffusion policy."""

from lerobot.policies.diffusion.processor_diffusion import (
    make_diffusion_pre_post_processors as make_immiscible_flow_pre_post_processors,
)

__all__ = ["make_immiscible_flow_pre_post_processors"]
