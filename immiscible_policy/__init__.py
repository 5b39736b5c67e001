"""Immiscible diffusion for robot policies: noise selectors, PushT, training, paired evaluation.

`load_policy("runs/mine").act(observation)` is a trained policy that acts, see `immiscible_policy.acting`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from immiscible_policy.acting import load_policy as load_policy

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_policy`, imported when it is first used: it needs the extra `train`, the selectors do not."""
    if name != "load_policy":
        raise AttributeError(f"module 'immiscible_policy' has no attribute '{name}'")
    from immiscible_policy.cli import require_extra

    require_extra("train")
    from immiscible_policy.acting import load_policy

    return load_policy
