"""LeRobot's denoising policies trained with immiscible noise: `lerobot-train --policy.type=immiscible`.

    type                         LeRobot's own
    immiscible                   diffusion
    immiscible_flow              diffusion, its networks trained by flow matching
    immiscible_multi_task_dit    multi_task_dit, objective diffusion or flow_matching
    immiscible_smolvla           smolvla
    immiscible_pi0               pi0
    immiscible_pi05              pi05

LeRobot imports every installed distribution whose name begins with `lerobot_policy_`; importing this one registers
these types, and the environment `immiscible_pusht`. LeRobot finds policies and processors by the names of the modules
beside the configurations. In a script, `use_noise(policy, "knn", k=2)` does it for a policy that is there already.
"""

from importlib.util import find_spec

try:
    import lerobot  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError("lerobot_policy_immiscible needs LeRobot: pip install 'lerobot>=0.4.4,<0.7'") from None

from lerobot_policy_immiscible.configuration_immiscible import ImmiscibleConfig
from lerobot_policy_immiscible.configuration_immiscible_flow import ImmiscibleFlowConfig
from lerobot_policy_immiscible.environment_immiscible import ImmisciblePushT
from lerobot_policy_immiscible.training_noise import use_noise

__all__ = ["ImmiscibleConfig", "ImmiscibleFlowConfig", "ImmisciblePushT", "use_noise"]

if find_spec("lerobot.policies.multi_task_dit"):  # LeRobot 0.6
    import lerobot_policy_immiscible.configuration_transformers
