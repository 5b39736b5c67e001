"""Immiscible diffusion for robot policies: noise selectors, PushT, training, paired evaluation.

`load_policy("runs/mine").act(observation)` is a trained policy that acts, see `immiscible_policy.acting`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from immiscible_policy.acting import load_policy as load_policy

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_policy`, imported when it is first used: the selectors alone need torch and scipy, and no more."""
    if name != "load_policy":
        raise AttributeError(f"module 'immiscible_policy' has no attribute '{name}'")
    from immiscible_policy.acting import load_policy

    return load_policy
