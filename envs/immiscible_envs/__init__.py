"""PushT: push a T-shaped block onto its goal. Importing this package registers `immiscible/PushT-v0`."""

import gymnasium

MAX_EPISODE_STEPS = 300

gymnasium.register(
    id="immiscible/PushT-v0",
    entry_point="immiscible_envs.pusht:PushTEnv",
    vector_entry_point="immiscible_envs.vector:PushTVectorEnv",
    max_episode_steps=MAX_EPISODE_STEPS,
)
