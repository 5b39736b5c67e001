"""LeRobot's diffusion policy trained with immiscible noise: `lerobot-train --policy.type=immiscible`.

LeRobot imports every installed distribution whose name begins with `lerobot_policy_`; importing this one registers the
policy type `immiscible` and the environment `immiscible_pusht`. LeRobot finds the policy and its processors by the
names of the modules beside the configuration.
"""

try:
    import lerobot  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError("lerobot_policy_immiscible needs LeRobot: pip install 'lerobot>=0.4.4,<0.7'") from None

from lerobot_policy_immiscible.configuration_immiscible import ImmiscibleConfig
from lerobot_policy_immiscible.environment_immiscible import ImmisciblePushT

__all__ = ["ImmiscibleConfig", "ImmisciblePushT"]
