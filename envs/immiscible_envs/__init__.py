"""PushT: push a T-shaped block onto its goal. Avoid: cross a plane past rows of pillars, in one of 24 ways.

Importing this package registers its environments with Gymnasium: at once if Gymnasium has been imported, otherwise as
soon as it is. Gymnasium 1.0 stopped reading entry points, so an installation imports this package when the interpreter
starts (`immiscible_envs.pth`): `gymnasium.make("immiscible/PushT-v0")` needs no import of ours, in spawned workers too.
That costs a start about a millisecond: nothing but importlib is imported here. Where no such file is read,
`gymnasium.make("immiscible_envs:immiscible/PushT-v0")` imports it, or `import immiscible_envs` does.
"""

import sys
from importlib.machinery import PathFinder

MAX_EPISODE_STEPS, MAX_AVOID_STEPS = 300, 150


def register() -> None:
    """Register the environments with Gymnasium, once."""
    from gymnasium.envs.registration import register, registry

    if "immiscible/PushT-v0" in registry:
        return
    register(
        "immiscible/PushT-v0",
        entry_point="immiscible_envs.pusht:PushTEnv",
        vector_entry_point="immiscible_envs.vector:PushTVectorEnv",
        max_episode_steps=MAX_EPISODE_STEPS,
    )
    register(
        "immiscible/PushT-LeRobot-v0",
        entry_point="immiscible_envs.lerobot:make",
        max_episode_steps=MAX_EPISODE_STEPS,
    )
    register(
        "immiscible/Avoid-v0",
        entry_point="immiscible_envs.avoid:AvoidEnv",
        vector_entry_point="immiscible_envs.avoid:AvoidVectorEnv",
        max_episode_steps=MAX_AVOID_STEPS,
    )


class RegisterAfterGymnasium:
    """An import hook that calls `register` when `gymnasium.envs` has been imported, and then is gone."""

    @classmethod
    def find_spec(cls, name, path, target=None):
        """Find `gymnasium.envs`, with `register` at the end of its execution, and no other module."""
        if name != "gymnasium.envs":
            return None
        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "gymnasium.envs" in sys.modules:
    register()
elif RegisterAfterGymnasium not in sys.meta_path:
    sys.meta_path.insert(0, RegisterAfterGymnasium)
